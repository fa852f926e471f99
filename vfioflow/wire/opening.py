"""How a connection begins: the preamble, by which both sides know at once whom they talk to.

Every connection opens with a preamble of 32 bytes from the source: whether this is a vfioflow of
the same version, what the connection is for, and, where it continues one that broke, at which attempt.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from vfioflow.errors import AuthenticationError, PeerError, PeerLost, ProtocolError
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.keys import TOKEN_SIZE
from vfioflow.wire.relay import Tunnel
from vfioflow.wire.security import Guard
from vfioflow.wire.tls import HANDSHAKE, ready
from vfioflow.wire.trouble import in_words, part

__all__ = [
    "HEARD",
    "MAX_ATTEMPT",
    "Preamble",
    "Role",
    "accept",
    "connect",
    "peer_of",
    "read_exactly",
    "read_preamble",
    "send_all",
]

MAGIC = b"VFIOFLOW"
MAX_ATTEMPT = 255
HEARD = struct.Struct("<Q")
"""How far a side got on a connection that broke: messages, or bytes of a channel."""
_PREAMBLE = struct.Struct("<8sHBBI16s")


class Role(enum.IntEnum):
    """What a connection is for; 0 is not valid.  From 16 on, why the destination does not take it."""

    CONTROL = 1
    DATA = 2
    ONLY_TLS = 16
    WRONG_NAME = 17


_REFUSALS = {
    Role.ONLY_TLS: "it takes only TLS connections: give both sides certificates (--tls DIR)",
    Role.WRONG_NAME: "it takes only a source whose certificate has another name (its --tls-peer)",
}


@dataclass(frozen=True, slots=True)
class Preamble:
    """The first 32 bytes: magic, version, role, attempt, the channel's number, a token.

    ``attempt`` is 0 for a new connection, and counts how often it was opened again.
    """

    role: Role
    channel: int = 0
    token: bytes = bytes(TOKEN_SIZE)
    attempt: int = 0

    def pack(self) -> bytes:
        """The preamble as it goes over the wire."""
        return _PREAMBLE.pack(
            MAGIC, messages.VERSION, self.role, self.attempt, self.channel, self.token
        )

    @classmethod
    def unpack(cls, data: bytes) -> Preamble:
        """The preamble in 32 bytes.  Raises ProtocolError, saying what is wrong."""
        magic, version, role, attempt, channel, token = _PREAMBLE.unpack(data)
        if magic != MAGIC:
            raise ProtocolError("the peer does not speak vfioflow's protocol (wrong magic)")
        if version != messages.VERSION:
            raise ProtocolError(
                f"the peer speaks version {version} of the protocol, this side {messages.VERSION}:"
                " install the same vfioflow on both"
            )
        if role not in tuple(Role):
            raise ProtocolError(f"the peer opened a connection for an unknown purpose ({role})")
        return cls(Role(role), channel, token, attempt)


async def connect(
    address: Address, preamble: Preamble, timeout: float, guard: Guard
) -> socket.socket:
    """A connected, non-blocking socket on which the preamble was sent.

    Raises:
        AuthenticationError: the destination's certificate is not good, or it has none.
        PeerLost: nobody there, or not within ``timeout`` seconds.
    """
    loop = asyncio.get_running_loop()
    problem = "no address"
    try:
        async with asyncio.timeout(timeout):
            for family, kind, proto, _, where in await _look_up(address):
                with ExitStack() as undo:
                    try:
                        sock = undo.enter_context(socket.socket(family, kind, proto))
                        _tune(sock)
                        await loop.sock_connect(sock, where)
                        if guard.tls is not None:
                            sock = undo.enter_context(await guard.tls.connect(sock, address))
                        await loop.sock_sendall(sock, preamble.pack())
                    except PeerLost as error:
                        problem = str(error)
                    except PeerError as error:
                        raise type(error)(f"{address}: {error}") from None
                    except OSError as error:
                        problem = in_words(error)
                    else:
                        undo.pop_all()
                        return sock
    except TimeoutError:
        problem = f"no answer within {timeout:g} s"
    except socket.gaierror as error:
        problem = in_words(error)
    raise PeerLost(f"cannot connect to {address}: {problem}")


async def accept(
    sock: socket.socket, peer: Address, guard: Guard
) -> tuple[socket.socket, Preamble]:
    """The destination's part: what the peer opened the connection for.

    Owns ``sock``; the one that it returns stands for the same connection.

    Raises:
        AuthenticationError: the peer's certificate is not good; or only one side uses TLS.
        ProtocolError: something else came.
        PeerLost: the peer closed.
    """
    with ExitStack() as undo:
        undo.callback(sock.close)
        _tune(sock)
        try:
            if guard.tls is not None:
                await _expect_tls(sock)
                undo.pop_all()
                refusal = Preamble(Role.WRONG_NAME).pack()
                sock = await guard.tls.accept(sock, peer, refusal)
                undo.callback(sock.close)
            preamble = await _read_preamble(sock)
            if preamble.role not in (Role.CONTROL, Role.DATA):
                raise ProtocolError(
                    f"the peer opened a connection for an unknown purpose ({preamble.role:d})"
                )
        except AuthenticationError:
            await part(sock)
            raise
        undo.pop_all()
    return sock, preamble


async def _expect_tls(sock: socket.socket) -> None:
    """Look at the first byte, and answer one who speaks vfioflow without TLS so that it understands."""
    try:
        await ready(sock, writing=False)
        first = sock.recv(1, socket.MSG_PEEK)
    except OSError as error:
        raise PeerLost(f"the connection failed: {in_words(error)}") from None
    if first == MAGIC[:1]:
        await send_all(sock, Preamble(Role.ONLY_TLS).pack())
        raise AuthenticationError("the peer does not use TLS, this side does: send with --tls DIR")
    if first and first != HANDSHAKE:
        raise ProtocolError("the peer speaks neither TLS nor vfioflow's protocol")


async def _look_up(address: Address) -> list[Any]:
    """What getaddrinfo finds; a number is no reason to start a thread.  Raises OSError."""
    number = socket.AI_NUMERICHOST
    try:
        return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=number)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)


def _tune(sock: socket.socket) -> None:
    """Small messages at once; a peer gone without a word is noticed within half a minute."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


async def read_preamble(sock: socket.socket, timeout: float) -> Preamble:
    """The destination's answer to a preamble.

    Raises:
        AuthenticationError: it does not take this side.
        ProtocolError: something else came.
        PeerLost: nothing came in time, or the peer closed.
    """
    try:
        async with asyncio.timeout(timeout):
            answer = await _read_preamble(sock)
    except TimeoutError:
        raise PeerLost(f"the peer said nothing within {timeout:g} s") from None
    if answer.role in _REFUSALS:
        raise AuthenticationError(f"{peer_of(sock)} refuses: {_REFUSALS[answer.role]}")
    return answer


async def _read_preamble(sock: socket.socket) -> Preamble:
    # Judged by its first bytes, so that a peer that says less than 32 bytes is told why.
    magic = await read_exactly(sock, len(MAGIC))
    if magic[:1] == HANDSHAKE:
        await send_all(sock, Preamble(Role.CONTROL).pack())  # which is no TLS, as it will notice
        raise AuthenticationError(
            "the peer uses TLS, this side does not: give both certificates (--tls DIR), or neither"
        )
    if magic != MAGIC:
        raise ProtocolError("the peer does not speak vfioflow's protocol (wrong magic)")
    return Preamble.unpack(magic + await read_exactly(sock, _PREAMBLE.size - len(magic)))


def peer_of(sock: socket.socket) -> Address:
    """Who is at the other end.  Raises PeerLost."""
    if isinstance(sock, Tunnel):
        return sock.peer
    try:
        return Address.of(sock, peer=True)
    except OSError as error:
        raise PeerLost(f"the peer is gone: {in_words(error)}") from None


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Send a few bytes.  Raises PeerLost."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError as error:
        raise _failure(sock) or PeerLost(f"the peer is gone: {in_words(error)}") from None


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    """The next ``size`` bytes.

    Raises:
        PeerLost: the connection ended or failed.
        PeerError: TLS says why it failed.
    """
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        try:
            piece = await loop.sock_recv(sock, size - len(data))
        except OSError as error:
            lost = PeerLost(f"the connection failed: {in_words(error)}")
            raise _failure(sock) or lost from None
        if not piece:
            raise _failure(sock) or PeerLost("the peer closed the connection")
        data += piece
    return bytes(data)


def _failure(sock: socket.socket) -> PeerError | None:
    """What broke a TLS connection."""
    error = sock.failure if isinstance(sock, Tunnel) else None
    return None if error is None else type(error)(str(error))

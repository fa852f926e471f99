"""How a connection begins: the preamble, by which both sides know at once whom they talk to.

Every connection opens with a preamble of 32 bytes from the source: whether this is a vfioflow of
the same version, what the connection is for, and, where it continues one that broke, at which attempt.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from vfioflow.errors import PeerLost, ProtocolError
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.keys import TOKEN_SIZE

__all__ = [
    "HEARD",
    "MAX_ATTEMPT",
    "Preamble",
    "Role",
    "connect",
    "in_words",
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
    """What a connection is for; 0 is not valid."""

    CONTROL = 1
    DATA = 2


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


async def connect(address: Address, preamble: Preamble, timeout: float) -> socket.socket:
    """A connected, non-blocking socket on which the preamble was sent.

    Raises:
        PeerLost: nobody there, or not within ``timeout`` seconds.
    """
    loop = asyncio.get_running_loop()
    problem: OSError | str = "no address"
    try:
        async with asyncio.timeout(timeout):
            for family, kind, proto, _, where in await _look_up(address):
                with ExitStack() as undo:
                    try:
                        sock = undo.enter_context(socket.socket(family, kind, proto))
                        _tune(sock)
                        await loop.sock_connect(sock, where)
                        await loop.sock_sendall(sock, preamble.pack())
                    except OSError as error:
                        problem = error
                    else:
                        undo.pop_all()
                        return sock
    except TimeoutError:
        problem = f"no answer within {timeout:g} s"
    except socket.gaierror as error:
        problem = error
    reason = problem if isinstance(problem, str) else in_words(problem)
    raise PeerLost(f"cannot connect to {address}: {reason}")


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
    """The peer's preamble.

    Raises:
        ProtocolError: something else came.
        PeerLost: nothing came in time, or the peer closed.
    """
    _tune(sock)
    try:
        async with asyncio.timeout(timeout):
            # Judged by its first bytes, so that a peer that says less than 32 bytes is told why.
            magic = await read_exactly(sock, len(MAGIC))
            if magic != MAGIC:
                raise ProtocolError("the peer does not speak vfioflow's protocol (wrong magic)")
            return Preamble.unpack(magic + await read_exactly(sock, _PREAMBLE.size - len(magic)))
    except TimeoutError:
        raise PeerLost(f"the peer said nothing within {timeout:g} s") from None


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Send a few bytes.  Raises PeerLost."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError as error:
        raise PeerLost(f"the peer is gone: {in_words(error)}") from None


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    """The next ``size`` bytes.  Raises PeerLost."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        try:
            piece = await loop.sock_recv(sock, size - len(data))
        except OSError as error:
            raise PeerLost(f"the connection failed: {in_words(error)}") from None
        if not piece:
            raise PeerLost("the peer closed the connection")
        data += piece
    return bytes(data)


def in_words(error: OSError) -> str:
    """The reason alone, without number or file."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)

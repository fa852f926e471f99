"""Connections: the preamble that each begins with, and the control connection.

Every connection opens with a preamble of 32 bytes, so that each side knows at once whether it
talks to a vfioflow of the same version, and the listener knows what the connection is for.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import msgspec

from vfioflow.errors import PeerLost, ProtocolError, RemoteError
from vfioflow.wire import messages
from vfioflow.wire.address import Address

__all__ = [
    "Control",
    "Preamble",
    "Role",
    "TOKEN_SIZE",
    "connect",
    "read_preamble",
    "send_preamble",
]

MAGIC = b"VFIOFLOW"
TOKEN_SIZE = 16
_PREAMBLE = struct.Struct("<8sHBxI16s")
_LENGTH = struct.Struct("<I")
MAX_MESSAGE = 1024 * 1024
"""Longest control message in bytes.  An offer of 4096 devices is about half of it."""

M = TypeVar("M", bound=messages.Message)
N = TypeVar("N", bound=messages.Message)
P = TypeVar("P", bound=messages.Message)


class Role(enum.IntEnum):
    """What a connection is for; 0 is not valid."""

    CONTROL = 1
    DATA = 2


@dataclass(frozen=True, slots=True)
class Preamble:
    """The first 32 bytes: magic, version, role, the channel's number, the session's token."""

    role: Role
    channel: int = 0
    token: bytes = bytes(TOKEN_SIZE)

    def pack(self) -> bytes:
        """The preamble as it goes over the wire."""
        return _PREAMBLE.pack(MAGIC, messages.VERSION, self.role, self.channel, self.token)

    @classmethod
    def unpack(cls, data: bytes) -> Preamble:
        """The preamble in 32 bytes.  Raises ProtocolError, saying what is wrong."""
        magic, version, role, channel, token = _PREAMBLE.unpack(data)
        if magic != MAGIC:
            raise ProtocolError("the peer does not speak vfioflow's protocol (wrong magic)")
        if version != messages.VERSION:
            raise ProtocolError(
                f"the peer speaks version {version} of the protocol, this side {messages.VERSION}:"
                " install the same vfioflow on both"
            )
        if role not in tuple(Role):
            raise ProtocolError(f"the peer opened a connection for an unknown purpose ({role})")
        return cls(Role(role), channel, token)


async def connect(address: Address, preamble: Preamble, timeout: float) -> socket.socket:
    """A connected, non-blocking socket on which the preamble was sent.

    Raises:
        PeerLost: nobody there, or not within ``timeout`` seconds.
    """
    loop = asyncio.get_running_loop()
    problem: OSError | str = "no address"
    try:
        async with asyncio.timeout(timeout):
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            for family, kind, proto, _, where in found:
                with ExitStack() as undo:
                    sock = undo.enter_context(socket.socket(family, kind, proto))
                    try:
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
    reason = problem if isinstance(problem, str) else _words(problem)
    raise PeerLost(f"cannot connect to {address}: {reason}")


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
            magic = await _read_exactly(sock, len(MAGIC))
            if magic != MAGIC:
                raise ProtocolError("the peer does not speak vfioflow's protocol (wrong magic)")
            return Preamble.unpack(magic + await _read_exactly(sock, _PREAMBLE.size - len(magic)))
    except TimeoutError:
        raise PeerLost(f"the peer said nothing within {timeout:g} s") from None


async def send_preamble(sock: socket.socket, preamble: Preamble) -> None:
    """Answer with a preamble of our own.  Raises PeerLost."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, preamble.pack())
    except OSError as error:
        raise PeerLost(f"the peer is gone: {_words(error)}") from None


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        try:
            piece = await loop.sock_recv(sock, size - len(data))
        except OSError as error:
            raise PeerLost(f"the connection failed: {_words(error)}") from None
        if not piece:
            raise PeerLost("the peer closed the connection")
        data += piece
    return bytes(data)


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


class Control:
    """The control connection of a session: typed messages, in order, both ways.

    One reader task takes what arrives.  :attr:`failure` is done as soon as the peer says Failed,
    breaks the protocol, or is gone; a session watches it while it does other things.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._inbox: asyncio.Queue[messages.Message] = asyncio.Queue(maxsize=16)
        self._sending = asyncio.Lock()
        try:
            self.peer = Address.of(sock, peer=True)
        except OSError as error:
            raise PeerLost(f"the peer is gone: {_words(error)}") from None
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._reader = asyncio.create_task(self._read(), name="vfioflow-control")

    async def send(self, message: messages.Message) -> None:
        """Send a message.  Raises PeerLost."""
        data = messages.encode(message)
        try:
            async with self._sending:
                await asyncio.get_running_loop().sock_sendall(
                    self._sock, _LENGTH.pack(len(data)) + data
                )
        except OSError as error:
            raise PeerLost(f"the connection to {self.peer} failed: {_words(error)}") from None

    @overload
    async def expect(self, kind: type[M], /, *, timeout: float | None, what: str) -> M: ...
    @overload
    async def expect(
        self, kind: type[M], other: type[N], /, *, timeout: float | None, what: str
    ) -> M | N: ...
    @overload
    async def expect(
        self, kind: type[M], other: type[N], third: type[P], /, *, timeout: float | None, what: str
    ) -> M | N | P: ...

    async def expect(self, *kinds: type[Any], timeout: float | None, what: str) -> Any:
        """The next message, which must be of one of these kinds.

        Raises:
            ProtocolError: it is of another kind.
            RemoteError: the peer said Failed.
            PeerLost: the peer is gone, or silent for ``timeout`` seconds; ``what`` names what
                was waited for.
        """
        getter = asyncio.create_task(self._inbox.get())
        waited: set[asyncio.Future[Any]] = {getter, self.failure}
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise PeerLost(f"{self.peer} did not send {what} within {timeout:g} s") from None
        finally:
            if not getter.done():
                getter.cancel()
        if not getter.done() or getter.cancelled():
            self.failure.result()
        message = getter.result()
        if not isinstance(message, kinds):
            self._fail(
                ProtocolError(f"{self.peer} sent {type(message).__name__} instead of {what}")
            )
            self.failure.result()
        return message

    async def _read(self) -> None:
        try:
            while True:
                (size,) = _LENGTH.unpack(await _read_exactly(self._sock, _LENGTH.size))
                if not 0 < size <= MAX_MESSAGE:
                    raise ProtocolError(f"{self.peer} announced a control message of {size} bytes")
                message = messages.decode(await _read_exactly(self._sock, size))
                if isinstance(message, messages.Failed):
                    raise RemoteError(f"{self.peer} gave up: {message.reason}")
                await self._inbox.put(message)
        except msgspec.DecodeError as error:
            self._fail(ProtocolError(f"{self.peer} sent a control message that is none: {error}"))
        except PeerLost as error:
            self._fail(PeerLost(f"{self.peer}: {error}"))
        except (ProtocolError, RemoteError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    async def close(self) -> None:
        """Close the connection and end the reader."""
        self._reader.cancel()
        await asyncio.wait([self._reader])
        if not self.failure.done():
            self.failure.cancel()
        self._sock.close()

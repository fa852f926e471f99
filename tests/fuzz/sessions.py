"""Whole sessions against a peer that follows a script: the bytes of an input, taken for steps.

An input is a byte of options and then steps: what to do (a byte), how many bytes belong to it (two),
and these.  Whatever the script says, it ends by closing everything, and then the session must end too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import streams
from inputs import shown

from vfioflow import (
    SimDevice,
    State,
    VfioflowError,
)
from vfioflow.journal import Journal
from vfioflow.wire import messages
from vfioflow.wire.control import MAX_MESSAGE
from vfioflow.wire.keys import TAG_SIZE, Keys, Seal
from vfioflow.wire.opening import Role
from vfioflow.wire.security import Security

T = TypeVar("T")

RAW, FRAMED, PICK, OPEN, DATA, WHOLE, HEAR, AGAIN = range(8)
"""Steps: bytes for the control connection; the same with a head; one of `streams.control_messages`;
open a channel; frames for it; a device's whole stream for it; wait for a message; open a connection again."""

GREET, WINDOW, JOURNAL, KEY = 1, 2, 4, 8
"""Options: the greetings are exchanged first; connections may be opened again; a journal; a key."""

PSK = bytes(range(16))
MOST_STEPS = 40
PATIENCE = 0.25
"""Seconds to wait for a message that may not come.  Once: after that nothing is waited for."""

CHUNK = 65536


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run in the one event loop of this process: making another takes longer than most inputs."""
    return _runner().run(work)


def close() -> None:
    """Close it; the next `run` makes another."""
    if _runner.cache_info().currsize:
        _runner().close()
        _runner.cache_clear()


def device(seed: int = 0) -> SimDevice:
    return SimDevice("tty0", profile="mtty", seed=seed)


@cache
def stream() -> bytes:
    """A device's whole stream, as it is migrated."""
    with device(7) as source:
        port = source.port(source.set_state(State.STOP_COPY))
        data = b""
        while True:
            with contextlib.suppress(BlockingIOError):
                piece = port.read(CHUNK)
                data += piece
                if not piece:
                    break
        port.close()
        source.set_state(State.STOP)
    return data


def sim_streams() -> Iterable[bytes]:
    return [stream(), stream()[:64]]


def steps(script: bytes) -> Iterator[tuple[int, bytes]]:
    at, count = 1, 0
    while len(script) - at >= 3 and count < MOST_STEPS:
        what, size = script[at] % 8, int.from_bytes(script[at + 1 : at + 3], "little")
        yield what, script[at + 3 : at + 3 + size]
        at += 3 + size
        count += 1


def script(options: int, *parts: tuple[int, bytes]) -> bytes:
    """The input that means these steps."""
    return bytes([options]) + b"".join(
        struct.pack("<BH", what, len(data)) + data for what, data in parts
    )


def picked(*kinds: type[messages.Message]) -> list[tuple[int, bytes]]:
    """Steps that send messages as they are."""
    known = [type(message) for message in streams.control_messages()]
    return [(PICK, bytes([known.index(kind)])) for kind in kinds]


def pieces(begin: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    """Scripts with each message, whole or not, at the beginning or after ``begin``."""
    for one in streams.controls():
        yield script(GREET, (RAW, one))
    for one in streams.encoded():
        yield script(GREET, *begin, (FRAMED, one))
    for one in streams.preambles():
        yield script(0, (RAW, one))


def which(payload: bytes) -> tuple[Role, int, int]:
    """The connection that AGAIN means: role, channel, attempt."""
    if payload[0] & 1:
        return Role.CONTROL, 0, payload[2]
    return Role.DATA, payload[1], payload[2]


def greeting(session: str, *, key: bool) -> bytes:
    """A hello."""
    return messages.encode(
        messages.Hello(
            version=messages.VERSION,
            software="a script",
            session=session,
            nonce=bytes(messages.NONCE_SIZE),
            key=key,
        )
    )


class Peer:
    """One side's connections, in the hands of a script."""

    def __init__(self) -> None:
        self.control: socket.socket | None = None
        self.channels: dict[int, socket.socket] = {}
        self.keys: Keys | None = None
        self.patient = True
        self.heard = self.sent = 0
        self.seal: Seal | None = None
        """Of the messages of this side, once both have shown that they have the key."""
        self._loop = asyncio.get_running_loop()

    async def say(self, sock: socket.socket | None, data: bytes) -> None:
        """Send, if there is anybody; whoever does not read is not waited for long."""
        if sock is not None and data:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._loop.sock_sendall(sock, data)

    async def send(self, message: bytes) -> None:
        """A message with its head."""
        self.sent += 1
        data = streams.framed(message, self.heard)
        if self.seal is not None:
            data += self.seal.tag(self.sent, data)
        await self.say(self.control, data)

    async def tagged(self, number: int, frames: bytes) -> None:
        """Frames over a channel, with tags where there is a key; only the first ones' can be right."""
        key = self.keys.frames(number) if self.keys is not None else b""
        await self.say(self.channels.get(number), streams.tagged(frames, key) if key else frames)

    async def hear(self) -> bytes | None:
        """The next message on the control connection, if one comes soon."""
        if self.control is None or not self.patient:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                while (head := await exactly(self.control, 8)) == bytes(8):
                    pass  # a sign of life
                size, _ = struct.unpack("<II", head)
                if 0 < size <= MAX_MESSAGE:  # else a preamble that the script has not asked for
                    message = await exactly(self.control, size)
                    if self.seal is not None:
                        await exactly(self.control, TAG_SIZE)
                    self.heard += 1
                    return message
        except (OSError, TimeoutError):
            pass
        self.patient = False
        return None

    async def tell(self, what: int, data: bytes) -> None:
        """One of the steps that both sides know."""
        known = streams.control_messages()
        if what == RAW:
            await self.say(self.control, data)
        elif what == FRAMED:
            await self.send(data)
        elif what == PICK and data:
            await self.send(messages.encode(known[data[0] % len(known)]))
        elif what == HEAR:
            await self.answer(await self.hear())

    async def answer(self, heard: bytes | None) -> None:
        """What this side says to that, if it is polite."""

    @property
    def sockets(self) -> list[socket.socket]:
        """The control connection last: what is on the channels comes before the end of everything."""
        last = [self.control] if self.control is not None else []
        return [*self.channels.values(), *last]

    def finish(self) -> None:
        """Say that nothing more comes."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in self.sockets:
            # By a reset, so that no port stays in use.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


async def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not piece:
            raise ConnectionResetError("the end")
        data += piece
    return data


async def ended(task: asyncio.Task[Any], *, cancel: bool) -> BaseException | None:
    """How a session ended whose peer is gone."""
    if cancel:
        task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        return asyncio.CancelledError()
    error = task.exception()
    if error is not None:
        if not isinstance(error, VfioflowError):
            raise error
        shown(error)
        assert error.exit_code > 1, "an internal error"
    return error


def security(data: bytes) -> Security:
    """A key, if the options say so."""
    return Security(psk=PSK if data[0] & KEY else None)


@contextlib.contextmanager
def kept_journal(data: bytes) -> Iterator[Journal | None]:
    """An empty one, if the options say so."""
    if not data[0] & JOURNAL:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Journal(Path(folder, "journal"))

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
from collections.abc import Coroutine, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import model
import streams

from vfioflow import HandoverInDoubt, Policy, SimDevice, State, VfioflowError, listen, migrate, probe, reconnect
from vfioflow.journal import Journal
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.control import MAX_MESSAGE
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import HEARD, Preamble, Role

T = TypeVar("T")

RAW, FRAMED, PICK, OPEN, DATA, WHOLE, HEAR, AGAIN = range(8)
"""Steps: bytes for the control connection; the same with a head; one of `streams.control_messages`;
open a channel; frames for it; a device's whole stream for it; wait for a message; open a connection again."""

GREET, WINDOW, JOURNAL = 1, 2, 4
"""Options: the greetings are exchanged first; connections may be opened again; there is a journal."""

MOST_STEPS = 40
PATIENCE = 0.25
"""Seconds to wait for a message that may not come.  Once: after that nothing is waited for."""

_CHUNK = 65536


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
                piece = port.read(_CHUNK)
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


class Peer:
    """One side's connections, in the hands of a script."""

    def __init__(self) -> None:
        self.control: socket.socket | None = None
        self.channels: dict[int, socket.socket] = {}
        self.keys: Keys | None = None
        self.patient = True
        self.heard = 0
        self._loop = asyncio.get_running_loop()

    async def say(self, sock: socket.socket | None, data: bytes) -> None:
        """Send, if there is anybody; whoever does not read is not waited for long."""
        if sock is not None and data:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._loop.sock_sendall(sock, data)

    async def send(self, message: bytes) -> None:
        """A message with its head."""
        await self.say(self.control, streams.framed(message, self.heard))

    async def hear(self) -> bytes | None:
        """The next message on the control connection, if one comes soon."""
        if self.control is None or not self.patient:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                size, _ = struct.unpack("<II", await exactly(self.control, 8))
                if 0 < size <= MAX_MESSAGE:  # else a preamble that the script has not asked for
                    message = await exactly(self.control, size)
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


async def _ended(task: asyncio.Task[Any], *, cancel: bool) -> BaseException | None:
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
        assert str(error)
        assert error.exit_code > 1, "an internal error"
    return error


@contextlib.contextmanager
def _journal(data: bytes) -> Iterator[Journal | None]:
    """An empty one, if the options say so."""
    if not data[0] & JOURNAL:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Journal(Path(folder, "journal"))


# ----------------------------------------------------------------- destination


def destination(data: bytes) -> None:
    """A destination whose source follows the script."""
    if data:
        play_destination(data)


def play_destination(data: bytes) -> BaseException | None:
    """How it ended."""
    return run(_destination(data))


async def _destination(data: bytes) -> BaseException | None:
    policy = Policy(connect_timeout=5, stall_timeout=5, resolve_timeout=PATIENCE)
    with device() as there, _journal(data) as journal:
        where = "tcp://127.0.0.1:0"
        async with listen(where, [there], policy=policy, journal=journal) as listener:
            session = asyncio.create_task(listener.receive())
            address = Address.parse(listener.address)
            peer = Peer()
            try:
                await _be_source(peer, address, data)
                peer.finish()
                # Until the listener is through with all connections; what it accepts with goes on.
                while len(listener._tasks) > 1:
                    await asyncio.wait(listener._tasks, return_when=asyncio.FIRST_COMPLETED)
                # Without a session it waits for one; with a window, for connections to come back.
                began = listener._session
                waits = began is None and listener._waiting.empty()
                resumable = began is not None and began._control.resumable
                error = await _ended(session, cancel=waits or resumable)
            finally:
                peer.close()
        if not isinstance(error, HandoverInDoubt):
            assert there.state is State.RUNNING, f"{there.state} after {error!r}"
        return error


async def _dial(address: Address, hello: bytes) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (address.host, address.port))
    await loop.sock_sendall(sock, hello)
    return sock


async def _be_source(peer: Peer, address: Address, data: bytes) -> None:
    options = data[0]
    first = b"" if not options & GREET else Preamble(Role.CONTROL).pack()
    peer.control = await _dial(address, first)
    if options & GREET:
        with contextlib.suppress(OSError):
            await exactly(peer.control, len(first))
        hello = messages.encode(streams.control_messages()[0])
        await peer.send(hello)
        if (answer := await peer.hear()) is not None:
            peer.keys = Keys(hello + answer)
    for what, payload in steps(data):
        number = payload[0] if payload else 0
        if what == OPEN and peer.keys is not None and number not in peer.channels:
            token = peer.keys.token(Role.DATA, number, 0)
            peer.channels[number] = await _dial(address, Preamble(Role.DATA, number, token).pack())
        elif what == DATA:
            await peer.say(
                peer.channels.get(number), streams.repaired(payload[1:], chunk=_CHUNK)
            )
        elif what == WHOLE:
            frames = streams.Stream().add(model.RAW, 0, stream()).add(model.END, 0)
            await peer.say(peer.channels.get(number), frames.other(model.CLOSE).bytes())
        elif what == AGAIN and len(payload) > 2 and peer.keys is not None:
            await _dial_again(peer, address, payload)
        else:
            await peer.tell(what, payload)


async def _dial_again(peer: Peer, address: Address, payload: bytes) -> None:
    """Open a connection again: role, channel, attempt, and what is claimed to have been heard."""
    role = Role.CONTROL if payload[0] & 1 else Role.DATA
    number, attempt = (0 if role is Role.CONTROL else payload[1]), payload[2]
    token = peer.keys.token(role, number, attempt) if peer.keys else bytes(16)
    hello = Preamble(role, number, token, attempt).pack()
    sock = await _dial(address, hello + payload[3:])
    old = peer.control if role is Role.CONTROL else peer.channels.get(number)
    if role is Role.CONTROL:
        peer.control = sock
    else:
        peer.channels[number] = sock
    if old is not None:
        old.close()
    if peer.patient:
        try:
            async with asyncio.timeout(PATIENCE):
                await exactly(sock, len(hello) + HEARD.size)
        except (OSError, TimeoutError):
            peer.patient = False


def destination_scripts() -> Iterable[bytes]:
    """A whole migration, one that breaks and comes back, and pieces."""
    offer = streams.offer(streams.offered())
    patient = streams.offer(streams.offered(), window=1 << 20, reconnect_seconds=30.0)
    begin = [(FRAMED, messages.encode(offer)), (HEAR, b""), (OPEN, b"\0"), (HEAR, b"")]
    lasting = [(FRAMED, messages.encode(patient)), *begin[1:]]
    end = [(WHOLE, b"\0"), (HEAR, b""), *picked(messages.Commit), (HEAR, b"")]
    end += picked(messages.Goodbye)
    again = (AGAIN, b"\1\0\1" + HEARD.pack(3))
    yield script(GREET, *begin, *picked(messages.Switchover), *end)
    yield script(GREET | JOURNAL, *begin, *end)
    yield script(GREET | JOURNAL, *picked(messages.Resolve), (HEAR, b""))
    probe = messages.encode(messages.Probe(size=1000))
    pads = streams.Stream().other(model.PAD, 1000).bytes()
    yield script(GREET, *begin, (FRAMED, probe), (DATA, b"\0" + pads), (HEAR, b""), *end)
    yield script(GREET, *begin, *end[:2], *picked(messages.Failed))
    yield script(GREET, *lasting, again, (AGAIN, b"\0\0\1"), *end)
    for one in streams.channels():
        yield script(GREET, *begin, (DATA, b"\0" + one))
    for one in streams.controls():
        yield script(GREET, (RAW, one))
    for one in streams.encoded():
        yield script(GREET, *begin, (FRAMED, one))
    for one in streams.preambles():
        yield script(0, (RAW, one))


# ---------------------------------------------------------------------- source


class _Server(Peer):
    """A destination that takes every connection and keeps what arrives on channels."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__()
        self.received: dict[int, bytearray] = {}
        self.greeted = asyncio.Event()
        self._listening = listening
        self._tasks = {asyncio.create_task(self._accept())}

    async def _accept(self) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(self._listening)
            task = asyncio.create_task(self._greet(sock))
            self._tasks.add(task)

    async def _greet(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            preamble = Preamble.unpack(await exactly(sock, 32))
            if preamble.role is Role.CONTROL:
                if preamble.attempt:
                    await exactly(sock, HEARD.size)
                if self.control is not None:
                    self.control.close()
                self.control = sock
                self.greeted.set()
                return
            if preamble.channel in self.channels:
                self.channels[preamble.channel].close()
            self.channels[preamble.channel] = sock
            kept = self.received.setdefault(preamble.channel, bytearray())
            while piece := await self._loop.sock_recv(sock, _CHUNK):
                kept += piece

    async def answer(self, heard: bytes | None) -> None:
        message = messages.decode(heard) if heard is not None else None
        if isinstance(message, messages.Offer):
            answers = [messages.Accept(load_seconds=0.01), messages.Ready(splice=False)]
        elif isinstance(message, messages.Probe):
            answers = [messages.ProbeDone()]
        elif isinstance(message, messages.Switchover):
            answers = [messages.SwitchoverAck()]
        elif isinstance(message, messages.Commit):
            answers = [messages.Running(resume_seconds=0.0, start_vcpus_seconds=0.0)]
        else:
            answers = []
        for one in answers:
            await self.send(messages.encode(one))

    async def stop(self) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


def source(data: bytes) -> None:
    """A source whose destination follows the script."""
    if data:
        play_source(data)


def play_source(data: bytes) -> BaseException | None:
    """How it ended."""
    return run(_source(data))


async def _source(data: bytes) -> BaseException | None:
    # The wire is measured with as little as can be.
    with mock.patch.multiple(probe, _FIRST=4096, _LARGEST=4096):
        return await _migrate(data)


async def _migrate(data: bytes) -> BaseException | None:
    policy = Policy(
        connect_timeout=5,
        stall_timeout=5,
        downtime_limit=5,
        on_no_convergence="switchover",
        reconnect_timeout=PATIENCE if data[0] & WINDOW else 0,
        resolve_timeout=PATIENCE,
        window=1 << 20,
    )
    with (
        device(7) as here,
        socket.create_server(("127.0.0.1", 0)) as listening,
        _journal(data) as journal,
    ):
        listening.setblocking(False)
        server = _Server(listening)
        address = str(Address.of(listening))
        session = asyncio.create_task(migrate([here], address, policy=policy, journal=journal))
        try:
            await server.greeted.wait()
            await _be_destination(server, data)
            server.finish()
            listening.close()  # nothing comes back from now on
            with mock.patch.object(reconnect, "_PAUSES", (0.01, 0.01)):
                error = await _ended(session, cancel=False)
        finally:
            await server.stop()
        if error is None:
            assert here.state is State.STOP
        elif isinstance(error, HandoverInDoubt):
            assert here.state is State.STOP_COPY
        else:
            assert here.state is State.RUNNING, f"{here.state} after {error!r}"
        return error


async def _be_destination(server: _Server, data: bytes) -> None:
    if data[0] & GREET:
        await server.say(server.control, Preamble(Role.CONTROL).pack())
        if (theirs := await server.hear()) is not None:
            mine = messages.encode(streams.control_messages()[0])
            await server.send(mine)
            server.keys = Keys(theirs + mine)
    for what, payload in steps(data):
        number = payload[0] if payload else 0
        if what == WHOLE:
            await _settled(server)
            await server.send(messages.encode(loaded(server)))
        elif what == DATA:
            await server.say(server.channels.get(number), payload[1:])
        elif what == OPEN and number in server.channels:
            server.channels[number].close()
        elif what == AGAIN and len(payload) > 2:
            await _answer_again(server, payload)
        else:
            await server.tell(what, payload)


async def _settled(server: _Server) -> None:
    """Until the device's whole stream is there, if it comes soon."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE if server.patient else 0):
            while _arrived(server).how != "close":
                await asyncio.sleep(0.002)
            return
    server.patient = False


def _arrived(server: _Server) -> model.Outcome:
    return model.run(bytes(server.received.get(0, b"")), lanes=1, chunk=1 << 20, digests=True)


def loaded(server: _Server) -> messages.Loaded:
    """What a destination that took what arrived says about it."""
    lane = _arrived(server).lanes[0]
    one = messages.LoadedDevice(name="tty0", size=len(lane.content), digest=lane.digest)
    return messages.Loaded(devices=[one], validate_seconds=0.0, ready_seconds=0.0)


async def _answer_again(server: _Server, payload: bytes) -> None:
    """Break a connection, and answer the one that is opened in its place."""
    role = Role.CONTROL if payload[0] & 1 else Role.DATA
    number, attempt = (0 if role is Role.CONTROL else payload[1]), payload[2]
    old = server.control if role is Role.CONTROL else server.channels.get(number)
    if old is None:
        return
    with contextlib.suppress(OSError):
        old.shutdown(socket.SHUT_RDWR)
    try:
        async with asyncio.timeout(PATIENCE if server.patient else 0):
            while old is (server.control if role is Role.CONTROL else server.channels.get(number)):
                await asyncio.sleep(0.002)
    except TimeoutError:
        server.patient = False
    answer = server.keys.answer(role, number, attempt) if server.keys else bytes(16)
    new = server.control if role is Role.CONTROL else server.channels.get(number)
    await server.say(new, Preamble(role, number, answer, attempt).pack() + payload[3:])


def source_scripts() -> Iterable[bytes]:
    """A whole migration, one that breaks and comes back, and pieces."""
    begin = [(HEAR, b"")] * 3  # its offer and two probes
    end = [*picked(messages.SwitchoverAck), (HEAR, b""), (WHOLE, b""), (HEAR, b"")]
    yield script(GREET, *begin, *end)
    yield script(GREET | JOURNAL, *begin, *end)
    yield script(GREET, *begin, *end[1:])
    yield script(GREET | WINDOW, *begin, *end)
    yield script(GREET | WINDOW, *begin, (AGAIN, b"\1\0\1" + HEARD.pack(4)), *end)
    yield script(GREET | WINDOW, *begin, (AGAIN, b"\0\0\1" + HEARD.pack(0)), *end)
    yield script(GREET, *begin, *picked(messages.Failed))
    yield script(GREET, *begin, *end[:3], *picked(messages.Failed))
    yield script(GREET | WINDOW, *begin, (DATA, b"\0" + HEARD.pack(32)), *end)
    accept = messages.encode(messages.Accept(load_seconds=0.1))
    ready = messages.encode(messages.Ready(splice=True))
    yield script(GREET, (FRAMED, accept), (FRAMED, ready), *picked(messages.ProbeDone) * 2, *end)
    for one in streams.controls():
        yield script(GREET, (RAW, one))
    for one in streams.encoded():
        yield script(GREET, *begin, (FRAMED, one))
    for one in streams.preambles():
        yield script(0, (RAW, one))

"""Scripted destinations, and the sources that must bear them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from unittest import mock

import model
import sessions
import streams
from sessions import (
    AGAIN,
    CHUNK,
    DATA,
    FRAMED,
    GREET,
    HEAR,
    JOURNAL,
    KEY,
    OPEN,
    PSK,
    WHOLE,
    WINDOW,
    Peer,
    device,
    ended,
    exactly,
    greeting,
    kept_journal,
    picked,
    pieces,
    run,
    script,
    security,
    steps,
    which,
)

from vfioflow import (
    HandoverInDoubt,
    Policy,
    State,
    migrate,
    probe,
    reconnect,
)
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import HEARD, Preamble, Role


class _Server(Peer):
    """A destination that takes every connection and keeps what arrives on channels."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__()
        self.received: dict[int, bytearray] = {}
        self.greeted = asyncio.Event()
        self._changed = asyncio.Event()
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
                self._changed.set()
                return
            if preamble.channel in self.channels:
                self.channels[preamble.channel].close()
            self.channels[preamble.channel] = sock
            self._changed.set()
            kept = self.received.setdefault(preamble.channel, bytearray())
            while piece := await self._loop.sock_recv(sock, CHUNK):
                kept += piece
                self._changed.set()

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

    async def something(self) -> None:
        """Until a connection came, or bytes on a channel."""
        await self._changed.wait()
        self._changed.clear()

    async def stop(self) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


def play(data: bytes) -> None:
    """A source whose destination follows the script."""
    if data:
        outcome(data)


def outcome(data: bytes) -> BaseException | None:
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
        reconnect_timeout=sessions.PATIENCE if data[0] & WINDOW else 0,
        resolve_timeout=sessions.PATIENCE,
        window=1 << 20,
    )
    with (
        device(7) as here,
        socket.create_server(("127.0.0.1", 0)) as listening,
        kept_journal(data) as journal,
    ):
        listening.setblocking(False)
        server = _Server(listening)
        address = str(Address.of(listening))
        session = asyncio.create_task(
            migrate([here], address, policy=policy, journal=journal, security=security(data))
        )
        try:
            await server.greeted.wait()
            await _be_destination(server, data)
            server.finish()
            listening.close()  # nothing comes back from now on
            with mock.patch.object(reconnect, "_PAUSES", (0.01, 0.01)):
                error = await ended(session, cancel=False)
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
            await _greet(server, theirs, PSK if data[0] & KEY else b"")
    for what, payload in steps(data):
        number = payload[0] if payload else 0
        if what == WHOLE:
            await _settled(server)
            await server.send(messages.encode(loaded(server)))
        elif what == DATA:
            await server.say(server.channels.get(number), payload[1:])
        elif what == OPEN and number in server.channels:
            server.channels.pop(number).close()
        elif what == AGAIN and len(payload) > 2:
            await _answer_again(server, payload)
        else:
            await server.tell(what, payload)


async def _greet(server: _Server, theirs: bytes, psk: bytes) -> None:
    """The rest of the greetings."""
    hello = messages.decode(theirs)
    assert isinstance(hello, messages.Hello)
    mine = greeting(hello.session, key=bool(psk))
    await server.send(mine)
    server.keys = Keys(theirs + mine, psk)
    if psk:
        await server.hear()
        await server.send(messages.encode(messages.Proof(proof=server.keys.proof("destination"))))
        server.seal = server.keys.seal("destination")


async def _settled(server: _Server) -> None:
    """Until the device's whole stream is there, if it comes soon."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(sessions.PATIENCE if server.patient else 0):
            while _arrived(server).how != "close":
                await server.something()
            return
    server.patient = False


def _arrived(server: _Server) -> model.Outcome:
    frames = bytes(server.received.get(0, b""))
    if server.seal is not None:
        frames = streams.untagged(frames)
    return model.run(frames, lanes=1, chunk=1 << 20, digests=True)


def loaded(server: _Server) -> messages.Loaded:
    """What a destination that took what arrived says about it."""
    lane = _arrived(server).lanes[0]
    one = messages.LoadedDevice(name="tty0", size=len(lane.content), digest=lane.digest)
    return messages.Loaded(devices=[one], validate_seconds=0.0, ready_seconds=0.0)


async def _answer_again(server: _Server, payload: bytes) -> None:
    """Break a connection, and answer the one that is opened in its place."""
    role, number, attempt = which(payload)
    old = server.control if role is Role.CONTROL else server.channels.get(number)
    if old is None:
        return
    with contextlib.suppress(OSError):
        old.shutdown(socket.SHUT_RDWR)
    try:
        async with asyncio.timeout(sessions.PATIENCE if server.patient else 0):
            while old is (server.control if role is Role.CONTROL else server.channels.get(number)):
                await server.something()
    except TimeoutError:
        server.patient = False
    answer = server.keys.answer(role, number, attempt) if server.keys else bytes(16)
    new = server.control if role is Role.CONTROL else server.channels.get(number)
    await server.say(new, Preamble(role, number, answer, attempt).pack() + payload[3:])


def scripts() -> Iterable[bytes]:
    """A whole migration, one that breaks and comes back, and pieces."""
    begin = [(HEAR, b"")] * 3  # its offer and two probes
    end = [*picked(messages.SwitchoverAck), (HEAR, b""), (WHOLE, b""), (HEAR, b"")]
    yield script(GREET, *begin, *end)
    yield script(GREET | JOURNAL, *begin, *end)
    yield script(GREET | KEY, *begin, *end)
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
    yield from pieces(begin)

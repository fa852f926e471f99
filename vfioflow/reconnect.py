"""Connections that break and come back: the source opens them again, the destination takes them.

Each connection is a numbered stream: the control connection by messages, a channel by bytes.  The
side that answers says how far it got, and the other sends the rest again (docs/wire-protocol.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vfioflow import events
from vfioflow.errors import PeerError, PeerLost, ProtocolError
from vfioflow.events import Observer, emit
from vfioflow.lanes import Inbound, Outbound
from vfioflow.wire.address import Address
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import (
    HEARD,
    MAX_ATTEMPT,
    Preamble,
    Role,
    connect,
    read_exactly,
    read_preamble,
    send_all,
)
from vfioflow.wire.security import Guard

__all__ = ["Redial", "Rejoin"]

log = logging.getLogger("vfioflow")

_LOOK = 0.1
"""Seconds between two looks at channels that nobody uses."""

_PAUSES = (0.02, 0.5)
"""Seconds to wait before another try: the first time, and at most; each is twice the one before."""

_LAST_WORDS = 1.0
"""Seconds to wait for the peer's reason when it has no such session any more."""

_HEAR = 10.0
"""Seconds for a source that is back to say how much it has heard."""

_GRACE = 1.0
"""Seconds that the destination waits longer than the source tries."""


@dataclass
class _Line:
    """One connection of a session: where it stands."""

    role: Role
    channel: int = 0
    attempt: int = 0
    since: float | None = None
    """When it was found broken; None: it is not."""
    work: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return "the control connection" if self.role is Role.CONTROL else f"channel {self.channel}"


class _Watch:
    """Knows which of a session's connections are broken, and since when."""

    def __init__(self, control: Control, channels: int, *, signal_fd: int) -> None:
        self._control = control
        self._lines = [
            _Line(Role.CONTROL),
            *(_Line(Role.DATA, number) for number in range(channels)),
        ]
        self._signal = signal_fd
        self._woken = asyncio.Event()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._signal, self._wake)
        try:
            yield
        finally:
            loop.remove_reader(self._signal)

    def _wake(self) -> None:
        os.eventfd_read(self._signal)
        self._woken.set()

    async def _something(self) -> None:
        """Until a connection breaks, or it is time to look."""
        waits = [asyncio.create_task(self._woken.wait())]
        if not self._control.lost.is_set():
            waits.append(asyncio.create_task(self._control.lost.wait()))
        try:
            await asyncio.wait(waits, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._woken.clear()


class Redial(_Watch):
    """The source's part.  ``patience`` tells how many seconds a connection may stay broken now."""

    def __init__(
        self,
        address: Address,
        guard: Guard,
        keys: Keys,
        control: Control,
        out: Outbound,
        *,
        patience: Callable[[], float],
        observer: Observer | None,
    ) -> None:
        super().__init__(control, len(out.channels), signal_fd=out.broken_fd)
        self._address = address
        self._guard = guard
        self._keys = keys
        self._out = out
        self._patience = patience
        self._observer = observer
        self.reconnects = 0
        """Connections that were opened again."""

    async def run(self) -> None:
        """Open again what breaks, until cancelled or given up; then the control connection fails."""
        try:
            with self._listening():
                while True:
                    await self._something()
                    self._look()
        finally:
            tasks = [line.work for line in self._lines if line.work is not None]
            for line in self._lines:
                line.work = None  # a task that ends by an error refers back to here
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for line in self._lines:
            if line.role is Role.CONTROL:
                broken = self._control.lost.is_set()
            else:
                broken = self._out.channels[line.channel].look()
            if broken and (line.work is None or line.work.done()):
                if line.since is None:
                    line.since = now
                    log.warning("%s to %s broke; opening it again", line, self._address)
                    emit(self._observer, events.ConnectionLost(str(line)))
                line.work = asyncio.create_task(self._bring_back(line))

    async def _bring_back(self, line: _Line) -> None:
        """Try until it works or patience ends."""
        loop = asyncio.get_running_loop()
        assert line.since is not None
        pause, problem = _PAUSES[0], "it was not tried"
        while (left := line.since + self._patience() - loop.time()) > 0:
            try:
                if line.attempt == MAX_ATTEMPT:
                    raise ProtocolError(f"it broke more than {MAX_ATTEMPT} times")
                line.attempt += 1
                resent = await self._try(line, left)
            except PeerLost as error:
                problem = str(error)
                await asyncio.sleep(min(pause, left))
                pause = min(2 * pause, _PAUSES[1])
            except PeerError as error:
                # Why the destination gave the session up may still be on its way.
                await asyncio.wait([self._control.failure], timeout=_LAST_WORDS)
                self._give_up(f"{line} to {self._address} cannot be opened again: {error}")
                return
            else:
                seconds = loop.time() - line.since
                line.since = None
                self.reconnects += 1
                emit(self._observer, events.Reconnected(str(line), line.attempt, seconds, resent))
                return
        seconds = loop.time() - line.since
        self._give_up(f"{line} to {self._address} was lost for {seconds:.1f} s: {problem}")

    async def _try(self, line: _Line, limit: float) -> int:
        """One attempt; what was sent again.  Raises PeerLost (worth another), or another PeerError."""
        key = (line.role, line.channel, line.attempt)
        preamble = Preamble(line.role, line.channel, self._keys.token(*key), line.attempt)
        with ExitStack() as owned:
            sock = await connect(self._address, preamble, limit, self._guard)
            owned.callback(sock.close)
            if line.role is Role.CONTROL:
                await self._control.break_off()
                await send_all(sock, HEARD.pack(self._control.heard))
            answer = await read_preamble(sock, limit)
            if answer.token == bytes(len(answer.token)):
                raise ProtocolError("the destination has no such session any more")
            if not secrets.compare_digest(answer.token, self._keys.answer(*key)):
                raise ProtocolError("the answer is not of this session")
            async with asyncio.timeout(limit):
                (heard,) = HEARD.unpack(await read_exactly(sock, HEARD.size))
            owned.pop_all()
        if line.role is Role.CONTROL:
            return await self._control.resume(sock, heard)
        resent = self._out.channels[line.channel].unheard(heard)
        await self._out.resume(line.channel, sock, heard)
        return resent

    def _give_up(self, reason: str) -> None:
        self._control.give_up(PeerLost(reason))
        for channel in self._out.channels:
            channel.give_up()


class Rejoin(_Watch):
    """The destination's part: ``limit`` is how many seconds the source tries."""

    def __init__(self, keys: Keys, control: Control, inbound: Inbound, *, limit: float) -> None:
        super().__init__(control, len(inbound.channels), signal_fd=inbound.broken_fd)
        self._keys = keys
        self._inbound = inbound
        self._limit = limit + _GRACE
        self._taking = asyncio.Lock()

    async def run(self) -> None:
        """Watch for connections that do not come back; then the control connection fails."""
        loop = asyncio.get_running_loop()
        with self._listening():
            while True:
                await self._something()
                for line in self._lines:
                    if not self._is_broken(line):
                        line.since = None
                    elif line.since is None:
                        line.since = loop.time()
                        log.warning("%s from %s broke", line, self._control.peer)
                    elif loop.time() - line.since > self._limit:
                        self._give_up(line, loop.time() - line.since)
                        return

    def _is_broken(self, line: _Line) -> bool:
        if line.role is Role.CONTROL:
            return self._control.lost.is_set()
        return self._inbound.channels[line.channel].broken

    async def take(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a connection that was opened again; False: it is none of this session.

        Owns the socket once it returns True.  Raises PeerError: it is gone already, or wrong.
        """
        number = 0 if preamble.role is Role.CONTROL else 1 + preamble.channel
        if number >= len(self._lines):
            return False
        line = self._lines[number]
        key = (preamble.role, preamble.channel, preamble.attempt)
        if preamble.attempt <= line.attempt or not secrets.compare_digest(
            preamble.token, self._keys.token(*key)
        ):
            return False
        line.attempt = preamble.attempt
        answer = Preamble(
            preamble.role, preamble.channel, self._keys.answer(*key), preamble.attempt
        ).pack()
        if preamble.role is Role.CONTROL:
            heard = await self._hear(sock)
            async with self._taking:
                if line.attempt != preamble.attempt:
                    raise PeerLost("another attempt came after it")
                await self._control.break_off()
                await send_all(sock, answer + HEARD.pack(self._control.heard))
                await self._control.resume(sock, heard)
        else:
            await self._inbound.resume(preamble.channel, sock, answer)
        log.info("%s from %s is back", line, self._control.peer)
        return True

    async def _hear(self, sock: socket.socket) -> int:
        """How many messages the source has heard.  Raises PeerLost."""
        try:
            async with asyncio.timeout(_HEAR):
                (heard,) = HEARD.unpack(await read_exactly(sock, HEARD.size))
        except TimeoutError:
            raise PeerLost("it did not say how much it has heard") from None
        return int(heard)

    def _give_up(self, line: _Line, seconds: float) -> None:
        self._control.give_up(
            PeerLost(f"{line} from {self._control.peer} was lost for {seconds:.1f} s")
        )
        for channel in self._inbound.channels:
            channel.give_up()

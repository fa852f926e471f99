"""The pre-copy rounds of a source: look, decide (see precopy.py), move, again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from vfioflow import events, precopy
from vfioflow._fdio import Port
from vfioflow._outlane import OutLane
from vfioflow.devices.base import Device
from vfioflow.errors import StallError
from vfioflow.events import Observer, emit
from vfioflow.gate import Gate
from vfioflow.pending import Part
from vfioflow.policy import Policy
from vfioflow.precopy import Bandwidth, Decision, Pending, Round, Verdict
from vfioflow.states import Flags
from vfioflow.threads import in_thread
from vfioflow.wire import messages
from vfioflow.wire.control import Control

__all__ = ["Drive", "Lane", "Rounds", "ask_sizes"]

_SHORTEST = 0.05
"""Seconds from the start of one round to the next at least; little to move is no reason to spin."""

_HELD = 0.5
"""The same while a switchover is held: what is dirtied is kept small, and the devices have some rest."""

_STALE = 1.0
"""Seconds after which a bandwidth is measured again; the probe's 50 ms are then 5 % of the wire."""

_ROUND_SECONDS = 1.0
"""About how long a round may take, so that decisions and limits are looked at in between."""


class Lane:
    """A source device, its stream on the wire, and where it stands."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.info = device.info
        self.name = self.info.name
        self.can_precopy = bool(self.info.flags & Flags.PRE_COPY)
        self.out: OutLane | None = None
        self.data_fd = -1
        self.port: Port | None = None
        self.marked = False
        self.busy = False
        self.iterations = 0
        self.precopy_bytes = 0
        self.pending = Pending(self.name, self.can_precopy)

    @property
    def sent(self) -> int:
        """Device bytes on the wire so far."""
        return 0 if self.out is None else self.out.offset

    @property
    def stream(self) -> OutLane:
        """The lane of a session whose channels are open."""
        assert self.out is not None
        return self.out

    def adopt(self, data_fd: int) -> None:
        """Own the data fd that a state change handed out."""
        self.data_fd = data_fd
        self.port = self.device.port(data_fd)

    def pump(self, budget: int, *, precopy: bool) -> int:
        """See :meth:`OutLane.pump`.  Blocking."""
        assert self.port is not None
        with self._at_work():
            return self.stream.pump(self.port, budget, precopy=precopy)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """What takes too long in here counts as standing still."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def mark(self) -> None:
        """Say once on the wire that the initial bytes are all sent.  Blocking."""
        if not self.marked:
            self.marked = True
            with self._at_work():
                self.stream.mark()

    def end(self) -> None:
        """Say on the wire that the stream has ended.  Blocking."""
        with self._at_work():
            self.stream.end()

    def ask_info(self) -> None:
        """Ask the device how much pre-copy has to move.  Blocking."""
        with self._at_work():
            info = self.device.precopy_info(self.data_fd)
            self.pending = Pending(self.name, True, info.initial_bytes, info.dirty_bytes)

    def ask_size(self) -> None:
        """Ask the device how much stop-copy would move.  Blocking."""
        old = self.pending
        with self._at_work():
            size = self.device.stop_copy_size()
            self.pending = Pending(old.name, old.can_precopy, old.initial, old.dirty, size)

    def close(self) -> None:
        """Close the data fd; only when no pump runs."""
        if self.port is not None:
            self.port.close()
            self.port = None


class Drive(Protocol):
    """Waits for calls that use the lanes, and ends them all when one fails."""

    def __call__(self, futures: Sequence[asyncio.Future[Any]]) -> Awaitable[list[Any]]:
        """The results, in order."""


def ask_sizes(lanes: Sequence[Lane]) -> list[Pending]:
    """The exact sizes, by MIG_DATA_SIZE.  Blocking."""
    for lane in lanes:
        lane.ask_size()
    return [lane.pending for lane in lanes]


class Rounds:
    """Iterates over all that can pre-copy until :func:`precopy.decide` says otherwise.

    ``parts`` are the stack's own sources.  ``policy`` may change between two rounds.  Rounds in which
    the ``gate`` kept it from switching over count for no limit.  ``fixed_seconds`` is the part of the
    downtime that does not depend on how much is left; ``unsent`` tells how many bytes still wait in
    the sockets; ``probe`` measures the wire: bytes, and the seconds they took.  ``iterations`` counts
    the rounds.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        parts: Sequence[Part],
        *,
        policy: Callable[[], Policy],
        gate: Gate,
        control: Control,
        drive: Drive,
        unsent: Callable[[], int],
        probe: Callable[[], Awaitable[tuple[int, float]]],
        bandwidth: Bandwidth,
        fixed_seconds: float,
        observer: Observer | None,
    ) -> None:
        self._lanes = lanes
        self._copying = [lane for lane in lanes if lane.can_precopy]
        self._parts = parts
        self._all: list[Lane | Part] = [*lanes, *parts]
        self._policy = policy
        self._gate = gate
        self._chunk = policy().frame_size
        self._held = ""
        self._held_rounds = 0
        self._held_seconds = 0.0
        self._control = control
        self._drive = drive
        self._unsent = unsent
        self._probe = probe
        self._measured = 0.0
        self._bandwidth = bandwidth
        self._fixed_seconds = fixed_seconds
        self._observer = observer
        self.iterations = 0

    async def run(self) -> Decision:
        """Rounds until it is time to switch over or to give up; returns that decision.

        Raises whatever the devices, the wire or the peer fail with.
        """
        acknowledged = asyncio.create_task(self._await_ack())
        begin = last = surveyed = self._measured = time.monotonic()
        moved = 0
        try:
            while True:
                if acknowledged.done():
                    acknowledged.result()
                now = time.monotonic()
                if self._held:
                    self._held_rounds += 1
                    self._held_seconds += now - surveyed
                surveyed = now
                decision = await self._survey(now - begin, acknowledged.done())
                decision = await self._pass(decision)
                rate = self._bandwidth.value
                emit(self._observer, events.Decided(self.iterations, moved, rate, decision))
                if decision.verdict is Verdict.SWITCH_OVER:
                    decided = events.SwitchoverDecided(
                        self.iterations, rate, self._fixed_seconds, decision
                    )
                    emit(self._observer, decided)
                if decision.verdict is not Verdict.ITERATE:
                    return decision
                started = time.monotonic()
                moved = await self._round()
                seconds = time.monotonic() - started
                emit(self._observer, events.IterationDone(self.iterations, moved, seconds))
                shortest = _HELD if self._held else _SHORTEST
                await self._pause(started + shortest - time.monotonic(), acknowledged)
                if acknowledged.done() or self._bandwidth.value is None:
                    await self._measure_again()
                if moved or acknowledged.done():
                    last = time.monotonic()
                elif time.monotonic() - last > 2 * self._policy().stall_timeout:
                    # Longer than the destination waits for its own devices: it knows the reason.
                    raise StallError(
                        "the destination has not acknowledged the initial data for"
                        f" {2 * self._policy().stall_timeout:g} s"
                    )
        finally:
            acknowledged.cancel()
            await asyncio.wait([acknowledged])
            for each in self._all:
                each.precopy_bytes = each.sent

    async def _pass(self, decision: Decision) -> Decision:
        """A decision to switch over has to pass the gate; else it is to go on."""
        why = ""
        if decision.verdict is Verdict.SWITCH_OVER:
            why = await self._gate.objection(decision)
        if why and not self._held:
            emit(self._observer, events.SwitchoverHeld(why))
        self._held = why
        if not why:
            return decision
        return replace(decision, verdict=Verdict.ITERATE, reason=f"{why}: {decision.reason}")

    async def _await_ack(self) -> None:
        """SWITCHOVER_ACK; a set in which nobody can pre-copy needs none."""
        if self._copying:
            await self._control.expect(
                messages.SwitchoverAck, timeout=None, what="its acknowledgement"
            )
            emit(self._observer, events.InitialLoaded())

    async def _survey(self, elapsed: float, acknowledged: bool) -> Decision:
        """Ask the devices what is left, mark where initial data ends, and decide."""
        marked: list[str] = []

        def survey() -> Decision:
            for lane in self._copying:
                lane.ask_info()
                if lane.pending.initial == 0 and not lane.marked:
                    lane.mark()
                    marked.append(lane.name)
            for part in self._parts:
                part.ask_estimate()
            now = Round(
                self.iterations - self._held_rounds,
                elapsed - self._held_seconds,
                tuple(each.pending for each in self._all),
                self._bandwidth.value,
                self._fixed_seconds,
                acknowledged,
            )
            return precopy.decide(now, self._policy(), self._ask_exact)

        decision: Decision
        [decision] = await self._drive([in_thread(survey, name="survey")])
        for name in marked:
            emit(self._observer, events.InitialSent(name))
        return decision

    def _ask_exact(self) -> list[Pending]:
        """What stop-copy would move of each.  Blocking."""
        for part in self._parts:
            part.ask_exact()
        return [*ask_sizes(self._lanes), *(part.pending for part in self._parts)]

    async def _round(self) -> int:
        """Move of each what it reported.  Returns the bytes moved."""
        copying: list[Lane | Part] = [*self._copying, *self._parts]
        before = [each.sent for each in copying]
        limit = self._policy().max_bandwidth
        begin = time.monotonic()
        await self._drive(
            [
                *(in_thread(self._copy, lane, name=f"{lane.name}-copy") for lane in self._copying),
                *(part.iterate(self._budget(part)) for part in self._parts if part.pending.dirty),
            ]
        )
        seconds = time.monotonic() - begin
        moved = [each.sent - sent for each, sent in zip(copying, before, strict=True)]
        for each, size in zip(copying, moved, strict=True):
            each.iterations += size > 0
        same = limit == self._policy().max_bandwidth
        if same and self._bandwidth.add(sum(moved) - self._unsent(), seconds):
            self._measured = time.monotonic()
        self.iterations += 1
        return sum(moved)

    def _budget(self, of: Lane | Part) -> int:
        """How much of it to move in this round, in bytes."""
        most = max(16 * self._chunk, int(_ROUND_SECONDS * (self._bandwidth.value or 0)))
        return min(max(of.pending.precopy, self._chunk), most)

    def _copy(self, lane: Lane) -> None:
        lane.pump(self._budget(lane), precopy=True)

    async def _measure_again(self) -> None:
        """Rounds that have become small say nothing of the rate; a look at the wire does."""
        if self._bandwidth.value is None or time.monotonic() - self._measured > _STALE:
            self._bandwidth.refresh(*await self._probe())
            self._measured = time.monotonic()

    async def _pause(self, seconds: float, acknowledged: asyncio.Task[None]) -> None:
        """Wait, or until the peer has something to say or the gate has turned."""
        if seconds <= 0:
            return
        turned = asyncio.create_task(self._gate.until_turned())
        watched: set[asyncio.Future[None]] = {self._control.failure, turned}
        if not acknowledged.done():
            watched.add(acknowledged)
        try:
            await asyncio.wait(watched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turned.cancel()
        if self._control.failure.done():
            self._control.failure.result()

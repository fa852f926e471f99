"""When to go on copying and when to switch over.  Pure: numbers in, a decision out."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from vfioflow.errors import IllegalTransition
from vfioflow.policy import Policy
from vfioflow.states import Flags, State, path, quiesced

__all__ = [
    "Arcs",
    "Bandwidth",
    "Decision",
    "Move",
    "Pending",
    "Round",
    "Verdict",
    "decide",
    "destination_seconds",
    "slowest",
    "source_seconds",
]


_SETTLED = 2.0
"""Seconds of pre-copy before a set counts as hopeless."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What one device still has to move, in bytes.

    ``can_precopy`` is whether it has pre-copy at all.  ``stop_copy`` is the last known answer to
    MIG_DATA_SIZE (all that STOP_COPY would hand out, the pre-copy part included), or None where
    the device has no answer.
    """

    name: str
    can_precopy: bool
    initial: int = 0
    dirty: int = 0
    stop_copy: int | None = None

    @property
    def precopy(self) -> int:
        """What pre-copy can still move."""
        return self.initial + self.dirty

    @property
    def exact(self) -> int:
        """What would move in stop-copy; without an answer, at least the pre-copy part."""
        return max(self.precopy, self.stop_copy or 0)


@dataclass(frozen=True, slots=True)
class Round:
    """Everything that a decision is made from.

    ``bandwidth`` is in device bytes per second, None while nothing was measured.
    ``fixed_seconds`` is the part of the downtime that no pre-copy shortens: state changes on both
    sides, and the round trips of the hand-over.
    """

    iteration: int
    elapsed: float
    pending: tuple[Pending, ...]
    bandwidth: float | None
    fixed_seconds: float
    acknowledged: bool


class Verdict(enum.Enum):
    """What to do next."""

    ITERATE = "iterate"
    SWITCH_OVER = "switch over"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with the numbers that led to it.

    Bytes: ``estimate`` (what the devices report in pre-copy, plus what can only move in
    stop-copy), ``exact`` (None unless it was asked for), ``threshold``.  Seconds:
    ``predicted_downtime`` (None without a bandwidth).
    """

    verdict: Verdict
    reason: str
    estimate: int
    exact: int | None
    threshold: int
    predicted_downtime: float | None


class Bandwidth:
    """The rate at which device bytes move, in bytes per second: bytes over time, old ones fading.

    Short samples are passed over.  Under ``MIN_BYTES`` the sockets' buffers (6 MiB with Linux's
    default tcp_rmem) take much of the data at memory speed; under ``MIN_SECONDS`` it is the start
    of threads and saves that is measured (rounds of 8 MiB at 1.4 GiB/s came out at 0.4 GiB/s).
    """

    MIN_BYTES = 8 * 1024 * 1024
    MIN_SECONDS = 0.05
    FADE = 0.5
    """What a sample still weighs when the next one comes."""

    def __init__(self) -> None:
        self._moved = 0.0
        self._seconds = 0.0
        self._first: float | None = None
        self._best = 0.0

    @property
    def value(self) -> float | None:
        """The rate; before the first sample what :meth:`assume` gave, None without that."""
        return self._moved / self._seconds if self._seconds else self._first

    def assume(self, rate: float) -> None:
        """Take ``rate`` until there is a sample."""
        self._first = rate

    def forget(self) -> None:
        """The wire has changed: what was measured no longer counts."""
        self._moved = self._seconds = self._best = 0.0
        self._first = None

    def add(self, moved: int, seconds: float) -> bool:
        """Take in that ``moved`` device bytes took ``seconds``; whether that counted."""
        if moved < self.MIN_BYTES or seconds < self.MIN_SECONDS:
            return False
        self._best = max(self._best, moved / seconds)
        self._fade(moved, seconds)
        return True

    def refresh(self, moved: int, seconds: float) -> None:
        """Take in a probe of the wire, where rounds have become too small to count.

        It knows nothing of the devices' own rates, so it counts only up to the best sample.
        """
        if self._best:
            self._fade(moved, max(seconds, moved / self._best))
        else:
            self._first = moved / seconds

    def _fade(self, moved: float, seconds: float) -> None:
        self._moved = self.FADE * self._moved + moved
        self._seconds = self.FADE * self._seconds + seconds


def decide(
    now: Round, policy: Policy, ask_exact: Callable[[], Iterable[Pending]] | None = None
) -> Decision:
    """Whether to iterate, switch over, or give up.

    The threshold is what the wire moves in the part of the downtime limit that the state changes
    and round trips leave.  Criteria, in order:

    1. The estimate fits the threshold, then the exact sizes do (``ask_exact`` is called only here;
       without it ``now`` counts as exact), all initial bytes are sent, and they are
       acknowledged where the policy asks for it: SWITCH_OVER.
    2. All that pre-copy can move has moved and is acknowledged, and the rest still does not fit; or
       what exists only in stop-copy does not by far (half as much again, since a bandwidth is
       never exact): no further round can help.  Not in the first ``_SETTLED`` seconds: by then
       the wire was measured more than once.
    3. ``max_iterations`` rounds, or 4. ``precopy_timeout`` seconds, have passed.

    For 2 to 4 ``on_no_convergence`` decides between GIVE_UP and SWITCH_OVER.  Otherwise: ITERATE.
    """
    rate = now.bandwidth or 0.0
    budget = policy.downtime_limit - now.fixed_seconds
    threshold = int(rate * max(budget, 0.0))
    estimate = sum(p.precopy if p.can_precopy else p.exact for p in now.pending)
    exact: int | None = None
    pending = now.pending
    acknowledged = now.acknowledged or not policy.switchover_ack
    if estimate <= threshold and ask_exact is not None:
        pending = tuple(ask_exact())
    if estimate <= threshold:
        exact = sum(p.exact for p in pending)
    left = estimate if exact is None else exact

    def decision(verdict: Verdict, reason: str) -> Decision:
        predicted = left / rate + now.fixed_seconds if rate else None
        return Decision(verdict, reason, estimate, exact, threshold, predicted)

    initial = sum(p.initial for p in pending)
    if exact is not None and exact <= threshold and initial == 0 and acknowledged:
        return decision(
            Verdict.SWITCH_OVER, f"{_mib(exact)} fit the threshold of {_mib(threshold)}"
        )
    if budget <= 0:
        problem = (
            f"state changes and round trips alone take {now.fixed_seconds * 1e3:.0f} ms,"
            f" the downtime limit is {policy.downtime_limit * 1e3:.0f} ms"
        )
    else:
        problem = f"{_mib(left)} are left, {_mib(threshold)} fit the downtime limit"
    floor = sum(p.exact - p.precopy for p in pending if exact is not None or not p.can_precopy)
    settled = acknowledged and rate > 0 and initial == 0 and now.elapsed >= _SETTLED
    if settled and left > threshold and not any(p.precopy for p in pending):
        problem = f"pre-copy has moved all it can and {problem}"
    elif settled and floor > 1.5 * threshold:
        problem = f"{_mib(floor)} exist only in stop-copy, {_mib(threshold)} fit the downtime limit"
    elif now.iteration >= policy.max_iterations:
        problem = f"after {now.iteration} iterations {problem}"
    elif now.elapsed >= policy.precopy_timeout:
        problem = f"after {now.elapsed:.1f} s of pre-copy {problem}"
    else:
        return decision(Verdict.ITERATE, problem)
    if policy.on_no_convergence == "switchover":
        return decision(Verdict.SWITCH_OVER, f"{problem}; switching over as the policy says")
    return decision(Verdict.GIVE_UP, problem)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


Arcs: TypeAlias = tuple[Flags, Mapping[str, float]]
"""A device's flags, and the times of its arcs in seconds, as far as they are known."""


def source_seconds(devices: Iterable[Arcs]) -> float:
    """What the source's two barriers are expected to take at the switchover."""
    quiesce, stop = [], []
    for flags, arcs in devices:
        here = State.PRE_COPY if flags & Flags.PRE_COPY else State.RUNNING
        quiet = quiesced(here) if flags & Flags.P2P else here
        quiesce.append(Move(flags, arcs, here, quiet))
        stop.append(Move(flags, arcs, quiet, State.STOP_COPY))
    return slowest(quiesce) + slowest(stop)


def destination_seconds(devices: Iterable[Arcs]) -> float:
    """What the destination is expected to take from the end of the data to RUNNING."""
    devices = list(devices)
    route = (State.RESUMING, State.STOP, State.RUNNING_P2P, State.RUNNING)
    total = sum(
        slowest(Move(flags, arcs, start, end) for flags, arcs in devices if flags & Flags.P2P)
        for start, end in itertools.pairwise(route)
    )
    return total + slowest(
        Move(flags, arcs, State.RESUMING, State.RUNNING)
        for flags, arcs in devices
        if not flags & Flags.P2P
    )


def slowest(moves: Iterable[Move]) -> float:
    """Seconds that a barrier is expected to take: those of its slowest device.

    Arcs of which nothing is known count 0, and so does a change that a device cannot make.
    """
    return max((move.seconds for move in moves), default=0.0)


@dataclass(frozen=True, slots=True)
class Move:
    """One device's part in a barrier.  ``arc_seconds`` is keyed by arcs written ``"A->B"``."""

    flags: Flags
    arc_seconds: Mapping[str, float]
    start: State
    end: State

    @property
    def seconds(self) -> float:
        """The sum over the arcs that the kernel would compose."""
        try:
            chain = (self.start, *path(self.flags, self.start, self.end))
        except IllegalTransition:
            return 0.0
        return sum(self.arc_seconds.get(f"{a}->{b}", 0.0) for a, b in itertools.pairwise(chain))

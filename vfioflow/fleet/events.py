"""Machines leave over one wire: what happens when, from event to event.  Pure.

The rounds are those of :mod:`vfioflow.rounds`, and each is judged by :func:`vfioflow.precopy.decide`
itself.  Between two events every flow moves at a steady rate: each machine that has something to send gets
an equal share of the wire, and what one cannot use, because its devices are slower, goes to the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from vfioflow import precopy
from vfioflow.fleet.machines import Machine, Wire
from vfioflow.fleet.traffic import SHORTEST_ROUND, Traffic
from vfioflow.policy import Policy
from vfioflow.precopy import Bandwidth, Decision, Round, Verdict

__all__ = ["SET_UP", "Departure", "Passage", "simulate"]

SET_UP = 0.15
"""Seconds for connections, and for the two probes of the wire of 50 ms each."""

_HELD_ROUND = 0.5
_LONGEST_ROUND = 1.0
_STALE = 1.0
"""Seconds, as in :mod:`vfioflow.rounds`."""

_PROBE_SECONDS = 0.05


_RELAXED = 1.1
"""What a limit below the machine's own grows by, each second, when it has not been reached for too long."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A machine, and the downtime limit that it is sent with.  Seconds.

    When pre-copy has gone on for ``patience``, or would give up, the limit grows step by step as far as
    ``ceiling`` (None: not at all), as :meth:`vfioflow.source.Source.change` lets it.
    """

    machine: Machine
    limit: float
    ceiling: float | None = None
    patience: float = math.inf

    def limit_after(self, steps: int) -> float:
        """The limit after so many steps."""
        most = self.ceiling or self.limit
        return self.limit if most <= self.limit else min(self.limit * _RELAXED**steps, most)


@dataclass(frozen=True, slots=True)
class Passage:
    """How a machine left.  Seconds since the first began; ``downtime`` is a duration.

    One that did not converge has a ``reason``, and runs where it was: ``stopped`` and the times
    after it are then when that was decided, and its downtime is 0.
    """

    name: str
    started: float
    stopped: float
    drained: float
    left: float
    downtime: float
    rounds: int
    bytes_total: int
    bytes_stopcopy: int
    predicted: float = 0.0
    reason: str = ""
    held: float = 0.0
    """Seconds for which it could have switched over, and another one stood still."""

    @property
    def away(self) -> bool:
        """Whether it runs elsewhere."""
        return not self.reason


class _Phase(Enum):
    SET_UP = auto()
    ROUND = auto()
    PAUSE = auto()
    STOP = auto()
    DRAIN = auto()
    LAND = auto()
    OVER = auto()


class _Leaving:
    """One machine on its way.  It waits until a time, or until its bytes have moved."""

    def __init__(self, departure: Departure, wire: Wire, policy: Policy, now: float) -> None:
        self.name = departure.machine.name
        self.departure = departure
        self.steps = 0
        self.traffic = Traffic(departure.machine, wire)
        self.policy = replace(
            policy, downtime_limit=departure.limit, on_no_convergence="abort", switchover_ack=True
        )
        self.bandwidth = Bandwidth()
        self.phase = _Phase.SET_UP
        self.until = now + SET_UP + self.traffic.enter_seconds
        self.remaining = 0.0
        """Bytes of the flow that is under way."""
        self.own_rate = math.inf
        self.rate = 0.0
        """What the wire gives it now, in bytes per second."""
        self.started = now
        self.begin = self.until
        self.round_began = now
        self.in_round = 0.0
        self.rounds = 0
        self.acknowledged = not any(stream.acknowledged for stream in self.traffic.streams)
        self.measured = now
        self.held_since: float | None = None
        self.held_rounds = 0
        self.held_seconds = 0.0
        self.moved = 0.0
        self.drain_bytes = 0.0
        self.stopped = self.drained = math.nan
        self.decision: Decision | None = None
        self.passage: Passage | None = None

    @property
    def flows(self) -> bool:
        """Whether it has bytes on the wire."""
        return self.phase in (_Phase.ROUND, _Phase.DRAIN)

    @property
    def next_event(self) -> float:
        """Seconds from now; for one that flows, at its rate."""
        if self.flows:
            return self.remaining / self.rate if self.rate else math.inf
        return math.inf

    def judge(self, now: float) -> Decision:
        """Go on, switch over, or give up?  Rounds for which it was held do not count."""
        held = now - self.held_since if self.held_since is not None else 0.0
        elapsed = now - self.begin - self.held_seconds - held
        self._relax(max(self.steps, _whole(elapsed - self.departure.patience)))
        seen = Round(
            self.rounds - self.held_rounds,
            elapsed,
            self.traffic.pending(),
            self.bandwidth.value,
            self.traffic.fixed_seconds,
            self.acknowledged,
        )
        # The acknowledgement arrives while the next round is under way.
        self.acknowledged = self.traffic.initial_sent
        decision = precopy.decide(seen, self.policy, lambda: seen.pending)
        while decision.verdict is Verdict.GIVE_UP and self._relax(self.steps + 1):
            decision = precopy.decide(seen, self.policy, lambda: seen.pending)
        return decision

    def _relax(self, steps: int) -> bool:
        """Let the limit grow to what it is after so many steps; whether that is more."""
        limit = self.departure.limit_after(steps)
        if limit <= self.policy.downtime_limit:
            return False
        self.steps = steps
        self.policy = replace(self.policy, downtime_limit=limit)
        return True

    def start_round(self, now: float) -> None:
        """Move what is pending, as far as a round may take."""
        least = self.policy.frame_size
        most = max(16 * least, int(_LONGEST_ROUND * (self.bandwidth.value or 0.0)))
        self.in_round, self.own_rate = self.traffic.take(most, least)
        self.moved += self.in_round
        self.remaining = self.in_round
        self.round_began = now
        self.phase = _Phase.ROUND
        if not self.remaining:
            self.end_flow(now)

    def end_flow(self, now: float) -> None:
        """The bytes of the round have moved; the next begins ``SHORTEST_ROUND`` after this at least."""
        if self.bandwidth.add(int(self.in_round), now - self.round_began):
            self.measured = now
        shortest = SHORTEST_ROUND if self.held_since is None else _HELD_ROUND
        self.until = max(now, self.round_began + shortest)
        self.phase = _Phase.PAUSE

    def end_round(self, now: float, share: float) -> None:
        """All devices have run meanwhile; a bandwidth that has become old is measured again."""
        self.traffic.run(now - self.round_began)
        self.rounds += 1
        self.held_rounds += self.held_since is not None
        if now - self.measured > _STALE:
            self.bandwidth.refresh(int(share * _PROBE_SECONDS), _PROBE_SECONDS)
            self.measured = now

    def hold(self, now: float) -> None:
        """It could switch over, and may not yet."""
        if self.held_since is None:
            self.held_since = now

    def let_go(self, now: float) -> None:
        """It is no longer held, or no longer could."""
        if self.held_since is not None:
            self.held_seconds += now - self.held_since
            self.held_since = None

    def stop(self, now: float, decision: Decision) -> None:
        """The vCPUs stop."""
        self.decision, self.stopped = decision, now
        self.phase, self.until = _Phase.STOP, now + self.traffic.stop_seconds

    def start_drain(self) -> None:
        """The devices are in STOP_COPY."""
        self.drain_bytes, self.own_rate = self.traffic.drain()
        self.remaining = self.drain_bytes
        self.phase = _Phase.DRAIN

    def end_drain(self, now: float) -> None:
        """The last byte is there."""
        self.drained = now
        self.phase, self.until = _Phase.LAND, now + self.traffic.land_seconds

    def end(self, now: float, reason: str = "") -> None:
        """It runs: there, or, with a reason, here."""
        self.phase = _Phase.OVER
        if reason:
            self.stopped = self.drained = now
        predicted = self.decision.predicted_downtime if self.decision else None
        self.passage = Passage(
            self.name,
            self.started,
            self.stopped,
            self.drained,
            now,
            0.0 if reason else now - self.stopped,
            self.rounds,
            math.ceil(self.moved + self.drain_bytes),
            math.ceil(self.drain_bytes),
            predicted or 0.0,
            reason,
            self.held_seconds,
        )


def simulate(
    departures: Sequence[Departure],
    wire: Wire,
    policy: Policy,
    *,
    at_once: int | None = None,
    coordinated: bool = True,
) -> list[Passage]:
    """How these machines leave, in their order; the first ``at_once`` begin at 0 (all with None).

    Each further one begins when one is away or has given up.  ``coordinated``: one machine at a time
    stands still and sends, others that could are held meanwhile; and what it sends goes before the
    pre-copy of the others.  Without, each goes its own way, and all share the wire alike.
    """
    return _Host(departures, wire, policy, at_once or len(departures), coordinated).run()


class _Host:
    def __init__(
        self,
        departures: Sequence[Departure],
        wire: Wire,
        policy: Policy,
        at_once: int,
        coordinated: bool,
    ) -> None:
        self._waiting = list(reversed(departures))
        self._wire = wire
        self._policy = policy
        self._at_once = at_once
        self._coordinated = coordinated
        self._now = 0.0
        self._all: list[_Leaving] = []
        self._active: list[_Leaving] = []
        self._still: _Leaving | None = None
        """Who stands still, where only one may."""

    def run(self) -> list[Passage]:
        self._admit()
        while self._active:
            self._share()
            due = self._advance()
            for each in due:
                self._step(each)
            self._active = [each for each in self._active if each.phase is not _Phase.OVER]
            self._admit()
        return [each.passage for each in self._all if each.passage is not None]

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._at_once:
            each = _Leaving(self._waiting.pop(), self._wire, self._policy, self._now)
            self._all.append(each)
            self._active.append(each)

    # ---------------------------------------------------------------- the wire

    def _share(self) -> None:
        """What the wire gives each: those that stand still first, where that is agreed on."""
        flows = [each for each in self._active if each.flows]
        spare = float(self._wire.rate)
        if self._coordinated:
            spare -= _fill(spare, [each for each in flows if each.phase is _Phase.DRAIN])
            flows = [each for each in flows if each.phase is _Phase.ROUND]
        _fill(spare, flows)

    def _share_of(self, one: _Leaving) -> float:
        """What a probe of the wire measures: an equal share."""
        return self._wire.rate / sum(each.flows or each is one for each in self._active)

    def _advance(self) -> list[_Leaving]:
        """Let time pass until something happens; those to whom it does, in order."""
        at = [each.next_event + self._now if each.flows else each.until for each in self._active]
        then = min(at)
        assert then < math.inf
        seconds = then - self._now
        for each in self._active:
            if each.flows:
                each.remaining = max(each.remaining - each.rate * seconds, 0.0)
        self._now = then
        return [each for each, when in zip(self._active, at, strict=True) if when <= then]

    # --------------------------------------------------------------- the events

    def _step(self, each: _Leaving) -> None:
        """What one has waited for has happened."""
        now = self._now
        match each.phase:
            case _Phase.SET_UP:
                each.bandwidth.assume(self._share_of(each))
                each.begin = each.measured = now
                self._judge(each)
            case _Phase.ROUND:
                each.end_flow(now)
            case _Phase.PAUSE:
                each.end_round(now, self._share_of(each))
                self._judge(each)
            case _Phase.STOP:
                each.start_drain()
            case _Phase.DRAIN:
                each.end_drain(now)
                self._turn(each)
            case _Phase.LAND:
                each.end(now)
            case _Phase.OVER:
                raise AssertionError("it is over")

    def _judge(self, each: _Leaving) -> None:
        decision = each.judge(self._now)
        if decision.verdict is Verdict.GIVE_UP:
            each.end(self._now, decision.reason)
        elif decision.verdict is Verdict.SWITCH_OVER and self._may(each):
            each.let_go(self._now)
            each.stop(self._now, decision)
            self._still = each
        else:
            if decision.verdict is Verdict.SWITCH_OVER:
                each.hold(self._now)
            else:
                each.let_go(self._now)
            each.start_round(self._now)

    def _may(self, each: _Leaving) -> bool:
        return not self._coordinated or self._still in (None, each)

    def _turn(self, done: _Leaving) -> None:
        """One no longer sends: who was held looks again as soon as its round may end."""
        if self._still is done:
            self._still = None
        for each in self._active:
            if each.held_since is not None and each.phase is _Phase.PAUSE:
                each.until = max(self._now, each.round_began + SHORTEST_ROUND)


def _fill(spare: float, flows: Sequence[_Leaving]) -> float:
    """Share ``spare`` equally, but to nobody more than its devices can; what was given in all."""
    given = 0.0
    count = len(flows)
    for each in sorted(flows, key=lambda each: each.own_rate):
        each.rate = min(each.own_rate, (spare - given) / count)
        given += each.rate
        count -= 1
    return given


def _whole(seconds: float) -> int:
    """Seconds begun; 0 before."""
    return math.ceil(seconds) if seconds > 0 else 0

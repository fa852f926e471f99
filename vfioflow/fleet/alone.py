"""A machine that has the wire to itself: how short its downtime can be, and whether it can leave.  Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from vfioflow.fleet.events import Departure, Passage, simulate
from vfioflow.fleet.machines import Fleet, FleetDevice, Machine, Memory, Wire
from vfioflow.fleet.traffic import Traffic

__all__ = ["Alone", "Remedy", "look_at", "remedies"]

_WORTH = 0.01
_WORTH_SECONDS = 0.001
"""A lower limit has to save so much of the downtime, and so many seconds."""

_MARGIN = 1.02
"""How far the patient limit is above what the simulation reached."""

_MORE_ROUNDS = 20
"""Patience takes at most twice as many rounds as without, and these."""

_STEPS = 24
"""Halvings of a search."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What a machine does by itself.  Seconds.

    ``bound``: no schedule gives it a shorter downtime.  ``limits``: the downtime limits to choose from,
    the patient one first, then the largest that keeps it within its own; only that where patience saves
    nothing, and none where it cannot leave.  ``quick``: how it leaves with the last of them, or why it
    cannot.  ``patient``: how it leaves with the first.
    """

    machine: Machine
    bound: float
    limits: tuple[float, ...]
    quick: Passage
    patient: Passage

    @property
    def can(self) -> bool:
        """Whether it can leave within its limit."""
        return bool(self.limits)

    def departure(self, limit: int, *, at_once: int) -> Departure:
        """As it is sent with one of its limits, when so many begin at once."""
        patience = 1.0 + at_once * self.patient.stopped
        return Departure(self.machine, self.limits[limit], self.limits[-1], patience)


def look_at(fleet: Fleet, machine: Machine) -> Alone:
    """How ``machine`` leaves when no other does."""
    bound = Traffic(machine, fleet.wire).least_downtime(fleet.wire.rate)
    own = machine.downtime_limit
    least, patient = _least_limit(fleet, machine, _run(fleet, machine, own))
    if not within(patient, machine):
        return Alone(machine, bound, (), patient, patient)
    most, quick = _largest_limit(fleet, machine, least, patient)
    if _worth(quick.downtime - patient.downtime, quick.downtime):
        return Alone(machine, bound, (least, most), quick, patient)
    return Alone(machine, bound, (most,), quick, quick)


def within(passage: Passage, machine: Machine) -> bool:
    """Whether it is away, within its limit."""
    return passage.away and passage.downtime <= machine.downtime_limit * (1 + 1e-9)


def _run(fleet: Fleet, machine: Machine, limit: float) -> Passage:
    return simulate([Departure(machine, limit)], fleet.wire, fleet.policy)[0]


def _least_limit(fleet: Fleet, machine: Machine, quick: Passage) -> tuple[float, Passage]:
    """The least limit that further rounds reach, and how the machine leaves then."""
    own = machine.downtime_limit
    if not quick.away:
        return own, quick
    rounds = min(fleet.policy.max_iterations, 2 * quick.rounds + _MORE_ROUNDS)
    fleet = replace(fleet, policy=replace(fleet.policy, max_iterations=rounds))
    low, high = 0.0, own
    for _ in range(_STEPS):
        if not _worth(high - low, high):
            break
        middle = (high + low) / 2
        if _run(fleet, machine, middle).away:
            high = middle
        else:
            low = middle
    limit = min(own, high * _MARGIN)
    patient = _run(fleet, machine, limit)
    return (limit, patient) if patient.away else (own, quick)


def _largest_limit(
    fleet: Fleet, machine: Machine, least: float, patient: Passage
) -> tuple[float, Passage]:
    """The largest limit, up to the machine's own, with which its downtime is within its own.

    That can be less than its own: a decision is made on the rate of all that has moved, and what is
    left at the end may be that of its slowest device.
    """
    low, reached, high = least, patient, machine.downtime_limit
    tried, middle = _run(fleet, machine, high), high
    for _ in range(_STEPS):
        if within(tried, machine):
            low, reached = middle, tried
        else:
            high = middle
        if not _worth(high - low, high):
            break
        middle = (high + low) / 2
        tried = _run(fleet, machine, middle)
    return low, reached


def _worth(saved: float, of: float) -> bool:
    return saved > max(_WORTH * of, _WORTH_SECONDS)


# ------------------------------------------------------------------------ what would help


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would let a machine leave; the simulation says that it does.

    ``kind``: "downtime_limit" (``value`` in seconds), "wire" (bytes per second), or "dirty_rate" (the
    share of the present rate).
    """

    kind: str
    value: float


def remedies(fleet: Fleet, machine: Machine) -> list[Remedy]:
    """What would help a machine that cannot leave by itself; one thing each, as little of it as needed."""

    def with_limit(limit: float) -> bool:
        return _leaves(fleet, replace(machine, downtime_limit=limit))

    def with_wire(rate: float) -> bool:
        wire = Wire(int(rate), fleet.wire.latency)
        return _leaves(replace(fleet, wire=wire), machine)

    def with_less_dirt(saved: float) -> bool:
        return _leaves(fleet, _quieter(machine, 1 - saved))

    limit, rate = machine.downtime_limit, fleet.wire.rate
    tried = [
        ("downtime_limit", _least(with_limit, limit, min(4096 * limit, 9e5))),
        ("wire", _least(with_wire, rate, 64 * rate)),
        ("dirty_rate", _least(with_less_dirt, 0.0, 1.0, steps=10)),
    ]
    found = [Remedy(kind, value) for kind, value in tried if value is not None]
    return [replace(r, value=1 - r.value) if r.kind == "dirty_rate" else r for r in found]


def _leaves(fleet: Fleet, machine: Machine) -> bool:
    quick = _run(fleet, machine, machine.downtime_limit)
    return within(quick, machine) or within(_least_limit(fleet, machine, quick)[1], machine)


def _quieter(machine: Machine, share: float) -> Machine:
    devices = tuple(
        FleetDevice(d.name, replace(d.profile, dirty_rate=d.profile.dirty_rate * share))
        for d in machine.devices
    )
    memory = machine.memory
    if memory is not None:
        memory = Memory(memory.size, memory.dirty_rate * share, memory.dirty_set)
    return replace(machine, devices=devices, memory=memory)


def _least(
    works: Callable[[float], bool], low: float, high: float, *, steps: int = _STEPS
) -> float | None:
    """About the least value between the two that works; None if not even ``high`` does.

    Between values of different sizes it goes by ratios, and stops within a hundredth.
    """
    if not works(high):
        return None
    by_ratio = low > 0
    for _ in range(steps):
        if by_ratio and high < 1.01 * low:
            break
        middle = math.sqrt(low * high) if by_ratio else (low + high) / 2
        if works(middle):
            high = middle
        else:
            low = middle
    return high

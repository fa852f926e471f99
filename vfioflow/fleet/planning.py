"""From machines to a plan: look at each alone, search, simulate, compare, explain.  Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from vfioflow.fleet import words
from vfioflow.fleet.alone import Alone, look_at, remedies, within
from vfioflow.fleet.events import Departure, Passage, simulate
from vfioflow.fleet.machines import Fleet, Machine, Wire
from vfioflow.fleet.results import Comparison, GroupResult, Help, MachineResult, Plan, Stays
from vfioflow.fleet.search import Groups, Way, exact, good

__all__ = ["EFFORT", "MOST_AT_ONCE", "plan"]

MOST_AT_ONCE = 4
"""Machines that may be in a group."""
EFFORT = 200
"""Groups that are simulated at most: all there are, or those that seem to be worth it."""

_SLOWER_WIRE = 0.9


def plan(fleet: Fleet, *, most_at_once: int = MOST_AT_ONCE, effort: int = EFFORT) -> Plan:
    """The plan for ``fleet``, and what comes of it when it is simulated.

    It is the best there is with groups of up to ``most_at_once`` where there are no more groups than
    ``effort``; else it is the best of those that so many simulated groups make.
    """
    looked = [look_at(fleet, machine) for machine in fleet.machines]
    alone = [each for each in looked if each.can]
    groups = Groups(fleet, alone, most_at_once)
    all_ways = groups.count() <= effort
    way = exact(groups) if all_ways else good(groups, effort)
    machines, described = _carried_out(groups, way)
    return Plan(
        wire_rate=fleet.wire.rate,
        wire_latency_s=fleet.wire.latency,
        most_at_once=most_at_once,
        exact=all_ways,
        simulated_groups=groups.simulated,
        groups=described,
        machines=machines,
        stay=[_stays(fleet, each) for each in looked if not each.can],
        downtime_ms=sum(machine.downtime_ms for machine in machines),
        bound_ms=sum(each.bound for each in alone) * 1e3,
        end_s=max((machine.left_s for machine in machines), default=0.0),
        mean_left_s=_mean([(m.priority, m.left_s) for m in machines]),
        compared=_comparisons(fleet, groups, way),
    )


def _carried_out(groups: Groups, way: Way) -> tuple[list[MachineResult], list[GroupResult]]:
    """One group after the other."""
    machines, described = [], []
    begin = 0.0
    for number, group in enumerate(way, 1):
        passages = groups.passages(group)
        for (index, limit), passage in zip(group, passages, strict=True):
            machines.append(
                _machine(groups.alone[index], limit, len(group), passage, begin, number)
            )
        end = begin + groups.seconds(group) / 1e6
        names = [passage.name for passage in passages]
        described.append(GroupResult(names, begin, end, words.why(groups, way, number - 1)))
        begin = end
    return machines, described


def _machine(
    alone: Alone, limit: int, at_once: int, passage: Passage, begin: float, group: int
) -> MachineResult:
    machine = alone.machine
    left = begin + passage.left
    return MachineResult(
        name=machine.name,
        group=group,
        priority=machine.priority,
        deadline_s=machine.deadline if machine.deadline < math.inf else None,
        downtime_limit_ms=machine.downtime_limit * 1e3,
        send_limit_ms=alone.limits[limit] * 1e3,
        patience_s=alone.departure(limit, at_once=at_once).patience,
        started_s=begin + passage.started,
        stopped_s=begin + passage.stopped,
        drained_s=begin + passage.drained,
        left_s=left,
        downtime_ms=passage.downtime * 1e3,
        bound_ms=alone.bound * 1e3,
        held_s=passage.held,
        rounds=passage.rounds,
        bytes_total=passage.bytes_total,
        bytes_stopcopy=passage.bytes_stopcopy,
        late=left > machine.deadline,
    )


def _stays(fleet: Fleet, alone: Alone) -> Stays:
    machine = alone.machine
    limit = machine.downtime_limit
    over = f"its downtime would be {alone.quick.downtime * 1e3:.0f} ms, the limit is {limit * 1e3:.0f} ms"
    found = remedies(fleet, machine)
    return Stays(
        machine.name,
        limit * 1e3,
        alone.bound * 1e3,
        alone.quick.reason or over,
        [Help(r.kind, r.value, words.remedy(r)) for r in found],
    )


# ------------------------------------------------------------------- compared


def _comparisons(fleet: Fleet, groups: Groups, way: Way) -> list[Comparison]:
    """First come, first served, and the plan when the wire is slower than was said."""
    machines = [each.machine for each in groups.alone]
    if not machines:
        return []
    own = [Departure(machine, machine.downtime_limit) for machine in machines]
    chosen = {number: limit for group in way for number, limit in group}
    planned = [
        each.departure(chosen[number], at_once=1) for number, each in enumerate(groups.alone)
    ]

    def served(name: str, departures: Sequence[Departure], at_once: int) -> Comparison:
        passages = simulate(
            departures, fleet.wire, fleet.policy, at_once=at_once, coordinated=False
        )
        return _comparison(name, machines, passages)

    found = [served("first come, first served, one at a time", own, 1)]
    if len(machines) > 1:
        found.append(served("the same with the plan's downtime limits", planned, 1))
    if len(machines) > 2:
        found.append(served("first come, first served, two at a time", own, 2))
    if len(machines) > 1:
        found.append(served("all at once", own, len(machines)))
    slower = Wire(max(int(fleet.wire.rate * _SLOWER_WIRE), 1000), fleet.wire.latency)
    passages = _over(replace(fleet, wire=slower), groups, way)
    in_way = [groups.alone[number].machine for group in way for number, _ in group]
    found.append(_comparison("this plan, the wire a tenth slower", in_way, passages))
    return found


def _over(fleet: Fleet, groups: Groups, way: Way) -> list[Passage]:
    """The passages of a way over another wire than it was planned for."""
    other = Groups(fleet, groups.alone, groups.most)
    passages, begin = [], 0.0
    for group in way:
        passages += [_later(passage, begin) for passage in other.passages(group)]
        begin += other.seconds(group) / 1e6
    return passages


def _later(passage: Passage, by: float) -> Passage:
    return replace(passage, started=passage.started + by, left=passage.left + by)


def _comparison(name: str, machines: Sequence[Machine], passages: Sequence[Passage]) -> Comparison:
    pairs = list(zip(machines, passages, strict=True))

    def names(wanted: Callable[[Machine, Passage], bool]) -> list[str]:
        return [machine.name for machine, passage in pairs if wanted(machine, passage)]

    away = [(machine, passage) for machine, passage in pairs if passage.away]
    return Comparison(
        name=name,
        left=len(away),
        downtime_ms=sum(passage.downtime for _, passage in away) * 1e3,
        end_s=max((passage.left for _, passage in pairs), default=0.0),
        mean_left_s=_mean([(machine.priority, passage.left) for machine, passage in away]),
        stayed=names(lambda _, passage: not passage.away),
        over_limit=names(lambda machine, p: p.away and not within(p, machine)),
        late=names(lambda machine, p: machine.deadline < p.left or _never(machine, p)),
    )


def _never(machine: Machine, passage: Passage) -> bool:
    return machine.deadline < math.inf and not passage.away


def _mean(weighted: Sequence[tuple[int, float]]) -> float:
    weight = sum(each for each, _ in weighted)
    return sum(each * value for each, value in weighted) / weight if weight else 0.0

"""Why a plan is as it is, in words.  Pure.

Each reason is another way, which was simulated too, and what it would cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from vfioflow.fleet.alone import Remedy, within
from vfioflow.fleet.search import Groups, Way

__all__ = ["remedy", "why"]


def why(groups: Groups, way: Way, place: int) -> list[str]:
    """Why this group, and why before the next one."""
    found = []
    if len(way[place]) > 1:
        found.append(_why_together(groups, way, place))
    if place + 1 < len(way):
        found += _why_apart(groups, way, place)
        found.append(_why_before(groups, way, place))
    return found


def remedy(of: Remedy) -> str:
    """What would help, as a clause."""
    if of.kind == "downtime_limit":
        return f"a downtime limit of {of.value * 1e3:.0f} ms"
    if of.kind == "wire":
        return f"a wire that carries {_rate(of.value)}"
    if of.value <= 0:
        return "a guest that stands still, or that dirties nothing"
    return f"a guest that is slowed down to dirty {of.value:.0%} of what it does"


def _why_together(groups: Groups, way: Way, place: int) -> str:
    group = way[place]
    apart = (*way[:place], *((member,) for member in group), *way[place + 1 :])
    what = _difference(groups, way, apart)
    names = _names(groups, group)
    return f"{names} go together: one after the other, {what}."


def _why_apart(groups: Groups, way: Way, place: int) -> list[str]:
    group, following = way[place], way[place + 1]
    if len(group) + len(following) > groups.most:
        return []
    together = (*way[:place], tuple(sorted(group + following)), *way[place + 2 :])
    what = _difference(groups, way, together)
    return [f"Not together with {_names(groups, following)}: {what}."]


def _why_before(groups: Groups, way: Way, place: int) -> str:
    group, following = way[place], way[place + 1]
    swapped = (*way[:place], following, group, *way[place + 2 :])
    what = _difference(groups, way, swapped)
    return f"Before {_names(groups, following)}: the other way round, {what}."


def _difference(groups: Groups, way: Way, other: Way) -> str:
    """What ``other`` does worse, in a clause; the first difference that counts."""
    (cost, end), (other_cost, other_end) = groups.of(way), groups.of(other)
    stuck, late = _fates(groups, way)
    other_stuck, other_late = _fates(groups, other)
    if other_cost.stuck > cost.stuck:
        return f"{_list(other_stuck - stuck)} would not get away within the limit"
    if other_cost.late > cost.late:
        return f"{_list(other_late - late)} would miss the deadline"
    if other_cost.downtime > cost.downtime:
        more = other_cost.downtime - cost.downtime
        return f"the total downtime would be {more} ms longer"
    if other_cost.waiting > cost.waiting:
        weight = sum(each.machine.priority for each in groups.alone)
        later = (other_cost.waiting - cost.waiting) / weight / 1e6
        return f"the machines would leave {later:.2f} s later on the average by priority"
    if other_cost == cost and other_end >= end:
        return "nothing would be better"
    return "it would be better, but the search did not come to that"


def _fates(groups: Groups, way: Way) -> tuple[set[str], set[str]]:
    """Who does not get away within the limit, and who not before the deadline."""
    stuck, late, begin = set(), set(), 0
    for group in way:
        for (number, _), passage in zip(group, groups.passages(group), strict=True):
            machine = groups.alone[number].machine
            if not within(passage, machine):
                stuck.add(machine.name)
            if stuck & {machine.name} or begin + passage.left * 1e6 > machine.deadline * 1e6:
                late.add(machine.name)
        begin += groups.seconds(group)
    return stuck, late


def _names(groups: Groups, group: Sequence[tuple[int, int]]) -> str:
    return _list([groups.alone[number].machine.name for number, _ in group])


def _list(names: Sequence[str] | set[str]) -> str:
    names = sorted(names) if isinstance(names, set) else list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _rate(per_second: float) -> str:
    return f"{per_second * 8 / 1e9:.3g} Gbit/s"

"""Which machines leave together, and in which order: the best of all ways, or a good one.  Pure.

A way is a list of groups.  Those of a group begin together; the next group begins when the last byte of
the one before is there.  What a group does does not depend on when it begins, so each is simulated
once, as if it were the first.

**What is compared**, the first difference decides: machines that do not get away within their limits,
deadlines missed (both by priority), the total downtime (in whole milliseconds, and of each machine what
patience gives it alone at least), how long the machines wait (by priority), the end.  A machine that is
slowed down by others measures a slower wire, is more cautious, and may save a few milliseconds by that; that
alone is no reason to let it wait for them.

**Exact search**: a set of machines that are away can be reached in many ways.  Of those that reach it
no sooner and at no less cost than another, none can be part of a better whole: costs add up, and none
of them falls when a group begins later.  So for each set only the others are kept, and grown by a group.

**For many**: from one by one in a good order, as long as a change helps: two groups become one; a
machine goes into another group, or alone elsewhere; two groups change places; a machine takes its
other limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TypeAlias

from vfioflow.fleet.alone import Alone, within
from vfioflow.fleet.events import Passage, simulate
from vfioflow.fleet.machines import Fleet

__all__ = ["Cost", "Group", "Groups", "Way", "every_way", "exact", "good"]

Group: TypeAlias = tuple[tuple[int, int], ...]
"""Machines by their number, rising, each with the number of its limit."""

Way: TypeAlias = tuple[Group, ...]


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """Compared from the first field on.  Whole numbers, so that sums do not depend on their order.

    ``stuck`` and ``late`` are sums of priorities; ``downtime`` is in milliseconds, ``waiting`` in
    priority times microseconds.
    """

    stuck: int = 0
    late: int = 0
    downtime: int = 0
    waiting: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.stuck + other.stuck,
            self.late + other.late,
            self.downtime + other.downtime,
            self.waiting + other.waiting,
        )


class Groups:
    """What each group does, simulated once; ``most`` machines in one at most.

    ``simulated`` counts those that were.
    """

    def __init__(self, fleet: Fleet, alone: Sequence[Alone], most: int) -> None:
        self._fleet = fleet
        self.alone = alone
        self.most = most
        self._known: dict[Group, list[Passage]] = {}
        self._choose = any(each.machine.deadline < math.inf for each in alone)

    @property
    def simulated(self) -> int:
        """How many groups have been simulated."""
        return len(self._known)

    def count(self) -> int:
        """How many groups there are: sums of products of the numbers of limits."""
        by_size = [1] + [0] * self.most
        for number in range(len(self.alone)):
            for size in range(self.most, 0, -1):
                by_size[size] += by_size[size - 1] * len(self.limits(number))
        return sum(by_size[1:])

    def limits(self, number: int) -> range:
        """The limits to choose from.  Where there is no deadline, nothing speaks against patience."""
        return range(len(self.alone[number].limits) if self._choose else 1)

    def passages(self, group: Group) -> list[Passage]:
        """How its machines leave, when it begins at 0."""
        if group not in self._known:
            departures = [
                self.alone[number].departure(limit, at_once=len(group)) for number, limit in group
            ]
            self._known[group] = simulate(departures, self._fleet.wire, self._fleet.policy)
        return self._known[group]

    def seconds(self, group: Group) -> int:
        """Microseconds until the next group can begin."""
        return max(math.ceil(passage.drained * 1e6) for passage in self.passages(group))

    def cost(self, group: Group, begin: int) -> Cost:
        """Of a group that begins at so many microseconds."""
        total = Cost()
        for (number, _), passage in zip(group, self.passages(group), strict=True):
            machine = self.alone[number].machine
            at = begin + round(passage.left * 1e6)
            away = within(passage, machine)
            late = not away or at > machine.deadline * 1e6
            total += Cost(
                0 if away else machine.priority,
                machine.priority if late and machine.deadline < math.inf else 0,
                round(max(passage.downtime, self.alone[number].patient.downtime) * 1e3),
                machine.priority * at,
            )
        return total

    def of(self, way: Way) -> tuple[Cost, int]:
        """What a whole way costs, and when it ends, in microseconds."""
        total, at = Cost(), 0
        for group in way:
            total += self.cost(group, at)
            at += self.seconds(group)
        return total, at


# ------------------------------------------------------------------------ exact


@dataclass(frozen=True, slots=True)
class _Reached:
    at: int
    cost: Cost
    way: Way


def exact(groups: Groups) -> Way:
    """The best of all ways."""
    count = len(groups.alone)
    kinds = [_with_limits(groups, members) for members in _parts(count, groups.most)]
    by_mask: dict[int, list[Group]] = {
        sum(1 << number for number, _ in kind[0]): kind for kind in kinds
    }
    whole = (1 << count) - 1
    reached: dict[int, list[_Reached]] = {0: [_Reached(0, Cost(), ())]}
    for mask in range(whole):
        for label in reached.pop(mask, []):
            for added, kind in by_mask.items():
                if added & mask:
                    continue
                for group in kind:
                    found = _Reached(
                        label.at + groups.seconds(group),
                        label.cost + groups.cost(group, label.at),
                        (*label.way, group),
                    )
                    _keep(reached.setdefault(mask | added, []), found)
    return min(reached[whole], key=lambda each: (each.cost, each.at, each.way)).way


def _keep(labels: list[_Reached], new: _Reached) -> None:
    """Add it, unless one is as good in both; drop those that it is as good as in both."""
    if any(old.at <= new.at and old.cost <= new.cost for old in labels):
        return
    labels[:] = [old for old in labels if not (new.at <= old.at and new.cost <= old.cost)]
    labels.append(new)


def _parts(count: int, most: int) -> Iterator[tuple[int, ...]]:
    """All sets of up to ``most`` machines."""
    for size in range(1, min(most, count) + 1):
        yield from combinations(range(count), size)


def _with_limits(groups: Groups, members: Iterable[int]) -> list[Group]:
    """A set of machines with each choice of limits."""
    members = list(members)
    return [
        tuple(zip(members, choice, strict=True))
        for choice in product(*(groups.limits(number) for number in members))
    ]


def every_way(groups: Groups) -> Iterator[Way]:
    """All ways, one by one: for tests, and for very few machines."""

    def grow(left: frozenset[int]) -> Iterator[Way]:
        if not left:
            yield ()
        for size in range(1, min(groups.most, len(left)) + 1):
            for members in combinations(sorted(left), size):
                rests = list(grow(left - set(members)))
                for group in _with_limits(groups, members):
                    yield from ((group, *rest) for rest in rests)

    yield from grow(frozenset(range(len(groups.alone))))


# ------------------------------------------------------------------------ for many


_WAYS = 50
"""Ways that are compared, for each group that may be simulated."""


def good(groups: Groups, simulations: int) -> Way:
    """A way that no single change makes better, or the best when so many groups were simulated."""
    way = min(_begin(groups), key=groups.of)
    best = groups.of(way)
    left = simulations * _WAYS
    improved = True
    while improved:
        improved = False
        for changed in _changes(groups, way):
            if left <= 0 or groups.simulated >= simulations:
                return way
            left -= 1
            if (cost := groups.of(changed)) < best:
                way, best, improved = changed, cost, True
                break
    return way


def _begin(groups: Groups) -> list[Way]:
    """One by one, in orders that are the best of some simpler problem."""
    numbers = range(len(groups.alone))

    def ratio(number: int) -> float:
        """Smith: for the least waiting, the least time for each unit of priority first."""
        alone = groups.alone[number]
        return alone.patient.drained / alone.machine.priority

    by_deadline = sorted(numbers, key=lambda n: (groups.alone[n].machine.deadline, ratio(n)))
    in_time: list[int] = []
    for number in by_deadline:
        # Moore and Hodgson: for the fewest that are late, those go last that take the longest.
        in_time.append(number)
        taken = sum(groups.alone[n].patient.drained for n in in_time)
        if taken > groups.alone[number].machine.deadline:
            in_time.remove(max(in_time, key=ratio))
    too_late = sorted(set(numbers) - set(in_time), key=ratio)
    orders = [sorted(numbers, key=ratio), by_deadline, [*in_time, *too_late]]
    return [tuple(((number, 0),) for number in order) for order in orders]


def _changes(groups: Groups, way: Way) -> Iterator[Way]:
    """Each way that is one change away, those that are likely to help first."""
    for place in range(len(way) - 1):
        yield (*way[:place], way[place + 1], way[place], *way[place + 2 :])
    yield from _merged(groups, way)
    for first, second in combinations(range(len(way)), 2):
        swapped = list(way)
        swapped[first], swapped[second] = way[second], way[first]
        yield tuple(swapped)
    for place, group in enumerate(way):
        for member in group:
            yield from _moved(groups, way, place, member)
            yield from _other_limit(groups, way, place, member)


def _merged(groups: Groups, way: Way) -> Iterator[Way]:
    for first, second in combinations(range(len(way)), 2):
        if len(way[first]) + len(way[second]) <= groups.most:
            one = tuple(sorted(way[first] + way[second]))
            yield (*way[:first], one, *way[first + 1 : second], *way[second + 1 :])


def _moved(groups: Groups, way: Way, place: int, member: tuple[int, int]) -> Iterator[Way]:
    """The machine in each other group, and by itself at each place."""
    without = tuple(each for each in way[place] if each != member)
    for other, group in enumerate(way):
        if other != place and len(group) < groups.most:
            changed = list(way)
            changed[other] = tuple(sorted((*group, member)))
            changed[place] = without
            yield tuple(each for each in changed if each)
    rest = [each for each in (*way[:place], without, *way[place + 1 :]) if each]
    for at in range(len(rest) + 1):
        yield (*rest[:at], (member,), *rest[at:])


def _other_limit(groups: Groups, way: Way, place: int, member: tuple[int, int]) -> Iterator[Way]:
    number, limit = member
    for other in groups.limits(number):
        if other != limit:
            group = tuple((n, other if n == number else chosen) for n, chosen in way[place])
            yield (*way[:place], group, *way[place + 1 :])

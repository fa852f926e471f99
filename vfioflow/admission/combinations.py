"""Which of many devices may migrate together, without looking at every subset.

Refusals only grow with a set (see :mod:`vfioflow.admission.rules`), so a refused set has smallest
refused parts, and each device that may migrate at all is in a largest set that may.  There can be
2^n of either; what is found here takes about n^2 looks:

- every single device and every pair that is refused;
- where a set of which no pair is refused is refused, by a sum, a part of it that is refused and
  of which no device can be spared;
- for each device a set that may migrate and to which none can be added.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from vfioflow.admission.facts import Circumstances, Facts
from vfioflow.admission.judging import judge
from vfioflow.admission.verdict import Level

__all__ = ["largest_that_may", "refused_pairs", "smallest_refused"]

May = Callable[[Sequence[Facts]], bool]


def may_go(around: Circumstances | None = None, there: Sequence[Facts] | None = None) -> May:
    """Whether a set may migrate, with a condition or without; parts of a set included."""

    def may(devices: Sequence[Facts]) -> bool:
        names = {device.name for device in devices}
        matching = None if there is None else [d for d in there if d.name in names]
        return judge(devices, around, destination=matching).level < Level.MAY_NOT

    return may


def refused_pairs(
    devices: Sequence[Facts],
    around: Circumstances | None = None,
    there: Sequence[Facts] | None = None,
) -> list[tuple[str, str]]:
    """Pairs that may not go together, of devices that may go alone."""
    may = may_go(around, there)
    good = [device for device in devices if may([device])]
    return [(a.name, b.name) for a, b in itertools.combinations(good, 2) if not may([a, b])]


def smallest_refused(
    devices: Sequence[Facts],
    around: Circumstances | None = None,
    there: Sequence[Facts] | None = None,
) -> list[tuple[str, ...]]:
    """Parts of the set that are refused, and of which every smaller part may go; [] if it may.

    All of one and of two devices; and one of more, where the devices left by them may not go either.
    """
    may = may_go(around, there)
    singles = [(device.name,) for device in devices if not may([device])]
    pairs = refused_pairs(devices, around, there)
    found: list[tuple[str, ...]] = [*singles, *pairs]
    bad = {name for part in found for name in part}
    rest = [device for device in devices if device.name not in bad]
    if rest and not may(rest):
        found.append(tuple(d.name for d in _needed(rest, may)))
    return found


def _needed(devices: Sequence[Facts], may: May) -> list[Facts]:
    """A part that is refused, and no longer so without any one of its devices."""
    left = sorted(devices, key=_weight)
    for device in list(left):
        fewer = [other for other in left if other is not device]
        if fewer and not may(fewer):
            left = fewer
    return [device for device in devices if device in left]


def largest_that_may(
    devices: Sequence[Facts],
    around: Circumstances | None = None,
    there: Sequence[Facts] | None = None,
) -> list[tuple[str, ...]]:
    """Sets that may migrate and to which none of the others can be added; the largest first.

    Each device that may migrate at all is in one of them.
    """
    may = may_go(around, there)
    light_first = sorted(devices, key=_weight)
    found: dict[tuple[str, ...], None] = {}
    covered: set[str] = set()
    for first in light_first:
        if first.name in covered or not may([first]):
            continue
        together = [first]
        for other in light_first:
            if other is not first and may([*together, other]):
                together.append(other)
        names = {device.name for device in together}
        covered |= names
        found[tuple(d.name for d in devices if d.name in names)] = None
    return sorted(found, key=lambda names: -len(names))


def _weight(device: Facts) -> int:
    return device.stop_copy_bytes or 0

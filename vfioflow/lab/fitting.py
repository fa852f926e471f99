"""From what was seen of a device to a profile that behaves like it.  Pure.

A simulated device dirties blocks that it picks at random from a set of S bytes, at r bytes per second.
Of those, some were dirty before: what is dirty grows from u to u' in t seconds as
``S - u' = (S - u) exp(-r t / S)``.  So r follows from two looks, and S from how the growth slows down
while nothing is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vfioflow.devices.profile import Profile, profile, profile_names
from vfioflow.devices.quirks import quirks_of
from vfioflow.lab.observed import Growth, Observed, Packing
from vfioflow.states import Flags

__all__ = ["Fitted", "dirty_set", "fit", "rates", "sizes"]

_BLOCK = 65536
_HEADER = 32
_OVERHEAD = 112
"""Of a simulated stream: its first record, and its last one without peers, in bytes."""
_SETUP = 64
"""The first record."""

_SATURATED = 0.9
"""Growth below so much of what a set without bounds would give is a sign of its bounds."""
_EVEN = 0.25
"""A course of rates that stays so near its mean is one rate."""
_WORTH = 32
"""Blocks that were dirtied in each step of a course, on average: with fewer it is mostly noise."""
_MOST_STEPS = 200
_SHORTEST_ARC = 0.0005
"""Seconds; less is the call itself."""
_LEAST_READ = 8 << 20
"""Bytes; reading less says nothing of a rate."""
_STRUCTURED = 0.49
"""What zstd leaves of a simulated device's structured blocks."""
_ROUNDS = 20
_LOAD_ARC = "RESUMING->STOP"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A profile, and which of its fields were measured.

    The others are those of the profile ``base``; where that is empty nothing is known of them.  ``notes``
    say what could not be seen.
    """

    name: str
    profile: Profile
    measured: frozenset[str]
    base: str
    notes: tuple[str, ...]


def fit(seen: Observed) -> Fitted:
    """The profile of a device that was watched."""
    base = next((name for name in profile_names() if profile(name).driver == seen.info.driver), "")
    like = profile(base) if base else Profile()
    notes: list[str] = []
    values: dict[str, object] = {
        "driver": seen.info.driver,
        "flags": tuple(flag.name or "" for flag in Flags if flag in seen.info.flags),
        "has_data_size": seen.told is not None,
        "version": seen.info.version,
        "firmware": seen.info.firmware,
        "model": seen.info.model,
        "tracking": seen.info.tracking,
    }
    values |= _sizes(seen, notes)
    values |= _dirty(seen, notes)
    values |= _stream(seen, notes)
    measured = frozenset(values)
    quirks = quirks_of(seen.info.driver)
    if quirks.names and not base:
        values |= {"load_in": quirks.load_in, "info_starts_save": quirks.info_starts_save}
    values["arc_seconds"] = _arcs(seen, like)
    fitted = like.override({"initial_bytes": 0, "dirty_set": -1, "arc_seconds": {}} | values)
    missing = [arc for arc in fitted.arc_seconds if arc not in seen.arcs]
    if missing:
        notes.append(f"not timed: {', '.join(missing)}, taken from what is known of the driver")
    if seen.stopped is None:
        notes.append("the times into and out of STOP_COPY were not seen: that takes --stop-copy")
    notes.append("how fast it loads, and where, shows only at a destination")
    return Fitted(seen.name, fitted, measured, base, tuple(notes))


def _sizes(seen: Observed, notes: list[str]) -> dict[str, object]:
    offered = seen.watched.offered if seen.watched is not None else 0
    total = seen.told
    if total is None and seen.stopped is not None:
        total = seen.stopped.size + offered
        notes.append(
            "it does not tell its size: that is what it handed out, with what was dirtied again"
        )
    elif total is None:
        total = offered
        notes.append("it does not tell its size: the part that moves in stop-copy was not seen")
    state, initial = sizes(max(total, offered, 1), offered)
    return {"state_size": state, "initial_bytes": initial}


def sizes(total: int, offered: int) -> tuple[int, int]:
    """``state_size`` and ``initial_bytes`` of a simulated device with such a stream.

    It has ``total`` bytes, of which it offers ``offered`` in pre-copy.  Exact where its records allow:
    they have 32 bytes besides each block, and 112 in all; initial data is in whole blocks.  A stream
    that is shorter than its records would be counts as the state itself.
    """
    if total <= _OVERHEAD + _HEADER:
        return total, min(offered, total)
    body = total - _OVERHEAD
    block = min(_BLOCK, body - _HEADER)
    part = offered - _SETUP - _HEADER
    if 0 < part < block and -(-body // (part + _HEADER)) <= 1024:
        block = part
    count = -(-body // (block + _HEADER))
    state = max(body - count * _HEADER, (count - 1) * block + 1)
    if offered <= _SETUP:
        return state, 0

    def stream(blocks: int) -> int:
        return _SETUP + min(blocks * block, state) + blocks * _HEADER

    near = round((offered - _SETUP) / (block + _HEADER))  # the last block may be short
    tried = {min(max(near + more, 1), count) for more in (-1, 0, 1)}
    blocks = min(sorted(tried), key=lambda blocks: abs(stream(blocks) - offered))
    return state, min(blocks * block, state)


def _dirty(seen: Observed, notes: list[str]) -> dict[str, object]:
    if seen.watched is None or not seen.watched.growths:
        return {}
    growths, unread = seen.watched.growths, seen.watched.unread
    bound = dirty_set(growths, unread)
    course = rates(growths, bound)
    mean = fmean(course) if course else 0.0
    if mean == 0:
        notes.append("nothing became dirty while it was watched")
        return {"dirty_rate": 0.0, "dirty_rates": ()}
    payload = _BLOCK / (_BLOCK + _HEADER)
    values: dict[str, object] = {"dirty_rate": mean * payload, "dirty_rates": ()}
    if bound is None:
        notes.append("no bound was seen of what becomes dirty: taken to be all that it offers")
    else:
        values["dirty_set"] = max(int(min(bound, seen.watched.offered) * payload), 1)
    steps = _course(growths, course)
    if steps:
        lead, length = growths[0].at, _span(growths) / len(steps)
        before = [mean] * round(lead / length)  # what was not seen, while initial data was read
        values["dirty_rates"] = tuple(rate * payload for rate in [*before, *steps])
        values["dirty_step"] = length
    return values


def _span(growths: Sequence[Growth]) -> float:
    return sum(growth.seconds for growth in growths)


def rates(growths: Sequence[Growth], bound: float | None) -> list[float]:
    """Bytes per second that were dirtied in each, again or for the first time.

    ``bound``: bytes that ever are; None: no bound.
    """
    return [_rate(growth, bound) for growth in growths]


def _rate(growth: Growth, bound: float | None) -> float:
    grown = max(growth.after - growth.before, 0)
    if bound is None:
        return grown / growth.waited
    before = max(growth.before, 0)
    free, left = bound - before, bound - before - grown
    least = bound / 100  # nearer to the bound a look says nothing
    if free <= least:
        return 0.0
    return bound / growth.waited * math.log(free / max(left, least))


def dirty_set(growths: Sequence[Growth], unread: Growth | None) -> float | None:
    """The bytes that are ever dirtied, or None where there was no sign of a bound."""
    if not growths or unread is None:
        return None
    before, last = max(unread.before, 0), unread.after - min(unread.before, 0)
    most = float(max([last, *(growth.after for growth in growths)]))

    def dirtied(bound: float | None) -> float:
        return fmean(rates(growths, bound)) * unread.waited

    if last - before >= _SATURATED * dirtied(None):
        return None
    bound = None
    for _ in range(_ROUNDS):  # the rates depend on the bound, and the bound on them
        found = max(_bound(before, last, dirtied(bound)), most)
        if bound is not None and abs(found - bound) < 0.001 * found:
            break
        bound = found
    return bound


def _bound(before: int, last: int, dirtied: float) -> float:
    """The S for which ``dirtied`` bytes take what is dirty from ``before`` to ``last``."""
    low, high = float(max(last, 1)), float(last + 100 * dirtied)
    for _ in range(60):
        middle = (low + high) / 2
        if middle - (middle - before) * math.exp(-dirtied / middle) < last:
            low = middle
        else:
            high = middle
    return high


def _course(growths: Sequence[Growth], found: Sequence[float]) -> list[float]:
    """The rates in steps of equal length; none where they hardly differ."""
    dirtied = sum(rate * growth.seconds for rate, growth in zip(found, growths, strict=True))
    count = min(len(found), int(dirtied / _WORTH / _BLOCK), _MOST_STEPS)
    if count < 2:
        return []
    length = _span(growths) / count
    sums = [0.0] * count
    at = 0.0
    for rate, growth in zip(found, growths, strict=True):
        end = at + growth.seconds
        for step in range(int(at / length), min(int(end / length) + 1, count)):
            overlap = min(end, (step + 1) * length) - max(at, step * length)
            sums[step] += rate * max(overlap, 0.0)
        at = end
    steps = [total / length for total in sums]
    mean = fmean(steps)
    if all(abs(rate - mean) <= _EVEN * mean for rate in steps):
        return []
    return steps


def _stream(seen: Observed, notes: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    moved = [
        (each.read_rate, each.read) for each in [seen.watched] if each and each.read >= _LEAST_READ
    ]
    if seen.stopped is not None and seen.stopped.size >= _LEAST_READ:
        moved.append((seen.stopped.size / seen.stopped.seconds, seen.stopped.size))
    if moved:
        values["read_rate"] = max(moved, key=lambda pair: pair[1])[0]
    else:
        notes.append("too little was read to know how fast it hands out its state")
    if seen.watched is not None and seen.watched.drained:
        values["drained"] = seen.watched.drained
    if seen.packing.raw:
        values["content"] = content(seen.packing)
    return values


def content(packing: Packing) -> str:
    """The content that compresses like this: shares of zeros, structured, and random blocks."""
    zeros = packing.zeros / packing.raw
    if packing.ratio < 0.01:
        return "zeros"
    structured = (1 - zeros - packing.ratio) / (1 - _STRUCTURED)
    if structured > 1 - zeros:  # even less is left: the more zeros
        zeros = 1 - packing.ratio / _STRUCTURED
        structured = 1 - zeros
    parts = round(zeros * 64), round(max(structured, 0.0) * 64)
    return f"mix:{parts[0] / 64:g},{min(parts[1], 64 - parts[0]) / 64:g}"


def _arcs(seen: Observed, like: Profile) -> Mapping[str, float]:
    """Those timed; of the others what the device states, and what is known of its driver."""
    flags = seen.info.flags
    stated = dict(seen.info.arc_seconds)
    if _LOAD_ARC in stated and like.load_in == "stop":
        stated[_LOAD_ARC] = max(stated[_LOAD_ARC] - like.load_seconds, 0.0)
    arcs = (
        {**like.arc_seconds, **stated, **seen.arcs}
        if like.migration_flags == flags
        else {
            **stated,
            **seen.arcs,
        }
    )
    return {arc: seconds for arc, seconds in arcs.items() if seconds >= _SHORTEST_ARC}

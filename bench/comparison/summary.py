"""Medians and ratios.  What counts is the ratio within a round: its runs saw the same machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Run:
    """One mover in one round of a cell."""

    mover: str
    round: int
    size: int
    """Bytes of all devices together."""
    seconds: float
    cpu: float
    """CPU seconds of both sides."""
    wire: int
    """Bytes that the senders' side sent, headers included."""

    @property
    def rate(self) -> float:
        """GiB/s."""
        return self.size / GIB / self.seconds

    @property
    def cpu_per_gib(self) -> float:
        """CPU seconds per GiB."""
        return self.cpu * GIB / self.size


@dataclass(frozen=True, slots=True)
class Row:
    """A mover in a cell: medians over the rounds."""

    mover: str
    runs: int
    rate: float
    """GiB/s."""
    ratio: float
    """Of the rate to the yardstick's in the same round."""
    spread: float
    """Half of the distance between the largest and the smallest ratio."""
    cpu: float
    """CPU seconds per GiB."""
    cpu_ratio: float
    """Of those to the yardstick's in the same round."""
    wire: float
    """Bytes on the wire per byte that was moved."""


def best(runs: Iterable[Run], names: Iterable[str]) -> str | None:
    """Which of ``names`` has the highest median rate; None when none of them ran."""
    rates: dict[str, list[float]] = {}
    wanted = set(names)
    for run in runs:
        if run.mover in wanted:
            rates.setdefault(run.mover, []).append(run.rate)
    return max(rates, key=lambda name: median(rates[name]), default=None)


def summarize(runs: Sequence[Run], yardstick: str) -> list[Row]:
    """A row for each mover, in the order of its first run.

    Rounds in which the mover or the yardstick failed have no ratio; a mover without any is left out.
    """
    base = {run.round: run for run in runs if run.mover == yardstick}
    rows = []
    for name in dict.fromkeys(run.mover for run in runs):
        mine = [run for run in runs if run.mover == name]
        pairs = [(run, base[run.round]) for run in mine if run.round in base]
        if not pairs:
            continue
        ratios = [run.rate / other.rate for run, other in pairs]
        rows.append(
            Row(
                mover=name,
                runs=len(mine),
                rate=median(run.rate for run in mine),
                ratio=median(ratios),
                spread=(max(ratios) - min(ratios)) / 2,
                cpu=median(run.cpu_per_gib for run in mine),
                cpu_ratio=median(
                    run.cpu_per_gib / other.cpu_per_gib if other.cpu else float("nan")
                    for run, other in pairs
                ),
                wire=median(run.wire / run.size for run in mine),
            )
        )
    return rows

"""Cells, and how they are run: every mover once per round, each round in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from comparison.movers import Mover
from comparison.programs import ProgramFailed
from comparison.summary import Row, Run, best, summarize

Measure = Callable[[Mover, int], Run]
"""Runs a mover once, in the round of that number.  Raises ProgramFailed."""


@dataclass
class Cell:
    """One place in a matrix: where the same bytes are moved by all movers."""

    where: dict[str, Any]
    """What sets it apart: source, sink, wire, devices, content."""
    yardsticks: tuple[str, ...]
    """Of these movers, the one with the best median rate is what the others are compared with."""
    runs: list[Run] = field(default_factory=list)
    left_out: dict[str, float] = field(default_factory=dict)
    """Yardsticks that were far behind in a short run, with their GiB/s there."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why movers have no run, or not as many as there were rounds."""

    @property
    def title(self) -> str:
        return ", ".join(str(value) for value in self.where.values())

    @property
    def yardstick(self) -> str | None:
        return best(self.runs, self.yardsticks)

    @property
    def rows(self) -> list[Row]:
        return summarize(self.runs, self.yardstick) if self.yardstick else []

    def as_json(self) -> dict[str, Any]:
        """Everything, the single runs included."""
        return {
            "where": self.where,
            "yardstick": self.yardstick,
            "rows": [asdict(row) for row in self.rows],
            "runs": [{**asdict(run), "gib_per_second": run.rate} for run in self.runs],
            "left_out": self.left_out,
            "failures": self.failures,
        }


def order(count: int, number: int) -> list[int]:
    """Who runs when in a round: everyone once, each round another first."""
    return [(start + number) % count for start in range(count)]


def interleave(
    cell: Cell,
    movers: Sequence[Mover],
    rounds: int,
    measure: Measure,
    say: Callable[[str], None],
) -> None:
    """Run ``rounds`` rounds, and put the runs and the failures into ``cell``.

    A mover that fails is left out from then on.  ``say`` is told who runs.
    """
    begin = 1 + max((run.round for run in cell.runs), default=-1)
    for number in range(begin, begin + rounds):
        for place in order(len(movers), number):
            mover = movers[place]
            say(f"{cell.title}: {mover.name}")
            if mover.name in cell.failures:
                continue
            if why := mover.missing():
                cell.failures[mover.name] = why
                continue
            try:
                cell.runs.append(measure(mover, number))
            except ProgramFailed as error:
                cell.failures[mover.name] = f"failed: {error}"

"""A stored reference of ratios, and whether today's are slower than it beyond what noise explains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

LEAST_TOLERANCE = 0.10
MOST_TOLERANCE = 0.35


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio, more is better, and half of the distance between its largest and smallest round."""

    value: float
    spread: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a row compares with the reference; ``reference`` is None where that does not know it."""

    name: str
    now: Ratio
    reference: Ratio | None
    tolerance: float

    @property
    def slower(self) -> bool:
        """Whether the ratio fell below the reference by more than the tolerance."""
        if self.reference is None:
            return False
        return self.now.value < self.reference.value * (1 - self.tolerance)


def tolerance(now: Ratio, reference: Ratio) -> float:
    """By what part a ratio may be below the reference: what the rounds of both were apart.

    At least a tenth, because rounds close to each other vary less than days do; and at most a
    third, because a run in which everything is possible shows nothing.
    """
    relative = max(now.spread / now.value, reference.spread / reference.value)
    return min(max(relative, LEAST_TOLERANCE), MOST_TOLERANCE)


def compare(now: Mapping[str, Ratio], reference: Mapping[str, Ratio]) -> list[Verdict]:
    """A verdict for each row of ``now``, in its order."""
    verdicts = []
    for name, ratio in now.items():
        known = reference.get(name)
        allowed = LEAST_TOLERANCE if known is None else tolerance(ratio, known)
        verdicts.append(Verdict(name, ratio, known, allowed))
    return verdicts


def better(one: Mapping[str, Ratio], other: Mapping[str, Ratio]) -> dict[str, Ratio]:
    """Of two measurements of the same rows, the better of each."""
    return {
        name: max(one.get(name, ratio), ratio, key=lambda r: r.value)
        for name, ratio in {**one, **other}.items()
    }


def load(path: Path) -> tuple[dict[str, Ratio], dict[str, object]]:
    """The ratios, and the machine that they were measured on; both empty without a file."""
    if not path.exists():
        return {}, {}
    stored = json.loads(path.read_text())
    return {name: Ratio(**row) for name, row in stored["rows"].items()}, stored["machine"]


def store(path: Path, rows: Mapping[str, Ratio], machine: Mapping[str, object]) -> None:
    """Make these the reference."""
    rounded = {
        name: asdict(Ratio(round(row.value, 3), round(row.spread, 3))) for name, row in rows.items()
    }
    path.write_text(json.dumps({"machine": machine, "rows": rounded}, indent=1) + "\n")

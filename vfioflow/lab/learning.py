"""What runs have shown of a host and its wire, for the model's next predictions.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from vfioflow.lab.model import Known, Prediction, predict
from vfioflow.lab.scenario import Outcome, Scenario
from vfioflow.precopy import Verdict

__all__ = [
    "Agreement",
    "Comparison",
    "Line",
    "Seen",
    "agreement",
    "compare",
    "learn",
    "with_wire",
]


@dataclass(frozen=True, slots=True)
class Seen:
    """A run: its scenario, what came of it, and ``gave``, the bytes per second that plain sockets moved."""

    scenario: Scenario
    outcome: Outcome
    gave: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far predictions were from what happened, as shares of what happened.

    ``downtime`` and ``total``: (median, 95th percentile) of the distance; ``verdicts``: the share of
    runs of which the model knew whether they would migrate.
    """

    downtime: tuple[float, float]
    total: tuple[float, float]
    verdicts: float
    runs: int


@dataclass(frozen=True, slots=True)
class Line:
    """A scenario: medians of its runs, and what was predicted from all others.  Seconds."""

    scenario: str
    runs: int
    downtime: float
    predicted_downtime: float
    total: float
    predicted_total: float

    @property
    def downtime_off(self) -> float:
        """By which share of what happened the prediction is more."""
        return self.predicted_downtime / self.downtime - 1

    @property
    def total_off(self) -> float:
        """The same of the whole."""
        return self.predicted_total / self.total - 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model against runs: as it is, and with what was learned from the other scenarios."""

    lines: tuple[Line, ...]
    plain: Agreement
    learned: Agreement

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(runs: Sequence[Seen]) -> Comparison:
    """Raises ValueError: none of them migrated."""
    names = list(dict.fromkeys(run.scenario.name for run in runs))
    lines, learned = [], []
    for name in names:
        mine = [run for run in runs if run.scenario.name == name]
        known = learn([run for run in runs if run.scenario.name != name])
        learned += [(run, predict(run.scenario, known=with_wire(known, run.gave))) for run in mine]
        whole = [run for run in mine if run.outcome.downtime is not None]
        said = predict(mine[0].scenario, known=with_wire(known, mine[0].gave))
        if whole and said.verdict is Verdict.SWITCH_OVER:
            lines.append(
                Line(
                    name,
                    len(whole),
                    median(run.outcome.downtime or 0.0 for run in whole),
                    said.downtime,
                    median(run.outcome.total for run in whole),
                    said.total,
                )
            )
    return Comparison(tuple(lines), agreement(runs), _agreement(learned))


def with_wire(known: Known, gave: float | None) -> Known:
    """What is known, over a wire that was measured: it carries what it gave, not what it should."""
    return known if gave is None else replace(known, rate=min(known.rate, gave))


def learn(runs: Sequence[Seen], known: Known | None = None) -> Known:
    """Correct what is known by the median of what it was wrong by: hand-over, connecting, the engine's rate.

    Runs that failed teach nothing.
    """
    known = known or Known()
    whole = [run for run in runs if run.outcome.downtime is not None]
    free = [run for run in whole if not run.scenario.wire.rate and run.outcome.bandwidth]
    if free:
        known = replace(known, rate=median(run.outcome.bandwidth or 0.0 for run in free))
    pairs = [(run, predict(run.scenario, known=with_wire(known, run.gave))) for run in whole]
    pairs = [(run, said) for run, said in pairs if said.verdict is Verdict.SWITCH_OVER]
    if not pairs:
        return known
    late = median((run.outcome.downtime or 0.0) - said.downtime for run, said in pairs)
    longer = median(run.outcome.total - said.total for run, said in pairs) - late
    channels = median(
        1 + run.scenario.policy.channel_count(len(run.scenario.devices)) for run, _ in pairs
    )
    return replace(
        known,
        hand_over=max(known.hand_over + late, 0.0),
        connect=max(known.connect + longer / channels, 0.0),
    )


def agreement(runs: Sequence[Seen], known: Known | None = None) -> Agreement:
    """How well the model predicts these runs.  Raises ValueError: there is none that migrated."""
    known = known or Known()
    return _agreement(
        [(run, predict(run.scenario, known=with_wire(known, run.gave))) for run in runs]
    )


def _agreement(pairs: Sequence[tuple[Seen, Prediction]]) -> Agreement:
    right = sum(_agree(run.outcome, said) for run, said in pairs)
    moved = [(run.outcome, said) for run, said in pairs if _agree(run.outcome, said)]
    moved = [(outcome, said) for outcome, said in moved if outcome.downtime is not None]
    if not moved:
        raise ValueError("no run migrated")
    return Agreement(
        downtime=_spread(abs(p.downtime - (o.downtime or 0)) / (o.downtime or 1) for o, p in moved),
        total=_spread(abs(p.total - o.total) / o.total for o, p in moved),
        verdicts=right / len(pairs),
        runs=len(pairs),
    )


def _agree(outcome: Outcome, said: Prediction) -> bool:
    return (outcome.downtime is None) == (said.verdict is Verdict.GIVE_UP)


def _spread(values: Iterable[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]

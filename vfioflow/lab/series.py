"""A whole bench: one scenario after the other, each run told of as it ends, and the results."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from vfioflow.lab.results import (
    MadeWire,
    Results,
    ScenarioResult,
    carried,
    scenario_result,
    summary,
)
from vfioflow.lab.running import Bench, Run, opened_bench
from vfioflow.lab.scenario import Outcome, Scenario
from vfioflow.lab.side import Keys, OrderName

__all__ = ["Progress", "Series"]

Progress = Callable[[Scenario, int, Run | None], None]
"""Hears of a scenario: how many of its runs have ended, and the last of them."""


@dataclass
class Series:
    """Runs ``scenarios`` in ``orders``; ``keys`` are for wires to another host.

    What has ended is kept if it is interrupted.
    """

    scenarios: Sequence[Scenario]
    orders: Sequence[OrderName]
    keys: Keys = field(default_factory=Keys)
    done: list[ScenarioResult] = field(default_factory=list)
    _began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def run(self, progress: Progress) -> None:
        """Run all.  Raises ConfigError (a wire cannot be made), PeerLost (a process ended)."""
        for scenario in self.scenarios:
            progress(scenario, 0, None)
            with opened_bench(scenario, self.keys) as bench:
                self._run(bench, progress)

    def runs_of(self, scenario: Scenario) -> int:
        """How many runs a scenario takes."""
        return (scenario.warm_up + scenario.repetitions) * len(self.orders)

    def _run(self, bench: Bench, progress: Progress) -> None:
        scenario = bench.scenario
        runs: list[Run] = []
        try:
            for run in bench.rounds(self.orders):
                runs.append(run)
                progress(scenario, len(runs), run)
        finally:
            if any(run.counts for run in runs):
                self.done.append(self._result(bench, runs))

    def _result(self, bench: Bench, runs: Sequence[Run]) -> ScenarioResult:
        scenario = bench.scenario
        wire = MadeWire(
            kind=bench.wire.kind,
            asked=scenario.wire.rate,
            gave=bench.gave,
            carried=carried(scenario, [run.outcome for run in runs]),
            latency=scenario.wire.latency,
            loss=scenario.wire.loss,
            notes=list(bench.wire.notes),
        )
        counted: dict[str, list[Outcome]] = {
            order: list(_counted(runs, order)) for order in self.orders
        }
        return scenario_result(scenario, wire, counted, asdict(scenario.policy))

    def results(self) -> Results:
        """Of what has ended so far."""
        return Results(
            version=version("vfioflow"),
            machine={
                "processors": len(os.sched_getaffinity(0)),
                "kernel": platform.release(),
                "python": platform.python_version(),
            },
            began=self._began,
            scenarios=list(self.done),
            summary=summary(self.done),
        )


def _counted(runs: Sequence[Run], order: OrderName) -> Iterator[Outcome]:
    return (run.outcome for run in runs if run.counts and run.order == order)

"""What came of a bench: runs of scenarios in one or both orders, with their spread.  Pure.

Seconds, bytes, bytes per second.  :class:`Results` is what ``--json`` writes; its schema is
`docs/bench.schema.json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from vfioflow.lab.bound import bound_of, load_seconds
from vfioflow.lab.scenario import Outcome, Scenario
from vfioflow.precopy import Bandwidth

__all__ = [
    "SCHEMA_VERSION",
    "MadeWire",
    "Measured",
    "OrderResult",
    "Results",
    "ScenarioResult",
    "Spread",
    "Summary",
    "carried",
    "order_result",
    "scenario_result",
    "spread",
    "summary",
]

SCHEMA_VERSION = 1


class Spread(msgspec.Struct, kw_only=True, frozen=True):
    """Of the runs that counted: half of them lie from ``low`` to ``high``."""

    median: float
    low: float
    high: float
    least: float
    most: float


class MadeWire(msgspec.Struct, kw_only=True, frozen=True):
    """The wire as it was.

    ``asked`` is the scenario's rate.  ``gave`` is what plain sockets moved over it.  ``carried`` is the
    best that a run reached with the devices at its ends: simulating them takes processor time, which
    a wire of real devices has for itself.  The lower bound counts with ``carried``.
    """

    kind: str
    asked: float | None
    gave: float | None
    carried: float | None
    latency: float = 0.0
    loss: float = 0.0
    notes: list[str] = msgspec.field(default_factory=list)


class Measured(msgspec.Struct, kw_only=True, frozen=True):
    """One run that counted, and the downtime that it could not have gone below."""

    outcome: Outcome
    bound: float | None
    over_bound: float | None


class OrderResult(msgspec.Struct, kw_only=True, frozen=True):
    """A scenario in one order of operations.  None where no run completed."""

    order: str
    runs: list[Measured]
    failed: int
    downtime: Spread | None
    bound: Spread | None
    over_bound: Spread | None
    total: Spread | None


class ScenarioResult(msgspec.Struct, kw_only=True, frozen=True):
    """A scenario.  ``to_qemu``: the downtime over that in QEMU's order, by their medians."""

    name: str
    about: str
    devices: list[dict[str, Any]]
    wire: MadeWire
    policy: dict[str, Any]
    repetitions: int
    orders: list[OrderResult]
    to_qemu: float | None = None


class Summary(msgspec.Struct, kw_only=True, frozen=True):
    """Over all scenarios, of vfioflow's order: medians of scenarios' medians, and the worst of them."""

    scenarios: int
    over_bound_median: float | None
    over_bound_worst: float | None
    to_qemu_median: float | None
    to_qemu_worst: float | None


class Results(msgspec.Struct, kw_only=True, frozen=True):
    """A whole bench."""

    version: str
    machine: dict[str, Any]
    began: str
    scenarios: list[ScenarioResult]
    summary: Summary
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """As one JSON object, indented."""
        return msgspec.json.format(msgspec.json.encode(self)).decode()


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of values; None of none."""
    found = sorted(values)
    if not found:
        return None
    low, median, high = (
        statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    )
    return Spread(median=median, low=low, high=high, least=found[0], most=found[-1])


def carried(scenario: Scenario, outcomes: Iterable[Outcome]) -> float | None:
    """The best rate that a run reached, at most what the scenario's wire carries; None: none is known.

    Not held to what plain sockets reached: where the machine was busy just then, that is too little,
    and each bound too high.
    """
    load = load_seconds(scenario)
    rates = [max(each.bandwidth or 0.0, _drain_rate(each, load)) for each in outcomes]
    best = max(rates, default=0.0) or None
    asked = scenario.wire.rate
    return best if asked is None or best is None else min(best, asked)


def _drain_rate(outcome: Outcome, load: float) -> float:
    """Bytes per second from the begin of the drain until the last had arrived; 0: too few to say."""
    seconds = outcome.steps.get("drain", 0.0) + outcome.steps.get("load", 0.0) - load
    enough = seconds >= Bandwidth.MIN_SECONDS and outcome.bytes_stopcopy >= Bandwidth.MIN_BYTES
    return outcome.bytes_stopcopy / seconds if enough else 0.0


def order_result(
    scenario: Scenario, order: str, outcomes: Sequence[Outcome], rate: float | None
) -> OrderResult:
    """The runs that counted, in one order, against their bounds at ``rate``."""
    runs = [_measured(scenario, outcome, rate) for outcome in outcomes]
    return OrderResult(
        order=order,
        runs=runs,
        failed=sum(bool(run.outcome.error) for run in runs),
        downtime=spread(r.outcome.downtime for r in runs if r.outcome.downtime is not None),
        bound=spread(r.bound for r in runs if r.bound is not None),
        over_bound=spread(r.over_bound for r in runs if r.over_bound is not None),
        total=spread(r.outcome.total for r in runs if not r.outcome.error),
    )


def _measured(scenario: Scenario, outcome: Outcome, rate: float | None) -> Measured:
    if outcome.downtime is None:
        return Measured(outcome=outcome, bound=None, over_bound=None)
    bound = bound_of(scenario, outcome, rate)
    return Measured(
        outcome=outcome, bound=bound, over_bound=outcome.downtime / bound if bound else None
    )


def scenario_result(
    scenario: Scenario,
    wire: MadeWire,
    outcomes: Mapping[str, Sequence[Outcome]],
    policy: Mapping[str, Any],
) -> ScenarioResult:
    """What came of a scenario: the runs that counted, by order."""
    orders = [order_result(scenario, name, runs, wire.carried) for name, runs in outcomes.items()]
    by_name = {order.order: order.downtime for order in orders}
    ours, qemu = by_name.get("vfioflow"), by_name.get("qemu")
    return ScenarioResult(
        name=scenario.name,
        about=scenario.about,
        devices=[
            {
                "name": device.name,
                "profile": device.profile_name,
                "state_size": device.profile.state_size,
                "dirty_rate": device.profile.dirty_rate,
            }
            for device in scenario.devices
        ],
        wire=wire,
        policy=dict(policy),
        repetitions=scenario.repetitions,
        orders=orders,
        to_qemu=ours.median / qemu.median if ours and qemu else None,
    )


def summary(scenarios: Sequence[ScenarioResult]) -> Summary:
    """Over all scenarios."""
    over = [
        order.over_bound.median
        for each in scenarios
        for order in each.orders
        if order.order == "vfioflow" and order.over_bound is not None
    ]
    to_qemu = [each.to_qemu for each in scenarios if each.to_qemu is not None]
    return Summary(
        scenarios=len(scenarios),
        over_bound_median=statistics.median(over) if over else None,
        over_bound_worst=max(over, default=None),
        to_qemu_median=statistics.median(to_qemu) if to_qemu else None,
        to_qemu_worst=max(to_qemu, default=None),
    )

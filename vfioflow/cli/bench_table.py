"""The results of a bench on paper: pure functions from Results to what rich can print."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from vfioflow.cli import units
from vfioflow.lab.results import MadeWire, OrderResult, Results, ScenarioResult, Spread, Summary

__all__ = ["table"]

_CLOSE = 0.9
"""The share of a wire's rate from which on it counts as reached; headers take the rest."""


def table(results: Results) -> RenderableType:
    """One line for each scenario and order, what is to be said of the wires, and the summary."""
    grid = Table(
        Column("scenario", no_wrap=True),
        Column("order", no_wrap=True),
        Column("downtime", justify="right", no_wrap=True),
        Column("spread", justify="right", no_wrap=True),
        Column("bound", justify="right", no_wrap=True),
        Column("over", justify="right", no_wrap=True),
        Column("total", justify="right", no_wrap=True),
        Column("QEMU's", justify="right", no_wrap=True),
        box=None,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    for each in results.scenarios:
        for number, order in enumerate(each.orders):
            grid.add_row(each.name if number == 0 else "", *_row(each, order))
    parts: list[RenderableType] = [grid]
    if notes := [note for each in results.scenarios for note in _notes(each)]:
        parts += [Text(), *(Text(note, style="yellow") for note in notes)]
    if lines := _summary(results.summary):
        parts += [Text(), *map(Text, lines)]
    return Group(*parts)


def _row(result: ScenarioResult, order: OrderResult) -> list[str]:
    ours = order.order == "vfioflow" and result.to_qemu is not None
    return [
        order.order,
        _ms(order.downtime),
        _half(order.downtime),
        _ms(order.bound),
        units.UNKNOWN if order.over_bound is None else f"{order.over_bound.median:.2f}x",
        _ms(order.total),
        f"{result.to_qemu:.2f}x" if ours and result.to_qemu is not None else "",
    ]


def _ms(found: Spread | None) -> str:
    return units.duration(None if found is None else found.median * 1e3)


def _half(found: Spread | None) -> str:
    """Both ends in the unit of the higher."""
    if found is None:
        return ""
    high = units.duration(found.high * 1e3)
    if high.endswith(" ms"):
        return f"{units.duration(found.low * 1e3).removesuffix(' ms')} to {high}"
    return f"{found.low:.2f} to {high}"


def _notes(result: ScenarioResult) -> list[str]:
    notes = [f"{result.name}: {note}" for note in result.wire.notes]
    if said := _short(result.wire):
        notes.append(f"{result.name}: {said}")
    for order in result.orders:
        if errors := [run.outcome.error for run in order.runs if run.outcome.error]:
            count = f"{len(errors)} of {len(order.runs)} runs in {order.order}'s order failed"
            notes.append(f"{result.name}: {count}: {errors[0]}")
    return notes


def _short(wire: MadeWire) -> str:
    """What to say of a wire that did not give what it should."""
    if wire.asked and wire.gave and wire.gave < _CLOSE * wire.asked:
        return f"the wire gave {units.rate(wire.gave)} of {units.rate(wire.asked)}"
    return ""


def _summary(found: Summary) -> list[str]:
    lines = []
    if found.over_bound_median is not None and found.over_bound_worst is not None:
        lines.append(
            f"Over its lower bound: {found.over_bound_median:.2f}x in the median scenario,"
            f" {found.over_bound_worst:.2f}x in the worst."
        )
    if found.to_qemu_median is not None and found.to_qemu_worst is not None:
        lines.append(
            f"Of the downtime in QEMU's order: {found.to_qemu_median:.2f}x in the median scenario,"
            f" {found.to_qemu_worst:.2f}x in the worst."
        )
    return lines if found.scenarios > 1 else []

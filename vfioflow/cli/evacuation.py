"""A plan to leave a host, on paper: pure functions from it to what rich can print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from vfioflow.cli import units
from vfioflow.cli.bars import Bar
from vfioflow.fleet.results import Comparison, MachineResult, Plan, Stays

__all__ = ["page"]


def page(plan: Plan) -> RenderableType:
    """The whole plan."""
    parts: list[RenderableType] = [_headline(plan)]
    if plan.machines:
        parts += [Text(), _machines(plan), Text(), _bars(plan)]
    if any(group.why for group in plan.groups):
        parts += [Text(), _why(plan)]
    if plan.stay:
        parts += [Text(), *_stay(plan.stay)]
    if plan.compared:
        parts += [Text(), _compared(plan)]
    return Padding(Group(*parts), (1, 1))


def _headline(plan: Plan) -> Text:
    everybody = len(plan.machines) + len(plan.stay)
    if not plan.machines:
        return Text(f"None of {everybody} machines can leave within its limit.", "bold red")
    text = Text(f"{len(plan.machines)} of {everybody} machines leave in {plan.end_s:.1f} s", "bold")
    text.append(f", {units.duration(plan.downtime_ms)} of downtime in all", "bold")
    text.append(f"\n{units.duration(plan.bound_ms)} is the least that any schedule could give")
    best = "the best way" if plan.exact else "the best way found"
    text.append(f"; this is {best} with up to {plan.most_at_once} at once", "dim")
    if plan.late:
        text.append(f"\nAfter the deadline: {', '.join(plan.late)}", "bold yellow")
    return text


def _machines(plan: Plan) -> Table:
    table = _table(
        Column("", justify="right", style="dim", no_wrap=True),
        Column("machine", no_wrap=True, style="bold"),
        Column("begins", justify="right", no_wrap=True),
        Column("left", justify="right", no_wrap=True),
        Column("deadline", justify="right", no_wrap=True),
        Column("downtime", justify="right", no_wrap=True),
        Column("limit", justify="right", no_wrap=True),
        Column("send with", justify="right", no_wrap=True),
        Column("moved", justify="right", no_wrap=True),
    )
    before = 0
    for machine in plan.machines:
        table.add_row(
            str(machine.group) if machine.group != before else "",
            machine.name,
            f"{machine.started_s:.1f} s",
            Text(f"{machine.left_s:.1f} s", "bold yellow" if machine.late else ""),
            units.UNKNOWN if machine.deadline_s is None else f"{machine.deadline_s:.1f} s",
            units.duration(machine.downtime_ms),
            units.duration(machine.downtime_limit_ms),
            units.duration(machine.send_limit_ms),
            units.size(machine.bytes_total),
        )
        before = machine.group
    return table


def _bars(plan: Plan) -> Table:
    """From its begin until each has left."""
    table = Table(
        Column("", no_wrap=True, style="bold"),
        Column("", ratio=1),
        box=None,
        show_header=False,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        expand=True,
    )
    for machine in plan.machines:
        style = "yellow" if machine.late else "cyan"
        table.add_row(machine.name, _bar(machine, plan.end_s, style))
    return table


def _bar(machine: MachineResult, end: float, style: str) -> Bar:
    return Bar(machine.started_s / end, machine.left_s / end, style)


def _why(plan: Plan) -> Text:
    text = Text("Why this order\n", "bold")
    for group in plan.groups:
        if group.why:
            text.append(f"  {', '.join(group.machines)}\n", "bold")
            text.append("".join(f"    {line}\n" for line in group.why))
    text.rstrip()
    return text


def _stay(stay: Sequence[Stays]) -> list[Text]:
    lines = []
    for each in stay:
        text = Text(f"{each.name} cannot leave within {each.downtime_limit_ms:.0f} ms", "bold red")
        text.append(f": {each.reason}", "not bold")
        helps = [help_.words for help_ in each.would_help]
        remedy = (
            f"would help: {', or '.join(helps)}" if helps else "nothing that was tried would help"
        )
        lines.append(text.append(f"\n  -> {remedy}", "default not bold"))
    return lines


def _compared(plan: Plan) -> Table:
    table = _table(
        Column("compared with", overflow="fold"),
        Column("left", justify="right", no_wrap=True),
        Column("downtime", justify="right", no_wrap=True),
        Column("mean", justify="right", no_wrap=True),
        Column("end", justify="right", no_wrap=True),
        Column("but", overflow="fold"),
    )
    table.add_row(
        Text("this plan", "bold"),
        str(len(plan.machines)),
        units.duration(plan.downtime_ms),
        f"{plan.mean_left_s:.1f} s",
        f"{plan.end_s:.1f} s",
        _names("late", plan.late),
    )
    for each in plan.compared:
        table.add_row(
            each.name,
            str(each.left),
            units.duration(each.downtime_ms),
            f"{each.mean_left_s:.1f} s",
            f"{each.end_s:.1f} s",
            _but(each),
        )
    return table


def _but(each: Comparison) -> str:
    found = [
        _names("stayed", each.stayed),
        _names("over the limit", each.over_limit),
        _names("late", each.late),
    ]
    return "; ".join(part for part in found if part)


def _names(what: str, names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{what}: {len(names)} machines"
    return f"{what}: {', '.join(names)}" if names else ""


def _table(*columns: Column) -> Table:
    return Table(*columns, box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)

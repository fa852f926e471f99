"""A verdict, and an inventory, on paper: pure functions to what rich can print, and to JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from vfioflow.admission import Facts, Finding, Level, Verdict
from vfioflow.admission.plain import facts_as_dict, findings_as_dicts, level_of
from vfioflow.cli import units
from vfioflow.states import Flags

__all__ = ["Plan", "as_dict", "inventory", "page"]

_MOST_IN_GRID = 12
"""Devices up to which every pair is shown."""
_MOST_SETS = 8
"""Sets that are listed."""

_WORDS = {Level.MAY: "may", Level.CONDITION: "condition", Level.MAY_NOT: "may not"}
_STYLES = {Level.MAY: "green", Level.CONDITION: "yellow", Level.MAY_NOT: "bold red"}


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known: the devices, the verdict on them together, and which parts may go.

    ``pairs`` are those that may not go together.  ``to``: the destination that was asked, and
    ``there`` why it would refuse, by device.  ``unknown``: what the verdict does not rest on.
    """

    devices: Sequence[Facts]
    verdict: Verdict
    refused: Sequence[tuple[str, ...]]
    largest: Sequence[tuple[str, ...]]
    pairs: Sequence[tuple[str, str]]
    to: str = ""
    there: Mapping[str, str] | None = None
    unknown: Sequence[str] = ()

    @property
    def may(self) -> bool:
        """Whether the set may migrate."""
        return self.verdict.level < Level.MAY_NOT and not self.there


def page(plan: Plan) -> RenderableType:
    """The whole verdict."""
    parts: list[RenderableType] = [_headline(plan), Text(), _devices(plan)]
    if whole := [f for f in plan.verdict.findings if not f.devices]:
        parts += [Text(), *(_finding(f) for f in whole)]
    if plan.there:
        parts += [Text(), Text(f"The destination {plan.to} would refuse them:", "bold")]
        parts += [Text(f"  {name}: {why}") for name, why in plan.there.items()]
    if plan.refused and len(plan.devices) > 1:
        parts += [Text(), _sets("Smallest sets that are refused", plan.refused, " + ")]
    if len(plan.devices) > 1 and not plan.may:
        parts += [Text(), _sets("Largest sets that may go", plan.largest or [("none",)], " + ")]
    if 1 < len(plan.devices) <= _MOST_IN_GRID and plan.pairs:
        parts += [Text(), _grid(plan)]
    if plan.verdict.seconds is not None:
        shortest = units.duration(plan.verdict.seconds * 1e3)
        parts += [Text(), Text(f"The downtime is {shortest} at least, whatever pre-copy moves.")]
    if plan.unknown:
        parts += [Text(), *(Text(line, "dim") for line in plan.unknown)]
    return Padding(Group(*parts), (1, 1))


def _headline(plan: Plan) -> Text:
    names = _names([d.name for d in plan.devices])
    together = " together" if len(plan.devices) > 1 else ""
    level = plan.verdict.level if not plan.there else Level.MAY_NOT
    text = Text(names, "bold")
    if level is Level.MAY_NOT:
        return text.append(f" may not migrate{together}.", "bold red")
    text.append(f" may migrate{together}", "bold green")
    if plan.to:
        text.append(f" to {plan.to}", "bold green")
    return text.append(", with a condition." if level is Level.CONDITION else ".", _STYLES[level])


def _devices(plan: Plan) -> Table:
    table = Table(
        Column("device", no_wrap=True),
        Column("", no_wrap=True),
        Column("why, and what would help"),
        box=None,
        header_style="dim",
        padding=(0, 3, 0, 0),
        pad_edge=False,
    )
    for device in plan.devices:
        found = plan.verdict.of(device.name)
        level = max((f.level for f in found), default=Level.MAY)
        why = Group(*(_finding(f) for f in found)) if found else Text("nothing against it", "dim")
        table.add_row(device.name, Text(_WORDS[level], _STYLES[level]), why)
    known = {device.name for device in plan.devices}
    for finding in plan.verdict.findings:
        if finding.devices and finding.devices[0] not in known:
            mark = Text(_WORDS[finding.level], _STYLES[finding.level])
            table.add_row(finding.devices[0], mark, _finding(finding))
    return table


def _finding(finding: Finding) -> Text:
    text = Text(finding.reason)
    text.append(f"  [{finding.rule}]", "dim")
    return text.append(f"\n  -> {finding.remedy}", _STYLES[finding.level])


def _sets(title: str, sets: Sequence[tuple[str, ...]], between: str) -> Text:
    text = Text(f"{title}\n", "bold")
    for names in sets[:_MOST_SETS]:
        alone = " alone" if len(names) == 1 and names != ("none",) else ""
        text.append(f"  {between.join(names)}{alone}\n")
    if len(sets) > _MOST_SETS:
        text.append(f"  and {len(sets) - _MOST_SETS} more (--json has all)\n", "dim")
    text.rstrip()
    return text


def _grid(plan: Plan) -> Table:
    """Which pairs may go together."""
    names = [device.name for device in plan.devices]
    refused = {frozenset(pair) for pair in plan.pairs}
    alone = {names[0] for names in plan.refused if len(names) == 1}
    table = Table(
        Column("together", style="bold", no_wrap=True),
        *(Column(name, justify="center", no_wrap=True) for name in names),
        box=None,
        header_style="dim",
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for one in names:
        cells = []
        for other in names:
            bad = {one, other} & alone or frozenset((one, other)) in refused
            same = "-" if one not in alone else "no"
            cells.append(same if one == other else "no" if bad else "yes")
        styles = {"no": "red", "yes": "green", "-": "dim"}
        table.add_row(one, *(Text(cell, styles[cell]) for cell in cells))
    return table


def _names(names: Sequence[str]) -> str:
    if not names:
        return "No devices:"
    if len(names) > 6:
        return f"{len(names)} devices"
    return " and ".join(", ".join(names).rsplit(", ", 1))


def as_dict(plan: Plan) -> dict[str, Any]:
    """The same for programs."""
    verdict = plan.verdict
    return {
        "may": plan.may,
        "level": level_of(verdict.level),
        "devices": [facts_as_dict(device) for device in plan.devices],
        "findings": findings_as_dicts(verdict),
        "refused_pairs": [list(pair) for pair in plan.pairs],
        "smallest_refused": [list(names) for names in plan.refused],
        "largest_that_may": [list(names) for names in plan.largest],
        "downtime_at_least_ms": None if verdict.seconds is None else verdict.seconds * 1e3,
        "to": plan.to,
        "destination_refuses": None if plan.there is None else dict(plan.there),
        "unknown": list(plan.unknown),
    }


def inventory(devices: Sequence[Facts], notes: Mapping[str, Sequence[str]]) -> RenderableType:
    """A line for each device, and below what there is to say of some; ``notes`` by name."""
    if not devices:
        return Padding(Text("There is no VFIO device on this host."), (1, 1))
    table = Table(
        Column("device", no_wrap=True),
        Column("driver", no_wrap=True, style="dim"),
        Column("moves", no_wrap=True),
        Column("P2P", no_wrap=True),
        Column("pre-copy", no_wrap=True),
        Column("dirty", no_wrap=True),
        Column("size", justify="right", no_wrap=True),
        Column("state", no_wrap=True),
        box=None,
        header_style="dim",
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for device in devices:
        size, flags = device.stop_copy_bytes, device.flags
        known: list[Text | str] = [
            _yes(Flags.STOP_COPY in flags),
            _yes(Flags.P2P in flags),
            _yes(Flags.PRE_COPY in flags),
            units.UNKNOWN if device.tracking == "unknown" else device.tracking,
            units.UNKNOWN if size is None else units.size(size),
            device.state,
        ]
        if device.why_not:
            known = [Text("no", "bold red")]
        table.add_row(device.name, device.driver or units.UNKNOWN, *known)
    lines = [
        Text.assemble((f"{device.name}: ", "bold"), said)
        for device in devices
        for said in ([device.why_not] if device.why_not else notes.get(device.name, ()))
    ]
    return Padding(Group(table, *([Text(), *lines] if lines else [])), (1, 1))


def _yes(good: bool) -> Text:
    return Text("yes", "green") if good else Text("no", "red")

"""A finished migration on paper: pure functions from Report to what rich can print."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from vfioflow.cli import units
from vfioflow.cli.bars import Bar
from vfioflow.cli.console import put
from vfioflow.report import DeviceReport, Report

__all__ = ["Check", "devices", "downtime", "headline", "out", "show", "summary"]

WIDTH = 88

_VISIBLE_MS = 0.05
"""What reads 0.0 ms gets no bar."""

_STEPS = {
    "stop_vcpus": "stop vCPUs",
    "quiesce": "quiesce",
    "stop_copy": "stop",
    "drain": "drain",
    "load": "load",
    "validate": "validate",
    "ready": "ready",
    "commit": "commit",
    "journal": "journal",
    "resume": "resume",
    "start_vcpus": "start vCPUs",
}


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was checked afterwards, and what came of it."""

    name: str
    good: bool
    text: str


def show(report: Report, checks: Iterable[Check] = ()) -> None:
    """Print the whole report on standard output."""
    out(summary(report, checks))


def out(what: RenderableType) -> None:
    """Print on standard output, where that is no terminal without colours and trailing spaces."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as capture:
        console.print(what)
    put("\n".join(line.rstrip() for line in capture.get().splitlines()))


def summary(report: Report, checks: Iterable[Check] = ()) -> RenderableType:
    """The whole report."""
    parts: list[RenderableType] = [headline(report), Text(), devices(report)]
    if report.downtime_ms is not None:
        parts += [Text(), downtime(report)]
    if lines := [_check(check) for check in checks]:
        parts += [Text(), *lines]
    return Constrain(Padding(Group(*parts), (1, 1)), WIDTH)


def headline(report: Report) -> Text:
    """What happened, in a sentence or two."""
    count = len(report.devices)
    noun = "device" if count == 1 else "devices"
    to = "to" if report.role == "source" else "from"
    text = Text.assemble(("Migrated ", "bold green"), (f"{count} {noun}", "bold"))
    text.append(f" {to} {report.peer}", "dim")
    text.append(f"\n{units.size(report.bytes_total)} in {units.duration(report.total_ms)}")
    if report.role == "source":
        rounds = "round" if report.iterations == 1 else "rounds"
        text.append(f", {report.iterations} pre-copy {rounds}")
        if report.bandwidth is not None:
            text.append(f" at {units.rate(report.bandwidth)}")
    if report.bytes_wire and report.bytes_wire < 0.99 * report.bytes_total:
        text.append(f", {units.size(report.bytes_wire)} on the wire")
    return text


def devices(report: Report) -> Table:
    """A line for each device."""
    source = report.role == "source"
    table = Table(
        Column("device"),
        Column("profile", style="dim"),
        *(
            (
                Column("pre-copy", justify="right"),
                Column("stop-copy", justify="right"),
                Column("rounds", justify="right"),
            )
            if source
            else (Column("on the wire", justify="right"),)
        ),
        Column("digest"),
        Column("state"),
        box=None,
        header_style="dim",
        padding=(0, 3, 0, 0),
        pad_edge=False,
    )
    for device in report.devices:
        moved = (
            (
                units.size(device.bytes_precopy) if device.bytes_precopy else units.UNKNOWN,
                units.size(device.bytes_stopcopy or 0),
                str(device.iterations) if device.iterations else units.UNKNOWN,
            )
            if source
            else (units.size(device.bytes_wire),)
        )
        table.add_row(device.name, device.profile, *moved, _digest(device), device.final_state)
    return table


def _digest(device: DeviceReport) -> Text:
    if device.digest_ok is None:
        return Text("unchecked", "dim")
    return Text("ok", "green") if device.digest_ok else Text("wrong", "bold red")


def downtime(report: Report) -> RenderableType:
    """The downtime, and one after the other the steps that it was spent on."""
    total = report.downtime_ms or 0.0
    text = Text.assemble(("Downtime ", "bold"), (units.duration(total), "bold"))
    limit = report.downtime_limit_ms
    if limit is not None:
        if total <= limit:
            text.append(f"   within the limit of {units.duration(limit)}", "green")
        else:
            text.append(f"   over the limit of {units.duration(limit)}", "yellow")
    if report.predicted_downtime_ms is not None:
        text.append(f", predicted {units.duration(report.predicted_downtime_ms)}", "dim")
    grid = Table.grid(
        Column(no_wrap=True, min_width=11),
        Column(justify="right", no_wrap=True, min_width=7),
        Column(justify="right", no_wrap=True, min_width=4, style="dim"),
        Column(ratio=1),
        padding=(0, 1),
        expand=True,
    )
    at = 0.0
    longest = max(report.steps_ms.values(), default=0.0)
    for name, took in report.steps_ms.items():
        share = took / total if total else 0.0
        style = "bold cyan" if took == longest else "cyan"
        grid.add_row(
            _STEPS.get(name, name),
            units.duration(took),
            f"{share:.0%}",
            Bar(at, at + share, style, track=False) if took >= _VISIBLE_MS else "",
        )
        at += share
    return Group(text, grid)


def _check(check: Check) -> Text:
    mark = Text("✓ ", "green") if check.good else Text("✗ ", "bold red")
    return Text.assemble(mark, (f"{check.name}  ", "bold"), check.text)

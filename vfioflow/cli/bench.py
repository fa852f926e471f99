"""``vfioflow bench``: scenarios, run for real, against a lower bound and against QEMU's order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vfioflow.cli import bench_model
from vfioflow.cli.console import complain, is_quiet, put, stderr, verbosity
from vfioflow.cli.options import security_options
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from vfioflow.cli.options import Names
    from vfioflow.lab.running import Run
    from vfioflow.lab.scenario import Scenario
    from vfioflow.lab.series import Progress, Series
    from vfioflow.report import Report

__all__ = ["command"]

_INTERRUPTED = 130


@click.group("bench", short_help="Measure downtimes: scenarios of devices, a wire and a policy.")
def command() -> None:
    """Measure the downtime of a set of devices over a wire, before doing it to a real machine.

    A scenario is a TOML file: devices, a wire, a policy. Each run is a real migration between two
    processes; as root the wire is two network namespaces, held to the scenario's rate.

    \b
    vfioflow bench list
    vfioflow bench show mlx5-4vf-10g > mine.toml
    vfioflow bench run mine.toml --order both
    """


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from vfioflow.lab.library import library

    names = [CompletionItem(name) for name in library() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@command.command("run", short_help="Run scenarios, and say how close they come to their bound.")
@click.argument(
    "names", nargs=-1, metavar="[NAME|SCENARIO.toml]...", shell_complete=_complete, required=False
)
@click.option(
    "--all",
    "whole",
    is_flag=True,
    help="Every scenario of the library: seven minutes an order.",
)
@click.option(
    "--order",
    type=click.Choice(["vfioflow", "qemu", "both"]),
    default="vfioflow",
    show_default=True,
    help="In which order of operations: vfioflow's, QEMU's (one device after the other, one channel,"
    " a threshold that knows nothing of state changes), or both in turn.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Runs that count, in each order.  [default: the scenario's]",
)
@click.option(
    "--warm-up",
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Runs before those.  [default: the scenario's]",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the results there, with every run; - is standard output, which then has nothing else.",
)
@security_options("source")
@verbosity
def run(
    names: tuple[str, ...],
    whole: bool,
    order: str,
    repetitions: int | None,
    warm_up: int | None,
    json_file: str | None,
    security: Names,
) -> int:
    """Run scenarios for real, and print medians, spread, and the distance from the lower bound.

    NAME is one of `vfioflow bench list`; a file of your own ends in .toml.

    \b
    downtime      median over the runs
    spread        from the first quartile to the third
    bound         changes of state, and what was left over the wire: no order of operations
                  does with less
    over          downtime over bound
    QEMU's        downtime over that in QEMU's order (with --order both)

    Ctrl-C ends it, and what was measured is printed. The exit code is 0 if every run completed,
    else that of the first run that did not.
    """
    from vfioflow.lab.library import find, library
    from vfioflow.lab.series import Series
    from vfioflow.lab.side import Keys

    if whole == bool(names):
        raise click.UsageError("name scenarios, or take --all of the library")
    security.read()
    scenarios = [_changed(find(name), repetitions, warm_up) for name in names or library()]
    series = Series(
        scenarios,
        ["vfioflow", "qemu"] if order == "both" else ["qemu" if order == "qemu" else "vfioflow"],
        Keys(security.psk_file or "", security.tls_folder or "", security.tls_name or ""),
    )
    interrupted = False
    try:
        with _ended_by_sigterm(), _progress(series) as progress:
            series.run(progress)
    except KeyboardInterrupt:
        interrupted = True
    if series.done:
        _show(series, json_file)
    if interrupted:
        complain("interrupted: what had ended by then is above", kind="")
        return _INTERRUPTED
    return next(iter(_codes(series)), 0)


def _changed(scenario: Scenario, repetitions: int | None, warm_up: int | None) -> Scenario:
    from dataclasses import replace

    return replace(
        scenario,
        repetitions=scenario.repetitions if repetitions is None else repetitions,
        warm_up=scenario.warm_up if warm_up is None else warm_up,
    )


def _codes(series: Series) -> Iterator[int]:
    """Exit codes of runs that did not complete."""
    for scenario in series.done:
        for order in scenario.orders:
            yield from (m.outcome.exit_code or 1 for m in order.runs if m.outcome.error)


def _show(series: Series, json_file: str | None) -> None:
    from vfioflow.cli.bench_table import table
    from vfioflow.cli.render import out

    results = series.results()
    if json_file == "-":
        put(results.to_json())
        return
    out(table(results))
    if json_file is not None:
        try:
            Path(json_file).write_text(results.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{json_file}: cannot be written: {error.strerror}") from None


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C: what was measured is kept, and the other processes end."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(series: Series) -> Iterator[Progress]:
    """Bars on a terminal, a line for each scenario elsewhere, nothing with -q."""
    if is_quiet():
        yield lambda *_: None
    elif not stderr().is_terminal:
        yield _say
    else:
        with _bars(series) as progress:
            yield progress


def _say(scenario: Scenario, ended: int, last: Run | None) -> None:
    if last is None:
        complain(f"{scenario.name}: {scenario.about or 'no word about it'}", kind="")
    elif last.outcome.error:
        complain(f"{scenario.name}, run {ended}: {last.outcome.error}", kind="warning: ")


@contextmanager
def _bars(series: Series) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from vfioflow.cli import units

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", style="dim"),
    )
    with Bars(*columns, console=stderr(), transient=True) as bars:
        total = sum(map(series.runs_of, series.scenarios))
        whole = bars.add_task("all runs", total=total, last="")
        one = bars.add_task("", total=None, last="", visible=False)

        def see(scenario: Scenario, ended: int, last: Run | None) -> None:
            said = ""
            if last is None:
                bars.reset(one, total=series.runs_of(scenario), visible=True)
            else:
                bars.advance(whole)
                downtime = last.outcome.downtime
                said = last.outcome.error or units.duration(downtime and downtime * 1e3)
                said = f"{last.order}: {said}"
            bars.update(one, description=scenario.name, completed=ended, last=said)

        yield see


@command.command("list", short_help="List the library's scenarios.")
def list_() -> int:
    """List the scenarios that come with vfioflow."""
    from rich.table import Table

    from vfioflow.cli import units
    from vfioflow.cli.render import out
    from vfioflow.lab.library import find, library

    grid = Table(box=None, padding=(0, 1), header_style="dim")
    grid.add_column("name", no_wrap=True)
    grid.add_column("devices", justify="right")
    grid.add_column("state", justify="right", no_wrap=True)
    grid.add_column("wire", justify="right", no_wrap=True)
    grid.add_column("about")
    for scenario in map(find, library()):
        grid.add_row(
            scenario.name,
            str(len(scenario.devices)),
            units.size(scenario.size),
            _bits(scenario.wire.rate),
            scenario.about,
        )
    out(grid)
    return 0


def _bits(rate: float | None) -> str:
    return "as it is" if rate is None else f"{rate * 8 / 1e9:g} Gbit/s"


@command.command("show", short_help="Print a scenario's file.")
@click.argument("name", shell_complete=_complete)
def show(name: str) -> int:
    """Print how a scenario is written, as a start for one of your own.

    \b
    vfioflow bench show mlx5-4vf-10g > mine.toml
    """
    from vfioflow.lab.library import find, text_of

    find(name)  # it is one
    put(text_of(name).rstrip("\n"))
    return 0


@command.command("receive", short_help="Be the other host of a scenario's wire.")
@click.argument("name", metavar="NAME|SCENARIO.toml", shell_complete=_complete)
@click.option(
    "--listen",
    "where",
    metavar="tcp://HOST:PORT",
    required=True,
    help="Address to wait at; port 0 takes a free one, which is then printed.",
)
@security_options("destination")
@verbosity
def receive(name: str, where: str, security: Names) -> int:
    """Take the runs of `vfioflow bench run` on another host, one after the other, until Ctrl-C.

    Both hosts have the same scenario; on the one that runs it, its wire is this host:

    \b
    [wire]
    kind = "host"
    address = "tcp://10.0.0.2:4748"

    \b
    here:   vfioflow bench receive mine.toml --listen tcp://0.0.0.0:4748 --psk bench.key
    there:  vfioflow bench run mine.toml --psk bench.key
    """
    from vfioflow.cli.session import run as run_loop
    from vfioflow.lab.library import find
    from vfioflow.lab.side import serve

    scenario = find(name)
    known = security.read()

    def ended(report: Report) -> None:
        if not is_quiet():
            said = report.outcome if report.outcome == "completed" else report.error
            complain(f"{report.session}: {said}", kind="")

    async def main() -> int:
        def listening(address: str) -> None:
            complain(f"listening on {address}", kind="")

        try:
            await serve(scenario, where, known, listening, ended)
        except asyncio.CancelledError:
            return 0
        return 0

    return run_loop(main, lambda text: complain(text, kind=""))


command.add_command(bench_model.predict)
command.add_command(bench_model.model)

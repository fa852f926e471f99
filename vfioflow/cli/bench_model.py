"""``vfioflow bench predict`` and ``bench model``: what to expect, and how far to believe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vfioflow.cli.console import put, verbosity
from vfioflow.cli.options import json_option
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfioflow.lab.learning import Seen

__all__ = ["model", "predict", "seen"]

_FILE = click.Path(dir_okay=False, exists=True)


@click.command("predict", short_help="Say what scenarios will be like, without running them.")
@click.argument("names", nargs=-1, metavar="[NAME|SCENARIO.toml]...")
@click.option("--all", "whole", is_flag=True, help="Every scenario of the library.")
@click.option(
    "--learn",
    "results",
    type=_FILE,
    metavar="RESULTS.json",
    help="Of `vfioflow bench run --json`: what this host showed there counts.",
)
@json_option
@verbosity
def predict(names: Sequence[str], whole: bool, results: str | None, as_json: bool) -> int:
    """Predict downtime and total time, in milliseconds of computing.

    The rounds of pre-copy are gone through with the code that decides them in a migration. How
    well that agrees with real runs: `vfioflow bench model`.

    \b
    vfioflow bench predict mlx5-4vf-10g
    vfioflow bench predict mine.toml --learn results.json
    """
    from dataclasses import asdict

    from vfioflow.lab.learning import learn
    from vfioflow.lab.library import find, library
    from vfioflow.lab.model import predict as foretell

    if whole == bool(names):
        raise click.UsageError("name scenarios, or take --all of the library")
    known = learn(seen(results, names)) if results else None
    found = {name: foretell(find(name), known=known) for name in names or library()}
    if as_json:
        put(json.dumps({n: asdict(p) | {"verdict": p.verdict.value} for n, p in found.items()}))
        return 0
    from rich.table import Table

    from vfioflow.cli import units
    from vfioflow.cli.render import out

    grid = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("scenario", "downtime", "in all", "rounds", "in stop-copy", "on the wire"):
        grid.add_column(title, justify="left" if title == "scenario" else "right", no_wrap=True)
    for name, said in found.items():
        grid.add_row(
            name,
            units.duration(said.downtime * 1e3) if said.downtime else "-",
            units.duration(said.total * 1e3),
            str(said.iterations),
            units.size(said.bytes_stopcopy),
            units.size(said.bytes_wire),
        )
    out(grid)
    for name, said in found.items():
        if not said.downtime:
            put(f"{name} would not migrate: {said.reason}")
    return 0


@click.command("model", short_help="Say how well predictions agree with runs.")
@click.argument("results", type=_FILE, metavar="RESULTS.json")
@click.argument("files", nargs=-1, metavar="[SCENARIO.toml]...")
@json_option
@verbosity
def model(results: str, files: Sequence[str], as_json: bool) -> int:
    """Compare the model with the runs of `vfioflow bench run --all --json RESULTS.json`.

    Twice: as it is, and with what this host has shown. Then each scenario is predicted by what all
    the others have shown, so that nothing is predicted from itself.

    The wire counts as what plain sockets moved over it before the runs. SCENARIO.toml: those of the
    runs that are not the library's.
    """
    from vfioflow.lab.learning import compare

    try:
        found = compare(seen(results, files))
    except ValueError as error:
        raise ConfigError(f"{results}: {error} that is known here") from None
    if as_json:
        put(json.dumps(found.as_dict()))
        return 0
    from rich.table import Table

    from vfioflow.cli import units
    from vfioflow.cli.render import out

    grid = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("scenario", "runs", "downtime", "predicted", "off", "in all", "predicted", "off"):
        grid.add_column(title, justify="left" if title == "scenario" else "right", no_wrap=True)
    for line in found.lines:
        grid.add_row(
            line.scenario,
            str(line.runs),
            units.duration(line.downtime * 1e3),
            units.duration(line.predicted_downtime * 1e3),
            f"{line.downtime_off:+.0%}",
            units.duration(line.total * 1e3),
            units.duration(line.predicted_total * 1e3),
            f"{line.total_off:+.0%}",
        )
    out(grid)
    for name, said in (("as it is", found.plain), ("with what this host has shown", found.learned)):
        put(
            f"{name}: the downtime is off by {said.downtime[0]:.1%} (median) and"
            f" {said.downtime[1]:.1%} (95th percentile), the whole by {said.total[0]:.1%} and"
            f" {said.total[1]:.1%}; of {said.runs} runs it knew for {said.verdicts:.0%} whether they"
            " migrate"
        )
    return 0


def seen(path: str, scenarios: Sequence[str] = ()) -> list[Seen]:
    """The runs in vfioflow's order of a results file; ``scenarios``: files that are not the library's.

    Runs of others are passed over.  Raises ConfigError.
    """
    import msgspec

    from vfioflow.lab.learning import Seen
    from vfioflow.lab.library import find, library
    from vfioflow.lab.results import Results

    try:
        results = msgspec.json.decode(Path(path).read_bytes(), type=Results)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: no results of `vfioflow bench run --json`: {error}") from None
    own = {found.name: found for found in map(find, scenarios)}
    runs: list[Any] = []
    for result in results.scenarios:
        if result.name not in own and result.name not in library():
            continue
        scenario = own.get(result.name) or find(result.name)
        runs += [
            Seen(scenario, run.outcome, result.wire.gave)
            for order in result.orders
            if order.order == "vfioflow"
            for run in order.runs
        ]
    return runs

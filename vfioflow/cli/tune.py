"""``vfioflow tune``: which settings a scenario should have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vfioflow.cli.console import complain, is_quiet, put, stderr, verbosity
from vfioflow.cli.options import DURATION, json_option
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from vfioflow.lab.tuning import Candidate, Progress, Tuned

__all__ = ["command"]

_INTERRUPTED = 130


@click.command(
    "tune", short_help="Search for the settings of a scenario, in a model and by real runs."
)
@click.argument("name", metavar="NAME|SCENARIO.toml")
@click.option(
    "--objective",
    type=click.Choice(["downtime", "total", "bytes"]),
    default="downtime",
    show_default=True,
    help="What is to be least, of all settings that keep the scenario's downtime limit: the downtime,"
    " the time in all, or the bytes on the wire.",
)
@click.option(
    "--budget",
    type=DURATION,
    default=300.0,
    metavar="TIME",
    help="For real runs: 20m, 300s.  [default: 5min]",
)
@click.option(
    "--trials",
    type=click.IntRange(10, 100_000),
    default=300,
    show_default=True,
    metavar="N",
    help="Settings that are searched in the model, beside as many at random.",
)
@click.option("--model-only", is_flag=True, help="No real runs: what the model says has to do.")
@click.option(
    "--study",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where what was found is kept, and taken up again.  [default: NAME.study.db]",
)
@click.option(
    "--learn",
    "results",
    type=click.Path(dir_okay=False, exists=True),
    metavar="RESULTS.json",
    help="Of `vfioflow bench run --json`: what this host showed there counts in the model.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    metavar="FILE.toml",
    help="Write the recommended policy there, for `vfioflow send --policy`.",
)
@click.option(
    "--html", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page with pictures."
)
@json_option
@verbosity
def command(
    name: str,
    objective: Any,
    budget: float,
    trials: int,
    model_only: bool,
    study: str | None,
    results: str | None,
    out: str | None,
    html: str | None,
    as_json: bool,
) -> int:
    """Search for the settings with which a scenario has the least downtime, and keeps its limit.

    \b
    vfioflow bench show mlx5-4vf-10g > mine.toml
    vfioflow tune mine.toml --budget 10min --out policy.toml --html tune.html
    vfioflow send ... --policy policy.toml

    First some hundred settings in the model, which takes seconds; then the best of them, and the
    scenario's own, in turn for real. What counts is the median of the real runs.

    Ctrl-C ends it with what was found, and exit code 130; the same command goes on.
    """
    try:
        from vfioflow.lab.tuning import Search
    except ImportError as error:
        raise ConfigError(
            f"tuning needs the extra of this name: pip install 'vfioflow[tune]' ({error})"
        ) from None
    from vfioflow.cli.bench_model import seen
    from vfioflow.lab.learning import learn
    from vfioflow.lab.library import find
    from vfioflow.lab.running import opened_bench

    scenario = find(name)
    storage = f"sqlite:///{study or Path(name).stem + '.study.db'}"
    known = learn(seen(results, [name])) if results else None
    interrupted = False
    search = Search(scenario, objective, storage=storage, known=known)
    with _progress() as progress:
        search.in_model(trials, progress)
        if not model_only:
            try:
                with opened_bench(scenario) as bench:
                    search.for_real(lambda policy: bench.run(policy=policy), budget, progress)
            except KeyboardInterrupt:
                interrupted = True
                complain("interrupted: this is what was found by then", kind="")
    found = search.result()
    if out is not None:
        _write(out, _policy_file(found))
    if html is not None:
        from vfioflow.page.tuning import page

        _write(html, page(found))
    if as_json:
        put(json.dumps(as_dict(found)))
    else:
        _show(found)
    return _INTERRUPTED if interrupted else 0


def as_dict(found: Tuned) -> dict[str, Any]:
    """What was found, for JSON."""
    return {
        "scenario": found.scenario.name,
        "objective": found.objective,
        "downtime_limit": found.scenario.policy.downtime_limit,
        "meets": found.meets,
        "recommended": _candidate(found.recommended),
        "before": _candidate(found.before),
        "front": [_candidate(each) for each in found.front],
        "importances": dict(found.importances),
        "trials": found.trials,
        "runs": found.runs,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "policy": asdict(candidate.policy),
        "predicted": None if candidate.predicted is None else asdict(candidate.predicted),
        "measured": None if candidate.measured is None else asdict(candidate.measured),
        "runs": candidate.runs,
        "failed": candidate.failed,
    }


def _policy_file(found: Tuned) -> str:
    from vfioflow.policy_table import table_of

    how = f"{found.runs} real runs" if found.runs else "the model alone"
    return f"# For {found.scenario.name}, the least {found.objective}: by {how}.\n" + table_of(
        found.recommended.policy
    )


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _show(found: Tuned) -> None:
    from rich.table import Table

    from vfioflow.cli import units
    from vfioflow.cli.render import out
    from vfioflow.policy_table import table_of

    grid = Table(box=None, padding=(0, 1), header_style="dim")
    grid.add_column("")
    for title in ("downtime", "in all", "on the wire", "runs"):
        grid.add_column(title, justify="right", no_wrap=True)
    for words, candidate in (
        ("the scenario's own", found.before),
        ("recommended", found.recommended),
    ):
        for kind, figures in (("predicted", candidate.predicted), ("measured", candidate.measured)):
            if figures is not None:
                grid.add_row(
                    f"{words}, {kind}",
                    units.duration(figures.downtime * 1e3),
                    units.duration(figures.total * 1e3),
                    units.size(int(figures.bytes)),
                    str(candidate.runs) if kind == "measured" else "",
                )
    out(grid)
    limit = units.duration(found.scenario.policy.downtime_limit * 1e3)
    if not found.meets:
        put(f"No settings keep the downtime limit of {limit}; these come nearest.")
    most = [f"{name} {share:.0%}" for name, share in found.importances.items() if share >= 0.05]
    put(f"What decides the {found.objective}, by the model: {', '.join(most) or 'nothing'}.")
    put("")
    put(table_of(found.recommended.policy).rstrip())


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, a line for each part of the search elsewhere, nothing with -q."""
    if is_quiet():
        yield lambda *_: None
        return
    if not stderr().is_terminal:
        said: list[str] = []

        def say(what: str, done: int, whole: int) -> None:
            del done
            if what not in said:
                said.append(what)
                complain(f"{what}: {whole} {'s' if what == 'real runs' else 'settings'}", kind="")

        yield say
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=stderr(), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, whole: bars.update(
            task, description=what, completed=done, total=whole
        )

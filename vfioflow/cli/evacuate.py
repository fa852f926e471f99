"""``vfioflow evacuate``: many machines leave a host over one wire: in which order, how many at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import is_quiet, put, stderr, verbosity
from vfioflow.cli.options import json_option
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from vfioflow.fleet.machines import Fleet
    from vfioflow.fleet.results import Plan

__all__ = ["command"]

_DOES_NOT_CONVERGE = 6


@click.command("evacuate", short_help="Plan how many machines leave a host over one wire.")
@click.argument("plan_file", metavar="PLAN.toml", type=click.Path(dir_okay=False))
@click.option(
    "--at-once",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    metavar="N",
    help="Most machines that may be under way at the same time.",
)
@click.option(
    "--effort",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    metavar="N",
    help="Most groups of machines that are simulated in the search. Where there are no more, the plan is"
    " the best there is.",
)
@click.option(
    "--html",
    "page_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write a page with a picture of the plan there.",
)
@json_option
@verbosity
def command(plan_file: str, at_once: int, effort: int, page_file: str | None, as_json: bool) -> int:
    """Say in which order machines leave this host, and how many at once.

    They share one wire. The plan is for the least total downtime within each machine's limit.

    \b
    vfioflow evacuate fleet.toml
    vfioflow evacuate fleet.toml --html fleet.html
    vfioflow evacuate fleet.toml --json | jq -r '.machines[] | [.group, .name, .send_limit_ms] | @tsv'

    Nothing is moved: the plan is simulated, with the decisions that `vfioflow send` would make, and
    compared with first come, first served. A machine that cannot leave within its limit even alone is
    named, with the reason and what would help. docs/evacuate.md explains the file, the theory and the
    result.

    Exit code 0: all can leave within their limits. 6: some cannot.
    """
    from vfioflow.fleet.planning import plan

    fleet = _read(Path(plan_file))
    if is_quiet() or as_json or not stderr().is_terminal:
        made = plan(fleet, most_at_once=at_once, effort=effort)
    else:
        with stderr().status("looking for a good order"):
            made = plan(fleet, most_at_once=at_once, effort=effort)
    if page_file is not None:
        _write_page(made, page_file)
    if as_json:
        put(made.to_json())
    else:
        from vfioflow.cli.evacuation import page
        from vfioflow.cli.render import out

        out(page(made))
        if page_file is not None:
            put(f"The page is in {page_file}.")
    return _DOES_NOT_CONVERGE if made.stay else 0


def _read(path: Path) -> Fleet:
    from vfioflow.fleet.reading import parse_fleet

    def devices_file(name: str) -> str:
        """Relative to the plan."""
        return _text(path.parent / name)

    return parse_fleet(_text(path), str(path), devices_file)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}") from None


def _write_page(made: Plan, file: str) -> None:
    from vfioflow.fleet.page import page

    text = page(made)
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None

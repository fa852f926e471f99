"""``vfioflow report``: what a migration's report means, in words and on a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import put, verbosity
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from vfioflow.report import Report

__all__ = ["command", "read"]

_LARGEST = 64 << 20
"""Bytes of a file that is read."""


@click.command("report", short_help="Explain a report: in words, as a page, or two compared.")
@click.argument("files", nargs=-1, required=True, metavar="RUN.json [OTHER.json]")
@click.option(
    "--html",
    "page_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write a page there.",
)
@click.option("--compare", is_flag=True, help="Say what changed from the first file to the second.")
@verbosity
def command(files: tuple[str, ...], page_file: str | None, compare: bool) -> int:
    """Say why the downtime was as long as it was, and what would make it shorter.

    \b
    vfioflow send --json ... > run.json
    vfioflow report run.json
    vfioflow report run.json --html run.html
    vfioflow report before.json after.json --compare

    RUN.json is what `send --json` or `demo --json` printed. A second file without --compare is what
    `receive --json` printed of the same session: then the destination's devices are named too. The page needs
    the extra `report`; it opens without a network.
    """
    if len(files) > 2 or (compare and len(files) != 2):
        raise click.UsageError(
            "--compare takes two files; without it, a second is the other side's"
        )
    reports = [read(file) for file in files]
    if compare:
        text, page = _compared(*reports)
    else:
        from vfioflow.advice import with_destination

        first, *other = reports
        report = with_destination(first, other[0]) if other else first
        text, page = _explained(report)
    put(text)
    if page_file is not None:
        try:
            Path(page_file).write_text(page(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{page_file}: cannot be written: {error.strerror}") from None
        put(f"The page is in {page_file}.")
    return 0


def read(file: str) -> Report:
    """A report out of a file; with that of the destination, where the file has it.

    Raises ConfigError: it is none.
    """
    import msgspec

    from vfioflow.advice import with_destination
    from vfioflow.report import Report

    try:
        with Path(file).open("rb") as opened:
            data = opened.read(_LARGEST)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        report = Report.from_json(data)
        other = Report.destination_in(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: no report, as --json prints it: {error}") from None
    return with_destination(report, other) if other is not None else report


def _explained(report: Report) -> tuple[str, Callable[[], str]]:
    from vfioflow import advice

    lines = [advice.headline(report)]
    if found := advice.causes(report):
        width = max(len(cause.name) for cause in found)
        lines += ["", "Where it went:"]
        lines += [f"  {c.name:<{width}} {c.ms:8.1f} ms  {c.why}" for c in found]
    if told := advice.prediction(report):
        lines += ["", "Predicted, and what happened:"]
        lines += [f"  {before:8.1f} ms {after:8.1f} ms  {part}" for part, before, after in told]
    halves = advice.to_halve(report)
    if worth := halves or advice.remedies(report)[:4]:
        lines += ["", "What would halve it, alone or together:" if halves else "What would help:"]
        lines += [f"  up to {r.saves_ms:.0f} ms: {r.what}" for r in worth]

    def page() -> str:
        from vfioflow.page import page as whole

        return whole(report)

    return "\n".join(lines), page


def _compared(before: Report, after: Report) -> tuple[str, Callable[[], str]]:
    from vfioflow.difference import changes

    found = changes(before, after)
    widths = [max(len(getattr(c, key)) for c in found) for key in ("name", "before", "after")]
    lines = [
        f"{c.name:<{widths[0]}}  {c.before:>{widths[1]}}  {c.after:>{widths[2]}}" for c in found
    ]

    def page() -> str:
        from vfioflow.page import comparison

        return comparison(before, after)

    return "\n".join(lines), page

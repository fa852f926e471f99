"""vfioflow side by side with other programs: ``python bench/compare.py raw``, and ``--help``.

Movers run interleaved, each round in another order, over the same bytes and between the same ends.
What counts is the ratio within a round, because a machine's speed changes from minute to minute.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from comparison import content, movers, raw, tables
from comparison.facts import facts, load
from comparison.rounds import Cell
from comparison.stage import Stage
from comparison.wires import Wires

GIB = 1 << 30


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("what", choices=("raw", "compressed", "scale", "quick"))
    result.add_argument("--gib", type=float, help="GiB in each run, all devices together")
    result.add_argument("--rounds", type=int, help="interleaved rounds")
    result.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    result.add_argument("--plot", type=Path, metavar="FILE", help="draw there (.svg or .png)")
    result.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help='only cells with all these words, such as "pipe loopback 16"; may be repeated',
    )
    result.add_argument(
        "--store", action="store_true", help="quick: make these ratios the reference"
    )
    return result


def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """Leave every context, so that namespaces and processes go."""
    sys.exit(128 + number)


def main() -> int:
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, stop)
    shown = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
        )
        bar = progress.add_task("", total=0)
        stage = Stage(
            movers.build_loop(folder),
            stack.enter_context(Wires()),
            say=lambda text: progress.update(bar, description=text),
            tick=lambda: progress.advance(bar),
            expect=lambda more: progress.update(
                bar, total=(progress.tasks[bar].total or 0) + more
            ),
            only=options.only,
        )
        before = load()
        size = int((options.gib or 4) * GIB)
        content.warm(2 * size)
        cells = raw.run(stage, size, options.rounds or 5)
    for t in tables.grouped(
        cells, "{} to {}", ("source", "sink"), ("wire", "devices"), "C loop"
    ):
        shown.print(t)
    for note in stage.notes:
        shown.print(note)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(
                {
                    "what": options.what,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "machine": facts(),
                    "load": {"before": before, "after": load()},
                    "cells": [c.as_json() for c in cells],
                    "notes": stage.notes,
                },
                indent=1,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from comparison import (
    commandline,
    compressed,
    movers,
    plot,
    quick,
    raw,
    reference,
    scale,
    security,
    tables,
    tunnelled,
)
from comparison.facts import facts, load
from comparison.rounds import Cell
from comparison.stage import Stage
from comparison.summary import GIB
from comparison.wires import Wires

SCALE_BASE = 4 * GIB
SCALE_DEVICES = 16
"""The state for each number of devices, and the devices for each size of state."""

PEERS_SIZE = 1 * GIB


@contextmanager
def stage(only: list[str]) -> Iterator[Stage]:
    """The C loop, the wires, and a bar that moves on standard error."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop = movers.build_loop(folder)
        wires = stack.enter_context(Wires())
        columns = (
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        bars = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        bar = bars.add_task("", total=0)
        yield Stage(
            loop,
            wires,
            say=lambda text: bars.update(bar, description=text),
            tick=lambda: bars.advance(bar),
            expect=lambda more: bars.update(bar, total=(bars.tasks[bar].total or 0) + more),
            only=only,
        )


def measure(options: argparse.Namespace, shown: Console, result: dict[str, Any]) -> bool:
    """Run what was asked for, print it, and put it into ``result``; whether all is well."""
    gib, rounds = commandline.DEFAULTS[options.what]
    size, rounds = int((options.gib or gib) * GIB), options.rounds or rounds
    machine = f"{result['machine']['cpu']}, {result['machine']['cores']} cores, {rounds} rounds"
    cells: list[Cell] = []
    good = True
    draw: Callable[[Path, str], None] | None = None
    with stage(options.only) as on:
        if options.what == "raw":
            cells = raw.run(on, size, rounds)
            shown.print(*tables.raw(cells), sep="\n")
            draw = partial(plot.raw, cells)
        elif options.what == "compressed":
            cells = compressed.run(on, size, rounds)
            peers = compressed.run_peers(on, min(size, PEERS_SIZE), rounds)
            shown.print(tables.grid(cells), *tables.peers(peers), sep="\n")
            draw = partial(plot.compressed, cells)
            cells = [*cells, *peers]
        elif options.what == "security":
            cells = security.run(on, size, rounds)
            shown.print(tables.security(cells))
        elif options.what == "qemu":
            cells = tunnelled.run(on, size, rounds)
            shown.print(tables.tunnelled(cells))
        elif options.what == "scale":
            places = scale.places(size, min(size, SCALE_BASE), SCALE_DEVICES)
            sessions, failures = scale.run(on, places, rounds)
            lines = scale.summarize(sessions)
            shown.print(scale.table(lines, failures))
            result |= scale.as_json(sessions, failures)
            draw = partial(plot.scale, lines)
            good = bool(lines) and not failures
        else:
            known, where = reference.load(quick.REFERENCE)
            ratios, verdicts = quick.run(on, size, rounds, {} if options.store else known)
            shown.print(quick.table(verdicts))
            result["rows"] = [{**asdict(v), "slower": v.slower} for v in verdicts]
            good = not any(verdict.slower for verdict in verdicts)
            if options.store:
                reference.store(quick.REFERENCE, ratios, result["machine"])
            for name in known.keys() - ratios.keys():
                on.note(f"Not measured, though the reference knows it: {name}")
            if known and any(where.get(key) != result["machine"][key] for key in ("cpu", "cores")):
                on.note(f"The reference is of another machine: {where.get('cpu')}")
        for note in on.notes:
            shown.print(note)
        result["notes"] = on.notes
    if cells:
        result["cells"] = [cell.as_json() for cell in cells]
        good = not any(name.startswith("vfioflow") for cell in cells for name in cell.failures)
    if options.plot and draw is not None:
        draw(options.plot, machine)
    return good


def main() -> int:
    """Run one comparison; 1 when vfioflow failed or became slower."""
    options = commandline.parser(__doc__).parse_args()
    signal.signal(signal.SIGTERM, commandline.stop)
    shown = Console() if sys.stdout.isatty() else Console(width=120)
    result: dict[str, Any] = {
        "what": options.what,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": facts(),
    }
    before = load()
    try:
        good = measure(options, shown, result)
    except KeyboardInterrupt:
        return 130
    result["load"] = {"before": before, "after": load()}
    shown.print(f"Load average {before} before, {result['load']['after']} after.")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

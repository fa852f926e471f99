"""Ways of sending and of buffering that vfioflow does not use: ``python bench/tricks.py``, ``--help``.

``tricks.c`` sends the same frames by each, interleaved; what counts is the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from comparison.content import Content
from comparison.ends import DEVNULL, MEMFD, PIPE, Ends
from comparison.facts import facts, load
from comparison.movers import BENCH, LIMIT, NULL, build_loop
from comparison.programs import ProgramFailed, Programs
from comparison.rounds import order
from comparison.summary import GIB
from comparison.wires import LOOPBACK, VETH, Wire, Wires

PLAIN = "sendmsg"
TRICKS = {
    PLAIN: (PLAIN, "small", 1),
    "MSG_ZEROCOPY": ("zerocopy", "small", 1),
    "io_uring SEND": ("send", "small", 1),
    "io_uring SEND_ZC": ("send_zc", "small", 1),
    "SEND_ZC, registered": ("fixed", "small", 1),
    "MADV_HUGEPAGE": (PLAIN, "huge", 1),
    "MAP_HUGETLB": (PLAIN, "hugetlb", 1),
    "2 MiB frames": (PLAIN, "small", 2),
    "2 MiB, MADV_HUGEPAGE": (PLAIN, "huge", 2),
    "ZEROCOPY, MADV_HUGEPAGE": ("zerocopy", "huge", 1),
    "registered, MADV_HUGEPAGE": ("fixed", "huge", 1),
}
"""How it sends, the pages of both sides' buffers, MiB of a frame."""


@dataclass(frozen=True, slots=True)
class Move:
    """One run: GiB/s, CPU seconds per GiB, and the part of the zero-copy sends that was copied."""

    wire: str
    ends: str
    round: int
    trick: str
    rate: float
    sender: float
    receiver: float
    copied: float


def move(program: str, trick: str, ends: Ends, wire: Wire) -> list[float]:
    """The figures of a :class:`Move`.  Raises ProgramFailed."""
    (how, pages, mib), gib = TRICKS[trick], ends.content.size / GIB
    gate, door = os.pipe2(os.O_CLOEXEC)
    with Programs(LIMIT) as programs, os.fdopen(door, "wb") as held:
        words = wire.receiving([program, "receive", wire.host, pages, str(mib)])
        receiver = programs.start(words, NULL, ends.outputs[0])
        port = receiver.line()
        words = [program, "send", wire.host, port, how, pages, str(mib), str(gate)]
        sender = programs.start(wire.sending(words), ends.inputs[0], NULL, [gate])
        os.close(gate)
        receiver.line(), sender.line()  # "ready", "set"; or what is wrong, and then no "cpu"
        ends.handed_over()
        start = time.perf_counter()
        held.close()
        theirs = receiver.value("cpu")
        seconds = time.perf_counter() - start
        mine, copied = sender.value("cpu"), sender.value("copied")
    ends.settle()
    return [gib / seconds, mine / gib, theirs / gib, copied]


def table(moves: list[Move]) -> Table:
    """A line for each trick: over each wire the median of its cells, with the lowest and highest."""
    result = Table("trick", title=f"Against {PLAIN} of 1 MiB frames", title_justify="left")
    result.caption = f"{PLAIN} itself: GiB/s, and CPU seconds per GiB.  Others: ratios."
    base = {(run.wire, run.ends, run.round): run for run in moves if run.trick == PLAIN}
    wires = list(dict.fromkeys(run.wire for run in moves))
    for wire, heading in product(wires, ("rate", "sender CPU", "receiver CPU", "copied")):
        result.add_column(f"{wire} {heading}", justify="right")
    for trick in dict.fromkeys(run.trick for run in moves):
        line = [trick]
        for wire in wires:
            runs = [run for run in moves if (run.trick, run.wire) == (trick, wire)]
            for field in ("rate", "sender", "receiver"):
                cells: dict[str, list[float]] = {}
                for run in runs:
                    plain = getattr(base[wire, run.ends, run.round], field)
                    ratio = getattr(run, field) / (1.0 if trick == PLAIN else plain)
                    cells.setdefault(run.ends, []).append(ratio)
                values = sorted(map(median, cells.values()))
                line.append(f"{median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})")
            line.append(f"{median(run.copied for run in runs):.0%}")
        result.add_row(*line)
    return result


def main() -> None:
    """Run all, or the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=1.0, help="GiB in a run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help='cells, such as "veth, pipe to memfd"')
    parser.add_argument("--json", type=Path, metavar="FILE", help="add every run to those there")
    options = parser.parse_args()
    kept = options.json and options.json.exists() and json.loads(options.json.read_text())
    moves = [Move(**run) for run in kept["runs"]] if kept else []
    cells = product((LOOPBACK, VETH), (MEMFD, PIPE), (DEVNULL, MEMFD))
    cells = [cell for cell in cells if options.only in "{}, {} to {}".format(*cell)]
    tricks, turns = list(TRICKS), [(-1, PLAIN)]  # this warms up, and does not count
    turns += [(at, tricks[who]) for at in range(options.rounds) for who in order(len(tricks), at)]
    failures, before = {}, load()
    with tempfile.TemporaryDirectory() as folder, Wires() as wires:
        program, loop = f"{folder}/tricks", build_loop(Path(folder))
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, BENCH / "tricks.c"], check=True)
        with Content("random", int(options.gib * GIB)) as content:
            for (name, source, sink), (number, trick) in product(cells, turns):
                if (wire := wires.get(name)) is None:
                    failures[name] = wires.why_not
                elif trick not in failures:
                    at = name, f"{source} to {sink}", number, trick
                    try:
                        with Ends(source, sink, content, loop) as ends:
                            run = Move(*at, *move(program, trick, ends, wire))
                        moves += [run] if number >= 0 else []
                    except ProgramFailed as error:
                        failures[trick] = str(error)
    notes = [f"Not measured: {what}: {why}" for what, why in failures.items()]
    shown = Console(width=None if sys.stdout.isatty() else 200)
    shown.print(table(moves), *notes, f"Load {before} before, {load()} after.", sep="\n")
    if options.json:
        result = {"machine": facts(), "failures": failures, "runs": [asdict(run) for run in moves]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""One raw stream, side by side with a plain C read/send loop: ``python bench/compare.py``.

Every mover gets the same ends: a feeder that writes unstructured data into a pipe of 1 MiB, TCP over
loopback, and a pipe (drained at once) or /dev/null at the other side.  The runs are interleaved, each
round runs all movers in another order, and what counts is the ratio within a round.  CPU seconds are
those of the two movers, with the start of their interpreters (about 0.2 s).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
GIB = 1 << 30


class Run(NamedTuple):
    """One stream: its rate in GiB/s, and the two movers' CPU seconds per GiB."""

    rate: float
    cpu: float


def build(folder: Path) -> str:
    """Compile the yardstick; its path."""
    out = folder / "loop"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-Wall", "-o", out, HERE / "loop.c"], check=True)
    return str(out)


def movers(loop: str) -> dict[str, list[str]]:
    """The command of each; "send PORT" or "receive" is put behind its first words."""
    lane = [sys.executable, str(HERE / "lane.py")]
    return {"C loop": [loop], "vfioflow": lane, "vfioflow, digest": [*lane, "--digest"]}


def words(command: list[str], *mode: str) -> list[str]:
    """``command`` with its mode put before its options."""
    options = [word for word in command if word.startswith("--")]
    return [*(word for word in command if word not in options), *mode, *options]


def stream(command: list[str], loop: str, size: int, sink: str) -> Run:
    """Move ``size`` bytes through one pair of movers."""
    with Path(os.devnull).open("wb") as devnull:
        if sink == "pipe":
            drain = subprocess.Popen([loop, "drain"], stdin=subprocess.PIPE)
            into = drain.stdin
        else:
            drain, into = None, devnull
        receiver = subprocess.Popen(
            words(command, "receive"), stdout=into, stderr=subprocess.PIPE, text=True
        )
        if drain is not None and drain.stdin is not None:
            drain.stdin.close()
        assert receiver.stderr is not None
        port = receiver.stderr.readline().strip()
        read, write = os.pipe()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        sender = subprocess.Popen(words(command, "send", port), stdin=read)
        os.close(read)
        # The clock starts when both ends are up: starting an interpreter is not moving data.
        assert receiver.stderr.readline() == "ready\n"
        start = time.perf_counter()
        feeder = subprocess.Popen([loop, "feed", str(size)], stdout=write)
        os.close(write)
        if sender.wait() or receiver.wait():
            raise SystemExit(f"{command} failed")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = time.perf_counter() - start
        receiver.stderr.close()
        feeder.wait()
        if drain is not None:
            drain.wait()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(size / GIB / seconds, cpu * GIB / size)


def compare(size: int, rounds: int, sink: str, loop: str) -> dict[str, list[Run]]:
    """All movers, ``rounds`` times each, interleaved."""
    commands = movers(loop)
    results: dict[str, list[Run]] = {name: [] for name in commands}
    order = list(commands)
    for number in range(rounds):
        for name in order:
            results[name].append(stream(commands[name], loop, size, sink))
        order = [*order[1:], order[0]]
        print(f"{sink}: round {number + 1} of {rounds}", file=sys.stderr)
    return results


def summary(results: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Medians; ``ratio`` is the median over rounds of the rate against the C loop's."""
    base = [run.rate for run in results["C loop"]]
    return {
        name: {
            "gib_per_second": statistics.median(run.rate for run in runs),
            "ratio": statistics.median(r.rate / b for r, b in zip(runs, base, strict=True)),
            "cpu_seconds_per_gib": statistics.median(run.cpu for run in runs),
        }
        for name, runs in results.items()
    }


def main() -> None:
    """Run the comparison and print it as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=6, help="GiB in each stream (default: 6)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        loop = build(Path(folder))
        for sink in ("/dev/null", "pipe"):
            results = compare(int(options.gib * GIB), options.rounds, sink, loop)
            found[sink] = summary(results)
    load = os.getloadavg()[0]
    if options.json:
        print(json.dumps({"load": load, "rounds": options.rounds, "sinks": found}))
        return
    table = Table(title=f"One raw stream, pipe -> TCP loopback -> sink (load {load:.1f})")
    table.add_column("sink")
    table.add_column("mover")
    for heading in ("GiB/s", "against C", "CPU s/GiB"):
        table.add_column(heading, justify="right")
    for sink, rows in found.items():
        for name, row in rows.items():
            table.add_row(
                sink,
                name,
                f"{row['gib_per_second']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['cpu_seconds_per_gib']:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()

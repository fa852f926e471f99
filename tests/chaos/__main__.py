"""``python -m tests.chaos``: many runs, or one again."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from .check import check
from .draw import schedule
from .many import Summary, many
from .runner import Run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--start", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seed", type=int, help="only this one, with all that happened in it")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="runs at once")
    parser.add_argument("--json", type=Path, help="write a summary there")
    parser.add_argument("--stop", action="store_true", help="end at the first violation")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed)
    seeds = range(options.start, options.start + options.runs)
    summary = many(seeds, jobs=options.jobs, show=Screen(len(seeds)), stop=options.stop)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
    return 1 if summary.violations else 0


def _one(seed: int) -> int:
    plan = schedule(seed)
    print(plan)
    outcome = Run(plan).run()
    for entry in outcome.log:
        more = {k: v for k, v in entry.items() if k not in ("side", "what")}
        print(f"{entry['side']:>12} {entry['what']:<12} {more}")
    verdict = check(plan, outcome)
    print(f"{verdict.result}, {outcome.seconds:.2f} s")
    print(outcome.stderr, end="")
    for violation in verdict.violations:
        print(f"VIOLATION {violation}")
    return 1 if verdict.violations else 0


class Screen:
    """What is seen meanwhile: a line that goes on where there is a terminal, else one now and then."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._live = sys.stdout.isatty()
        self._next = 0.0

    def progress(self, summary: Summary) -> None:
        if not self._live and summary.seconds < self._next and summary.runs < self._runs:
            return
        self._next = summary.seconds + 10
        line = (
            f"{summary.runs} of {self._runs} runs, {summary.rate:.1f} a second,"
            f" {len(summary.violations)} with a violation"
        )
        print(f"\r{line}" if self._live else line, end="" if self._live else "\n", flush=True)

    def violation(self, seed: int, plan: str, text: str) -> None:
        print(f"{chr(10) * self._live}{plan}\n{text}", flush=True)
        print(f"  again: {sys.executable} -m tests.chaos --seed {seed}\n", flush=True)

    def end(self, summary: Summary) -> None:
        print("\n" * self._live + summary.table())


if __name__ == "__main__":
    sys.exit(main())

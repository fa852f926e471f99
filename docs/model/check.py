"""Checks the model of the hand-over, and that it notices what is left out of it.

Usage: docs/model/check.py   (needs spin, gcc and 1 GB; see docs/model.md)

Fails if a property fails, if a search was not exhaustive, or if a mutant is not caught by the
property that should.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = Path(__file__).resolve().with_name("handover.pml")
DEPTH = 100_000
MEGABYTES = 2800

# What may happen: breaks of the wire, crashes, other faults, records that fail, crashes of a host.
SEARCHES = [
    ("nothing goes wrong", (0, 0, 0, 0, 0)),
    ("the wire, crashes, faults, records", (2, 2, 1, 1, 0)),
    ("two records fail", (1, 1, 1, 2, 0)),
    ("a host crashes", (1, 1, 1, 0, 1)),
]
ENDS = ("every run ends", (1, 1, 1, 0, 0))

MUTANTS = {
    "COMMIT_BEFORE_LOADED": "no_commit_before_loaded",
    "TELL_BEFORE_RECORD": "never_two_running",
    "SOURCE_BACK_AFTER_COMMIT": "never_two_running",
    "DEST_DECIDES_ALONE": "never_two_running",
    "GOODBYE_BEFORE_RELEASED": "never_two_running",
    "RUN_BEFORE_BACK": "never_twice_from_one_moment",
    "RUN_BEFORE_COMMITTED": "none_runs_before_committed",
    "NO_P2P_BARRIER": "p2p_barrier",
    "DISCARD_NOT_RECORDED": "a_promise_is_recorded",
    "RESET_BEFORE_RECORD": "a_promise_is_recorded",
    "LEFTOVERS": "none_saves_in_the_end",
}
MUTANT_BUDGET = (1, 1, 1, 1, 0)

BUDGETS = ("BREAKS", "CRASHES", "FAULTS", "UNWRITTEN", "HOST_CRASHES")


class Search:
    """One search: how it ended, and what it broke."""

    def __init__(self, budget: tuple[int, ...], *defines: str, cycles: bool = False) -> None:
        begin = time.monotonic()
        options = [f"-D{name}={n}" for name, n in zip(BUDGETS, budget, strict=True)]
        options += [f"-D{name}" for name in defines]
        kind = "NP" if cycles else "SAFETY"
        with tempfile.TemporaryDirectory() as directory:
            self._run(directory, "spin", "-a", *options, str(MODEL))
            flags = ["-DNOREDUCE", "-DCOLLAPSE", f"-D{kind}", f"-DMEMLIM={MEGABYTES}"]
            self._run(directory, "gcc", "-O2", "-w", *flags, "-o", "pan", "pan.c")
            self.text = self._run(
                directory, "./pan", f"-m{DEPTH}", *(["-l"] if cycles else []), check=False
            )
            self.broken = ""
            trail = Path(directory, f"{MODEL.name}.trail")
            if trail.exists():
                self.broken = "deadlock" if "invalid end" in self.text else "a run without an end"
                story = self._run(
                    directory, "spin", "-t", "-k", str(trail), *options, str(MODEL), check=False
                )
                if found := re.findall(r"broken: (\w+)", story):
                    self.broken = found[-1]
        self.states = self._figure(r"(\d+) states, stored")
        self.depth = self._figure(r"depth reached (\d+)")
        self.megabytes = self._figure(r"(\d+)[.\d]*\s+total actual memory")
        self.seconds = time.monotonic() - begin

    @property
    def exhaustive(self) -> bool:
        """Whether nothing was left out, and nothing was found."""
        cut = re.search(
            r"max search depth too small|out of memory|memory limit|not completed|hash table full"
            r"|MEMLIM bound|truncated|VECTORSZ",
            self.text,
        )
        return "errors: 0" in self.text and cut is None and self.states > 0

    def _figure(self, pattern: str) -> int:
        found = re.search(pattern, self.text)
        return int(found.group(1)) if found else 0

    @staticmethod
    def _run(directory: str, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        text = done.stdout + done.stderr
        if check and done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{text}")
        return text if not done.returncode else f"{text}\nnot completed: {done.returncode}"


def row(*columns: object) -> None:
    """A line of a table."""
    widths = (36, 16, 12, 7, 6, 5)
    print(*(str(c).ljust(w) for c, w in zip(columns, widths, strict=False)), flush=True)


def main() -> int:
    """All searches, then all mutants."""
    wrong = []
    row("search", "may happen", "states", "depth", "MB", "s")
    for name, budget in [*SEARCHES, ENDS]:
        search = Search(budget, cycles=(name, budget) == ENDS)
        row(
            name, "/".join(map(str, budget)), search.states, search.depth,
            search.megabytes, f"{search.seconds:.0f}",
        )  # fmt: skip
        if not search.exhaustive:
            wrong.append(f"{name}: {search.broken or search.text}")
    print("(breaks / crashes / faults / records that fail / host crashes)\n")
    row("left out or turned round", "", "caught by")
    for mutant, expected in MUTANTS.items():
        search = Search(MUTANT_BUDGET, f"MUTANT_{mutant}")
        row(mutant, "", search.broken or "nothing")
        if search.broken != expected:
            wrong.append(f"{mutant}: caught by {search.broken or 'nothing'}, not {expected}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"\n{'failed' if wrong else 'passed'}; at most {peak} MB")
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

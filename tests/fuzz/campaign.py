"""Fuzzes every target for a while, two side by side: ``campaign.py --seconds 60 [TARGET...]``.

Prints a table; fails when a target crashes, hangs, or takes too much memory.  What does is kept as a
file beside the corpus, and how to run it again is printed.  The extensions are those that
``make fuzz`` built, with clang's coverage and AddressSanitizer.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import atheris

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "fuzz"
sys.path[:0] = [str(HERE), str(HERE.parent)]

INPUT_SECONDS = 30
"""A target that takes longer for one input hangs."""
MEMORY_MIB = 2048
LONGEST = 8192


def environment() -> dict[str, str]:
    """The extensions of ``make fuzz``, and what they need loaded first."""
    library = Path(atheris.path(), "asan_with_fuzzer.so")
    # Leaks: Python itself keeps much until the end.  Sizes beyond all bounds are to fail, not to end it.
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=32",
        "PYTHONPATH": str(BUILD / "lib"),
        "PYTHONSAFEPATH": "1",
    }


@dataclass
class Result:
    """What a run printed."""

    name: str
    code: int
    seconds: float
    output: str

    def _last(self, pattern: str) -> int:
        found = re.findall(pattern, self.output)
        return int(found[-1]) if found else 0

    def row(self) -> list[str]:
        memory = self._last(r"stat::peak_rss_mb: +(\d+)") or self._last(r" rss: (\d+)Mb")
        runs = self._last(r"stat::number_of_executed_units: +(\d+)") or self._last(r"(?m)^#(\d+)\t")
        return [
            self.name,
            f"{runs:,}",
            f"{runs / self.seconds:,.0f}/s",
            str(self._last(r" cov: (\d+)")),
            str(self._last(r" ft: (\d+)")),
            str(self._last(r" corp: (\d+)")),
            f"{memory} MiB",
            "ok" if self.code == 0 else f"FAILED ({self.code})",
        ]


def fuzz(name: str, seeds: list[bytes], corpus: Path, seconds: int) -> Result:
    """Run one target in a process of its own."""
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    begin = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, HERE / "one.py", name, folder),
            f"-max_total_time={seconds}",
            f"-timeout={INPUT_SECONDS}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-max_len={LONGEST}",
            f"-artifact_prefix={corpus.parent / 'findings'}/{name}-",
            "-print_final_stats=1",
            "-use_value_profile=1",
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=seconds + 10 * INPUT_SECONDS,
    )
    output = done.stdout.decode(errors="replace")
    return Result(name, done.returncode, time.monotonic() - begin, output)


def table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        " " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets side by side")
    parser.add_argument("--corpus", type=Path, default=BUILD / "corpus")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only this input, of one target")
    parser.add_argument("target", nargs="*", help="default: all")
    given = parser.parse_args()
    if given.again:
        command = [sys.executable, HERE / "one.py", given.target[0], given.again]
        sys.exit(subprocess.run(command, env=environment(), check=False).returncode)

    from targets import TARGETS  # not before --help

    chosen = given.target or list(TARGETS)
    (given.corpus.parent / "findings").mkdir(parents=True, exist_ok=True)
    print(
        f"Fuzzing {len(chosen)} targets for {given.seconds} s each, {given.jobs} at a time",
        flush=True,
    )
    with ThreadPoolExecutor(given.jobs) as workers:
        results = list(
            workers.map(
                lambda name: fuzz(name, list(TARGETS[name].seeds()), given.corpus, given.seconds),
                chosen,
            )
        )
    head = ["target", "inputs", "rate", "coverage", "features", "corpus", "memory", ""]
    print(table([head, *(result.row() for result in results)]))
    failed = [result for result in results if result.code]
    for result in failed:
        print(f"\n{result.name}:\n" + "\n".join(result.output.splitlines()[-60:]))
        for file in re.findall(r"Test unit written to (\S+)", result.output):
            print(f"Again: {sys.executable} {__file__} --again {file} {result.name}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

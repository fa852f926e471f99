"""``python -m tests.chaos.mutants``: does chaos notice when the code is wrong?

Each mutation is made in a copy of the tree, and runs go on until an invariant is violated.  The
copy without any must not violate one in the same runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .many import Summary

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """In ``file``, ``old`` becomes ``new``; it must be there exactly once."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "the source commits before LOADED",
        "vfioflow/source.py",
        "            await self._await_loaded()\n            await finish(self._hand_over())\n",
        "            self._enter(Phase.HAND_OVER)\n            await finish(self._hand_over())\n",
    ),
    Mutation(
        "no barrier before the devices stop",
        "vfioflow/source.py",
        "                for lane in self._lanes\n                if lane.info.flags & Flags.P2P\n",
        "                for lane in self._lanes[:0]\n",
    ),
    Mutation(
        "the destination ignores digests",
        "pyx/vfioflow/_inlane.pyx",
        "        if sum != frame.digest:\n",
        "        if 0 and sum != frame.digest:\n",
    ),
    Mutation(
        "the source does not go back",
        "vfioflow/source.py",
        "        if self._touched:\n",
        "        if False:\n",
    ),
    Mutation(
        "a device is forgotten when going back",
        "vfioflow/barrier.py",
        "    await _all(devices, _to_running,",
        "    await _all(devices[:-1], _to_running,",
    ),
    Mutation(
        "the destination resumes without COMMIT",
        "vfioflow/takeover.py",
        '    await control.expect(messages.Commit, timeout=limit, what="its commit")\n',
        "",
    ),
    Mutation(
        "the source releases before it hears RUNNING",
        "vfioflow/source.py",
        "            running = await self._giving.deliver(self._peer)\n",
        "            await self._release()\n"
        "            running = await self._giving.deliver(self._peer)\n",
    ),
    Mutation(
        "what LOADED says is not compared",
        "vfioflow/source.py",
        "            if (device.size, device.digest) != (lane.sent, lane.stream.digest):\n",
        "            if False:\n",
    ),
    Mutation(
        "a frame's offset is not checked",
        "pyx/vfioflow/_inlane.pyx",
        "(lane.offset != frame.offset or lane.ended)",
        "lane.ended",
    ),
    Mutation(
        "frames are not put in order",
        "pyx/vfioflow/_inlane.pyx",
        "while (lane.offset < frame.offset or lane.busy) and not",
        "while lane.busy and not",
    ),
    Mutation(
        "a descriptor is not closed",
        "vfioflow/destination.py",
        "        os.close(self._signal)\n\n",
        "\n",
    ),
    Mutation(
        "the source goes back after COMMIT",
        "vfioflow/source.py",
        "        if self._committed:\n            self._in_doubt(",
        "        if False:\n            self._in_doubt(",
    ),
    Mutation(
        "the destination lets go after LOADED",
        "vfioflow/destination.py",
        "        if self._loaded and not isinstance(reason, RemoteError | JournalError):\n",
        "        if False:\n",
    ),
    Mutation(
        "the source does not record COMMITTED",
        "vfioflow/source.py",
        "        seconds = await self._giving.commit(self._journal_there)\n",
        "        seconds = 0.0\n",
    ),
    Mutation(
        "the destination does not record COMMITTED",
        "vfioflow/destination.py",
        "        await self.taking.committed()\n",
        "",
    ),
    Mutation(
        "the vCPUs are not started again",
        "vfioflow/source.py",
        "        if self._vcpus_stopped:\n            try:\n",
        "        if False:\n            try:\n",
    ),
    Mutation(
        "the vCPUs are stopped after the devices",
        "vfioflow/source.py",
        '        await call(self._hooks.stop_vcpus, "stop_vcpus")\n',
        "",
    ),
    Mutation(
        "a late SWITCHOVER is not waited for",
        "vfioflow/destination.py",
        "                await self._await_switchover(failure)\n",
        "                pass\n",
    ),
    Mutation(
        "what the peer has heard is sent again",
        "vfioflow/wire/control.py",
        "                self._acknowledge(heard)\n                owned.pop_all()\n",
        "                owned.pop_all()\n",
    ),
    Mutation(
        "accesses that were queued are not replayed at the destination",
        "vfioflow/takeover.py",
        "        await self._window.replay()\n",
        "        pass\n",
    ),
    Mutation(
        "accesses that were queued are forgotten when going back",
        "vfioflow/source.py",
        "                between=self._window.put_back if self._window is not None else None,\n",
        "",
    ),
    Mutation(
        "devices stop before accesses to them are trapped",
        "vfioflow/source.py",
        "            await self._window.arm()\n",
        "",
    ),
    Mutation(
        "queued accesses are replayed out of order",
        "vfioflow/access/codec.py",
        "    return Held(tuple(form.writes), form.interrupts)\n",
        "    return Held(tuple(form.writes[::-1]), form.interrupts)\n",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutants", description=__doc__)
    parser.add_argument("--runs", type=int, default=800, help="at most, for each (default 800)")
    parser.add_argument("--start", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--only", help="mutations whose name has this")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only is None or options.only in m.name]
    missed = 0
    with _copy() as tree:
        if options.only is None:
            clean = _chaos(tree, options.start, options.runs)
            print(
                f"without a mutation: {clean.runs} runs, violations: {clean.violations}", flush=True
            )
            missed += bool(clean.violations)
        width = max(len(m.name) for m in MUTATIONS)
        print(f"{'mutation':<{width}}  after runs  caught by", flush=True)
        for mutation in chosen:
            with _mutated(tree, mutation):
                found = _chaos(tree, options.start, options.runs)
            by = sorted({name for each in found.violations.values() for name, _ in each})
            missed += not by
            for seed, each in found.violations.items():
                print(
                    f"  seed {seed}: {each[0][0]}: {each[0][1].splitlines()[0][:300]}", flush=True
                )
            print(
                f"{mutation.name:<{width}}  {found.runs:>10}  {', '.join(by) or 'NOT CAUGHT'}",
                flush=True,
            )
    return 1 if missed else 0


@contextmanager
def _copy() -> Iterator[Path]:
    """The tree, with what was built."""
    with tempfile.TemporaryDirectory(prefix="vfioflow-mutants-") as folder:
        tree = Path(folder)
        for name in (
            *("vfioflow", "pyx", "tests/chaos", "build"),
            *("setup.py", "pyproject.toml", "README.md", "LICENSE"),
        ):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name)
            elif source.exists():
                shutil.copy2(source, tree / name)
        yield tree


@contextmanager
def _mutated(tree: Path, mutation: Mutation) -> Iterator[None]:
    file = tree / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.file} has {text.count(mutation.old)} such places")
    extension = None
    if file.suffix == ".pyx":
        [extension] = (tree / "vfioflow").glob(f"{file.stem}.*.so")
        kept = extension.read_bytes()
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        if extension is not None:
            command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        yield
    finally:
        file.write_text(text, encoding="utf-8")
        if extension is not None:
            extension.write_bytes(kept)


def _chaos(tree: Path, start: int, runs: int) -> Summary:
    file = tree / "summary.json"
    file.unlink(missing_ok=True)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.chaos", "--stop", "--json", str(file)),
            *("--start", str(start), "--runs", str(runs)),
        ],
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if not file.exists():
        sys.exit(ran.stdout + ran.stderr)
    return msgspec.json.decode(file.read_bytes(), type=Summary)


if __name__ == "__main__":
    sys.exit(main())

"""Many runs on a few processes, which fork the sides of their runs: nothing is imported twice."""

from __future__ import annotations

import gc
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Sequence
from typing import Protocol

import msgspec

from .check import check
from .draw import KINDS, schedule
from .runner import Run

_SEED = struct.Struct("<q")
_HEAD = struct.Struct("<I")


class Result(msgspec.Struct, kw_only=True):
    """What a worker tells of a run."""

    seed: int
    kinds: tuple[str, ...]
    struck: bool
    """Whether what was to go wrong did; always for faults of devices."""
    durable: bool
    result: str
    seconds: float
    violations: list[tuple[str, str]]
    reconnects: int


class Summary(msgspec.Struct, kw_only=True):
    """What came of many runs."""

    runs: int = 0
    seconds: float = 0.0
    results: dict[str, int] = {}
    by_kind: dict[str, dict[str, int]] = {}
    """By the kind of fault: how often each result, and "(did not strike)"."""
    reconnected: int = 0
    """Runs in which a connection broke and came back."""
    violations: dict[int, list[tuple[str, str]]] = {}
    """By seed: invariant, and what was seen."""

    @property
    def rate(self) -> float:
        """Runs a second."""
        return self.runs / self.seconds if self.seconds else 0.0

    def add(self, result: Result) -> None:
        self.runs += 1
        self.results[result.result] = self.results.get(result.result, 0) + 1
        self.reconnected += result.reconnects > 0
        for kind in result.kinds:
            row = self.by_kind.setdefault(kind, {})
            what = result.result if result.struck else "(did not strike)"
            row[what] = row.get(what, 0) + 1
        if result.violations:
            self.violations[result.seed] = result.violations

    def table(self) -> str:
        """Outcomes by kind of fault."""
        columns = sorted(self.results, key=self.results.__getitem__, reverse=True)
        columns.append("(did not strike)")
        width = max(len(kind) for kind in KINDS)
        lines = [
            f"{self.runs} runs in {self.seconds:.0f} s ({self.rate:.1f} a second);"
            f" a connection came back in {self.reconnected}; {len(self.violations)} with a violation"
        ]
        lines += [f"  {chr(97 + n)}: {name}" for n, name in enumerate(columns)]
        lines.append(" " * width + "".join(f"{chr(97 + n):>7}" for n in range(len(columns))))
        for kind in (*KINDS, *sorted(set(self.by_kind) - set(KINDS))):
            row = self.by_kind.get(kind, {})
            lines.append(f"{kind:<{width}}" + "".join(f"{row.get(c) or '':>7}" for c in columns))
        total = [self.results.get(c, 0) or "" for c in columns]
        lines.append(f"{'all':<{width}}" + "".join(f"{n:>7}" for n in total))
        if self.violations:
            seeds = " ".join(map(str, sorted(self.violations)))
            lines.append(f"seeds with a violation: {seeds}")
        return "\n".join(lines)


class Show(Protocol):
    """Is told meanwhile."""

    def progress(self, summary: Summary) -> None: ...
    def violation(self, seed: int, plan: str, text: str) -> None: ...
    def end(self, summary: Summary) -> None: ...


def one(seed: int) -> Result:
    """Run a seed.  The calling process must have one thread only."""
    plan = schedule(seed)
    outcome = Run(plan).run()
    verdict = check(plan, outcome)
    return Result(
        seed=seed,
        kinds=plan.kinds,
        struck=bool(plan.faults) or not plan.strikes or bool(outcome.struck()),
        durable=plan.durable,
        result=verdict.result,
        seconds=outcome.seconds,
        violations=[(v.invariant, v.what) for v in verdict.violations],
        reconnects=sum(e["reconnects"] for e in outcome.log if e["what"] == "end"),
    )


def many(
    seeds: Sequence[int], *, jobs: int, show: Show | None = None, stop: bool = False
) -> Summary:
    """Run the seeds, so many at once; ``stop``: no further ones after a violation."""
    gc.collect()
    gc.freeze()  # the pages stay shared with the children
    orders, ask = os.pipe()
    os.set_blocking(orders, True)
    workers: dict[int, int] = {}
    for _ in range(jobs):
        answers, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                os.close(ask)
                _work(orders, tell)
                code = 0
            finally:
                os._exit(code)
        os.close(tell)
        workers[answers] = pid
    os.close(orders)
    try:
        return _gather(seeds, workers, ask, show, stop)
    finally:
        for answers, pid in workers.items():
            os.close(answers)
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _work(orders: int, tell: int) -> None:
    while word := os.read(orders, _SEED.size):
        (seed,) = _SEED.unpack(word)
        try:
            result = one(seed)
        except Exception:  # a fault of this harness must not pass for a run without violation
            result = Result(
                seed=seed,
                kinds=schedule(seed).kinds,
                struck=False,
                durable=False,
                result="the harness failed",
                seconds=0.0,
                violations=[("harness", traceback.format_exc())],
                reconnects=0,
            )
        data = msgspec.msgpack.encode(result)
        data = _HEAD.pack(len(data)) + data
        while data:
            data = data[os.write(tell, data) :]


def _gather(
    seeds: Sequence[int], workers: dict[int, int], ask: int, show: Show | None, stop: bool
) -> Summary:
    summary = Summary()
    begin = time.monotonic()
    left = list(reversed(seeds))
    held = dict.fromkeys(workers, b"")
    asked = 0
    for _ in range(min(2 * len(workers), len(left))):
        os.write(ask, _SEED.pack(left.pop()))
        asked += 1
    if not left:
        os.close(ask)
    open_fds = set(workers)
    while summary.runs < asked:
        for answers in select.select(list(open_fds), [], [])[0]:
            data = os.read(answers, 1 << 16)
            if not data:
                open_fds.discard(answers)
                if not open_fds:
                    raise RuntimeError("the workers ended")
                continue
            held[answers] += data
            while len(held[answers]) >= _HEAD.size:
                (size,) = _HEAD.unpack_from(held[answers])
                if len(held[answers]) < _HEAD.size + size:
                    break
                body = held[answers][_HEAD.size : _HEAD.size + size]
                held[answers] = held[answers][_HEAD.size + size :]
                result = msgspec.msgpack.decode(body, type=Result)
                summary.add(result)
                summary.seconds = time.monotonic() - begin
                if result.violations:
                    if show is not None:
                        text = "\n".join(f"  VIOLATION {a}: {b}" for a, b in result.violations)
                        show.violation(result.seed, f"{schedule(result.seed)}", text)
                    if stop and left:
                        left.clear()
                        os.close(ask)
                elif show is not None:
                    show.progress(summary)
                if left:
                    os.write(ask, _SEED.pack(left.pop()))
                    asked += 1
                    if not left:
                        os.close(ask)
    if show is not None:
        show.end(summary)
    return summary

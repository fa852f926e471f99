"""Runs of a scenario: a destination's process, a process for the source of each run, one wire."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import IO

import msgspec

from vfioflow.errors import PeerLost
from vfioflow.lab.scenario import Outcome, Scenario
from vfioflow.lab.side import Job, Keys, OrderName, session_name
from vfioflow.lab.wire import Laid, laid
from vfioflow.policy import Policy
from vfioflow.report import Report

__all__ = ["Bench", "Run", "evaluate", "opened_bench", "outcome_of"]

_NO_KEYS = Keys()

_END_SECONDS = 15.0
"""For a process to end once its standard input has."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: in which order, whether it counts, what came of it."""

    order: OrderName
    counts: bool
    outcome: Outcome


@dataclass
class Bench:
    """A scenario on its wire, with a destination that waits.  Made by :func:`opened_bench`."""

    scenario: Scenario
    wire: Laid
    gave: float | None
    """Bytes per second that plain sockets moved over the wire; None: that could not be tried."""
    address: str
    keys: Keys = field(default_factory=Keys)
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _number: int = 0

    def run(self, order: OrderName = "vfioflow", policy: Policy | None = None) -> Outcome:
        """One migration, by a process of its own.  ``policy``: instead of the scenario's."""
        self._number += 1
        scenario = self.scenario if policy is None else replace(self.scenario, policy=policy)
        job = Job(
            role="source",
            scenario=scenario,
            address=self.address,
            session=session_name(order, self._number, self._name),
            order=order,
            keys=self.keys,
        )
        with _process(self.wire.sending, "vfioflow.lab.side", job) as (process, errors):
            assert process.stdout is not None
            said = process.stdout.read()
            code = process.wait()
            if not said:
                raise PeerLost(f"the source's process ended with {code}: {_last_line(errors)}")
        return outcome_of(Report.from_json(said), code)

    def rounds(self, orders: Sequence[OrderName]) -> Iterator[Run]:
        """The scenario's warm-up and repetitions, in each of ``orders``, which take turns.

        So what else the machine is doing meanwhile meets all of them.
        """
        scenario = self.scenario
        for number in range(-scenario.warm_up, scenario.repetitions):
            turn = number % len(orders)
            for order in [*orders[turn:], *orders[:turn]]:
                yield Run(order, number >= 0, self.run(order))


def outcome_of(report: Report, exit_code: int) -> Outcome:
    """What a source's report says of a run."""
    completed = report.outcome == "completed"
    return Outcome(
        error="" if completed else report.error or report.outcome,
        exit_code=exit_code,
        downtime=_seconds(report.downtime_ms) if completed else None,
        total=report.total_ms / 1e3,
        predicted=_seconds(report.predicted_downtime_ms),
        bytes_total=report.bytes_total,
        bytes_wire=report.bytes_wire,
        bytes_stopcopy=report.bytes_stopcopy,
        iterations=report.iterations,
        bandwidth=report.bandwidth,
        steps={name: ms / 1e3 for name, ms in report.steps_ms.items()},
        left={device.name: device.bytes_stopcopy or 0 for device in report.devices},
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


@contextmanager
def opened_bench(scenario: Scenario, keys: Keys = _NO_KEYS) -> Iterator[Bench]:
    """Lay the scenario's wire, see what it carries, and start the destination; undone afterwards.

    Raises ConfigError: the wire cannot be made; PeerLost: the destination's process ended.
    """
    with laid(scenario.wire) as wire:
        if wire.remote:
            yield Bench(scenario, wire, None, scenario.wire.address, keys)
            return
        gave = _measure(wire)
        job = Job(
            role="destination",
            scenario=scenario,
            address=f"tcp://{wire.host}:0",
            isolated=wire.isolated,
        )
        with _process(wire.receiving, "vfioflow.lab.side", job) as (process, errors):
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()
            if not address:
                raise PeerLost(f"the destination's process ended: {_last_line(errors)}")
            yield Bench(scenario, wire, gave, address)


def evaluate(scenario: Scenario, policy: Policy) -> Outcome:
    """One run of a scenario with another policy, on a wire of its own.  Raises as :func:`opened_bench`."""
    with opened_bench(scenario) as bench:
        return bench.run(policy=policy)


def _measure(wire: Laid) -> float:
    """Bytes per second that plain sockets move over it."""
    plain = "vfioflow.lab.plain"
    with _process(wire.receiving, plain, None, "take", wire.host) as (taking, errors):
        assert taking.stdout is not None
        port = taking.stdout.readline().decode().strip()
        with _process(wire.sending, plain, None, "give", wire.host, port) as (giving, _):
            assert giving.stdout is not None
            said = giving.stdout.read()
        if not said:
            raise PeerLost(f"the wire could not be measured: {_last_line(errors)}")
    return float(said)


@contextmanager
def _process(
    prefix: Sequence[str], module: str, job: Job | None, *words: str
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process of ours at one side of a wire, and what it says on standard error.

    It has a session of its own: a terminal's Ctrl-C reaches it only through this process.
    """
    command = [*prefix, sys.executable, "-m", module, *words]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None
        try:
            if job is not None:
                process.stdin.write(msgspec.json.encode(job) + b"\n")
                process.stdin.flush()
            yield process, errors
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    steps: list[Callable[[], None]] = [lambda: process.send_signal(signal.SIGTERM), process.kill]
    for harder in steps:
        try:
            process.wait(_END_SECONDS)
            return
        except subprocess.TimeoutExpired:
            harder()
    process.wait()


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

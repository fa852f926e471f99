"""Running a session for a command: the loop, signals, and how it ends for the user."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from vfioflow.cli.console import complain, put
from vfioflow.devices.base import Device
from vfioflow.errors import VfioflowError
from vfioflow.report import Report

__all__ = [
    "Ended",
    "INTERRUPTED",
    "attempt",
    "conclude",
    "failing_as_json",
    "never_began",
    "open_devices",
    "run",
    "to_json",
    "whereabouts",
]

INTERRUPTED = 130

Role: TypeAlias = Literal["source", "destination"]
Say: TypeAlias = Callable[[str], None]


class _Session(Protocol):
    report: Report

    async def run(self) -> Report: ...


@dataclass(frozen=True)
class Ended:
    """How a session ended; ``error`` is None when it completed undisturbed."""

    report: Report
    error: VfioflowError | asyncio.CancelledError | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it, or came while it was ending."""
        return isinstance(self.error, asyncio.CancelledError)

    @property
    def exit_code(self) -> int:
        """What the command exits with; a migration that is complete is one, interrupted or not."""
        if self.report.outcome == "completed":
            return 0
        if isinstance(self.error, VfioflowError):
            return self.error.exit_code
        return INTERRUPTED


def run(main: Callable[[], Coroutine[Any, Any, int]], say: Say) -> int:
    """Run ``main`` on uvloop.  SIGINT and SIGTERM cancel it; later ones ask for patience."""
    import uvloop

    async def guarded() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        seen = 0

        def interrupt() -> None:
            nonlocal seen
            seen += 1
            if seen == 1:
                task.cancel()
            else:
                say("still putting the devices back; this must finish")

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


async def attempt(session: _Session) -> Ended:
    """Run a session to its end, whichever that is.  A cancellation ends here."""
    try:
        await session.run()
    except VfioflowError as error:
        return Ended(session.report, error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return Ended(session.report, error)
    return Ended(session.report)


def whereabouts(report: Report) -> str:
    """Where the devices of this side are now, as a sentence without its full stop."""
    here = "at the source" if report.role == "source" else "here"
    if not report.devices:
        return f"no device {here} was touched"
    if any(device.final_state != "RUNNING" for device in report.devices):
        each = ", ".join(f"{d.name} is {d.final_state}" for d in report.devices)
        return f"{here}, {each}"
    if report.role == "source":
        return "every device is RUNNING at the source"
    return "every device here was reset: RUNNING, and empty"


def to_json(report: Report, **more: object) -> str:
    """The report as one JSON object, with what a command adds to it."""
    return msgspec.json.encode({**msgspec.to_builtins(report), **more}).decode()


def never_began(role: Role, peer: str) -> Ended:
    """How it ended where an interruption came before there was a session."""
    report = Report(role=role, outcome="cancelled", error="cancelled", peer=peer)
    return Ended(report, asyncio.CancelledError())


def conclude(ended: Ended) -> int:
    """Say how a session ended, unless it just completed, on standard error; the exit code."""
    report, error = ended.report, ended.error
    if report.outcome == "completed":
        if ended.interrupted:
            complain("the interruption came after the commit: the migration is complete", kind="")
        if report.error:
            complain(report.error, kind="warning: ")
        return 0
    if isinstance(error, VfioflowError):
        notes = [*getattr(error, "__notes__", ()), whereabouts(report)]
        complain(str(error), notes)
    elif report.outcome == "cancelled":
        again = " again" if report.role == "source" and report.devices else ""
        notes = [] if report.error in (None, "cancelled") else [str(report.error)]
        complain(f"interrupted: {whereabouts(report)}{again}", notes, kind="")
    else:
        complain(str(report.error), [f"interrupted meanwhile: {whereabouts(report)}"])
    return ended.exit_code


@contextmanager
def failing_as_json(role: Role, as_json: bool) -> Iterator[None]:
    """Where a command fails before it has a session, its JSON still is a report."""
    try:
        yield
    except VfioflowError as error:
        if as_json:
            put(Report(role=role, outcome="failed", error=str(error)).to_json())
        raise


@contextmanager
def open_devices(path: str | Path, *, seed: int = 0) -> Iterator[Sequence[Device]]:
    """The devices that a file lists, closed afterwards; ``seed`` shifts those of simulated ones."""
    from vfioflow.devices.config import load_devices

    with ExitStack() as stack:
        devices = load_devices(path, seed=seed)
        for device in devices:
            stack.callback(device.close)
        yield devices

"""One side of a run, in a process of its own: the engine, its devices, and what it writes down."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vfioflow import Fabric, Hooks, Journal, Policy, Security, SimDevice, listen
from vfioflow import journal as _journal
from vfioflow import lanes as _lanes
from vfioflow import probe as _probe
from vfioflow import reconnect as _reconnect
from vfioflow import rounds as _rounds
from vfioflow import session as _session
from vfioflow.devices import sim as _sim
from vfioflow.errors import VfioflowError
from vfioflow.events import (
    BarrierPassed,
    Decided,
    Event,
    InitialLoaded,
    InitialSent,
    PhaseEntered,
    Reconnected,
    RolledBack,
)
from vfioflow.listener import Listener
from vfioflow.source import Source
from vfioflow.states import Flags, State
from vfioflow.wire import control as _control

from .durable import DurableDevice
from .log import Log
from .schedule import Schedule, Strike
from .store import DurableSet

_PR_SET_PDEATHSIG = 1
_CALM = {"connect_timeout": 20.0, "stall_timeout": 20.0, "resolve_timeout": 5.0}
"""What a side that comes back is patient with."""
_GONE_SECONDS = 5.0
"""How long threads may take to end after their side has."""


def hurry() -> None:
    """Shorten the times that the engine takes to measure and to be polite."""
    _probe._FIRST = _probe._LARGEST = 32 * 1024
    _rounds._SHORTEST = 0.005
    _lanes._LAST_WORDS = _control._LAST_WORDS = 0.2
    _session._TELL_SECONDS = 0.2
    _reconnect._GRACE = 0.3
    _reconnect._LAST_WORDS = 0.2
    _reconnect._LOOK = 0.02


class _Records(logging.Handler):
    """Warnings and worse, into the log; what came with a stack counts as a traceback."""

    def __init__(self, side: Side) -> None:
        super().__init__(logging.WARNING)
        self._side = side

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        stack = ""
        if record.exc_info:
            stack = logging.Formatter().formatException(record.exc_info)
        self._side.say("said", level=record.levelname, logger=record.name, text=text, stack=stack)


class ChaosSim(SimDevice):
    """A simulated device that tells of its arcs."""

    step: Callable[[str, State, State, str], None] = staticmethod(lambda *_: None)
    reset_told: Callable[[str], None] = staticmethod(lambda _: None)

    def _arc(self, start: State, end: State, released: int) -> int:
        self.step(self.name, start, end, "before")
        opened = super()._arc(start, end, released)
        self.step(self.name, start, end, "after")
        return opened

    def reset(self) -> None:
        super().reset()
        self.reset_told(self.name)


class Side:
    """Runs in a child process; ``control`` is the runner's, ``stop`` is readable when nobody will come."""

    def __init__(
        self,
        name: str,
        plan: Schedule,
        log: Log,
        *,
        directory: Path,
        control: socket.socket,
        stop: int,
        address: str,
        life: int = 0,
        settle: bool = False,
    ) -> None:
        self.name = name
        self.life = life
        self._settle = settle
        self._running = name == "source"
        self._journal_fails = ""
        self.plan = plan
        self.log = log
        self._directory = directory
        self._control = control
        self._stop = stop
        self._address = address
        self._lock = threading.Lock()
        self._strikes = [
            (number, s)
            for number, s in enumerate(plan.strikes)
            if s.at.what in ("event", "arc", "record") and s.at.side == name and not life
        ]
        self._arcs = 0
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failing: set[str] = set()
        self.devices: list[Any] = []
        self._group: DurableSet | None = None
        self._limits: list[tuple[int, tuple[int, int]]] = []

    def say(self, what: str, **more: Any) -> None:
        self.log.write(self.name, what, **more)

    # ------------------------------------------------------------------ points

    def _reach(self, what: str, name: str = "", count: int = 0, part: str = "") -> None:
        """A point of progress: do what strikes there, once."""
        with self._lock:
            due = [
                (number, s)
                for number, s in self._strikes
                if s.at.what == what
                and ((what == "event" and s.at.name == name)
                     or (what == "arc" and s.at.count == count and s.at.part == part)
                     or (what == "record" and s.at.name == name and s.at.part == part))
            ]  # fmt: skip
            self._strikes = [s for s in self._strikes if s not in due]
        for number, strike in due:
            self._do(number, strike)

    def _do(self, number: int, strike: Strike) -> None:
        kind, mine = strike.kind, strike.side in ("", self.name)
        if kind == "kill" and mine:
            self.say("strike", number=number)
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "cancel" and mine:
            self.say("strike", number=number)
            if self._task is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        elif kind == "journal unwritable":
            self.say("strike", number=number)
            (self._directory / "journal").write_text("in the way")
        elif kind.startswith("journal"):
            self.say("strike", number=number)
            self._journal_fails = kind
        elif kind == "hook":
            self.say("strike", number=number)
            self._failing.add(strike.how)
        elif kind == "descriptors":
            self.say("strike", number=number)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._limits.append((resource.RLIMIT_NOFILE, (soft, hard)))
            taken = len(_open_fds())
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, taken + strike.amount), hard))
        elif kind == "memory":
            self.say("strike", number=number)
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            self._limits.append((resource.RLIMIT_AS, (soft, hard)))
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            most = pages * resource.getpagesize() + (strike.amount << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        else:
            # The runner's to do; it answers when it is done, so that the order is certain.
            self._control.send(f"strike {number}".encode())
            self._control.recv(16)

    def _step(self, device: str, start: State, end: State, part: str) -> None:
        with self._lock:
            count = self._arcs
            self._arcs += part == "before"
        if part == "after":
            self.say("arc", device=device, start=start.name, end=end.name)
        self._reach("arc", count=count, part=part)

    def _see(self, event: Event) -> None:
        if isinstance(event, PhaseEntered):
            name = f"phase {event.phase}"
        elif isinstance(event, BarrierPassed):
            name = f"barrier {event.name}"
            if event.name in ("stop-copy", "ready"):
                self.say("truth", at=event.name, **self._truth())
        elif isinstance(event, InitialSent):
            name = "initial sent"
        elif isinstance(event, InitialLoaded):
            name = "initial loaded"
        elif isinstance(event, Decided):
            name = "decided"
        elif isinstance(event, Reconnected):
            self.say("reconnected", line=event.connection)
            return
        elif isinstance(event, RolledBack):
            self.say("rolled back", device=event.device, state=str(event.state), how=event.how)
            return
        else:
            return
        self.say("event", name=name)
        self._reach("event", name=name)

    # ----------------------------------------------------------------- devices

    def _truth(self) -> dict[str, Any]:
        """What the devices hold."""
        if self._group is not None:
            store = self._group.store
            return {"digests": {n: d.digest() for n, d in store.devices.items()}}
        return {"digests": {d.name: f"{d.true_digest():016x}" for d in self.devices}}

    def _make(self) -> None:
        faults = [f for f in self.plan.faults if f.side == self.name and not self.life]
        if self.plan.durable:
            self._make_durable(faults)
            return
        for spec in self.plan.devices:
            options = dict(spec.options)
            if self.name == "destination":
                options["seed"] += 1
            mine = [f.fault for f in faults if f.device == spec.name]
            device = ChaosSim(spec.name, faults=mine, **options)
            device.step = self._step
            device.reset_told = lambda name: self.say("reset", device=name)
            self.devices.append(device)
        Fabric(self.devices)

    def _make_durable(self, faults: list[Any]) -> None:
        group = self._group = DurableSet(self._directory, step=self._step)
        if not group.store.devices:
            for spec in self.plan.devices:
                seed = spec.options["seed"] + (self.name == "destination")
                flags = Flags(spec.options["flags"])
                group.add(spec.name, flags=flags, blocks=spec.options["blocks"], seed=seed)
            group.set_vcpus(self.name == "source")
        self._running = group.store.vcpus
        for spec in self.plan.devices:
            options = {
                k: v for k, v in spec.options.items() if k not in ("flags", "blocks", "seed")
            }
            mine = [f.fault for f in faults if f.device == spec.name]
            self.devices.append(DurableDevice(group, spec.name, faults=mine, **options))

    def _vcpus(self, running: bool) -> None:
        hook = "start_vcpus" if running else "stop_vcpus"
        self._reach("event", name=f"hook {hook}")
        if hook in self._failing:
            self._failing.discard(hook)
            raise RuntimeError(f"{hook} is meant to fail")
        states = {d.name: d.state.name for d in self.devices}
        self.say("vcpus", running=running, states=states)
        self._running = running
        if self._group is not None:
            self._group.set_vcpus(running)

    # ------------------------------------------------------------------ the run

    def main(self) -> int:
        """The whole life of the process; its exit code."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.enable(file=2)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)
        logging.captureWarnings(True)
        warnings.simplefilter("always")
        root = logging.getLogger()
        root.handlers[:] = [_Records(self)]
        root.setLevel(logging.WARNING)
        hurry()
        before = _open_fds()
        self._make()
        self.say("begin", **self._truth())
        policy = Policy(**(self.plan.policy | (_CALM if self.life else {})))
        if self.plan.journal:
            self._journal = Journal(self._directory / "journal")
            self._watch_journal()
        if self.plan.psk:
            self._security = Security(psk=b"a key of both sides")
        run = self._send if self.name == "source" else self._receive
        error: BaseException | None = None
        try:
            asyncio.run(self._watched(run(policy)))
        except BaseException as caught:  # judged by its kind, in the log
            error = caught
        self._end(error)
        error = self._task = self._loop = self._report = None  # their frames hold whatever they had
        left = self._left(before)
        if left:
            self.say("left", what_is_left=left)
        self.say("done")
        return 0

    async def _watched(self, work: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        try:
            self._reach("event", name="start")
            await work
        finally:
            for which, limit in reversed(self._limits):
                resource.setrlimit(which, limit)

    async def _send(self, policy: Policy) -> None:
        hooks = Hooks(stop_vcpus=lambda: self._vcpus(False), start_vcpus=lambda: self._vcpus(True))
        name = f"chaos-{self.plan.seed}"
        if self._settle and (self._journal is None or not self._journal.find(name, "source")):
            self.say("nobody")
            return
        source = Source(
            self.devices,
            self._address,
            policy=policy,
            hooks=hooks,
            observer=self._see,
            journal=self._journal,
            session=name,
            security=self._security,
        )
        try:
            await source.run()
        finally:
            self._report = source.report

    async def _receive(self, policy: Policy) -> None:
        hooks = Hooks(start_vcpus=lambda: self._vcpus(True))
        async with listen(
            self._address,
            self.devices,
            policy=policy,
            hooks=hooks,
            observer=self._see,
            journal=self._journal,
            security=self._security,
        ) as listener:
            # One session, as the command does; a later life also answers for what was before.
            while await self._serve(listener) and self.life:
                pass

    async def _serve(self, listener: Listener) -> bool:
        """Take the next session; False: there will be none."""
        waiting = asyncio.create_task(listener.next_session())
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._stop, stopped.set)
        nobody = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait([waiting, nobody], return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._stop)
            nobody.cancel()
            if not waiting.done():
                waiting.cancel()
            await asyncio.wait([waiting, nobody])
        if waiting.cancelled():
            self.say("nobody")
            return False
        session = waiting.result()
        try:
            await session.run()
        except VfioflowError:
            if not self.life:
                raise
        finally:
            self._report = session.report
        return True

    def _watch_journal(self) -> None:
        """Points before and after each record; and what a disk may do to one."""
        record, write, sync = _journal.Entry._record, _journal._write, os.fsync

        def recording(entry: Any, what: Any) -> None:
            self._reach("record", name=str(what.step), part="before")
            try:
                record(entry, what)
            finally:
                self._journal_fails = ""
            self.say("record", step=str(what.step))
            self._reach("record", name=str(what.step), part="after")

        def writing(fd: int, data: bytes, offset: int) -> None:
            if self._journal_fails == "journal full":
                write(fd, data[: len(data) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(fd, data, offset)

        def syncing(fd: int) -> None:
            if self._journal_fails == "journal lost":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(fd)

        _journal.Entry._record = recording
        _journal._write = writing
        os.fsync = syncing

    _report: Any = None
    _journal: Journal | None = None
    _security: Security | None = None

    def _end(self, error: BaseException | None) -> None:
        report = self._report
        trace = ""
        if error is not None and not isinstance(error, VfioflowError | asyncio.CancelledError):
            trace = "".join(traceback.format_exception(error))
        said: dict[str, Any] = {
            "life": self.life,
            "vcpus": self._running,
            "outcome": None if report is None else report.outcome,
            "told": None if report is None else report.error,
            "session": None if report is None else report.session,
            "reconnects": 0 if report is None else report.reconnects,
            "error": type(error).__name__ if error is not None else None,
            "typed": error is None or isinstance(error, VfioflowError | asyncio.CancelledError),
            "text": str(error) if error is not None else "",
            "notes": list(getattr(error, "__notes__", ())),
            "trace": trace,
            "states": {},
        }
        for device in self.devices:
            try:
                said["states"][device.name] = device.state.name
            except VfioflowError as failed:
                said["states"][device.name] = str(failed)
        if self._group is None:
            with contextlib.suppress(VfioflowError):
                said["ledger"] = list(_sim.ledger(self.devices).differences)
        else:
            said["ledger"] = self._group.store.balanced()
        self.say("end", **said, **self._truth())

    def _left(self, before: set[str]) -> list[str]:
        """What the side leaves behind; its devices are closed first, which ends their hangs."""
        for device in self.devices:
            device.close()
        until = time.monotonic() + _GONE_SECONDS
        left = []
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(max(until - time.monotonic(), 0))
                if thread.is_alive():
                    left.append(f"thread {thread.name}")
        self.devices.clear()
        gc.collect()
        left += [f"descriptor {fd}" for fd in sorted(_open_fds() - before)]
        if any(_sim.live().values()):
            left.append(f"simulated devices: {_sim.live()}")
        return left


def _open_fds() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that reads the folder is gone by then
            found.add(f"{fd.name} {fd.readlink()}")
    return found

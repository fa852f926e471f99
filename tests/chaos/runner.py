"""One run: both sides in processes of their own, the wire between them, and what came of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .log import Log
from .schedule import Schedule, Strike
from .side import Side
from .store import Store, look
from .wire import Wire

LIMIT = 30.0
"""Seconds after which a run counts as hanging."""


@dataclass
class Life:
    """One process of a side; ``number`` counts those of its side from 0."""

    side: str
    number: int
    pid: int
    pidfd: int
    control: socket.socket
    stop: int
    status: int | None = None
    frozen: float | None = None
    thaw: float | None = None


@dataclass
class Outcome:
    """What a run left: the log of all, how each process ended, and the stores of durable sets."""

    log: list[dict[str, Any]]
    lives: list[Life]
    stores: dict[str, Store] = field(default_factory=dict)
    hangs: list[str] = field(default_factory=list)
    stderr: str = ""
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0
    connections: int = 0

    def of(self, side: str, what: str) -> list[dict[str, Any]]:
        """Entries of one side."""
        return [e for e in self.log if e["side"] == side and e["what"] == what]

    def end(self, side: str) -> dict[str, Any] | None:
        """How a side's first process says that it ended; None: it was killed."""
        return next((e for e in self.of(side, "end") if e["life"] == 0), None)

    def struck(self) -> set[int]:
        """The numbers of the strikes that happened."""
        return {e["number"] for e in self.log if e["what"] == "strike"}


class Run:
    """Runs a schedule.  The calling process must have one thread only: it forks."""

    def __init__(self, plan: Schedule) -> None:
        self.plan = plan
        self.log = Log()
        self.lives: list[Life] = []
        self.directory = Path(tempfile.mkdtemp(prefix="vfioflow-chaos-"))
        self._stderr = os.memfd_create("chaos-stderr")
        self.wire = Wire(list(plan.strikes), self._process, tagged=plan.psk)
        self._hangs: list[str] = []

    def run(self) -> Outcome:
        """Both sides to their ends."""
        begin = time.monotonic()
        try:
            for side in ("destination", "source"):
                (self.directory / side).mkdir()
                self._start(side)
            self._watch(begin + LIMIT)
            if self._unsettled():
                self.wire.heal()
                self.log.write("runner", "settling")
                for side in ("destination", "source"):
                    self._start(side, settle=True)
                self._watch(time.monotonic() + LIMIT)
            return self._outcome(time.monotonic() - begin)
        finally:
            self._close()

    # --------------------------------------------------------------- processes

    def _unsettled(self) -> bool:
        """Whether a later process has to find out what became of it."""
        if not (self.plan.durable and self.plan.journal) or self._hangs:
            return False
        ends = [e for e in self.log.read() if e["what"] == "end"]
        return any(life.status == -signal.SIGKILL for life in self.lives) or any(
            e["outcome"] == "in-doubt" for e in ends
        )

    def _start(self, side: str, *, settle: bool = False) -> Life:
        number = sum(life.side == side for life in self.lives)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stop_read, stop_write = os.pipe()
        listening: socket.socket | None = None
        address = self.wire.address
        if side == "destination":
            listening = socket.create_server(("127.0.0.1", 0), backlog=64)
            self.wire.target = listening.getsockname()[:2]
            address = f"fd://{listening.fileno()}"
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                near.close()
                os.close(stop_write)
                os.dup2(self._stderr, 2)
                os.dup2(self._stderr, 1)
                for life in self.lives:
                    life.control.close()
                    os.close(life.stop)
                    os.close(life.pidfd)
                self.wire.close()
                code = Side(
                    side,
                    self.plan,
                    self.log,
                    directory=self.directory / side,
                    control=far,
                    stop=stop_read,
                    address=address,
                    life=number,
                    settle=settle,
                ).main()
            except (
                BaseException
            ):  # whatever it is, the child must end here, and not go on as the runner
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        far.close()
        os.close(stop_read)
        if listening is not None:
            listening.close()
        life = Life(side, number, pid, os.pidfd_open(pid), near, stop_write)
        self.lives.append(life)
        if number and not settle and not self._alive("source"):
            self._nobody_comes(life)
        return life

    def _nobody_comes(self, life: Life) -> None:
        with suppress(BrokenPipeError):
            os.write(life.stop, b"x")

    def _alive(self, side: str | None = None) -> list[Life]:
        return [x for x in self.lives if x.status is None and side in (None, x.side)]

    def _watch(self, until: float) -> None:
        while self._alive():
            now = time.monotonic()
            if now > until:
                self._hang()
                return
            others = {}
            timeout = 0.5
            for life in self._alive():
                others[life.pidfd] = lambda life=life: self._reap(life)
                others[life.control.fileno()] = lambda life=life: self._hear(life)
                if life.frozen is not None and life.thaw is not None:
                    if now >= life.thaw:
                        self._thaw(life)
                    else:
                        timeout = min(timeout, life.thaw - now)
            self.wire.step(min(timeout, until - now), others)

    def _reap(self, life: Life) -> None:
        if life.status is not None:
            return
        _, status = os.waitpid(life.pid, 0)
        life.status = os.waitstatus_to_exitcode(status)
        self.log.write(life.side, "gone", status=life.status)
        if life.status == -signal.SIGKILL and self._comes_back(life):
            self._start(life.side)
            return
        others = self._alive()
        for other in others:
            if other.frozen is not None:
                self._thaw(other)
            if life.side == "source":
                self._nobody_comes(other)

    def _comes_back(self, life: Life) -> bool:
        return life.number == 0 and any(
            s.kind == "kill" and s.side == life.side and s.how == "restart" and self.plan.journal
            for s in self.plan.strikes
        )

    def _hear(self, life: Life) -> None:
        """A side asks for a strike that is not its own to do."""
        if life.status is not None:
            return
        words = life.control.recv(64).decode().split()
        if not words:
            self._reap(life)
            return
        number = int(words[1])
        self.log.write("runner", "strike", number=number)
        self.wire.strike(self.plan.strikes[number])
        if life.status is None:
            with suppress(OSError):  # it was what the strike killed
                life.control.send(b"done")

    def _process(self, strike: Strike) -> None:
        """A strike against a process."""
        for life in self._alive(strike.side):
            if strike.kind == "kill":
                os.kill(life.pid, signal.SIGKILL)
                self._reap(life)
            elif strike.kind == "freeze" and life.frozen is None:
                os.kill(life.pid, signal.SIGSTOP)
                self._frozen(life, strike)

    def _frozen(self, life: Life, strike: Strike) -> None:
        life.frozen = time.monotonic()
        # Without a time it is for as long as the other side lives; with both frozen, not for ever.
        life.thaw = life.frozen + (strike.seconds or 6.0)
        if not any(other is not life and other.frozen is None for other in self._alive()):
            self._thaw(life)

    def _thaw(self, life: Life) -> None:
        life.frozen = None
        os.kill(life.pid, signal.SIGCONT)

    def _hang(self) -> None:
        for life in self._alive():
            self._hangs.append(f"the {life.side} still runs after {LIMIT:g} s")
            os.kill(life.pid, signal.SIGCONT)
            os.kill(life.pid, signal.SIGUSR1)  # it says where it stands, and ends
            self._reap(life)

    # --------------------------------------------------------------------- end

    def _outcome(self, seconds: float) -> Outcome:
        for strike in self.wire.struck:
            number = next(i for i, s in enumerate(self.plan.strikes) if s is strike)
            self.log.write("runner", "strike", number=number)
        outcome = Outcome(self.log.read(), self.lives, hangs=self._hangs, seconds=seconds)
        outcome.connections = self.wire.made
        if self.plan.durable:
            for side in ("source", "destination"):
                if (self.directory / side / "set").exists():
                    outcome.stores[side] = look(self.directory / side)
        size = os.fstat(self._stderr).st_size
        outcome.stderr = os.pread(self._stderr, size, 0).decode(errors="replace")
        outcome.left = self._left()
        return outcome

    def _left(self) -> list[str]:
        """Files beside the stores, and children that nobody waited for."""
        allowed = {"set", "journal", *(f"set.{life.pid}" for life in self.lives)}
        found = [
            f"file {path.name}"
            for side in ("source", "destination")
            for path in (self.directory / side).iterdir()
            if path.name not in allowed
        ]
        with suppress(ChildProcessError):
            pid, _ = os.waitpid(-1, os.WNOHANG)
            found.append(f"process {pid}")
        return found

    def _close(self) -> None:
        for life in self._alive():
            os.kill(life.pid, signal.SIGKILL)
            os.waitpid(life.pid, 0)
        for life in self.lives:
            life.control.close()
            os.close(life.stop)
            os.close(life.pidfd)
        self.wire.close()
        self.log.close()
        os.close(self._stderr)
        shutil.rmtree(self.directory)

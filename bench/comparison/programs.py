"""Programs that run during a measurement: what they say on standard error, and what CPU they took."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import IO


class ProgramFailed(Exception):
    """A program ended with a status other than 0, or said something else than was expected."""


class Program:
    """One process.  ``cpu`` is known once it has finished."""

    def __init__(
        self, words: Sequence[str], stdin: int, stdout: int, fds: Sequence[int] = ()
    ) -> None:
        self.words = words
        self.cpu = 0.0
        self.said: list[str] = []
        self._process = subprocess.Popen(
            words, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, pass_fds=fds, text=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        """The next line on standard error; empty at its end."""
        line = self._stderr.readline()
        self.said.append(line)
        return line.strip()

    def value(self, word: str) -> float:
        """The number in the line that begins with ``word``; reads on until it comes."""
        for line in self.said:
            if line.startswith(f"{word} "):
                return float(line.split()[1])
        while line := self._stderr.readline():
            self.said.append(line)
            if line.startswith(f"{word} "):
                return float(line.split()[1])
        self.finish()
        raise ProgramFailed(f"{self} did not say {word!r}: {self._last()}")

    def finish(self) -> None:
        """Wait for its end.  Raises ProgramFailed when its status is not 0."""
        self.said.extend(self._stderr)
        if self._process.returncode is None:
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu = usage.ru_utime + usage.ru_stime
        if self._process.returncode:
            raise ProgramFailed(f"{self} ended with {self._process.returncode}: {self._last()}")

    def interrupt(self) -> None:
        """Kill it, from any thread, unless it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    def kill(self) -> None:
        """End it, and forget it."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _last(self) -> str:
        """The last thing that it said."""
        lines = "".join(self.said).split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no reason given")

    @property
    def _stderr(self) -> IO[str]:
        assert self._process.stderr is not None
        return self._process.stderr

    def __str__(self) -> str:
        return " ".join(self.words[:6])


class Programs:
    """The programs of one run.  Whatever still runs at the end, or after ``limit`` seconds, is killed."""

    def __init__(self, limit: float) -> None:
        self._all: list[Program] = []
        self._limit = limit
        self._timer = threading.Timer(limit, self._expire)
        self.expired = False

    def start(
        self, words: Sequence[str], stdin: int, stdout: int, fds: Sequence[int] = ()
    ) -> Program:
        """Start one more."""
        self._all.append(Program(words, stdin, stdout, fds))
        return self._all[-1]

    def __enter__(self) -> Programs:
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        for program in self._all:
            program.kill()
        if self.expired:
            raise ProgramFailed(f"not done after {self._limit:.0f} s") from error

    def _expire(self) -> None:
        self.expired = True
        for program in self._all:
            program.interrupt()  # its end is noticed by whoever reads or waits

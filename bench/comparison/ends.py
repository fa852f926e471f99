"""Where bytes come from and go to: the same file descriptors for every mover."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
from contextlib import suppress

from comparison.content import MIB, Content
from comparison.programs import ProgramFailed

MEMFD = "memfd"
PIPE = "pipe"
DEVNULL = "/dev/null"


class Ends:
    """The sources and sinks of one run, one of each per device.  A context manager.

    A source is ``memfd``, the content itself, or ``pipe``, which ``loop feed`` has begun to fill with
    it.  A sink is ``/dev/null``, a ``memfd`` whose memory is there already, or a ``pipe``
    that ``loop drain`` empties.  A pipe holds 1 MiB.
    """

    def __init__(self, source: str, sink: str, content: Content, loop: str) -> None:
        self.source, self.sink, self.content = source, sink, content
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.devices = len(content.files)
        self._loop = loop
        self._helpers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Ends:
        for device in range(self.devices):
            self.inputs.append(self._open_source(device))
            self.outputs.append(self._open_sink(device))
        if self.sink == MEMFD:
            self.content.spoil()
        if self.source == PIPE:
            for outlet in self.inputs:
                _await_bytes(outlet)
        return self

    def __exit__(self, *error: object) -> None:
        for fds in (self.inputs, self.outputs):
            while fds:
                os.close(fds.pop())
        for helper in self._helpers:
            helper.kill()
            helper.wait()

    def _open_source(self, device: int) -> int:
        if self.source == MEMFD:
            # Opened anew, not duplicated: each run begins at 0.
            return os.open(self.content.path(device), os.O_RDONLY | os.O_CLOEXEC)
        outlet, mouth = _pipe()
        words = [self._loop, "feed", str(self.content.device_size), self.content.path(device)]
        self._helpers.append(subprocess.Popen(words, stdout=mouth))
        os.close(mouth)
        return outlet

    def _open_sink(self, device: int) -> int:
        if self.sink == DEVNULL:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        if self.sink == MEMFD:
            return os.open(self.content.landing(device), os.O_RDWR | os.O_CLOEXEC)
        outlet, mouth = _pipe()
        self._helpers.append(subprocess.Popen([self._loop, "drain"], stdin=outlet))
        os.close(outlet)
        return mouth

    def handed_over(self) -> None:
        """Close this process's copies of the pipes: the movers have theirs."""
        for name, fds in ((self.source, self.inputs), (self.sink, self.outputs)):
            if name == PIPE:
                while fds:
                    os.close(fds.pop())

    def settle(self) -> None:
        """Wait for feeders and drains, and look at what arrived.  Raises ProgramFailed."""
        for helper in self._helpers:
            if helper.wait():
                raise ProgramFailed(f"{helper.args!r} ended with {helper.returncode}")
        if self.sink == MEMFD and (wrong := self.content.wrong()):
            raise ProgramFailed(wrong)


def _pipe() -> tuple[int, int]:
    outlet, mouth = os.pipe2(os.O_CLOEXEC)
    with suppress(OSError):  # an unprivileged user may have used up his share of pipe pages
        fcntl.fcntl(mouth, fcntl.F_SETPIPE_SZ, MIB)
    return outlet, mouth


def _await_bytes(outlet: int) -> None:
    """Return when the pipe holds something: its feeder has mapped the content by then."""
    ready, _, _ = select.select([outlet], [], [], 30)
    if not ready:
        raise ProgramFailed("nothing comes out of a feeder")

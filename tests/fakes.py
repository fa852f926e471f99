"""Fakes that tests share."""

from __future__ import annotations

import errno
import threading

from vfioflow.devices.base import DeviceInfo, PrecopyInfo
from vfioflow.errors import DeviceError
from vfioflow.states import FLAG_SETS, Flags, State, path


class Journal:
    """What a set of fake devices did, in order: ("begin" | "end", device, state)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, State]] = []
        self.lock = threading.Lock()

    def write(self, what: str, device: str, state: State) -> None:
        with self.lock:
            self.entries.append((what, device, state))


class FakeDevice:
    """A device that is nothing but its state; it can fail, and it can meet others half way.

    ``meet``: a threading.Barrier that each change waits at, which proves that changes run at once.
    ``fail_at``: state -> (errno, where the device is left).
    """

    def __init__(
        self,
        name: str,
        flags: Flags = FLAG_SETS[3],
        *,
        journal: Journal | None = None,
        meet: threading.Barrier | None = None,
        fail_at: dict[State, tuple[int, State]] | None = None,
        fail_reset: bool = False,
        gate: threading.Event | None = None,
    ) -> None:
        self.name = name
        self.info = DeviceInfo(name, "fake", flags)
        self.state = State.RUNNING
        self.resets = 0
        self._journal = journal or Journal()
        self._meet = meet
        self._fail_at = fail_at or {}
        self._fail_reset = fail_reset
        self._gate = gate
        self.fds: list[int] = []

    def set_state(self, state: State) -> int:
        for stop in path(self.info.flags, self.state, state):
            self._journal.write("begin", self.name, stop)
            if self._meet is not None:
                self._meet.wait(10)
            if self._gate is not None:
                self._gate.wait(10)
            if stop in self._fail_at:
                code, left = self._fail_at.pop(stop)
                start, self.state = self.state, left
                raise DeviceError(self.name, f"{start} -> {stop}", code)
            self.state = stop
            self._journal.write("end", self.name, stop)
        return self.fds.pop() if self.fds else -1

    def port(self, data_fd: int) -> object:
        raise AssertionError("no data here")

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        return PrecopyInfo(0, 0)

    def stop_copy_size(self) -> int | None:
        return 0

    def reset(self) -> None:
        if self._fail_reset:
            raise DeviceError(self.name, "reset", errno.EIO)
        self.resets += 1
        self.state = State.RUNNING

    def close(self) -> None:
        pass

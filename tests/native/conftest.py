"""Moving simulated devices by hand, and the check that nothing of them is left behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import select
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vfioflow._simport import SimPort
from vfioflow.devices.sim import SimDevice, live
from vfioflow.states import Flags, State

sys.path.insert(0, str(Path(__file__).parent))

HEADER = 32


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    gc.collect()  # what tests before have left to it is none of this one's
    before, fds = live(), open_fds()
    yield
    # A traceback may still hold a device or a mapped file.
    if live() != before or open_fds() != fds:
        gc.collect()
    assert live() == before
    assert open_fds() == fds
    assert not [t for t in threading.enumerate() if t.name == "vfioflow-sim"]


@dataclass
class Hand:
    """An engine by hand: one port, read or written to its end."""

    def read(self, port: SimPort, size: int) -> bytes:
        """One read that gives something, however long the device takes."""
        while True:
            try:
                return port.read(size)
            except BlockingIOError:
                select.select([port], [], [])

    def drain(self, port: SimPort, size: int = 1 << 20) -> tuple[bytes, int]:
        """Everything up to a 0 or an errno other than EAGAIN, and which of them it was."""
        parts = []
        while True:
            try:
                part = self.read(port, size)
            except OSError as error:
                return b"".join(parts), error.errno or 0
            if not part:
                return b"".join(parts), 0
            parts.append(part)

    def send(self, port: SimPort, data: bytes, size: int = 1 << 20) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[port.write(view[:size]) :]
            except BlockingIOError:
                select.select([], [port], [])

    def save(self, device: SimDevice) -> bytes:
        """The whole stream of a device, which ends in STOP; by way of PRE_COPY where it can."""
        start = State.PRE_COPY if Flags.PRE_COPY in device.info.flags else State.STOP_COPY
        port = device.port(device.set_state(start))
        stream = b""
        if start is State.PRE_COPY:
            stream, _ = self.drain(port)
            assert device.set_state(State.STOP_COPY) == -1
        rest, end = self.drain(port)
        assert end == 0
        port.close()
        device.set_state(State.STOP)
        return stream + rest

    def load(self, device: SimDevice, stream: bytes, end: State = State.STOP) -> None:
        port = device.port(device.set_state(State.RESUMING))
        try:
            self.send(port, stream)
            assert device.set_state(end) == -1
        finally:
            port.close()

    def mtty(self) -> list[bytes]:
        """The records of a small device's whole stream."""
        with SimDevice("d", profile="mtty", seed=1) as source:
            return self.records(self.save(source))

    def records(self, stream: bytes) -> list[bytes]:
        """The stream, cut at its records."""
        cut, at = [], 0
        while at < len(stream):
            length = int.from_bytes(stream[at + 16 : at + 20], "little")
            cut.append(stream[at : at + HEADER + length])
            at += HEADER + length
        return cut


@pytest.fixture
def hand() -> Hand:
    return Hand()


@dataclass
class Background:
    """A call in a thread, whose result or exception is asked for later."""

    call: Callable[[], object]
    outcome: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome.append(self.call())
        except Exception as error:  # given where the result is asked for
            self.outcome.append(error)

    def result(self) -> object:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.outcome[0]


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], object]], Background]]:
    started: list[Background] = []

    def start(call: Callable[[], object]) -> Background:
        started.append(Background(call))
        return started[-1]

    yield start
    for item in started:
        item.result()


@pytest.fixture
def refused() -> Callable[[Callable[[], object]], int]:
    """The errno with which a call fails."""

    def code(call: Callable[[], object]) -> int:
        with pytest.raises(OSError, match=r".") as caught:
            call()
        assert caught.value.errno is not None
        assert caught.value.errno in errno.errorcode
        return caught.value.errno

    return code


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Closes what the test opened, in reverse order."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=["write", "stop"])
def load_in(request: pytest.FixtureRequest) -> str:
    return str(request.param)

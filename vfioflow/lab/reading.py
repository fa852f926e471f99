"""Reading a device's stream and throwing it away, and watching what becomes dirty meanwhile.

Blocking, on a thread of its own for each device.
"""

from __future__ import annotations

import errno
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import zstandard

from vfioflow._fdio import Port
from vfioflow.devices.base import Device
from vfioflow.errors import DeviceError
from vfioflow.lab.observed import Growth, Packing, Stopped, Watched

__all__ = ["drain", "watch"]

_BUFFER = 1 << 20
_PIECE = 65536
_PIECES = 256
"""Of a stream at most so many pieces are looked into: 16 MiB."""
_PAGE = 1024
_POLL_MS = 20
_REST = 0.001
"""Seconds to wait for a device that has no poll, or that polls as ready and is not."""
_LOOKS = 3
"""At most, one after the other, until all that the last told of is read."""
_SHORTEST = 0.01
"""Seconds between two looks at least."""
_NOTICED = 512 << 10
"""Bytes; what is less grows too unevenly to say that it grows more slowly."""
_SLOWER = 0.9
_TRIALS = 4
_STUCK = 30.0
"""Seconds without a byte of initial data after which there will be none."""
_UNREAD = 0.25
"""Share of the time, at the end, in which nothing is read: how much can become dirty at all."""
_NOTHING = bytes(_PAGE)


class _Reader:
    """Reads a port, keeps nothing but a few pieces, and says how it went."""

    def __init__(self, device: Device, port: Port, size: int, halted: threading.Event) -> None:
        self._device = device
        self._port = port
        self._halted = halted
        self._buffer = memoryview(bytearray(_BUFFER))
        # An odd number does not fall in step with what repeats.
        self._stride = (size // _PIECE // _PIECES) | 1
        self._pieces: list[bytes] = []
        self.moved = 0
        self.drained = ""
        """What the last read gave that had nothing: "ENOMSG" or "0"."""
        self._poll = select.poll()
        if port.fileno() >= 0:
            self._poll.register(port.fileno(), select.POLLIN)

    def read(self, most: int | None, *, precopy: bool) -> int:
        """At most so many bytes; fewer where the device is drained, at its end, or halted."""
        done = idle = 0
        while (most is None or done < most) and not self._halted.is_set():
            room = self._buffer if most is None else self._buffer[: most - done]
            try:
                count = self._port.readinto(room)
            except BlockingIOError:
                idle += 1
                self._wait(idle)
                continue
            except OSError as error:
                if precopy and error.errno == errno.ENOMSG:
                    self.drained = "ENOMSG"
                    break
                code = error.errno or errno.EIO
                raise DeviceError(self._device.name, "read", code, self._port.advice) from error
            if count == 0:
                self.drained = "0" if precopy else self.drained
                break
            idle = 0
            self._keep(self._buffer[:count])
            self.moved += count
            done += count
        return done

    def _wait(self, times: int) -> None:
        if not self._poll.poll(_POLL_MS) or times > 2:
            self._halted.wait(_REST)

    def _keep(self, data: memoryview) -> None:
        """A copy of what is in pieces that are to be looked into."""
        first = self.moved // _PIECE
        for piece in range(first, (self.moved + len(data) - 1) // _PIECE + 1):
            if piece % self._stride or len(self._pieces) >= _PIECES:
                continue
            begin = max(piece * _PIECE - self.moved, 0)
            part = data[begin : (piece + 1) * _PIECE - self.moved]
            if len(part) >= _PIECE // 2 or not self.moved:
                self._pieces.append(bytes(part))

    def packing(self) -> Packing:
        """How well the pieces compress."""
        pack = zstandard.ZstdCompressor(level=1).compress
        found = Packing()
        for piece in self._pieces:
            zeros = sum(
                _PAGE
                for at in range(0, len(piece) - _PAGE + 1, _PAGE)
                if piece[at : at + _PAGE] == _NOTHING
            )
            found += Packing(len(piece), min(len(pack(piece)), len(piece)), zeros)
        return found


def watch(
    device: Device,
    port: Port,
    data_fd: int,
    *,
    seconds: float,
    step: float,
    halted: threading.Event,
) -> Watched:
    """Watch a device in PRE_COPY until ``seconds`` after its initial data was read, or until halted.

    Looks at what is dirty every ``step`` seconds.  Raises DeviceError.
    """
    begin = time.monotonic()
    initial = device.precopy_info(data_fd).initial_bytes
    reader = _Reader(device, port, initial, halted)
    read_seconds = _take_initial(device, data_fd, reader, halted)
    read, end = reader.moved, time.monotonic() + seconds
    rest = _UNREAD * seconds
    last_look = end - rest
    step = _short_enough(device, data_fd, reader, step, halted)
    growths: list[Growth] = []
    unread = None
    at, left = _take_dirty(device, data_fd, reader)
    while unread is None and not halted.wait(step if time.monotonic() < last_look else rest):
        after, looked = device.precopy_info(data_fd).pending_bytes, time.monotonic()
        grown = Growth(at - begin, looked - at, looked - at, left, after)
        if looked >= end:
            unread = grown
        else:
            at, left = _take_dirty(device, data_fd, reader, after, looked)
            growths.append(replace(grown, seconds=at - begin - grown.at))
    return Watched(
        initial, read, read_seconds, tuple(growths), unread, reader.drained, reader.packing()
    )


def _short_enough(
    device: Device, data_fd: int, reader: _Reader, step: float, halted: threading.Event
) -> float:
    """``step``, or less, so that within one a device does not come near all that it can dirty.

    It has when much less grows per second in a whole step than in half of one.
    """
    while step > _SHORTEST:
        half = [_grown(device, data_fd, reader, step / 2, halted) for _ in range(_TRIALS)]
        whole = [_grown(device, data_fd, reader, step, halted) for _ in range(_TRIALS)]
        few = sum(grown for grown, _ in half) < _NOTICED
        if few or _speed(whole) > _SLOWER * _speed(half):
            break
        step /= 2
    return step


def _grown(
    device: Device, data_fd: int, reader: _Reader, seconds: float, halted: threading.Event
) -> tuple[int, float]:
    """How many bytes become dirty while nothing is read, and in how many seconds."""
    at, left = _take_dirty(device, data_fd, reader)
    halted.wait(seconds)
    return device.precopy_info(data_fd).pending_bytes - left, time.monotonic() - at


def _speed(grown: Sequence[tuple[int, float]]) -> float:
    return sum(size for size, _ in grown) / sum(seconds for _, seconds in grown)


def _take_dirty(
    device: Device, data_fd: int, reader: _Reader, told: int | None = None, at: float = 0.0
) -> tuple[float, int]:
    """Read what was told of, or is if asked; when that was, and what of it is still there.

    There are drivers that make what is dirty readable only once they are asked, and only when what
    they made readable before is all read: then a look has to follow a look.  And some tell too little.
    """
    for _ in range(_LOOKS):
        if told is None:
            at, told = time.monotonic(), device.precopy_info(data_fd).pending_bytes
        left = told - reader.read(max(2 * told, _BUFFER), precopy=True)
        if left <= 0:
            break
        told = None
    return at, left


def _take_initial(device: Device, data_fd: int, reader: _Reader, halted: threading.Event) -> float:
    """Read until no initial data is left; the seconds in which there was some."""
    took, last = 0.0, time.monotonic()
    while (info := device.precopy_info(data_fd)).initial_bytes and not halted.is_set():
        begin = time.monotonic()
        if reader.read(info.initial_bytes, precopy=True):
            last = time.monotonic()
            took += last - begin
        elif time.monotonic() - last > _STUCK:
            raise DeviceError(
                device.name,
                "read its initial data",
                errno.ETIMEDOUT,
                f"it says that {info.initial_bytes} bytes are left, and hands out none",
            )
        else:
            halted.wait(_REST)
    return took


def drain(device: Device, port: Port, size: int, *, halted: threading.Event) -> Stopped:
    """Read a device in STOP_COPY to its end; about ``size`` bytes.  Raises DeviceError."""
    reader = _Reader(device, port, size, halted)
    begin = time.monotonic()
    moved = reader.read(None, precopy=False)
    return Stopped(moved, time.monotonic() - begin, reader.packing())

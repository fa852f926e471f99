"""The dirty log of a simulated device, which is told what the device is supposed to have written."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vfioflow.devices.sim import SimDevice
from vfioflow.errors import DeviceError

__all__ = ["SimLog"]


class SimLog:
    """As :class:`vfioflow.DirtyLog`.

    A simulated device writes to no memory; :meth:`wrote` says that it did.
    """

    def __init__(self, device: SimDevice) -> None:
        self._device = device
        self._ranges: tuple[tuple[int, int], ...] = ()
        self._dirty: set[int] = set()
        self._page_size = 0

    @property
    def supported(self) -> bool:
        """Whether its profile says ``tracking = "device"``."""
        return self._device.info.tracking == "device"

    @property
    def page_size(self) -> int:
        """That of :meth:`start`; 0 while nothing is logged."""
        return self._page_size

    def wrote(self, iova: int, length: int) -> None:
        """The device has written there; nothing while nothing is logged, or outside of what is."""
        size = self._page_size
        for start, extent in self._ranges:
            low, high = max(iova, start), min(iova + length, start + extent)
            if low < high:
                self._dirty.update(range(low // size, -(-high // size)))

    def start(self, ranges: Sequence[tuple[int, int]], page_size: int = 4096) -> int:
        """Log writes to ``ranges`` of (iova, length).  Returns ``page_size``."""
        self._ranges, self._page_size = tuple(ranges), page_size
        return page_size

    def report(self, iova: int, length: int, page_size: int = 0) -> bytes:
        """One bit per page from ``iova`` on, lowest first: written since last asked.  Whole words."""
        size = self._page_size
        if not size or length <= 0 or page_size not in (0, size):
            raise DeviceError(
                self._device.name, "report DMA", errno.EINVAL, "start the log; give a length"
            )
        first, pages = iova // size, -(-length // size)
        found = {page for page in self._dirty if first <= page < first + pages}
        self._dirty -= found
        bits = sum(1 << page - first for page in found)
        return bits.to_bytes(-(-pages // 64) * 8, "little")

    def stop(self) -> None:
        """End the log."""
        self._ranges, self._page_size = (), 0
        self._dirty.clear()

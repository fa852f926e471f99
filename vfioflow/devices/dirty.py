"""DMA logging: which pages of guest memory a device has written."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Self

from vfioflow import _vfio
from vfioflow.devices.kernel import KernelDevice
from vfioflow.errors import DeviceError

__all__ = ["DirtyLog"]


class DirtyLog:
    """The pages to which a device has written, by the device's own logging.

    ::

        with DirtyLog(device) as log:
            log.start([(0, 1 << 30)], page_size=4096)
            bitmap = log.report(0, 1 << 30)

    Independent of the migration state; a device has one log at a time.  After an error treat every
    page as dirty.
    """

    def __init__(self, device: KernelDevice) -> None:
        self._device = device
        self._page_size = 0

    @property
    def supported(self) -> bool:
        """Whether the device has a log."""
        fd = self._device.fileno()
        return _vfio.probe(fd, _vfio.FEATURE_DMA_LOGGING_START, sets=True)

    @property
    def page_size(self) -> int:
        """What the device chose; 0 while nothing is logged."""
        return self._page_size

    def start(self, ranges: Sequence[tuple[int, int]], page_size: int = 4096) -> int:
        """Log writes to ``ranges`` of (iova, length), which may not overlap; at most 256 or so.

        ``page_size`` is a wish.  Returns the page size that the device chose.
        """
        try:
            chosen = _vfio.logging_start(self._device.fileno(), ranges, page_size)
        except OSError as error:
            raise self._failed("start DMA logging", error) from error
        self._page_size = chosen or page_size
        return self._page_size

    def report(self, iova: int, length: int, page_size: int = 0) -> bytes:
        """One bit per page from ``iova`` on, lowest bit first: 1 for written to since last asked.

        Asking clears.  ``page_size`` defaults to that of :meth:`start`.  Whole 64-bit words.
        """
        size = page_size or self._page_size
        if size <= 0 or length <= 0:
            raise DeviceError(
                self._device.name, "report DMA", errno.EINVAL, "start the log; give a length"
            )
        bitmap = bytearray((-(-length // size) + 63) // 64 * 8)
        try:
            _vfio.logging_report(self._device.fileno(), iova, length, size, bitmap)
        except OSError as error:
            raise self._failed("report DMA", error) from error
        return bytes(bitmap)

    def stop(self) -> None:
        """End the log.  Nothing while there is none."""
        if not self._page_size:
            return
        self._page_size = 0
        try:
            _vfio.logging_stop(self._device.fileno())
        except OSError as error:
            raise self._failed("stop DMA logging", error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _failed(self, action: str, error: OSError) -> DeviceError:
        return DeviceError(self._device.name, action, error.errno or errno.EIO)

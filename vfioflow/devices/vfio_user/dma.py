"""DMA logging of a vfio-user device: which pages of guest memory it has written."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator, Sequence
from typing import Self

from vfioflow.devices.vfio_user import protocol
from vfioflow.devices.vfio_user.client import Client
from vfioflow.devices.vfio_user.device import VfioUserDevice
from vfioflow.devices.vfio_user.protocol import Feature
from vfioflow.errors import DeviceError

__all__ = ["VfioUserLog"]


class VfioUserLog:
    """The pages to which a device has written, as :class:`vfioflow.DirtyLog` of a kernel's device.

    A server logs what it writes into memory that it has mapped, by
    :meth:`VfioUserDevice.map_dma`.  It ends with the connection.  After an error treat every page
    as dirty.
    """

    def __init__(self, device: VfioUserDevice) -> None:
        self._device = device
        self._client: Client | None = None
        self._page_size = 0

    @property
    def supported(self) -> bool:
        """Whether the device has a log."""
        return self._device.info.tracking == "device"

    @property
    def page_size(self) -> int:
        """What the device chose; 0 while nothing is logged."""
        return self._page_size

    def start(self, ranges: Sequence[tuple[int, int]], page_size: int = 4096) -> int:
        """Log writes to ``ranges`` of (iova, length); none: all writes.

        ``page_size`` is a wish, a power of two.  Returns the page size that the device chose.
        """
        action = "start DMA logging"
        if page_size <= 0 or page_size & (page_size - 1):
            raise self._refused(action, f"a page of {page_size} bytes is no power of two")
        client = self._device.client
        data = protocol.pack_logging(ranges, page_size)
        reply = client.set(action, Feature.DMA_LOGGING_START, data)
        if len(reply) >= 8:
            self._page_size = client.checked(action, lambda: protocol.parse_logging(reply))
        else:
            self._page_size = page_size
        self._client = client
        return self._page_size

    def report(self, iova: int, length: int, page_size: int = 0) -> bytes:
        """One bit per page from ``iova`` on, lowest bit first: 1 for written to since last asked.

        Asking clears.  Whole 64-bit words.  Servers report a range that begins a mapped region and
        stays within it, in pages of the size of :meth:`start`; a range over several regions is
        asked for in parts.
        """
        action = "report DMA"
        size = self._page_size
        if not size or length <= 0:
            raise self._refused(action, "start the log; give a length")
        if page_size not in (0, size):
            raise self._refused(action, f"it logs pages of {size} bytes, not of {page_size}")
        if self._client is not self._device.client:
            self._page_size = 0
            advice = "the connection was lost, and the log with it"
            raise DeviceError(self._device.name, action, errno.ESTALE, advice)
        bits = 0
        for start, part in self._parts(iova, length):
            bitmap = self._report(self._client, start, part)
            bits |= int.from_bytes(bitmap, "little") << ((start - iova) // size)
        return bits.to_bytes(protocol.bitmap_size(length, size), "little")

    def _parts(self, iova: int, length: int) -> Iterator[tuple[int, int]]:
        """The range, cut where mapped regions begin, as far as they are known."""
        end = iova + length
        cuts = [iova, *sorted(at for at in self._device.maps if iova < at < end), end]
        for start, stop in itertools.pairwise(cuts):
            yield start, min(stop - start, self._device.maps.get(start, stop - start))

    def _report(self, client: Client, iova: int, length: int) -> bytes:
        action = f"report DMA of {length} bytes from 0x{iova:x}"
        size = self._page_size
        request = protocol.pack_report(iova, length, size)
        due = protocol.bitmap_size(length, size)
        data = client.get(action, Feature.DMA_LOGGING_REPORT, len(request) + due, request)
        return client.checked(action, lambda: protocol.parse_report(data, iova, length, size))

    def stop(self) -> None:
        """End the log.  Nothing while there is none."""
        if not self._page_size:
            return
        self._page_size = 0
        if self._client is self._device.client:
            self._client.set("stop DMA logging", Feature.DMA_LOGGING_STOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _refused(self, action: str, advice: str) -> DeviceError:
        return DeviceError(self._device.name, action, errno.EINVAL, advice)

"""DMA logging of a whole set: which pages of guest memory its devices have written."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, Protocol, Self, TypeAlias, runtime_checkable

from vfioflow.devices.base import Device
from vfioflow.devices.dirty import DirtyLog
from vfioflow.devices.kernel import KernelDevice
from vfioflow.devices.sim import SimDevice
from vfioflow.devices.simlog import SimLog
from vfioflow.devices.vfio_user import VfioUserDevice
from vfioflow.devices.vfio_user.dma import VfioUserLog
from vfioflow.errors import ConfigError, DeviceError

__all__ = ["MAX_RANGES", "DirtySet", "Log", "Range", "Teller", "coarsen", "merge"]

log = logging.getLogger("vfioflow")

MAX_RANGES = 256
"""Ranges that the kernel takes for one device: a page of them (``VFIO_DEVICE_FEATURE_DMA_LOGGING_START``)."""

Range: TypeAlias = tuple[int, int]
"""Where it begins, and how long it is: bytes of the device's address space (IOVA)."""

Teller: TypeAlias = Literal["device", "iommu", "nobody"]
"""Who tells which pages a device has written; nobody: any may be."""


@runtime_checkable
class Log(Protocol):
    """Tells which pages were written: :class:`DirtyLog`, :class:`VfioUserLog`, or one of your own.

    Raises DeviceError where something fails.
    """

    @property
    def supported(self) -> bool:
        """Whether it can."""

    def start(self, ranges: Sequence[Range], page_size: int = 4096) -> int:
        """Begin.  ``page_size`` is a wish; returns that which it took, a power of two."""

    def report(self, iova: int, length: int, page_size: int = 0) -> bytes:
        """One bit per page from ``iova`` on, lowest first, in whole 64-bit words; asking clears."""

    def stop(self) -> None:
        """End; nothing where it has not begun."""


class DirtySet:
    """The pages that a set of devices has written: one log of them all.

    ::

        with DirtySet(devices) as written:
            page_size = written.start([(0, 1 << 30)])
            bitmap = written.report(0, 1 << 30)

    Who tells is decided for the set as a whole: each device itself, where all can; else the IOMMU,
    which sees what all of them write; else nobody, and then every page counts as written each time.
    Where a report fails, it too says that all are written, and so do the next ones of that device.

    Independent of the devices' states: start it before the first round over RAM, and take the last
    report when :func:`vfioflow.states.all_final` holds, that is in ``PendingSource.complete``.
    Blocking, for one thread at a time.

    Args:
        devices: the set.
        iommu: the log of the address space in which they all are.  It belongs to whoever owns the
            iommufd or the container: your VMM.
        logs: by name, for devices of your own kind.
    """

    def __init__(
        self,
        devices: Iterable[Device],
        *,
        iommu: Log | None = None,
        logs: Mapping[str, Log] | None = None,
    ) -> None:
        own = {d.name: (logs or {}).get(d.name) or _log_of(d) for d in devices}
        able = {n: each for n, each in own.items() if each is not None and each.supported}
        self._missing = tuple(name for name in own if name not in able)
        self._logs: dict[str, Log] = {}
        self._teller: Teller = "nobody"
        if not self._missing:
            self._teller, self._logs = "device", able
        elif iommu is not None and iommu.supported:
            self._teller, self._logs = "iommu", {"the IOMMU": iommu}
        self._sizes: dict[str, int] = {}
        self._lost: set[str] = set()
        self._page_size = 0

    @property
    def teller(self) -> Teller:
        """Who tells, for all devices of the set."""
        return self._teller

    @property
    def without_log(self) -> tuple[str, ...]:
        """The devices that cannot tell for themselves."""
        return self._missing

    @property
    def all_tracking(self) -> bool:
        """Whether every write is told of now: it has started, somebody tells, and no report has failed."""
        return self._page_size > 0 and self._teller != "nobody" and not self._lost

    @property
    def page_size(self) -> int:
        """The bytes that a bit stands for; 0 while nothing is logged."""
        return self._page_size

    def start(self, ranges: Sequence[Range], page_size: int = 4096) -> int:
        """Log writes to ``ranges``; returns the page size of the reports, at least ``page_size``.

        Ranges may be many, touch and overlap: see :func:`merge`.  Where one device cannot begin, the
        others end too.  Raises DeviceError; ConfigError for ranges or a size that are none.
        """
        if page_size < 4096 or page_size & (page_size - 1):
            raise ConfigError(
                f"a page of {page_size} bytes: it must be a power of two from 4096 on"
            )
        wanted = merge(ranges, page_size=page_size)
        if self._page_size:
            raise ConfigError("these devices are logged already: stop that first")
        with ExitStack() as undo:
            for name, each in self._logs.items():
                self._sizes[name] = each.start(wanted, page_size)
                undo.callback(self._stop_one, name)
            undo.pop_all()
        self._page_size = max([page_size, *self._sizes.values()])
        return self._page_size

    def report(self, iova: int, length: int) -> bytes:
        """The union of what all have written since last asked: a bit per page, lowest first.

        Whole 64-bit words.  ``iova`` is a multiple of :attr:`page_size`.  Raises ConfigError: nothing
        is logged, or the range is none.
        """
        size = self._page_size
        if not size:
            raise ConfigError("nothing is logged: call start first")
        if length <= 0 or iova < 0 or iova % size:
            raise ConfigError(
                f"{length} bytes from 0x{iova:x} are no range of pages of {size} bytes"
            )
        pages = -(-length // size)
        everything = (1 << pages) - 1
        union = 0 if self.all_tracking else everything
        # Each is asked even so: asking clears, and shows whether it still answers.
        for name, each in self._logs.items():
            union |= self._ask(name, each, iova, length, everything)
        return (union & everything).to_bytes(-(-pages // 64) * 8, "little")

    def stop(self) -> None:
        """End all logs, each even where another fails.  Raises the first DeviceError."""
        with ExitStack() as all_of_them:
            for name in list(self._sizes):
                all_of_them.callback(self._stop_one, name)
        self._page_size = 0
        self._lost.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _ask(self, name: str, each: Log, iova: int, length: int, everything: int) -> int:
        if name in self._lost:
            return everything
        try:
            bitmap = each.report(iova, length)
        except DeviceError as error:
            self._lost.add(name)
            log.warning("from now on all of guest memory counts as written: %s", str(error))
            return everything
        return int.from_bytes(coarsen(bitmap, self._page_size // self._sizes[name]), "little")

    def _stop_one(self, name: str) -> None:
        self._sizes.pop(name, None)
        self._logs[name].stop()


def merge(
    ranges: Iterable[Range], *, page_size: int = 4096, most: int = MAX_RANGES
) -> tuple[Range, ...]:
    """The same memory in whole pages, sorted, as at most ``most`` ranges that are apart.

    Where there are too many, those with the least between them become one: what is between is then
    logged for nothing.  Raises ConfigError: there is none, or one is empty or negative.
    """
    pages: list[list[int]] = []
    for iova, length in sorted(ranges):
        if iova < 0 or length <= 0:
            raise ConfigError(f"{length} bytes from {iova} are no range to log")
        start, end = iova // page_size, -(-(iova + length) // page_size)
        if pages and start <= pages[-1][1]:
            pages[-1][1] = max(pages[-1][1], end)
        else:
            pages.append([start, end])
    if not pages:
        raise ConfigError("no ranges to log")
    if len(pages) > most:
        gaps = sorted(range(1, len(pages)), key=lambda n: pages[n][0] - pages[n - 1][1])
        kept = sorted([0, *gaps[len(pages) - most :]])
        ends = [*(pages[n - 1][1] for n in kept[1:]), pages[-1][1]]
        pages = [[pages[n][0], end] for n, end in zip(kept, ends, strict=True)]
    return tuple((start * page_size, (end - start) * page_size) for start, end in pages)


def coarsen(bitmap: bytes, factor: int) -> bytes:
    """A bit for ``factor`` bits, a power of two: set where any of them is."""
    while factor > 1:
        padded = bitmap + bytes(len(bitmap) % 2)
        bitmap = bytes(
            _PAIRS[low] | _PAIRS[high] << 4
            for low, high in zip(padded[::2], padded[1::2], strict=True)
        )
        factor //= 2
    return bitmap


_PAIRS = bytes(sum(1 << n for n in range(4) if byte >> 2 * n & 3) for byte in range(256))
"""For each byte: which of its four pairs of bits have one that is set."""


def _log_of(device: Device) -> Log | None:
    if isinstance(device, KernelDevice):
        return DirtyLog(device)
    if isinstance(device, VfioUserDevice):
        return VfioUserLog(device)
    if isinstance(device, SimDevice):
        return SimLog(device)
    return None

"""What was seen of a device while it was watched.  Pure.  Bytes, seconds, bytes per second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vfioflow.devices.base import DeviceInfo

__all__ = ["Growth", "Observed", "Packing", "Stopped", "Watched"]


@dataclass(frozen=True, slots=True)
class Growth:
    """How the dirty bytes grew between two looks, from ``before`` to ``after`` in ``waited`` seconds.

    ``at`` is the first look, counted from PRE_COPY; ``seconds`` go by until the next growth begins.  Of what
    the first look told, all but ``before`` was then read; that is negative where more was read than told.
    """

    at: float
    seconds: float
    waited: float
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Packing:
    """How well pieces of the stream compress: ``raw`` bytes of them became ``packed`` ones.

    ``zeros`` of the raw bytes are in pages that have nothing but zeros.
    """

    raw: int = 0
    packed: int = 0
    zeros: int = 0

    def __add__(self, other: Packing) -> Packing:
        return Packing(self.raw + other.raw, self.packed + other.packed, self.zeros + other.zeros)

    @property
    def ratio(self) -> float:
        """Packed over raw; 1 where nothing was seen."""
        return self.packed / self.raw if self.raw else 1.0


@dataclass(frozen=True, slots=True)
class Watched:
    """One device in pre-copy.

    ``initial`` is what it told of at first.  ``read`` bytes it handed out until it told of no more, in
    ``read_seconds``.  ``growths`` are
    with the device drained each time, ``unread`` is a long one at the end.  ``drained`` is what a read
    gave when there was nothing; empty where it always had something.
    """

    initial: int
    read: int
    read_seconds: float
    growths: tuple[Growth, ...]
    unread: Growth | None = None
    drained: str = ""
    packing: Packing = Packing()

    @property
    def offered(self) -> int:
        """Bytes of initial data: not every device knows beforehand."""
        return max(self.initial, self.read)

    @property
    def read_rate(self) -> float:
        """Bytes per second that it handed out while it had something; 0: unknown."""
        return self.read / self.read_seconds if self.read_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """One device in STOP_COPY: it handed out ``size`` bytes in ``seconds``."""

    size: int
    seconds: float
    packing: Packing = Packing()


@dataclass(frozen=True, slots=True)
class Observed:
    """All that was seen of one device.

    ``told`` is its answer to MIG_DATA_SIZE while it ran, or None.  ``arcs`` are the direct arcs that were
    timed.  ``watched`` is None for a device without pre-copy, ``stopped`` where it was not stopped.
    """

    info: DeviceInfo
    told: int | None
    watched: Watched | None = None
    stopped: Stopped | None = None
    arcs: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.info.name

    @property
    def packing(self) -> Packing:
        """Of all pieces that were looked at."""
        return sum(
            (each.packing for each in (self.watched, self.stopped) if each is not None), Packing()
        )

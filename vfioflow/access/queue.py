"""The queue: writes in the order in which they were made, reads that wait, interrupts that are counted.

Called by whoever traps, on any thread.
"""

from __future__ import annotations

import enum
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import msgspec

from vfioflow.errors import AccessError

__all__ = ["MAX_VECTORS", "MAX_WIDTH", "MAX_WRITES", "Access", "AccessQueue", "Held", "Reads"]

MAX_WIDTH = 4096
"""Bytes of one access: what a PCIe write may carry at most (Max_Payload_Size)."""

MAX_WRITES = 1 << 20
"""Writes of one queue: as many as ``Policy.access_limit`` may be."""

_MOST = (1 << 64) - 1
"""The highest offset, and region: what the wire can say."""

MAX_VECTORS = 1 << 16
"""Interrupts of a device are numbered below this."""

_COST = 64
"""Bytes that an access counts besides its data and its names."""

Reads: TypeAlias = Literal["hold", "ones", "fail"]


class Access(msgspec.Struct, frozen=True, array_like=True):
    """One posted write.  ``order`` counts the accesses to all devices; ``region`` is a VFIO region's index.

    ``origin`` is who made it, for people and for simulated devices; ``offset`` in bytes.
    """

    order: int
    origin: str
    device: str
    region: int
    offset: int
    data: bytes

    @property
    def cost(self) -> int:
        """What it counts against the limit, in bytes."""
        return _COST + len(self.origin) + len(self.device) + len(self.data)


class Held(msgspec.Struct, frozen=True):
    """All that a queue held: the writes in their order, and interrupts by device and vector."""

    writes: tuple[Access, ...] = ()
    interrupts: Mapping[str, Mapping[int, int]] = {}

    @property
    def devices(self) -> frozenset[str]:
        """Which devices they are for."""
        return frozenset({a.device for a in self.writes} | set(self.interrupts))


class _Mode(enum.Enum):
    QUEUE = "queue"
    SEALED = "sealed"
    THROUGH = "through"
    CLOSED = "closed"


_WAITS = (_Mode.QUEUE, _Mode.SEALED)
"""In these whoever wants more than to be queued waits."""


class AccessQueue:
    """Accesses to devices that stand still.

    - A **write** is posted: it is queued, and whoever made it goes on.  Where there is no room it waits
      until there is, and the migration fails, so that the devices run again soon.
    - A **read** cannot be answered from a queue.  ``reads``: "hold" waits until the device runs, for
      ``hold_limit`` seconds at most, after which the migration fails too, and waits on; one that is held
      when everything has stopped fails it as well, for nobody would answer it after the COMMIT; "ones"
      answers with all bits set, as a device that is gone does; "fail" fails the migration, and waits.
    - An **interrupt** is counted, and raised as often when the device runs.

    When everything is replayed, accesses that still come in pass straight to the device, in order.  When the
    devices run elsewhere, they raise AccessError, as those do that still wait.

    Args:
        limit: writes that it holds.
        limit_bytes: bytes that they take, see :attr:`Access.cost`.
        reads: as above.
        hold_limit: seconds.
    """

    def __init__(
        self,
        *,
        limit: int = 65536,
        limit_bytes: int = 16 << 20,
        reads: Reads = "hold",
        hold_limit: float = 1.0,
    ) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._reads = reads
        self._hold_limit = hold_limit
        self._changed = threading.Condition(threading.RLock())
        self._passing = threading.RLock()
        self._mode = _Mode.QUEUE
        self._writes: deque[Access] = deque()
        self._bytes = 0
        self._order = 0
        self._interrupts: dict[str, Counter[int]] = {}
        self._deliver: Callable[[Access], None] | None = None
        self._read: Callable[[str, int, int, int], bytes] | None = None
        self._raise: Callable[[str, int], None] | None = None
        self._failure = ""
        self._held_reads = 0
        self.ones = 0
        """Reads that were answered with all bits set."""

    # --------------------------------------------------------------- for a trap

    def write(self, device: str, region: int, offset: int, data: bytes, origin: str = "") -> None:
        """A store to a device.  Returns when it is queued, or where all is replayed, done.

        Waits where there is no room.  Raises AccessError: no such access can be, or none any more.
        """
        if not (0 < len(data) <= MAX_WIDTH and 0 <= offset <= _MOST and 0 <= region <= _MOST):
            raise AccessError(
                device, f"a write of {len(data)} bytes at {offset} of region {region} cannot be"
            )
        with self._changed:
            access = Access(0, origin, device, region, offset, bytes(data))
            if self._mode in _WAITS and not self._has_room(access):
                self.overflow()
                self._changed.wait_for(lambda: self._mode not in _WAITS or self._has_room(access))
            self._check_open(device)
            if self._mode is _Mode.SEALED:
                self._fail(f"device {device} was written to after everything had stopped")
            if self._mode is not _Mode.THROUGH or self._deliver is None:
                self._writes.append(self._numbered(access))
                self._bytes += access.cost
                return
            deliver = self._deliver
        # Without the other lock: a device that is written to may raise an interrupt.
        with self._passing:
            deliver(self._numbered(access))

    def has_room(self, data: bytes, device: str = "", origin: str = "") -> bool:
        """Whether such a write would not have to wait now."""
        with self._changed:
            access = Access(0, origin, device, 0, 0, data)
            return self._mode is _Mode.THROUGH or self._has_room(access)

    def overflow(self) -> None:
        """There are more accesses than it has room for: the migration fails."""
        self._fail(
            f"more accesses to stopped devices than the queue holds ({self._limit} writes,"
            f" {self._limit_bytes} bytes)"
        )

    def read(self, device: str, region: int, offset: int, width: int) -> bytes:
        """A load from a device: ``width`` bytes, by the rule for reads.  Raises AccessError."""
        if not (0 < width <= MAX_WIDTH and 0 <= offset <= _MOST and 0 <= region <= _MOST):
            raise AccessError(
                device, f"a read of {width} bytes at {offset} of region {region} cannot be"
            )
        with self._changed:
            if self._mode in _WAITS:
                if self._reads == "ones":
                    self.ones += 1
                    return b"\xff" * width
                self._hold(device)
            self._check_open(device)
            read = self._read
        if read is None:
            raise AccessError(device, "nobody can read from it: its trap has no read")
        return read(device, region, offset, width)

    def _hold(self, device: str) -> None:
        """A read waits until the device runs."""
        if self._reads == "fail":
            self._fail(f"device {device} was read from while it stood still")
        if self._mode is _Mode.SEALED:
            self._fail(f"device {device} was read from after everything had stopped")
        self._held_reads += 1
        try:
            if not self._changed.wait_for(lambda: self._mode not in _WAITS, self._hold_limit):
                self._fail(f"a read from device {device} waited {self._hold_limit:g} s")
                self._changed.wait_for(lambda: self._mode not in _WAITS)
        finally:
            self._held_reads -= 1

    def _check_open(self, device: str) -> None:
        if self._mode is _Mode.CLOSED:
            raise AccessError(device, "it runs elsewhere now: nothing reaches it here any more")

    def interrupt(self, device: str, vector: int) -> None:
        """The device has raised an interrupt that nobody is there to take.  Raises AccessError."""
        if not 0 <= vector < MAX_VECTORS:
            raise AccessError(device, f"an interrupt of vector {vector} cannot be")
        with self._changed:
            if self._mode is _Mode.SEALED:
                self._fail(f"device {device} raised an interrupt after everything had stopped")
            passes = self._raise if self._mode is _Mode.THROUGH else None
            if passes is None:
                self._interrupts.setdefault(device, Counter())[vector] += 1
        if passes is not None:
            passes(device, vector)

    # ------------------------------------------------------------ for the engine

    @property
    def failure(self) -> str:
        """Why the migration must not go on; "" while it may."""
        return self._failure

    def __len__(self) -> int:
        return len(self._writes)

    def seal(self) -> Held:
        """What it holds, which stays; from now on nothing may come in: see :attr:`failure`."""
        with self._changed:
            self._mode = _Mode.SEALED
            if self._held_reads:
                self._fail("a read was still held when everything had stopped")
            return self._held()

    def close(self) -> None:
        """The devices run elsewhere, with what it held: who waits hears so, and who comes."""
        with self._changed:
            self._mode = _Mode.CLOSED
            self._changed.notify_all()

    def put_first(self, held: Held) -> None:
        """What another side's queue held goes before what came in here, in its order."""
        with self._changed:
            mine = self._writes
            self._writes = deque(held.writes)
            self._order = held.writes[-1].order if held.writes else 0
            for access in mine:
                self._order += 1
                self._writes.append(msgspec.structs.replace(access, order=self._order))
            self._bytes = sum(access.cost for access in self._writes)
            for device, vectors in held.interrupts.items():
                self._interrupts.setdefault(device, Counter()).update(vectors)

    def replay(
        self,
        deliver: Callable[[Access], None],
        *,
        read: Callable[[str, int, int, int], bytes] | None = None,
        interrupt: Callable[[str, int], None] | None = None,
    ) -> int:
        """Give everything to ``deliver`` in its order, then each interrupt; from then on let accesses pass.

        What comes in meanwhile is given too, behind the rest.  A write that could not be delivered
        stays, with all behind it.  Returns the number of writes.  Raises what ``deliver`` raises.
        """
        count = 0
        while True:
            with self._changed:
                if not self._writes:
                    self._mode = _Mode.THROUGH
                    self._deliver, self._read, self._raise = deliver, read, interrupt
                    raised, self._interrupts = self._interrupts, {}
                    self._changed.notify_all()
                    break
                access = self._writes[0]
            # Only this one takes from the front: writers go on meanwhile.
            deliver(access)
            count += 1
            with self._changed:
                self._writes.popleft()
                self._bytes -= access.cost
                self._changed.notify_all()
        if interrupt is not None:
            for device, vectors in raised.items():
                for vector, times in vectors.items():
                    for _ in range(times):
                        interrupt(device, vector)
        return count

    def _numbered(self, access: Access) -> Access:
        self._order += 1
        return msgspec.structs.replace(access, order=self._order)

    def _held(self) -> Held:
        interrupts = {device: dict(vectors) for device, vectors in self._interrupts.items()}
        return Held(tuple(self._writes), interrupts)

    def _has_room(self, access: Access) -> bool:
        return len(self._writes) < self._limit and self._bytes + access.cost <= self._limit_bytes

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why

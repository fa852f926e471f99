"""What a VMM does for the queue: unmap, forward, deliver, map again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from vfioflow.access.queue import Access, AccessQueue

__all__ = ["Trap"]


@runtime_checkable
class Trap(Protocol):
    """Keeps accesses away from devices that stand still.  The VMM's part; see docs/access-queue.md.

    All methods block, and are called on threads, one at a time, without a limit in time: a migration that is
    cancelled waits for them.  What they raise fails the migration
    where it has yet to be committed; after that the hand-over is in doubt.
    """

    def arm(self, devices: Collection[str], queue: AccessQueue) -> None:
        """From its return on no access reaches these devices: each goes to ``queue``.

        They run when this is called.  Take the direct mapping of their regions away, for the vCPUs and
        for every device whose DMA can reach them, wait until no store is on its way past the trap,
        then return.
        """

    def collect(self, queue: AccessQueue) -> bool:
        """Put what the trap itself still holds into the queue, in order, without waiting for room.

        Returns whether the trap holds no more; one that writes to the queue from its own threads never
        does: True.
        """

    def deliver(self, access: Access) -> None:
        """Do a write to a device, which runs.  Also called from the thread that traps, for late accesses."""

    def read(self, device: str, region: int, offset: int, width: int) -> bytes:
        """Read from a device, which runs: for a reader that was held."""

    def interrupt(self, device: str, vector: int) -> None:
        """Raise an interrupt that the device raised in between."""

    def disarm(self, devices: Collection[str]) -> bool:
        """Map the devices' regions again, if the trap holds no access; False: it does, collect first.

        The queue passes accesses straight through by now, so none that is being trapped is lost.
        """

"""The order in which QEMU 10.2 takes VFIO devices through the downtime, to compare with.

Read from `hw/vfio/migration.c` and `migration/migration.c`: the state changes are ioctls of one
thread, one device after the other, on both sides (at the source's stop in reverse order); without
multifd the data of all devices goes over the main channel, each device drained before the next;
and the decision to stop compares what is left with bandwidth times downtime limit, which knows
nothing of the time that changes of state and loads take.

Everything else is vfioflow's: the pumps, the digests, the wait for the destination's word that it
has loaded, which QEMU does not have and which takes a round trip.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vfioflow import barrier
from vfioflow.barrier import Crossing, Moved
from vfioflow.devices.base import Device
from vfioflow.events import Observer
from vfioflow.order import Order
from vfioflow.policy import Policy
from vfioflow.rounds import Drive
from vfioflow.states import State

__all__ = ["QemuOrder", "qemu_policy"]

_IN_REVERSE = ("quiesce", "stop-copy")


def qemu_policy(policy: Policy) -> Policy:
    """``policy`` with one channel and no compression, which QEMU does not have for device state."""
    return replace(policy, channels=1, compression="none")


class QemuOrder(Order):
    """One device after the other."""

    counts_changes: ClassVar[bool] = False

    async def cross(
        self,
        name: str,
        targets: Sequence[tuple[Device, State]],
        *,
        timeout: float,
        observer: Observer | None,
    ) -> Crossing:
        """Each device begins its change when the one before it has arrived."""
        begin = time.monotonic()
        moved: dict[str, Moved] = {}
        try:
            for target in reversed(targets) if name in _IN_REVERSE else targets:
                one = await barrier.cross(name, [target], timeout=timeout, observer=observer)
                moved.update(one.moved)
        except BaseException:
            for each in moved.values():
                if each.data_fd >= 0:
                    os.close(each.data_fd)
            raise
        return Crossing(time.monotonic() - begin, moved)

    async def drain(
        self, drive: Drive, drains: Sequence[Callable[[], asyncio.Future[Any]]]
    ) -> None:
        """Each device's stream ends before the next is begun."""
        for drain in drains:
            await drive([drain()])

"""In which order a side takes its devices through the downtime.

vfioflow has one, :class:`Order`: all at once.  Another exists to be compared with it
(:mod:`vfioflow.lab.qemu_order`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from vfioflow import barrier
from vfioflow.barrier import Crossing
from vfioflow.devices.base import Device
from vfioflow.events import Observer
from vfioflow.rounds import Drive
from vfioflow.states import State

__all__ = ["Order"]


class Order:
    """Every barrier is crossed by all devices at once, and all streams are drained at once."""

    counts_changes: ClassVar[bool] = True
    """Whether the decision to switch over knows what changes of state, loads and round trips take."""

    async def cross(
        self,
        name: str,
        targets: Sequence[tuple[Device, State]],
        *,
        timeout: float,
        observer: Observer | None,
    ) -> Crossing:
        """See :func:`vfioflow.barrier.cross`."""
        return await barrier.cross(name, targets, timeout=timeout, observer=observer)

    async def drain(
        self, drive: Drive, drains: Sequence[Callable[[], asyncio.Future[Any]]]
    ) -> None:
        """Start all ``drains`` and wait for them by ``drive``."""
        await drive([drain() for drain in drains])

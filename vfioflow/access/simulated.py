"""Simulated devices whose peer-to-peer messages become trapped writes."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Collection, Sequence

from vfioflow._sim import name_hash
from vfioflow.access.queue import Access, AccessQueue
from vfioflow.devices.base import Device
from vfioflow.devices.sim import SimDevice
from vfioflow.errors import AccessError

__all__ = ["SimTrap", "trap_of"]

_NUMBER = struct.Struct("<Q")
_ROOM = 1 << 16
"""Messages that the fabric holds; then whoever would send one waits."""


class SimTrap:
    """A trap in the fabric of simulated devices: a message to an armed device is a write of its number."""

    def __init__(self, devices: Sequence[SimDevice], *, room: int = _ROOM) -> None:
        self._devices = {device.name: device for device in devices}
        self._names = {name_hash(name): name for name in self._devices}
        self._room = room
        self._taken: deque[tuple[int, int, int]] = deque()

    def arm(self, devices: Collection[str], queue: AccessQueue) -> None:
        """See :class:`Trap`."""
        del queue  # it is given what the fabric holds by collect()
        for name in devices:
            self._devices[name].core.arm(self._room)

    def collect(self, queue: AccessQueue) -> bool:
        """See :class:`Trap`."""
        self._taken.extend(self._any().core.take_trapped())
        while self._taken:
            sender, receiver, number = self._taken[0]
            origin, device, data = self._names[sender], self._names[receiver], _NUMBER.pack(number)
            if not queue.has_room(data, device, origin):
                return False
            queue.write(device, 0, 0, data, origin)
            self._taken.popleft()
        return True

    def deliver(self, access: Access) -> None:
        """See :class:`Trap`."""
        [number] = _NUMBER.unpack(access.data)
        if not self._devices[access.device].core.receive(access.origin, number):
            raise AccessError(
                access.device, "a queued message could not be delivered: it does not run"
            )

    def read(self, device: str, region: int, offset: int, width: int) -> bytes:
        """See :class:`Trap`: there is nothing to read."""
        del region, offset
        raise AccessError(device, f"a simulated device has no {width} bytes to read")

    def interrupt(self, device: str, vector: int) -> None:
        """See :class:`Trap`: a simulated device raises none."""
        raise AccessError(device, f"a simulated device has no interrupt {vector}")

    def disarm(self, devices: Collection[str]) -> bool:
        """See :class:`Trap`."""
        return not self._taken and all(self._devices[name].core.disarm() for name in devices)

    def _any(self) -> SimDevice:
        return next(iter(self._devices.values()))


def trap_of(devices: Sequence[Device]) -> SimTrap | None:
    """The trap of a set of simulated devices; None for others, which a VMM must bring."""
    sims = [device for device in devices if isinstance(device, SimDevice)]
    return SimTrap(sims) if sims and len(sims) == len(devices) else None

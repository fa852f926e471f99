"""Two devices without P2P states migrate: the VMM traps what is written to them while they stand still.

    python docs/examples/trap.py

Here a device is a simulated one, with registers beside it, and the VMM's part is what it does on an MMIO
exit: a store goes to the device, or while the trap is armed, to the queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

from vfioflow import Hooks, Policy, SimDevice, listen, migrate
from vfioflow.access import Access, AccessQueue

BAR0 = 0


class Vmm:
    """One side: registers, and whether stores reach them.  It is the trap, too."""

    def __init__(self, devices: list[SimDevice]) -> None:
        self.devices = {device.name: device for device in devices}
        self.registers: dict[str, list[int]] = {name: [] for name in self.devices}
        self._queue: AccessQueue | None = None
        self._exits = threading.Lock()  # so that no store is past the trap when arm() returns

    def mmio(self, device: str, offset: int, value: int, origin: str) -> None:
        """A store of a vCPU, or of another device: what KVM exits for."""
        data = value.to_bytes(8, "little")
        with self._exits:
            queue = self._queue
            if queue is None:
                self.deliver(Access(0, origin, device, BAR0, offset, data))
                return
        queue.write(device, BAR0, offset, data, origin)

    def store(self, first: int, count: int) -> None:
        """acc0 writes numbers to a register of acc1."""
        for value in range(first, first + count):
            self.mmio("acc1", 0, value, origin="acc0")

    def arm(self, devices: Collection[str], queue: AccessQueue) -> None:
        with self._exits:
            self._queue = queue

    def collect(self, queue: AccessQueue) -> bool:
        return True  # every exit writes to the queue by itself

    def deliver(self, access: Access) -> None:
        self.registers[access.device].append(int.from_bytes(access.data, "little"))

    def read(self, device: str, region: int, offset: int, width: int) -> bytes:
        return self.registers[device][-1].to_bytes(width, "little")

    def interrupt(self, device: str, vector: int) -> None:
        raise NotImplementedError("these devices raise none")

    def disarm(self, devices: Collection[str]) -> bool:
        with self._exits:
            self._queue = None
        return True


class Source(Vmm):
    """Where a device's last posted writes reach another only when that is about to stop."""

    late: int = 0

    def arm(self, devices: Collection[str], queue: AccessQueue) -> None:
        super().arm(devices, queue)
        self.store(self.late, 10)


def make() -> list[SimDevice]:
    return [
        SimDevice(name, profile="generic", flags=["STOP_COPY"], state_size=4 << 20, arc_seconds={})
        for name in ("acc0", "acc1")
    ]


async def main() -> None:
    here, there = Source(make()), Vmm(make())
    here.store(0, 100)
    here.late = 100
    async with listen(
        "tcp://127.0.0.1:0",
        list(there.devices.values()),
        trap=there,
        hooks=Hooks(start_vcpus=lambda: there.store(110, 100)),
    ) as listener:
        receiving = asyncio.create_task(listener.receive())
        report = await migrate(
            list(here.devices.values()),
            listener.address,
            policy=Policy(access_queue="writes"),
            trap=here,
        )
        await receiving
    whole = here.registers["acc1"] + there.registers["acc1"]
    assert whole == list(range(210)), "a store is missing, or out of order"
    print(f"{report.accesses} stores were queued; all {len(whole)} arrived once, in order")
    for device in (*here.devices.values(), *there.devices.values()):
        device.close()


asyncio.run(main())

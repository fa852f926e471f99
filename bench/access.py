"""What queued accesses add to the downtime of two devices without P2P states.

python bench/access.py --rounds 9
"""

from __future__ import annotations

import argparse
import asyncio
import random
from statistics import median

from rich.console import Console
from rich.table import Table

from vfioflow import Policy, SimDevice, listen, migrate
from vfioflow.access import SimTrap

COUNTS = (0, 1000, 10_000, 50_000)


class Busy(SimTrap):
    """Has so many writes made when it is armed, besides what the devices send each other."""

    def __init__(self, devices, count):
        super().__init__(devices)
        self._count = count
        self.delivered = 0

    def arm(self, devices, queue):
        super().arm(devices, queue)
        for number in range(self._count):
            queue.write("acc1", 2, 8 * (number % 512), number.to_bytes(8, "little"), "acc0")

    def deliver(self, access):
        if access.region == 2:
            self.delivered += 1
        else:
            super().deliver(access)


def devices():
    return [
        SimDevice(name, profile="generic", flags=["STOP_COPY"], state_size=1 << 20, arc_seconds={})
        for name in ("acc0", "acc1")
    ]


async def run(count):
    """The downtime's steps, in milliseconds."""
    policy = Policy(downtime_limit=10.0, access_queue="writes", access_limit=1 << 17)
    source, destination = devices(), devices()
    there = Busy(destination, 0)
    try:
        async with listen("tcp://127.0.0.1:0", destination, policy=policy, trap=there) as listener:
            receiving = asyncio.create_task(listener.receive())
            report = await migrate(
                source, listener.address, policy=policy, trap=Busy(source, count)
            )
            await receiving
    finally:
        for device in (*source, *destination):
            device.close()
    assert there.delivered == count, "a write was lost"
    steps = report.steps_ms
    # The writes themselves are the bench's; the rest of the arming is the trap's.
    return {
        "accesses": steps["accesses"],
        "replay": steps["replay"],
        "rest": report.downtime_ms - steps["arm"] - steps["accesses"] - steps["replay"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    seen = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count in random.sample(COUNTS, len(COUNTS)):
            seen[count].append(asyncio.run(run(count)))
    table = Table(title="milliseconds of downtime, medians")
    for name in ("queued writes", "sealed and sent", "replayed", "the rest", "added per thousand"):
        table.add_column(name, justify="right")
    before = median(sum(run.values()) for run in seen[0])
    for count, runs in seen.items():
        sent, replayed, rest = (median(r[n] for r in runs) for n in ("accesses", "replay", "rest"))
        added = median(sum(run.values()) for run in runs) - before
        each = f"{added / count * 1000:.2f}" if count else "-"
        table.add_row(str(count), f"{sent:.2f}", f"{replayed:.2f}", f"{rest:.1f}", each)
    Console().print(table)


if __name__ == "__main__":
    main()

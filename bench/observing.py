"""What it costs to watch: whole migrations with nobody watching and with everybody, in turns.

``python bench/observing.py``: medians of the device bytes per second, and of the downtime.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from vfioflow import Policy, SimDevice, listen, migrate
from vfioflow.events import Observer
from vfioflow.watching import EventStream, JsonLines, fan_out
from vfioflow.watching.metrics import Metrics
from vfioflow.watching.spans import Spans


async def one(size: int, devices: int, here: Observer | None, there: Observer | None) -> float:
    """Bytes per second of a migration in this process."""
    with ExitStack() as stack:
        sets = [
            [
                stack.enter_context(
                    SimDevice(f"d{n}", state_size=size, content="zeros", seed=n, arc_seconds={})
                )
                for n in range(devices)
            ]
            for _ in range(2)
        ]
        async with listen("tcp://127.0.0.1:0", sets[1], observer=there) as listener:
            taking = asyncio.create_task(listener.receive())
            policy = Policy(downtime_limit=10.0, channels=1)
            begin = time.perf_counter()
            report = await migrate(sets[0], listener.address, policy=policy, observer=here)
            seconds = time.perf_counter() - begin
            await taking
        return report.bytes_total / seconds


def everybody(folder: Path, stack: ExitStack) -> Observer:
    """All ways at once."""
    file = stack.enter_context(JsonLines(folder / "events.jsonl"))
    return fan_out([file, EventStream(), Metrics().observer(), Spans()])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="of each device (default 256)")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"nobody watches": [], "everybody watches": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, found in rates.items():
                with ExitStack() as stack:
                    watched = name == "everybody watches"
                    here, there = (
                        everybody(Path(folder), stack) if watched else None for _ in range(2)
                    )
                    size = options.mib << 20
                    found.append(asyncio.run(one(size, options.devices, here, there)))
    for name, found in rates.items():
        low, _, high = statistics.quantiles(found, n=4)
        middle = statistics.median(found)
        print(
            f"{name:<18} {middle / 2**30:6.2f} GiB/s"
            f"   (half of the runs {low / 2**30:.2f} to {high / 2**30:.2f})"
        )
    nobody, all_of_them = (statistics.median(found) for found in rates.values())
    print(f"ratio {all_of_them / nobody:.3f}, {options.rounds} runs each, in turns")


if __name__ == "__main__":
    main()

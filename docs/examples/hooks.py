"""What a stack does on the way, and what it may decide.  Both sides are in this process:

python docs/examples/hooks.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vfioflow import Hooks, SimDevice, Source, listen
from vfioflow.events import Phase
from vfioflow.precopy import Decision


def tell(side: str, when: str) -> Callable[[Phase], None]:
    return lambda phase: print(f"{side:12} {when} {phase}")


async def main() -> None:
    devices = [SimDevice("net0", profile="mlx5", state_size=16 << 20) for _ in range(2)]
    asked: list[Decision] = []

    async def may_switch_over(decision: Decision) -> bool:
        """In earnest: is the network ready for the address to move?"""
        asked.append(decision)
        return len(asked) > 1

    async with listen(
        "tcp://127.0.0.1:0",
        devices[1:],
        hooks=Hooks(
            before=tell("destination", "before"),
            after=tell("destination", "after"),
            start_vcpus=lambda: print("vCPUs start there"),
        ),
    ) as listener:
        source = Source(
            devices[:1],
            listener.address,
            hooks=Hooks(
                before=tell("source", "before"),
                after=tell("source", "after"),
                may_switch_over=may_switch_over,
                stop_vcpus=lambda: print("vCPUs stop"),
                start_vcpus=lambda: print("vCPUs go on here: it has failed"),
            ),
        )
        source.change(downtime_limit=0.5)  # also while it runs, as hold(), go_on() and cancel()
        receiving = asyncio.create_task(listener.receive())
        report = await source.run()
        await receiving
    print(f"{report.outcome}: one more round, then {report.downtime_ms:.0f} ms of downtime")
    for device in devices:
        device.close()


asyncio.run(main())

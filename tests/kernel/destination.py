"""The destination of a migration, as a process of its own.

    destination.py HOW SCENARIO NAME=UUID...

Prints a line of JSON with its address, then one with what became of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import vfioflow
from vfioflow import Hooks, KernelDevice, _vfio
from vfioflow.events import BarrierPassed, Event

sys.path.insert(0, str(Path(__file__).parent))

from serial import read_back


async def main(how: str, scenario: str, names: list[str]) -> None:
    def observe(event: Event) -> None:
        if scenario == "die" and isinstance(event, BarrierPassed) and event.name == "ready":
            os.kill(os.getpid(), signal.SIGKILL)

    with contextlib.ExitStack() as stack:
        devices = []
        for pair in names:
            name, _, device = pair.partition("=")
            opened = KernelDevice.open(device, name=name, how=how)
            devices.append(stack.enter_context(opened))
        by_name = {device.name: device for device in devices}
        hooks = Hooks()
        if scenario == "config":
            hooks = Hooks(load_config=lambda name, data: by_name[name].load_config(data))
        async with vfioflow.listen(
            "tcp://127.0.0.1:0", devices, hooks=hooks, observer=observe
        ) as listener:
            print(json.dumps(listener.address), flush=True)
            outcome, error = "failed", ""
            try:
                outcome = (await listener.receive()).outcome
            except vfioflow.VfioflowError as failure:
                error = f"{type(failure).__name__}: {failure}"
        result = {
            "outcome": outcome,
            "error": error,
            "states": [str(device.state) for device in devices],
            "interrupt_lines": [d.read_region(_vfio.CONFIG_REGION, 0x3C, 1)[0] for d in devices],
            "seen": [read_back(d) for d in devices] if outcome == "completed" else [],
        }
        print(json.dumps(result), flush=True)


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))

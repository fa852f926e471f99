"""How fast simulated devices make and take their streams: ``python bench/sim_speed.py [MiB]``.

The feeder is read, and the consumer written, by one thread through the bare pipe with a 1 MiB
buffer; every byte is checked by the device's digest as in a migration.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from vfioflow.devices.sim import SimDevice
from vfioflow.states import State

CHUNK = 1 << 20


def feed(size: int, content: str) -> float:
    """Seconds to read a whole state into one buffer that is thrown away."""
    buffer = bytearray(CHUNK)
    with SimDevice("bench", state_size=size, content=content) as device:
        fd = device.set_state(State.STOP_COPY)
        start = time.perf_counter()
        while os.readv(fd, [buffer]):
            pass
        seconds = time.perf_counter() - start
        os.close(fd)
    return seconds


def take(size: int, content: str) -> float:
    """Seconds to load a whole state that was saved before, up to its check."""
    stream = bytearray()
    with SimDevice("bench", state_size=size, content=content) as device:
        fd = device.set_state(State.STOP_COPY)
        while part := os.read(fd, CHUNK):
            stream += part
        os.close(fd)
    with SimDevice("bench", state_size=size, content=content) as device:
        fd = device.set_state(State.RESUMING)
        view = memoryview(stream)
        start = time.perf_counter()
        while view:
            view = view[os.write(fd, view[:CHUNK]) :]
        device.set_state(State.STOP)
        seconds = time.perf_counter() - start
        os.close(fd)
    return seconds


def through(size: int, content: str) -> float:
    """Seconds from one device straight into another, by splice between their pipes."""
    with (
        SimDevice("bench", state_size=size, content=content) as source,
        SimDevice("bench", state_size=size, content=content) as target,
    ):
        into = target.set_state(State.RESUMING)
        out = source.set_state(State.STOP_COPY)
        start = time.perf_counter()
        while os.splice(out, into, CHUNK):
            pass
        target.set_state(State.STOP)
        seconds = time.perf_counter() - start
        os.close(out)
        os.close(into)
    return seconds


def main() -> None:
    """Print the best of five for each content."""
    size = int(sys.argv[1] if len(sys.argv) > 1 else 512) << 20
    print(f"{size >> 20} MiB, {os.cpu_count()} CPUs, {threading.active_count()} thread besides")
    for content in ("random", "structured", "mix", "zeros"):
        best = [min(run(size, content) for _ in range(5)) for run in (feed, take, through)]
        rates = [size / seconds / 1e9 for seconds in best]
        print(f"{content:10} feed {rates[0]:.2f}  take {rates[1]:.2f}  splice {rates[2]:.2f} GB/s")


if __name__ == "__main__":
    main()

"""The parts of the data path, each by itself: ``make bench`` or ``pytest bench --benchmark-only``."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from vfioflow import _frame
from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._crew import Crew
from vfioflow._fdio import Cancel, Port
from vfioflow._inlane import InLane, Receiver
from vfioflow._outlane import END, OutLane
from vfioflow._waits import Limiter
from vfioflow.devices.sim import SimDevice
from vfioflow.states import State

MIB = 1 << 20
SIZE = 256 * MIB


@pytest.mark.parametrize("way", [2, 1, 0], ids=["folding", "instruction", "table"])
def test_digest(benchmark, way):
    """CRC32C of 1 MiB."""
    data = os.urandom(MIB)
    benchmark.extra_info["bytes"] = MIB
    benchmark(_frame.crc, data, way=way)


def lane(content: str, *, channels: int, digests: bool, compression=None) -> None:
    """One device's stream from its data fd over socket pairs to another device's data fd."""
    pairs = [socket.socketpair() for _ in range(channels)]
    with (
        SimDevice("source", state_size=SIZE, content=content, initial_bytes=0) as source,
        SimDevice("destination", state_size=SIZE, content=content, initial_bytes=0) as destination,
    ):
        take = destination.port(destination.set_state(State.RESUMING))
        give = source.port(source.set_state(State.STOP_COPY))
        cancel, signal = Cancel(), os.eventfd(0)
        pool = Pool(MIB, 1 + 2 + 8)
        crew = None
        if compression is not None:
            crew = Crew(2, pool, 8, level=None if compression == "auto" else compression)
            crew.start()
        out = OutLane("d", 0, [Channel(near) for near, _ in pairs], pool, cancel, Limiter(),
                      digests=digests, crew=crew)  # fmt: skip
        into = InLane("d", take)
        receiver = Receiver([into], Pool(MIB, 2 * channels), cancel, signal, digests=digests)
        threads = [
            threading.Thread(target=receiver.receive, args=(Channel(far),)) for _, far in pairs
        ]
        for thread in threads:
            thread.start()
        assert out.pump(give, 2**63, precopy=False) == END
        out.end()
        for near, _ in pairs:
            near.shutdown(socket.SHUT_WR)
        for thread in threads:
            thread.join()
        assert into.ended
        if crew is not None:
            crew.close()
        give.close()
        take.close()
        os.close(signal)
    for near, far in pairs:
        near.close()
        far.close()


@pytest.mark.parametrize(
    "options",
    [
        {"content": "random", "digests": False, "channels": 1},
        {"content": "random", "digests": True, "channels": 1},
        {"content": "random", "digests": True, "channels": 4},
        {"content": "zeros", "digests": True, "channels": 1, "compression": "auto"},
        {"content": "structured", "digests": True, "channels": 1, "compression": 1},
    ],
    ids=["raw", "digest", "4 channels", "zeros elided", "zstd:1"],
)
def test_lane(benchmark, options):
    """256 MiB from device to device; what the simulated devices need is part of it."""
    benchmark.extra_info["bytes"] = SIZE
    benchmark.pedantic(lane, kwargs=options, rounds=5, warmup_rounds=1)


def test_port_wake_up(benchmark):
    """A byte through a port that had nothing: the cost of a wait."""
    read, write = os.pipe()
    near, far = socket.socketpair()
    with near, far:
        out = OutLane("d", 0, [Channel(near)], Pool(4096, 1), Cancel(), Limiter(), digests=True)
        port = Port(read)

        def once() -> None:
            os.write(write, b"x")
            out.pump(port, 1, precopy=True)
            far.recv(100)

        benchmark(once)
        port.close()
    os.close(write)

"""One side of a real migration for the comparison, measured from inside.

``python migration.py receive LOOP HOST DEVICES`` says its port and takes two migrations, a small one to
warm up and the measured one; ``python migration.py send LOOP HOST DEVICES PORT BYTES FILE`` sends them.
Each ends with one JSON object on standard error.  Behind a device stand a pipe and a process, ``loop feed``
with the contents of FILE over and over, or ``loop drain``: neither grows with the state.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from vfioflow import (
    DeviceError,
    DeviceInfo,
    Flags,
    Policy,
    PrecopyInfo,
    Report,
    State,
    listen,
    migrate,
)
from vfioflow._fdio import Port
from vfioflow.states import opens_data_fd, path

FLAGS = Flags.STOP_COPY | Flags.P2P
WARM_UP = 1 << 20
PIPE_SIZE = 1 << 20

SAMPLE_SECONDS = 0.05


class PipeDevice:
    """A device with nothing but a stop-copy stream of ``size`` bytes."""

    def __init__(self, name: str, loop: str, file: str = "") -> None:
        self.name = name
        self.state = State.RUNNING
        self.size = 0
        self._loop, self._file = loop, file
        self._helpers: list[subprocess.Popen[bytes]] = []

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo(self.name, "bench-pipe", FLAGS)

    def set_state(self, state: State) -> int:
        data_fd = -1
        for stop in path(FLAGS, self.state, state):
            if opens_data_fd(self.state, stop):
                data_fd = self._open(saving=stop is State.STOP_COPY)
            self.state = stop
        return data_fd

    def _open(self, *, saving: bool) -> int:
        outlet, mouth = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.fcntl(mouth, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        if saving:
            words = [self._loop, "feed", str(self.size), self._file]
            self._helpers.append(subprocess.Popen(words, stdout=mouth))
            os.close(mouth)
            return outlet
        self._helpers.append(subprocess.Popen([self._loop, "drain"], stdin=outlet))
        os.close(outlet)
        return mouth

    def port(self, data_fd: int) -> Port:
        return Port(data_fd)

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        raise DeviceError(self.name, "precopy_info", 22)

    def stop_copy_size(self) -> int | None:
        return self.size

    def reset(self) -> None:
        self.close()
        self.state = State.RUNNING

    def close(self) -> None:
        while self._helpers:
            helper = self._helpers.pop()
            helper.kill()
            helper.wait()


class Watch:
    """What this process holds and takes while it is entered."""

    async def __aenter__(self) -> Watch:
        gc.collect()
        self.threads = self.blocks = 0
        self._before = sys.getallocatedblocks()
        self._cpu, self._start = time.process_time(), time.perf_counter()
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.seconds = time.perf_counter() - self._start
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        del self._task
        gc.collect()
        self.grown = sys.getallocatedblocks() - self._before

    async def _look(self) -> None:
        while True:
            self.threads = max(self.threads, int(status("Threads")))
            self.blocks = max(self.blocks, sys.getallocatedblocks() - self._before)
            await asyncio.sleep(SAMPLE_SECONDS)  # a sample each time

    def as_json(self, report: Report) -> str:
        """What was seen, as one JSON object."""
        return json.dumps(
            {
                "seconds": self.seconds,
                "cpu": self.cpu,
                "bytes": report.bytes_total,
                # Not ru_maxrss, which begins with what the parent had.
                "peak_rss_mib": int(status("VmHWM")) / 1024,
                "threads": self.threads,
                "objects_at_most": self.blocks,
                "objects_left": self.grown,
            }
        )


def status(field: str) -> str:
    """A field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


async def send(devices: list[PipeDevice], address: str, size: int) -> None:
    """Both migrations from here."""
    policy = Policy(downtime_limit=86400.0)
    for total in (WARM_UP, size):
        for device in devices:
            device.reset()
            device.size = total // len(devices)
        async with Watch() as watch:
            report = await migrate(devices, address, policy=policy)
    print(watch.as_json(report), file=sys.stderr)


async def receive(devices: list[PipeDevice], host: str) -> None:
    """Both migrations to here."""
    async with listen(f"tcp://{host}:0", devices) as listener:
        print(listener.address.rpartition(":")[2], file=sys.stderr, flush=True)
        for _ in range(2):
            async with Watch() as watch:
                report = await listener.receive()
    print(watch.as_json(report), file=sys.stderr)


def main() -> None:
    side, loop, host, count = sys.argv[1:5]
    file = sys.argv[7] if side == "send" else ""
    devices = [PipeDevice(f"d{i}", loop, file) for i in range(int(count))]
    try:
        if side == "send":
            asyncio.run(send(devices, f"tcp://{host}:{sys.argv[5]}", int(sys.argv[6])))
        else:
            asyncio.run(receive(devices, host))
    finally:
        for device in devices:
            device.close()


if __name__ == "__main__":
    main()

"""QEMU's own migration as a mover: a stopped guest whose RAM is the content, migrated over TCP.

The guest is a microvm under TCG that never starts (``-S``), so one pass over its RAM is the whole
migration.  The source's pages are mapped beforehand, the destination's RAM is the sink's memory file.
The clock runs from the ``migrate`` command until both sides have said "completed"; QEMU's own
``total-time``, which ends at the source, is a few milliseconds less.  CPU time is that of both
processes between these moments, from ``/proc/PID/stat``, to 10 ms.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import EventListener, QMPClient, QMPError

from comparison.content import path_of
from comparison.ends import MEMFD, Ends
from comparison.movers import LIMIT, Moved, free_port
from comparison.programs import ProgramFailed
from comparison.wires import Side, Wire

PROGRAM = "qemu-system-x86_64"

MULTIFD_CHANNELS = 2
"""QEMU's default; more do not help on two cores."""

_UNLIMITED = 1 << 50

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Qemu:
    """One guest per device, all migrated at once."""

    name: str
    multifd: bool = False
    zstd_level: int | None = None

    def missing(self) -> str | None:
        return None if shutil.which(PROGRAM) else f"{PROGRAM} not installed"

    def suits(self, ends: tuple[str, str]) -> bool:
        return ends == (MEMFD, MEMFD)

    def move(self, ends: Ends, wire: Wire) -> Moved:
        try:
            return asyncio.run(asyncio.wait_for(self._move(ends, wire), LIMIT))
        except TimeoutError as error:
            raise ProgramFailed(f"not done after {LIMIT:.0f} s") from error
        except (OSError, QMPError) as error:
            raise ProgramFailed(f"{self.name}: {error}") from error

    async def _move(self, ends: Ends, wire: Wire) -> Moved:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sources, targets, ways = [], [], []
            for device, sink in enumerate(ends.outputs):
                ways.append(self._way(folder / f"{device}", wire))
                size = ends.content.device_size
                source = Guest(folder / f"{device}-source", size, ends.content.path(device))
                target = Guest(folder / f"{device}-target", size, path_of(sink))
                sources.append(source)
                targets.append(target)
                stack.push_async_callback(source.stop)
                source.start(wire.sending, mapped=True)
                stack.push_async_callback(target.stop)
                target.start(wire.receiving, "-incoming", "defer")
            guests = (*sources, *targets)
            for guest in guests:
                await guest.connect()
                await self._set_up(guest.monitor)
            for target, way in zip(targets, ways, strict=True):
                await target.monitor.execute("migrate-incoming", {"uri": way.there})
                stack.callback(way.close)
                way.open()
            sent, cpu = wire.sent(), sum(each.cpu() for each in (*guests, *ways))
            start = time.perf_counter()
            for source, way in zip(sources, ways, strict=True):
                await source.monitor.execute("migrate", {"uri": way.here})
            for guest in guests:
                await guest.completed()
            seconds = time.perf_counter() - start
            for way in ways:
                way.finish()
            cpu = sum(each.cpu() for each in (*guests, *ways)) - cpu
            moved = Moved(seconds, cpu, wire.sent() - sent)
        ends.settle()
        return moved

    def _way(self, place: Path, wire: Wire) -> Way:
        """How a guest at one side reaches the one at the other; ``place``: where its files may be."""
        return Way(wire)

    async def _set_up(self, monitor: QMPClient) -> None:
        capabilities = {"events": True, "multifd": self.multifd}
        parameters: dict[str, object] = {"max-bandwidth": _UNLIMITED}
        if self.multifd:
            parameters["multifd-channels"] = MULTIFD_CHANNELS
        if self.zstd_level is not None:
            parameters["multifd-compression"] = "zstd"
            parameters["multifd-zstd-level"] = self.zstd_level
        wanted = [{"capability": name, "state": state} for name, state in capabilities.items()]
        await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
        await monitor.execute("migrate-set-parameters", parameters)


class Way:
    """TCP, from QEMU to QEMU: the URIs for the destination and for the source."""

    def __init__(self, wire: Wire) -> None:
        self.there = self.here = f"tcp:{wire.host}:{free_port()}"

    def open(self) -> None:
        """Be ready; the destination listens."""

    def finish(self) -> None:
        """Wait for what is between to end, once both guests have.  Raises ProgramFailed."""

    def close(self) -> None:
        """End it, whatever happened."""

    def cpu(self) -> float:
        """CPU seconds of it so far."""
        return 0.0


def used(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Guest:
    """A stopped guest with ``size`` bytes of RAM in the file at ``memory``."""

    def __init__(self, socket: Path, size: int, memory: str) -> None:
        self.monitor = QMPClient(socket.name)
        self._socket, self._size, self._memory = socket, size, memory
        self._events = EventListener("MIGRATION")
        self._process: subprocess.Popen[str] | None = None

    def start(self, at: Side, *options: str, mapped: bool = False) -> None:
        """Start it; ``mapped``: with every page of its RAM mapped, as in a guest that has run."""
        backend = f"memory-backend-file,id=ram,mem-path={self._memory},size={self._size},share=on"
        words = [
            PROGRAM, "-machine", "microvm,memory-backend=ram", "-accel", "tcg", "-S",
            "-nodefaults", "-no-user-config", "-display", "none", "-m", f"{self._size >> 20}M",
            "-object", f"{backend},prealloc={'on' if mapped else 'off'}",
            "-qmp", f"unix:{self._socket},server=on,wait=off", *options,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            at(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def connect(self) -> None:
        """Connect to its monitor once it is there."""
        assert self._process is not None
        assert self._process.stderr is not None
        while True:
            if self._process.poll() is not None:
                raise ProgramFailed(f"{PROGRAM}: {self._process.stderr.read().strip()}")
            with suppress(OSError, QMPError):
                await self.monitor.connect(str(self._socket))
                break
            await asyncio.sleep(0.02)  # it says nowhere that it listens
        self.monitor.register_listener(self._events)

    async def completed(self) -> None:
        """Return when its migration has."""
        async for event in self._events:
            data = event["data"]
            assert isinstance(data, dict)
            status = data["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise ProgramFailed(f"{PROGRAM}: the migration has {status}")

    def cpu(self) -> float:
        """CPU seconds of all its threads so far."""
        assert self._process is not None
        return used(self._process.pid)

    async def stop(self) -> None:
        """End it."""
        with suppress(QMPError, OSError):
            await self.monitor.disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()


def qemus() -> list[Qemu]:
    """QEMU's migration as it is, and with multifd."""
    return [Qemu("QEMU"), Qemu("QEMU multifd", multifd=True)]

"""Watching devices without migrating them: to PRE_COPY and back, or through STOP_COPY."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from vfioflow import barrier
from vfioflow._fdio import Port
from vfioflow.devices.base import Device
from vfioflow.errors import ConfigError, DeviceError
from vfioflow.events import Observer
from vfioflow.lab import reading
from vfioflow.lab.observed import Observed, Stopped, Watched
from vfioflow.states import Flags, State, path, quiesced
from vfioflow.threads import finish, in_thread, ready, settle

__all__ = ["Recorder", "record"]

T = TypeVar("T")

_STEP = 0.1
"""Seconds between two looks at what is dirty."""


async def record(
    devices: Sequence[Device],
    *,
    seconds: float = 10.0,
    stop_copy: bool = False,
    step: float = _STEP,
    timeout: float = 30.0,
    observer: Observer | None = None,
) -> list[Observed]:
    """Watch running devices, all at once; they are RUNNING again when this returns or raises.

    Args:
        devices: a set whose members may send each other peer-to-peer DMA.
        seconds: to watch them, from when each has handed out its initial data.
        stop_copy: also stop them, and see how long each step of that takes.  Whatever uses them must
            bear that; with an interruption of as long as it takes to read the rest of their state.
        step: seconds between two looks.
        timeout: seconds after which a change of state that has not returned counts as failed.
        observer: gets the events of the changes of state.

    Raises:
        ConfigError: a device does not run, or may not be stopped with the others.
        DeviceError: one failed.  A note on it names each that could not simply be put back.
    """
    return await Recorder(devices, timeout=timeout, observer=observer).run(
        seconds=seconds, stop_copy=stop_copy, step=step
    )


@dataclass
class _Seen:
    """What is known of one device so far, and its open session."""

    device: Device
    told: int | None = None
    arcs: dict[str, float] = field(default_factory=dict)
    data_fd: int = -1
    port: Port | None = None
    watched: Watched | None = None
    stopped: Stopped | None = None

    def adopt(self, data_fd: int) -> None:
        """Own a data fd that a change of state handed out."""
        self.port = self.device.port(data_fd)
        self.data_fd = data_fd

    def close(self) -> None:
        """Close it; only when nothing reads."""
        if self.port is not None:
            self.port.close()
            self.port = None


class Recorder:
    """One recording.  ``interrupted`` is for how many seconds the devices stood still."""

    def __init__(
        self, devices: Sequence[Device], *, timeout: float, observer: Observer | None = None
    ) -> None:
        self._devices = list(devices)
        self._seen = {device.name: _Seen(device) for device in devices}
        self._timeout = timeout
        self._observer = observer
        self._halted = threading.Event()
        self._calls: Sequence[asyncio.Future[Any]] = []
        self.interrupted = 0.0

    async def run(
        self, *, seconds: float, stop_copy: bool = False, step: float = _STEP
    ) -> list[Observed]:
        """See :func:`record`."""
        with ready(len(self._devices) + 1):
            await self._check(stop_copy)
            try:
                await self._watch(seconds, step)
                if stop_copy:
                    await self._stop_copy()
                await self._advance(lambda _: State.RUNNING)
            except BaseException as error:
                self._halted.set()
                await finish(self._put_back(error))
                raise
            await finish(self._put_back(None))
        return [
            Observed(seen.device.info, seen.told, seen.watched, seen.stopped, seen.arcs)
            for seen in self._seen.values()
        ]

    async def _check(self, stop_copy: bool) -> None:
        found = await barrier.states(self._devices, timeout=self._timeout)
        for name, state in found.items():
            if state != str(State.RUNNING):
                raise ConfigError(f"device {name} is {state}: only one that runs is recorded")
        for device in self._devices:
            flags = device.info.flags
            if not flags & Flags.STOP_COPY:
                raise ConfigError(f"device {device.name}: its driver cannot migrate")
            if stop_copy and not flags & Flags.P2P and len(self._devices) > 1:
                raise ConfigError(
                    f"device {device.name} has no P2P states, so it may not stop while another runs:"
                    " record it alone, or without --stop-copy"
                )

        def ask() -> None:
            for seen in self._seen.values():
                seen.told = seen.device.stop_copy_size()

        await self._all([("sizes", ask)])

    async def _watch(self, seconds: float, step: float) -> None:
        copying = [s for s in self._seen.values() if s.device.info.flags & Flags.PRE_COPY]
        if not copying:
            return
        await self._cross({s.device.name: State.PRE_COPY for s in copying})

        def watch(seen: _Seen) -> None:
            assert seen.port is not None
            seen.watched = reading.watch(
                seen.device,
                seen.port,
                seen.data_fd,
                seconds=seconds,
                step=step,
                halted=self._halted,
            )

        await self._all([(f"{s.device.name}-watch", partial(watch, s)) for s in copying])

    async def _stop_copy(self) -> None:
        begin = time.monotonic()
        quiet = {d.name for d in self._devices if d.info.flags & Flags.P2P}
        await self._advance(lambda d: quiesced(d.state) if d.name in quiet else None)
        await self._advance(lambda _: State.STOP_COPY)

        def drain(seen: _Seen) -> None:
            assert seen.port is not None
            seen.stopped = reading.drain(
                seen.device, seen.port, seen.told or 0, halted=self._halted
            )

        await self._all(
            [(f"{s.device.name}-drain", partial(drain, s)) for s in self._seen.values()]
        )
        await self._advance(lambda _: State.STOP)
        await self._advance(lambda d: State.RUNNING_P2P if d.name in quiet else None)
        await self._advance(lambda _: State.RUNNING)
        self.interrupted = time.monotonic() - begin

    async def _advance(self, target: Callable[[Device], State | None]) -> None:
        """Take each to its target by direct arcs, in step with the others, so that each arc is timed."""

        def ways() -> dict[str, list[State]]:
            found = {}
            for device in self._devices:
                end, start = target(device), device.state
                found[device.name] = (
                    [] if end is None else list(path(device.info.flags, start, end))
                )
            return found

        [left] = await self._all([("paths", ways)])
        while any(left.values()):
            await self._cross({name: way.pop(0) for name, way in left.items() if way})

    async def _cross(self, targets: Mapping[str, State]) -> None:
        crossing = await barrier.cross(
            "record",
            [(self._seen[name].device, state) for name, state in targets.items()],
            timeout=self._timeout,
            observer=self._observer,
        )
        crossing.hand_out(lambda name, data_fd: self._seen[name].adopt(data_fd))
        for name, moved in crossing.moved.items():
            self._seen[name].arcs[f"{moved.start}->{moved.end}"] = moved.seconds

    async def _all(self, calls: Sequence[tuple[str, Callable[[], T]]]) -> list[T]:
        """Make the calls on threads; when one fails, or this is cancelled, the others end sooner."""
        made = self._calls = [in_thread(call, name=name) for name, call in calls]
        try:
            await asyncio.wait(made, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            if not all(call.done() for call in self._calls):
                self._halted.set()
                await finish(settle(self._calls, timeout=self._timeout))
        return [call.result() for call in made if call.done()]

    async def _put_back(self, error: BaseException | None) -> None:
        """All to RUNNING, and every data fd closed."""
        trouble = await barrier.back_to_running(
            self._devices, timeout=self._timeout, observer=self._observer
        )
        # A read that hung has ended now that its session has; if not, its port stays as it is.
        if await settle(self._calls, timeout=self._timeout):
            for seen in self._seen.values():
                seen.close()
        notes = [f"device {name}: {how}" for name, how in trouble.items()]
        if error is not None:
            for note in notes:
                error.add_note(note)
        elif notes:
            raise DeviceError(
                next(iter(trouble)), "go back to RUNNING", errno.EIO, "; ".join(trouble.values())
            )

"""Moving a set of devices through the states together.

A barrier: every device of the set starts its change at once, on a thread of its own, and nobody
goes on before all have arrived.  The order of the barriers is what keeps peer-to-peer DMA safe:
no device enters STOP, STOP_COPY or RUNNING while another that can still start DMA to it is
outside the P2P states (``VFIO_MIGRATION_P2P`` in ``include/uapi/linux/vfio.h``).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from vfioflow.devices.base import Device
from vfioflow.errors import DeviceError, VfioflowError
from vfioflow.events import (
    BarrierEntered,
    BarrierPassed,
    Observer,
    RolledBack,
    StateChanged,
    StateChanging,
    emit,
)
from vfioflow.states import Flags, State, path
from vfioflow.threads import in_thread, settle

__all__ = ["Crossing", "Moved", "back_to_running", "cross", "reset_all", "states"]

log = logging.getLogger("vfioflow")


@dataclass(frozen=True, slots=True)
class Moved:
    """A device has arrived.  ``data_fd`` is the new one, which the receiver of this owns, or -1."""

    device: Device
    start: State
    end: State
    seconds: float
    data_fd: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """A barrier that all devices have passed."""

    seconds: float
    moved: Mapping[str, Moved]

    def hand_out(self, take: Callable[[str, int], None]) -> None:
        """Give each new data fd, with its device's name, to ``take``, which then owns it.

        When one cannot be taken, those behind it are closed.  Raises what ``take`` raises.
        """
        left = [(name, moved.data_fd) for name, moved in self.moved.items() if moved.data_fd >= 0]
        try:
            while left:
                take(*left.pop(0))
        finally:
            for _, data_fd in left:
                os.close(data_fd)


async def cross(
    name: str,
    targets: Sequence[tuple[Device, State]],
    *,
    timeout: float,
    observer: Observer | None = None,
) -> Crossing:
    """Take each device to its target, all at once; return when all have arrived.

    Every change is checked against the state machine before any device is touched.  When one
    fails, the others still finish theirs (a state change cannot be interrupted), new data fds are
    closed, and the error is raised; putting the set back is the caller's next step, see
    :func:`back_to_running`.

    Args:
        name: of the barrier, for events.
        targets: pairs of device and state.
        timeout: seconds after which a change that has not returned counts as failed.
        observer: gets StateChanged and BarrierPassed.

    Raises:
        IllegalTransition: a device's flags do not allow its change; nothing was touched.
        DeviceError: a device failed or did not return in time.  It may stand anywhere on the way.
    """
    starts = await _starts([device for device, _ in targets], timeout)
    for device, target in targets:
        path(device.info.flags, starts[device.name], target)
    emit(observer, BarrierEntered(name, tuple(device.name for device, _ in targets)))
    for device, target in targets:
        emit(observer, StateChanging(device.name, starts[device.name], target))
    begin = time.monotonic()
    futures = [
        in_thread(_move, device, starts[device.name], target, name=f"{device.name}-{target}")
        for device, target in targets
    ]
    try:
        await settle(futures, timeout=timeout)
    except asyncio.CancelledError:
        _close_all(futures)
        raise
    seconds = time.monotonic() - begin
    errors: list[BaseException] = []
    for (device, target), future in zip(targets, futures, strict=True):
        if not future.done():
            change = f"{starts[device.name]} -> {target}"
            errors.append(
                DeviceError(device.name, change, errno.ETIMEDOUT, f"not back after {timeout:g} s")
            )
            future.add_done_callback(_close_late)
        elif error := future.exception():
            errors.append(error)
        else:
            moved = future.result()
            emit(observer, StateChanged(device.name, moved.start, moved.end, moved.seconds))
    if errors:
        _close_all(futures)
        for other in errors[1:]:
            errors[0].add_note(str(other))
        raise errors[0]
    emit(observer, BarrierPassed(name, seconds))
    return Crossing(seconds, {m.device.name: m for m in (f.result() for f in futures)})


async def _starts(devices: Sequence[Device], timeout: float) -> dict[str, State]:
    """Where each stands, asked on threads: a device that hangs must not hold up the loop."""
    futures = {
        d.name: in_thread(getattr, d, "state", name=f"{d.name}-state", or_here=True)
        for d in devices
    }
    await settle(futures.values(), timeout=timeout)
    for name, future in futures.items():
        if not future.done():
            late = f"not back after {timeout:g} s"
            raise DeviceError(name, "ask for its state", errno.ETIMEDOUT, late)
    return {name: future.result() for name, future in futures.items()}


def _move(device: Device, start: State, target: State) -> Moved:
    begin = time.monotonic()
    data_fd: object = device.set_state(target)
    if not isinstance(data_fd, int):
        what = f"{start} -> {target} gave {data_fd!r} where an fd or -1 is due"
        raise DeviceError(device.name, what, errno.EPROTO)
    return Moved(device, start, target, time.monotonic() - begin, data_fd)


def _close_late(future: asyncio.Future[Moved]) -> None:
    _close_all([future])


def _close_all(futures: Sequence[asyncio.Future[Moved]]) -> None:
    for future in futures:
        if future.done() and not future.cancelled() and future.exception() is None:
            fd = future.result().data_fd
            if fd >= 0:
                os.close(fd)


async def back_to_running(
    devices: Sequence[Device],
    *,
    timeout: float,
    observer: Observer | None = None,
    between: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
) -> dict[str, str]:
    """Put every source device back to RUNNING, whatever state it stands in.

    Two steps, so that peer-to-peer DMA stays safe on the way back too: all that do not run go to
    RUNNING_P2P first (where they have it), then all go to RUNNING.  A device that fails is reset,
    which loses its state and leaves it RUNNING, empty.

    ``between`` replays what was queued for devices without P2P states: these go to RUNNING with the
    first step then, and it comes before the second.  What it returns is trouble of those, what it raises
    is of all of them.

    Returns:
        For each device that could not simply be put back: what had to be done, or why it still
        does not run.
    """
    trouble: dict[str, str] = {}
    quiet = [d for d in devices if d.info.flags & Flags.P2P]
    await _all(quiet, _to_quiet, trouble, timeout, observer)
    if between is not None:
        others = [d for d in devices if not d.info.flags & Flags.P2P]
        await _all(others, _to_running, trouble, timeout, observer)
        try:
            left = await between()
        except VfioflowError as error:
            left = {device.name: str(error) for device in others}
        for name, why in left.items():
            trouble.setdefault(name, f"what was queued for it was not replayed: {why}")
        devices = quiet
    await _all(devices, _to_running, trouble, timeout, observer)
    return trouble


async def reset_all(
    devices: Sequence[Device], *, timeout: float, observer: Observer | None = None
) -> dict[str, str]:
    """Reset every destination device: RUNNING and empty, as before the migration.

    Returns:
        For each device that could not be reset: why.
    """
    trouble: dict[str, str] = {}
    await _all(devices, _reset, trouble, timeout, observer)
    return trouble


async def states(devices: Sequence[Device], *, timeout: float) -> dict[str, str]:
    """Where each device stands, for a report: its state, or why it could not be asked."""
    futures = {
        d.name: in_thread(getattr, d, "state", name=f"{d.name}-state", or_here=True)
        for d in devices
    }
    await settle(futures.values(), timeout=timeout)
    found: dict[str, str] = {}
    for name, future in futures.items():
        if not future.done():
            found[name] = "unknown (it does not answer)"
        elif error := future.exception():
            found[name] = f"unknown ({error})"
        else:
            found[name] = str(future.result())
    return found


async def _all(
    devices: Sequence[Device],
    action: Callable[[Device], str],
    trouble: dict[str, str],
    timeout: float,
    observer: Observer | None,
) -> None:
    futures = {
        device: in_thread(_act, action, device, name=f"{device.name}-back", or_here=True)
        for device in devices
        if device.name not in trouble
    }
    await settle(futures.values(), timeout=timeout)
    for device, future in futures.items():
        state: State | None = None
        if not future.done():
            how = trouble[device.name] = f"did not return within {timeout:g} s"
        elif error := future.exception():
            how = trouble[device.name] = str(error)
        else:
            how, state = future.result()
            if how.startswith("reset after"):
                trouble[device.name] = how
        if how:
            emit(observer, RolledBack(device.name, state, how))


def _act(action: Callable[[Device], str], device: Device) -> tuple[str, State | None]:
    """What had to be done, and where the device stands then, if it says so."""
    how = action(device)
    try:
        return how, device.state
    except (VfioflowError, OSError):
        return how, None


def _to_quiet(device: Device) -> str:
    state = device.state
    if state in (State.RUNNING, State.PRE_COPY, State.RUNNING_P2P, State.ERROR):
        return ""
    return _fall_back(device, State.RUNNING_P2P)


def _to_running(device: Device) -> str:
    if device.state == State.RUNNING:
        return ""
    return _fall_back(device, State.RUNNING) or "set to RUNNING"


def _fall_back(device: Device, target: State) -> str:
    try:
        device.set_state(target)
    except (VfioflowError, OSError) as error:
        log.warning("%s; resetting the device", str(error))
        device.reset()
        return f"reset after: {error}"
    return ""


def _reset(device: Device) -> str:
    device.reset()
    return "reset"

"""The facts of devices, for admission: asked from the devices here, or told by the peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from vfioflow import barrier
from vfioflow.admission import Facts
from vfioflow.devices.base import Device, DeviceInfo
from vfioflow.devices.host import HostDevice
from vfioflow.devices.kernel import KernelDevice
from vfioflow.errors import DeviceError, VfioflowError
from vfioflow.states import Flags
from vfioflow.threads import in_thread, settle
from vfioflow.wire import messages

__all__ = ["facts_of", "look", "of_host", "offered", "planned", "sizes"]


def facts_of(info: DeviceInfo, *, state: str = "RUNNING", size: int | None = None) -> Facts:
    """Of a device here.  ``state`` as :func:`vfioflow.barrier.states` gives it; ``size`` in bytes."""
    return Facts(
        name=info.name,
        driver=info.driver,
        flags=info.flags,
        tracking=info.tracking,
        stop_copy_bytes=size,
        arc_seconds=info.arc_seconds,
        late_load=info.late_load,
        version=info.version,
        firmware=info.firmware,
        model=info.model,
        state=state,
    )


async def look(devices: Sequence[Device], *, timeout: float, sized: bool = False) -> list[Facts]:
    """Of devices here, with the state that each is in; ``sized``: and its size.  Changes nothing."""
    states = await barrier.states(devices, timeout=timeout)
    known = await sizes(devices, timeout=timeout) if sized else {}
    return [facts_of(d.info, state=states[d.name], size=known.get(d.name)) for d in devices]


async def sizes(devices: Sequence[Device], *, timeout: float) -> Mapping[str, int | None]:
    """What each would hand out if it stopped now, in bytes; None where it does not say."""
    futures = {d.name: in_thread(_size, d, name=f"{d.name}-size") for d in devices}
    await settle(futures.values(), timeout=timeout)
    return {
        name: future.result() if future.done() and not future.exception() else None
        for name, future in futures.items()
    }


def of_host(devices: Iterable[HostDevice]) -> list[Facts]:
    """Of this host's: each is opened for a moment, which nobody else may have done, and left as it is."""
    return [_of_host(device) for device in devices]


def _of_host(host: HostDevice) -> Facts:
    nothing = Facts(name=host.name, driver=host.driver, flags=Flags.NONE, why_not=host.why_not)
    if host.why_not:
        return nothing
    try:
        with closing(KernelDevice.open(str(host.path))) as device:
            facts = facts_of(device.info, state=str(device.state), size=_size(device))
            return replace(facts, iommufd=bool(host.cdev))
    except VfioflowError as error:
        return replace(nothing, why_not=str(error).removeprefix(f"device {host.name}: "))


def _size(device: Device) -> int | None:
    try:
        return device.stop_copy_size() if device.info.flags & Flags.STOP_COPY else None
    except DeviceError:
        return None


def offered(devices: Iterable[messages.OfferedDevice]) -> list[Facts]:
    """Of the source's, as it offers them."""
    return [
        Facts(
            name=d.name,
            driver=d.driver,
            flags=Flags(d.flags),
            stop_copy_bytes=d.size,
            version=d.version,
            firmware=d.firmware,
            model=d.model,
        )
        for d in devices
    ]


def planned(devices: Iterable[messages.PlannedDevice]) -> list[Facts]:
    """Of the destination's, as it tells them."""
    return [
        Facts(
            name=d.name,
            driver=d.driver,
            flags=Flags(d.flags),
            state=d.state,
            arc_seconds=d.arc_seconds,
            version=d.version,
            firmware=d.firmware,
            model=d.model,
        )
        for d in devices
    ]

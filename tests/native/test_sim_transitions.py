"""Every change of state of a simulated device, against the table in vfioflow.states."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from vfioflow.devices.base import Device
from vfioflow.devices.sim import Fault, SimDevice
from vfioflow.errors import DeviceError, IllegalTransition
from vfioflow.states import FLAG_SETS, Flags, State, opens_data_fd, path


def make(flags: Flags, **more: Any) -> SimDevice:
    names = tuple(f.name for f in Flags if f in flags)
    initial = 4096 if Flags.PRE_COPY in flags else 0
    return SimDevice("d", state_size=16384, initial_bytes=initial, flags=names, **more)


def reachable(flags: Flags, start: State, end: State) -> tuple[State, ...] | None:
    try:
        return path(flags, start, end)
    except IllegalTransition:
        return None


def opened(start: State, steps: tuple[State, ...]) -> int:
    return sum(opens_data_fd(a, b) for a, b in zip((start, *steps), steps, strict=False))


PAIRS = [
    pytest.param(flags, start, end, id=f"{flags}:{start}-{end}")
    for flags in FLAG_SETS
    for start, end in product(State, State)
    if start not in (State.ERROR, State.RESUMING)
    and reachable(flags, State.RUNNING, start) is not None
]


@pytest.mark.parametrize(("flags", "start", "end"), PAIRS)
def test_every_pair(flags: Flags, start: State, end: State) -> None:
    with make(flags) as device:
        assert isinstance(device, Device)
        first = device.set_state(start)
        fds = [first] if first >= 0 else []
        assert device.state is start
        steps = reachable(flags, start, end)
        if end is State.ERROR:
            with pytest.raises(DeviceError) as caught:
                device.set_state(end)
            assert caught.value.errno == errno.EINVAL
            assert device.state is start
        elif steps is None:
            with pytest.raises(IllegalTransition):
                device.set_state(end)
            assert device.state is start
        else:
            fd = device.set_state(end)
            assert (fd >= 0) == (opened(start, steps) == 1)
            fds += [fd] if fd >= 0 else []
            assert device.state is end
        for fd in fds:
            assert not os.get_inheritable(fd)
            os.close(fd)


@pytest.mark.parametrize("flags", FLAG_SETS, ids=str)
@pytest.mark.parametrize("end", [s for s in State if s is not State.RESUMING])
def test_nothing_leaves_an_empty_resuming_but_reset(
    flags: Flags, end: State, refused: Callable[..., int]
) -> None:
    with make(flags) as device:
        fd = device.set_state(State.RESUMING)
        if end is not State.ERROR and reachable(flags, State.RESUMING, end) is None:
            with pytest.raises(IllegalTransition):
                device.set_state(end)
        else:
            assert refused(lambda: device.set_state(end)) == errno.EINVAL
        assert device.state is State.RESUMING
        assert device.set_state(State.RESUMING) == -1
        device.reset()
        assert device.state is State.RUNNING
        os.close(fd)


LOADED = [
    pytest.param(flags, end, id=f"{flags}:{end}")
    for flags in FLAG_SETS
    for end in State
    if end is not State.RESUMING and reachable(flags, State.RESUMING, end) is not None
]


@pytest.mark.parametrize(("flags", "end"), LOADED)
def test_everything_leaves_a_loaded_resuming(flags: Flags, end: State, hand: Any) -> None:
    steps = path(flags, State.RESUMING, end)
    with make(flags) as source, make(flags, seed=1) as target:
        stream = hand.save(source)
        port = target.port(target.set_state(State.RESUMING))
        hand.send(port, stream)
        fd = target.set_state(end)
        assert target.state is end
        assert (fd >= 0) == (opened(State.RESUMING, steps) == 1)
        port.close()
        if fd >= 0:
            os.close(fd)


def test_error_is_left_by_reset_only(refused: Callable[..., int]) -> None:
    fault = Fault("RUNNING->PRE_COPY", "errno", errno="EIO", state="ERROR")
    with SimDevice("d", profile="mtty", faults=[fault]) as device:
        assert refused(lambda: device.set_state(State.PRE_COPY)) == errno.EIO
        assert device.state is State.ERROR
        for state in State:
            assert refused(lambda state=state: device.set_state(state)) == errno.EINVAL
        device.reset()
        assert device.state is State.RUNNING
        fd = device.set_state(State.PRE_COPY)
        os.close(fd)


def test_a_fault_in_the_middle_leaves_the_state_reached() -> None:
    fault = Fault("RUNNING_P2P->STOP", "errno", errno=errno.EBUSY)
    with SimDevice("d", faults=[fault], state_size=65536) as device:
        with pytest.raises(DeviceError, match=r"device d: RUNNING_P2P -> STOP: EBUSY") as caught:
            device.set_state(State.STOP_COPY)
        assert (caught.value.device, caught.value.action) == ("d", "RUNNING_P2P -> STOP")
        assert device.state is State.RUNNING_P2P
        fd = device.set_state(State.STOP_COPY)
        assert device.state is State.STOP_COPY
        os.close(fd)


def test_a_fault_that_stays(refused: Callable[..., int]) -> None:
    fault = Fault("RUNNING->PRE_COPY", "errno", once=False)
    with SimDevice("d", profile="mtty", faults=[fault]) as device:
        for _ in range(3):
            assert refused(lambda: device.set_state(State.PRE_COPY)) == errno.EIO
            assert device.state is State.RUNNING


def test_a_failed_arc_out_of_saving_can_end_the_session(refused: Callable[..., int]) -> None:
    fault = Fault("PRE_COPY->PRE_COPY_P2P", "errno", state=State.ERROR)
    with SimDevice("d", profile="mtty", faults=[fault]) as device:
        port = device.port(device.set_state(State.PRE_COPY))
        assert refused(lambda: device.set_state(State.STOP_COPY)) == errno.EIO
        assert device.state is State.ERROR
        assert refused(lambda: port.read(10)) == errno.ENODEV
        port.close()


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_hang_in_an_arc_is_ended(end: str, background: Callable[..., Any]) -> None:
    fault = Fault("RUNNING->PRE_COPY", "hang")
    with SimDevice("d", profile="mtty", faults=[fault]) as device:
        hung = background(lambda: device.set_state(State.PRE_COPY))
        while not device.core.waiting:
            pass
        getattr(device, end)()
        error = hung.result()
        assert isinstance(error, DeviceError)
        assert error.errno == errno.ENODEV
        assert device.state is State.RUNNING


def test_the_time_of_an_arc_is_cut_short_by_close(background: Callable[..., Any]) -> None:
    with SimDevice("d", arc_seconds={"RUNNING->STOP": 3600}, flags=("STOP_COPY",)) as device:
        waiting = background(lambda: device.set_state(State.STOP))
        while not device.core.waiting:
            pass
        device.close()
        error = waiting.result()
        assert isinstance(error, DeviceError)
        assert error.errno == errno.ENODEV


def test_a_closed_device_refuses(refused: Callable[..., int]) -> None:
    device = SimDevice("d", profile="mtty")
    device.close()
    device.close()
    assert refused(lambda: device.set_state(State.STOP)) == errno.ENODEV
    assert refused(device.reset) == errno.ENODEV


def test_a_forgotten_device_warns_and_is_closed() -> None:
    device = SimDevice("d", profile="mtty")
    fd = device.set_state(State.PRE_COPY)
    os.close(fd)
    with pytest.warns(ResourceWarning, match="SimDevice d mtty PRE_COPY"):
        del device


def test_info_adds_the_load_where_it_happens() -> None:
    with SimDevice("d", profile="qat") as device:
        assert device.info.arc_seconds["RESUMING->STOP"] == 0.002
        assert device.info.flags == Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY
        assert (device.info.driver, device.info.profile) == ("qat_vfio_pci", "qat")
    with SimDevice("d", profile="mlx5", state_size="1MiB") as device:
        assert "RESUMING->STOP" not in device.info.arc_seconds

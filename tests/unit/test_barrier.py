"""Barriers: all at once, nobody further before all have arrived, and the way back."""

import asyncio
import errno
import os
import threading

import pytest
from fakes import FakeDevice, Journal

from vfioflow import barrier
from vfioflow.errors import DeviceError, IllegalTransition
from vfioflow.events import BarrierEntered, BarrierPassed, RolledBack, StateChanged
from vfioflow.states import FLAG_SETS, State

P2P = FLAG_SETS[1]
PRE_COPY_ONLY = FLAG_SETS[2]


def cross(name, targets, **options):
    return asyncio.run(barrier.cross(name, targets, timeout=10, **options))


def test_all_changes_run_at_the_same_time(nothing_left):
    """Each change waits inside for all the others: one after the other would never end."""
    meet = threading.Barrier(8)
    devices = [FakeDevice(f"d{i}", meet=meet) for i in range(8)]
    crossing = cross("quiesce", [(d, State.RUNNING_P2P) for d in devices])
    assert {d.state for d in devices} == {State.RUNNING_P2P}
    assert set(crossing.moved) == {d.name for d in devices}
    assert all(m.start is State.RUNNING for m in crossing.moved.values())


def test_events_name_each_change_and_the_barrier():
    seen = []
    devices = [FakeDevice("a"), FakeDevice("b")]
    cross("quiesce", [(d, State.PRE_COPY_P2P) for d in devices], observer=seen.append)
    changes = [(e.device, e.start, e.end) for e in seen if isinstance(e, StateChanged)]
    assert changes == [
        ("a", State.RUNNING, State.PRE_COPY_P2P),
        ("b", State.RUNNING, State.PRE_COPY_P2P),
    ]
    assert [e.name for e in seen if isinstance(e, BarrierPassed)] == ["quiesce"]


def test_an_illegal_change_touches_nobody():
    journal = Journal()
    good, bad = FakeDevice("good", journal=journal), FakeDevice("bad", P2P, journal=journal)
    with pytest.raises(IllegalTransition, match="RUNNING -> PRE_COPY is refused"):
        cross("pre-copy", [(good, State.PRE_COPY), (bad, State.PRE_COPY)])
    assert journal.entries == []


def test_a_failure_waits_for_the_others_and_closes_their_fds(nothing_left):
    read, write = os.pipe()
    good = FakeDevice("good")
    good.fds = [write]
    bad = FakeDevice("bad", fail_at={State.RUNNING_P2P: (errno.EIO, State.RUNNING)})
    worse = FakeDevice("worse", fail_at={State.RUNNING_P2P: (errno.EBUSY, State.ERROR)})
    with pytest.raises(DeviceError, match="device bad: RUNNING -> RUNNING_P2P: EIO") as caught:
        cross("quiesce", [(d, State.RUNNING_P2P) for d in (good, bad, worse)])
    assert caught.value.errno == errno.EIO
    assert "device worse: RUNNING -> RUNNING_P2P: EBUSY" in caught.value.__notes__[0]
    assert good.state is State.RUNNING_P2P
    assert os.read(read, 1) == b""  # the new data fd of the good one was closed
    os.close(read)


def test_a_change_that_does_not_return_is_named():
    gate = threading.Event()
    stuck = FakeDevice("stuck", gate=gate)

    async def body():
        with pytest.raises(DeviceError, match=r"stuck: RUNNING -> STOP: ETIMEDOUT.*not back after"):
            await barrier.cross("stop", [(stuck, State.STOP)], timeout=0.01)

    try:
        asyncio.run(body())
    finally:
        gate.set()


def test_a_device_that_does_not_say_where_it_stands_is_named_and_holds_up_nobody():
    gate = threading.Event()

    class Silent(FakeDevice):
        @property
        def state(self):
            gate.wait(10)
            return State.RUNNING

        @state.setter
        def state(self, _):
            pass

    async def body():
        with pytest.raises(DeviceError, match=r"silent: ask for its state: ETIMEDOUT.*not back"):
            await barrier.cross("stop", [(Silent("silent"), State.STOP)], timeout=0.001)

    try:
        asyncio.run(body())
    finally:
        gate.set()


def test_cancelling_waits_for_the_changes(nothing_left):
    gate = threading.Event()
    devices = [FakeDevice("a", gate=gate), FakeDevice("b", gate=gate)]
    task = None

    def cancel(event):
        if isinstance(event, BarrierEntered):  # both changes are started before it is noticed
            task.cancel()
            gate.set()

    async def body():
        nonlocal task
        targets = [(d, State.STOP) for d in devices]
        task = asyncio.create_task(barrier.cross("stop", targets, timeout=10, observer=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        return [d.state for d in devices]

    assert asyncio.run(body()) == [State.STOP, State.STOP]


def back(devices, **options):
    return asyncio.run(barrier.back_to_running(devices, timeout=10, **options))


def at(device, state):
    device.state = state
    return device


def test_the_way_back_quiesces_all_before_any_runs():
    journal = Journal()
    devices = [
        at(FakeDevice("a", journal=journal), State.STOP_COPY),
        at(FakeDevice("b", journal=journal), State.STOP),
        at(FakeDevice("c", journal=journal), State.PRE_COPY_P2P),
        at(FakeDevice("d", P2P, journal=journal), State.STOP_COPY),
    ]
    assert back(devices) == {}
    assert {d.state for d in devices} == {State.RUNNING}
    ends = [(device, state) for what, device, state in journal.entries if what == "end"]
    first_running = next(i for i, (_, state) in enumerate(ends) if state is State.RUNNING)
    quiet = {device for device, state in ends[:first_running] if state is State.RUNNING_P2P}
    assert quiet == {"a", "b", "c", "d"}


@pytest.mark.parametrize("state", [State.RUNNING, State.PRE_COPY])
def test_a_device_that_runs_is_not_stopped_on_the_way_back(state):
    journal = Journal()
    device = at(FakeDevice("a", journal=journal), state)
    assert back([device]) == {}
    assert device.state is State.RUNNING
    assert [e for e in journal.entries if e[2] not in (State.RUNNING,)] == []


def test_a_device_without_p2p_goes_straight_back():
    device = at(FakeDevice("a", PRE_COPY_ONLY), State.STOP_COPY)
    assert back([device]) == {}
    assert device.state is State.RUNNING


def test_a_device_in_error_is_reset_and_said_so():
    seen = []
    device = at(FakeDevice("a"), State.ERROR)
    trouble = back([device], observer=seen.append)
    assert device.state is State.RUNNING
    assert device.resets == 1
    assert trouble["a"].startswith("reset after: ERROR -> RUNNING is refused")
    assert [e.device for e in seen if isinstance(e, RolledBack)] == ["a"]


def test_a_device_whose_fallback_fails_is_reset():
    device = at(
        FakeDevice("a", fail_at={State.RUNNING_P2P: (errno.EIO, State.STOP)}), State.STOP_COPY
    )
    seen = []
    assert "EIO" in back([device], observer=seen.append)["a"]
    assert device.state is State.RUNNING
    assert device.resets == 1
    assert [e.how[:11] for e in seen] == ["reset after"]


def test_a_device_that_cannot_even_be_reset_is_reported():
    bad = at(FakeDevice("bad", fail_reset=True), State.ERROR)
    good = at(FakeDevice("good"), State.STOP_COPY)
    trouble = back([bad, good])
    assert list(trouble) == ["bad"]
    assert "reset: EIO" in trouble["bad"]
    assert good.state is State.RUNNING


def test_reset_all_resets_each():
    devices = [
        at(FakeDevice("a"), State.RESUMING),
        at(FakeDevice("b", fail_reset=True), State.STOP),
    ]
    trouble = asyncio.run(barrier.reset_all(devices, timeout=10))
    assert devices[0].resets == 1
    assert list(trouble) == ["b"]


def test_states_for_a_report():
    class Silent(FakeDevice):
        @property
        def state(self):
            raise DeviceError(self.name, "asking its state", errno.ENODEV)

        @state.setter
        def state(self, value):
            pass

    found = asyncio.run(barrier.states([FakeDevice("a"), Silent("b")], timeout=10))
    assert found["a"] == "RUNNING"
    assert found["b"].startswith("unknown (device b")

"""What goes wrong, and that nothing is lost by it."""

import asyncio
import errno
import fcntl
import os
import re
import socket
import threading

import pytest
from session import assert_source_runs, assert_went_back, migrate, quiet_set

from vfioflow import (
    DeviceError,
    Fault,
    NoConvergence,
    PeerLost,
    Policy,
    ProtocolError,
    RemoteError,
    SimDevice,
    StallError,
    State,
)
from vfioflow import policy as policy_module
from vfioflow._fdio import Port
from vfioflow.events import BarrierPassed, Decided, Phase, PhaseEntered

S = State


SOURCE_FAULTS = [
    ("net0", "RUNNING->PRE_COPY"),
    ("net0", "PRE_COPY->PRE_COPY_P2P"),
    ("gpu1", "RUNNING->RUNNING_P2P"),
    ("net0", "PRE_COPY_P2P->STOP_COPY"),
    ("gpu1", "RUNNING_P2P->STOP"),
    ("gpu1", "STOP->STOP_COPY"),
    ("qat0", "PRE_COPY_P2P->STOP_COPY"),
]


@pytest.mark.parametrize("left", [None, S.ERROR], ids=["stays", "in ERROR"])
@pytest.mark.parametrize(("name", "arc"), SOURCE_FAULTS, ids=lambda v: str(v))
def test_a_failed_arc_at_the_source(devices, name, arc, left):
    fault = Fault(arc, "errno", errno=errno.EBUSY, state=left)
    source, _ = devices(lambda: quiet_set(name, [fault]))
    destination, _ = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination)
    error = outcome.source_error
    assert isinstance(error, DeviceError)
    assert error.device == name
    assert error.errno == errno.EBUSY
    assert arc.replace("->", " -> ") in str(error)
    if left is S.ERROR:
        # Only a reset brings it back, empty; the others keep their state.
        assert "reset after" in outcome.source.error
        assert {d.state for d in (*source, *destination)} == {S.RUNNING}
        after = {d.name: d.true_digest() for d in source}
        assert {n: v for n, v in after.items() if n != name} == {
            n: v for n, v in before.items() if n != name
        }
    else:
        assert_went_back(source, destination, before)
    assert outcome.source.outcome == "failed"
    assert isinstance(outcome.destination_error, RemoteError)
    assert name in str(outcome.destination_error)


@pytest.mark.parametrize(
    ("name", "arc", "code"),
    [
        ("net0", "STOP->RESUMING", errno.ENOMEM),
        ("gpu1", "RESUMING->STOP", errno.EIO),
        ("qat0", "RESUMING->STOP", errno.EIO),
        ("net0", "STOP->RUNNING_P2P", errno.EIO),
    ],
    ids=str,
)
def test_a_failed_arc_at_the_destination(devices, name, arc, code):
    source, _ = devices(quiet_set)
    destination, _ = devices(lambda: quiet_set(name, [Fault(arc, "errno", errno=code)]))
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination)
    assert isinstance(outcome.destination_error, DeviceError)
    assert outcome.destination_error.device == name
    assert isinstance(outcome.source_error, RemoteError)
    assert f"device {name}" in str(outcome.source_error)
    assert errno.errorcode[code] in str(outcome.source_error)
    assert_went_back(source, destination, before)


@pytest.mark.parametrize("offset", [0, 1, 1_000_000, 2_900_000])
def test_a_read_that_fails(devices, offset):
    source, _ = devices(
        lambda: quiet_set("net0", [Fault("read", "errno", errno=errno.EIO, offset=offset)])
    )
    destination, _ = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination)
    assert isinstance(outcome.source_error, DeviceError)
    assert outcome.source_error.device == "net0"
    assert "reading its state at byte" in str(outcome.source_error)
    assert "net0" in str(outcome.destination_error)
    assert_went_back(source, destination, before)


@pytest.mark.parametrize("name", ["net0", "gpu1"])
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EFAULT])
def test_a_write_that_fails(devices, name, code):
    source, _ = devices(quiet_set)
    destination, _ = devices(
        lambda: quiet_set(name, [Fault("write", "errno", errno=code, offset=500_000)])
    )
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination)
    assert isinstance(outcome.destination_error, DeviceError)
    assert outcome.destination_error.device == name
    assert "loading its state at byte" in str(outcome.destination_error)
    assert isinstance(outcome.source_error, RemoteError)
    assert f"device {name}: loading its state" in str(outcome.source_error)
    assert_went_back(source, destination, before)


@pytest.mark.parametrize("at", ["read", "write"])
@pytest.mark.parametrize("name", ["net0", "gpu1"])
def test_short_reads_and_writes_are_normal(devices, at, name):
    faulty, _ = devices(lambda: quiet_set(name, [Fault(at, "short", offset=70_000, once=False)]))
    good, _ = devices(quiet_set)
    pair = (faulty, good) if at == "read" else (good, faulty)
    outcome = migrate(*pair)
    assert outcome.source_error is None
    assert outcome.digests_match


@pytest.mark.parametrize("name", ["net0", "gpu1"])
def test_wrong_data_from_the_device_is_found_by_the_device(devices, name):
    """A bit flips before the engine sees it: its digest is right, the device's own check is not."""
    source, _ = devices(lambda: quiet_set(name, [Fault("read", "corrupt", offset=600_000)]))
    destination, _ = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination)
    assert isinstance(outcome.destination_error, DeviceError)
    assert outcome.destination_error.device == name
    assert isinstance(outcome.source_error, RemoteError)
    assert_went_back(source, destination, before)


@pytest.mark.parametrize(
    ("at", "side"), [("read", "source"), ("write", "destination")], ids=["read", "write"]
)
def test_a_device_that_hangs_ends_the_migration(devices, at, side):
    faulty, _ = devices(lambda: quiet_set("net0", [Fault(at, "hang", offset=100_000)]))
    good, _ = devices(quiet_set)
    source, destination = (faulty, good) if side == "source" else (good, faulty)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination, policy=Policy(downtime_limit=2.0, stall_timeout=0.5))
    assert isinstance(outcome.source_error, StallError | RemoteError)
    assert "device net0: nothing has moved for 0.5 s" in f"{outcome.source_error}" or (
        "not acknowledged the initial data" in str(outcome.source_error)
    )
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {S.RUNNING}


@pytest.mark.parametrize(
    ("side", "arc", "change"),
    [
        ("source", "PRE_COPY->PRE_COPY_P2P", "PRE_COPY -> PRE_COPY_P2P"),
        ("destination", "RESUMING->STOP", "RESUMING -> STOP"),
    ],
)
def test_a_change_that_never_returns_is_named_on_both_sides(devices, side, arc, change):
    """The session ends without the device that hangs; all others are put back."""
    faulty, _ = devices(lambda: quiet_set("net0", [Fault(arc, "hang")]))
    good, _ = devices(quiet_set)
    source, destination = (faulty, good) if side == "source" else (good, faulty)
    outcome = migrate(source, destination, policy=Policy(downtime_limit=2.0, stall_timeout=0.4))
    mine, other = outcome.source_error, outcome.destination_error
    if side == "destination":
        mine, other = other, mine
    assert isinstance(mine, DeviceError)
    assert (mine.device, mine.errno) == ("net0", errno.ETIMEDOUT)
    assert isinstance(other, RemoteError)
    for error in (mine, other):
        assert f"device net0: {change}: ETIMEDOUT" in str(error)
        assert "not back after 0.4 s" in str(error)
    running = {d.name for d in (*source, *destination) if d.state is S.RUNNING}
    assert running >= {"gpu1", "qat0"}
    assert all(d.state is S.RUNNING for d in (*source, *destination) if d not in faulty)


def test_a_set_that_does_not_converge_runs_on(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination, policy=Policy(downtime_limit=1e-6))
    assert isinstance(outcome.source_error, NoConvergence)
    assert "state changes and round trips alone take" in str(outcome.source_error)
    assert_went_back(source, destination, before)


def test_or_it_switches_over_if_the_user_says_so(devices):
    source, destination = devices(quiet_set)
    outcome = migrate(
        source, destination, policy=Policy(downtime_limit=1e-6, on_no_convergence="switchover")
    )
    assert outcome.source_error is None
    assert outcome.digests_match
    assert "as the policy says" in outcome.source.switchover_reason


def test_a_mark_and_an_end_may_overtake_each_other(devices):
    """A switchover before all initial bytes are sent marks and ends a stream at the same place."""
    for _ in range(20):
        source, destination = devices(
            lambda: [SimDevice("d", state_size=400_000, initial_bytes=300_000, seed=1)]
        )
        policy = Policy(
            channels=8,
            max_iterations=1,
            on_no_convergence="switchover",
            downtime_limit=0.001,
            chunk_size=4096,
            max_bandwidth=20_000_000,
        )
        outcome = migrate(source, destination, policy=policy)
        assert outcome.source_error is None
        assert outcome.digests_match


# ----------------------------------------------------------------- devices of others


class Blocking:
    """A device whose read does not return, whatever becomes of its session, until it is told to."""

    def __init__(self, device):
        self._device = device
        self.pipe = os.pipe()
        os.close(device.set_state(S.STOP_COPY))
        device.set_state(S.RUNNING)
        self.opened = False

    def __getattr__(self, name):
        return getattr(self._device, name)

    def set_state(self, state):
        self.opened = self.opened or state is S.STOP_COPY
        data_fd = self._device.set_state(state)
        if data_fd < 0:
            return -1
        os.close(data_fd)
        return self.pipe[0]

    def port(self, data_fd):
        port = Port(data_fd)
        fcntl.fcntl(data_fd, fcntl.F_SETFL, 0)  # as drivers that ignore O_NONBLOCK
        return port


def test_a_read_that_returns_too_late_writes_nowhere(devices):
    """Its channel's number may be somebody else's socket by then."""
    source, destination = devices(lambda: [SimDevice("d", profile="xe", state_size=4096, seed=1)])
    blocking = Blocking(source[0])
    outcome = migrate([blocking], destination, policy=Policy(downtime_limit=9.0, stall_timeout=0.3))
    assert isinstance(outcome.source_error, StallError)
    assert "device d: nothing has moved for 0.3 s" in str(outcome.source_error)
    pairs = [socket.socketpair() for _ in range(8)]
    os.write(blocking.pipe[1], b"late" * 100)
    os.close(blocking.pipe[1])
    for thread in threading.enumerate():
        if thread.name.startswith("vfioflow-"):
            thread.join(10)
            assert not thread.is_alive()
    for near, far in pairs:
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1)
        near.close()
        far.close()


@pytest.mark.parametrize("call", ["stop_copy_size", "precopy_info"])
def test_a_question_that_is_never_answered_is_a_stall(devices, call):
    source, destination = devices(quiet_set)
    answer = threading.Event()
    original = getattr(source[0], call)
    asked = []

    def silent(*args):
        asked.append(call)
        answer.wait(20)
        return original(*args)

    setattr(source[0], call, silent)
    try:
        outcome = migrate(source, destination, policy=Policy(downtime_limit=2.0, stall_timeout=0.3))
    finally:
        answer.set()
    assert asked
    assert isinstance(outcome.source_error, StallError)
    assert "device net0" in str(outcome.source_error)
    assert {d.state for d in source} == {S.RUNNING}


@pytest.mark.parametrize(
    ("result", "message"),
    [(None, "gave None where an fd or -1 is due"), (-1, "it gave no data fd")],
    ids=["None", "no fd"],
)
def test_a_device_that_breaks_the_protocol_is_named(devices, result, message):
    source, destination = devices(quiet_set)
    original = source[0].set_state

    def wrong(state):
        fd = original(state)
        if fd >= 0:
            os.close(fd)
        return result if state is S.PRE_COPY else fd

    source[0].set_state = wrong
    outcome = migrate(source, destination)
    assert isinstance(outcome.source_error, DeviceError)
    assert outcome.source_error.device == "net0"
    assert message in str(outcome.source_error)
    assert {d.state for d in source} == {S.RUNNING}


# ----------------------------------------------------------------- cancelling

MOMENTS = {
    "at the start": lambda side, e: e == PhaseEntered(Phase.CONNECT) and side == "source",
    "resuming": lambda side, e: isinstance(e, BarrierPassed) and e.name == "resuming",
    "pre-copy": lambda side, e: isinstance(e, BarrierPassed) and e.name == "pre-copy",
    "round": lambda side, e: isinstance(e, Decided) and e.iteration == 1,
    "quiesced": lambda side, e: isinstance(e, BarrierPassed) and e.name == "quiesce",
    "stopped": lambda side, e: isinstance(e, BarrierPassed) and e.name == "stop-copy",
    "validated": lambda side, e: isinstance(e, BarrierPassed) and e.name == "validate",
    "ready": lambda side, e: isinstance(e, BarrierPassed) and e.name == "ready",
}


@pytest.mark.parametrize(
    ("moment", "side"),
    [
        (moment, side)
        for moment in MOMENTS
        for side in ("source", "destination")
        # No session yet; or LOADED is as good as said, and the source decides.
        if (moment, side) not in (("at the start", "destination"), ("ready", "destination"))
    ],
)
def test_cancel_at_any_moment_before_the_commit(devices, moment, side):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination, cancel=MOMENTS[moment], cancel_side=side)
    cancelled, other = outcome.source_error, outcome.destination_error
    if side == "destination":
        cancelled, other = other, cancelled
    assert isinstance(cancelled, asyncio.CancelledError)
    assert_went_back(source, destination, before)
    if moment != "at the start":
        assert isinstance(other, RemoteError | PeerLost)
        assert "cancelled" in str(other)


def test_cancel_of_a_destination_that_has_loaded_comes_too_late(devices):
    source, destination = devices(quiet_set)
    outcome = migrate(source, destination, cancel=MOMENTS["ready"], cancel_side="destination")
    assert outcome.source_error is None
    assert isinstance(outcome.destination_error, asyncio.CancelledError)
    assert (outcome.source.outcome, outcome.destination.outcome) == ("completed", "completed")
    assert {d.state for d in source} == {S.STOP}
    assert {d.state for d in destination} == {S.RUNNING}


def test_cancel_after_the_commit_comes_too_late(devices):
    source, destination = devices(quiet_set)
    outcome = migrate(
        source,
        destination,
        cancel=lambda side, e: isinstance(e, BarrierPassed) and e.name == "resume",
    )
    assert isinstance(outcome.source_error, asyncio.CancelledError)
    assert outcome.source.outcome == "completed"
    assert {d.state for d in source} == {S.STOP}
    assert {d.state for d in destination} == {S.RUNNING}


def test_a_stream_beyond_what_was_offered_is_refused(devices, monkeypatch):
    monkeypatch.setattr(policy_module, "_LEAST_OFFERED", 0)
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination, policy=Policy(downtime_limit=2.0, stream_factor=0.5))
    assert isinstance(outcome.destination_error, ProtocolError)
    assert re.match(
        r"device \w+: \d+ bytes came, and at most \d+ are taken of one that was offered with \d+ ",
        str(outcome.destination_error),
    )
    assert str(outcome.destination_error) in str(outcome.source_error)
    assert_went_back(source, destination, before)

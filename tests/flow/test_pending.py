"""What the stack moves besides the devices: how it counts, in which order it is asked, how it fails."""

import asyncio
import threading

import pytest
from session import assert_source_runs, assert_went_back, migrate, quiet_set

from vfioflow import (
    AdmissionError,
    Fault,
    HookError,
    Hooks,
    PendingSource,
    Policy,
    RemoteError,
    State,
    events,
)

S = State
MIB = 1 << 20


class Ram:
    """A pending source of so many bytes, which moves them into nothing.  Notes what it is asked."""

    def __init__(self, size=64 * MIB, *, name="ram", dirty=0, devices=(), fail=None):
        self.name = name
        self.left = size
        self.moved = 100  # from an earlier try
        self.calls = []
        self._dirty = dirty
        self._devices = devices
        self._fail = fail

    def _note(self, step):
        self.calls.append((step, {device.state for device in self._devices}))
        if step == self._fail:
            raise OSError(f"no {step}")

    def estimate(self):
        self._note("estimate")
        return self.left

    def exact(self):
        self._note("exact")
        return self.left

    def iterate(self, budget):
        self._note("iterate")
        part = min(budget, self.left)
        self.moved += part
        self.left += self._dirty - part

    def complete(self):
        self._note("complete")
        self.moved += self.left
        self.left = 0

    def abort(self):
        self._note("abort")

    @property
    def steps(self):
        return [step for step, _ in self.calls]


class AsyncRam(Ram):
    """The same by coroutines."""

    async def iterate(self, budget):
        await asyncio.sleep(0)
        super().iterate(budget)

    async def complete(self):
        await asyncio.sleep(0)
        super().complete()

    async def abort(self):
        super().abort()


@pytest.mark.parametrize("kind", [Ram, AsyncRam])
def test_a_pending_source_takes_part_in_each_step(devices, kind):
    source, destination = devices(quiet_set)
    ram = kind(dirty=1000, devices=source)
    assert isinstance(ram, PendingSource)
    outcome = migrate(source, destination, pending=[ram])
    assert outcome.source.outcome == "completed"
    assert ram.left == 0
    steps = ram.steps
    assert steps[0] == "estimate"
    assert steps[-2:] == ["exact", "complete"]
    assert "abort" not in steps
    where = dict(ram.calls)
    assert where["iterate"] <= {S.PRE_COPY, S.RUNNING}
    assert where["complete"] == {S.STOP_COPY}
    [part] = outcome.source.pending
    assert (part.name, part.iterations) == ("ram", steps.count("iterate"))
    assert part.bytes_stopcopy == 1000
    assert part.bytes_precopy + part.bytes_stopcopy == ram.moved - 100
    assert outcome.source.bytes_total == sum(d.bytes_total for d in outcome.source.devices)


def test_it_is_asked_for_the_exact_size_only_when_the_estimates_fit(devices):
    source, destination = devices(quiet_set)
    ram = Ram(size=300 * MIB)
    seen = []

    def watch(side, event):
        if side == "source" and isinstance(event, events.Decided):
            seen.append((event.decision, "exact" in ram.steps))

    migrate(source, destination, pending=[ram], watch=watch, policy=Policy(downtime_limit=0.05))
    assert [asked for decision, asked in seen if decision.estimate > decision.threshold] == [
        False
    ] * sum(decision.estimate > decision.threshold for decision, _ in seen)
    assert seen[-1][1] is True
    assert seen[0][0].estimate >= 300 * MIB  # it counts as the devices do


def test_a_pending_source_alone_decides_how_long_it_takes(devices):
    """The devices would fit at once; what the stack has left does not, until it has moved it."""
    source, destination = devices(quiet_set)
    ram = Ram(size=1 << 40)
    rounds = []

    def watch(side, event):
        if side == "source" and isinstance(event, events.IterationDone):
            rounds.append(event)
            if event.iteration == 5:
                ram.left = 0

    outcome = migrate(source, destination, pending=[ram], watch=watch)
    assert outcome.source.outcome == "completed"
    assert len(rounds) >= 5


def test_several_move_side_by_side(devices):
    source, destination = devices(quiet_set)
    meet = threading.Barrier(2, timeout=20)

    class Meeting(Ram):
        def complete(self):
            meet.wait()
            super().complete()

    parts = [Meeting(name="ram"), Meeting(name="disk")]
    outcome = migrate(source, destination, pending=parts)
    assert outcome.source.outcome == "completed"
    assert [part.name for part in outcome.source.pending] == ["ram", "disk"]


@pytest.mark.parametrize("kind", [Ram, AsyncRam])
@pytest.mark.parametrize("step", ["estimate", "exact", "iterate", "complete"])
def test_one_that_fails_is_a_failed_migration(devices, step, kind):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    ram = kind(fail=step, dirty=10)
    vcpus = []
    outcome = migrate(
        source,
        destination,
        pending=[ram],
        source_hooks=Hooks(
            stop_vcpus=lambda: vcpus.append("stop"), start_vcpus=lambda: vcpus.append("start")
        ),
    )
    assert isinstance(outcome.source_error, HookError)
    assert str(outcome.source_error) == f"the pending source ram: {step} failed: no {step}"
    assert ram.steps[-1] == "abort"
    assert ram.steps.count("abort") == 1
    assert vcpus == (["stop", "start"] if step == "complete" else [])
    assert_went_back(source, destination, before)


def test_it_is_told_to_abort_when_something_else_fails(devices):
    source, _ = devices(quiet_set)
    destination, _ = devices(lambda: quiet_set("gpu1", [Fault("RESUMING->STOP", "errno")]))
    ram = Ram(devices=source, fail="abort")
    outcome = migrate(source, destination, pending=[ram])
    assert isinstance(outcome.source_error, RemoteError)
    assert ram.calls[-1] == ("abort", {S.RUNNING})
    assert "the pending source ram: abort failed: no abort" in outcome.source_error.__notes__
    assert_source_runs(source)


@pytest.mark.parametrize("size", [-1, 1.5, None])
def test_a_size_that_is_none(devices, size):
    source, destination = devices(quiet_set)
    ram = Ram()
    ram.estimate = lambda: size
    outcome = migrate(source, destination, pending=[ram])
    assert isinstance(outcome.source_error, HookError)
    assert str(outcome.source_error) == (
        f"the pending source ram: estimate gave {size!r}, no size in bytes"
    )
    assert_source_runs(source)


def test_one_that_hangs_is_a_stall_and_abort_frees_it(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}

    class Hangs(Ram):
        freed = threading.Event()

        def complete(self):
            self.freed.wait()

        def abort(self):
            super().abort()
            self.freed.set()

    ram = Hangs()
    outcome = migrate(
        source, destination, pending=[ram], policy=Policy(downtime_limit=2.0, stall_timeout=0.5)
    )
    assert "pending source ram: nothing has moved for 0.5 s" in str(outcome.source_error)
    assert ram.steps.count("abort") == 1
    assert_went_back(source, destination, before)


def test_a_coroutine_that_hangs_is_cancelled(devices):
    source, destination = devices(quiet_set)
    ends = []

    class Hangs(AsyncRam):
        async def iterate(self, budget):
            try:
                await asyncio.Event().wait()
            finally:
                ends.append("iterate")

    ram = Hangs()
    outcome = migrate(
        source, destination, pending=[ram], policy=Policy(downtime_limit=2.0, stall_timeout=0.5)
    )
    assert "pending source ram: nothing has moved for 0.5 s" in str(outcome.source_error)
    assert ends == ["iterate"]
    assert_source_runs(source)


def test_a_coroutine_that_is_cancelled_by_others_is_a_failure(devices):
    source, destination = devices(quiet_set)

    class Cancels(AsyncRam):
        async def complete(self):
            raise asyncio.CancelledError

    outcome = migrate(source, destination, pending=[Cancels()])
    assert isinstance(outcome.source_error, HookError)
    assert outcome.source.outcome == "failed"
    assert_source_runs(source)


def test_cancelling_ends_what_it_does(devices):
    source, destination = devices(quiet_set)
    at_work = threading.Event()

    class Slow(Ram):
        freed = threading.Event()

        def iterate(self, budget):
            at_work.set()
            self.freed.wait()

        def abort(self):
            super().abort()
            self.freed.set()

    ram = Slow()
    sources = []

    def watch(side, event):
        if isinstance(event, events.Progress) and at_work.is_set():
            sources[0].cancel()

    outcome = migrate(source, destination, pending=[ram], watch=watch, began=sources.append)
    assert isinstance(outcome.source_error, asyncio.CancelledError)
    assert ram.steps.count("abort") == 1
    assert_source_runs(source)


def test_a_name_that_a_device_has_is_refused(devices):
    source, destination = devices(quiet_set)
    ram = Ram(name="net0")
    outcome = migrate(source, destination, pending=[ram])
    assert isinstance(outcome.source_error, AdmissionError)
    assert "a pending source needs a name that nothing else has" in str(outcome.source_error)
    assert set(ram.steps) <= {"abort"}

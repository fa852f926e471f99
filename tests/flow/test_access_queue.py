"""Sets with devices that have no P2P states: what is written to them while they stand still."""

import asyncio

import pytest
from session import assert_source_runs, migrate

from vfioflow import (
    AdmissionError,
    ConfigError,
    Fault,
    HandoverInDoubt,
    Hooks,
    IntegrityError,
    Journal,
    Policy,
    RemoteError,
    SimDevice,
    State,
    events,
)
from vfioflow.access import SimTrap, Trap
from vfioflow.devices.sim import ledger
from vfioflow.errors import AccessError
from vfioflow.listener import listen
from vfioflow.source import Source

MIB = 1 << 20
S = State
ON = Policy(downtime_limit=5.0, access_queue="writes")
FLAGS = {"p": ["STOP_COPY", "P2P", "PRE_COPY"], "n": ["STOP_COPY"], "c": ["STOP_COPY", "PRE_COPY"]}
SLOW = {"RUNNING->STOP": 0.01, "STOP->RUNNING": 0.01}


def mixed(kinds, faulty="", faults=()):
    """A device for each letter: with the P2P states, without, and without but with pre-copy."""
    return lambda: [
        SimDevice(
            f"d{number}",
            profile="generic",
            flags=FLAGS[kind],
            state_size=MIB,
            seed=number,
            p2p_rate=20_000,
            arc_seconds=SLOW if kind != "p" else {},
            faults=faults if f"d{number}" == faulty else (),
        )
        for number, kind in enumerate(kinds)
    ]


class Blind(SimTrap):
    """Traps nothing."""

    def arm(self, devices, queue):
        pass


class Watched(SimTrap):
    """Notes what is done, and where the devices are then."""

    def __init__(self, devices, **options):
        super().__init__(devices, **options)
        self.calls = []

    def _note(self, step):
        self.calls.append((step, {n: d.state for n, d in self._devices.items()}))

    def arm(self, devices, queue):
        self._note("arm")
        super().arm(devices, queue)

    def deliver(self, access):
        self._note("deliver")
        super().deliver(access)

    def disarm(self, devices):
        self._note("disarm")
        return super().disarm(devices)


@pytest.mark.parametrize("kinds", ["pp", "pn", "np", "nn", "cc", "pnc", "ppn", "nnnn", "cpcp"])
def test_no_message_is_lost_and_none_comes_twice(devices, kinds):
    source, destination = devices(mixed(kinds))
    outcome = migrate(source, destination, policy=ON)
    assert (outcome.source.outcome, outcome.source.error) == ("completed", None)
    found = ledger(destination)
    assert found.differences == ()
    assert found.messages > 0
    assert outcome.digests_match
    # One that stands still among others that are quiet is written to by nobody.
    assert (outcome.source.accesses > 0) == (len(kinds.replace("p", "")) > 1)
    assert outcome.destination.accesses >= outcome.source.accesses
    assert ("replay" in outcome.source.steps_ms) == (set(kinds) != {"p"})


@pytest.mark.parametrize("kinds", ["nn", "pnc", "cc"])
def test_without_the_trap_messages_are_lost(devices, kinds):
    """The same devices, in the same order, and nobody who keeps what is written to them."""
    source, destination = devices(mixed(kinds))
    outcome = migrate(
        source, destination, policy=ON, trap=Blind(source), trap_there=Blind(destination)
    )
    assert outcome.source.outcome == "completed"
    assert "lost" in " ".join(ledger(destination).differences)


def test_in_which_order_devices_stop_and_run(devices):
    source, destination = devices(mixed("pnpc"))
    here, there = Watched(source), Watched(destination)
    outcome = migrate(source, destination, policy=ON, trap=here, trap_there=there)
    order = [entry for entry in outcome.order if entry[1] == "barrier"]
    assert [name for side, _, name in order if side == "source"] == [
        *("pre-copy", "quiesce", "stop", "stop-copy", "release")
    ]
    assert [name for side, _, name in order if side == "destination"] == [
        *("resuming", "validate", "ready", "resume", "resume-p2p")
    ]
    p2p, runs = S.PRE_COPY_P2P, S.RUNNING
    assert here.calls == [("arm", {"d0": p2p, "d1": runs, "d2": p2p, "d3": S.PRE_COPY})]
    quiet = {"d0": S.RUNNING_P2P, "d1": runs, "d2": S.RUNNING_P2P, "d3": runs}
    assert outcome.destination.accesses > 0
    assert there.calls[1:] == [
        *[("deliver", quiet)] * outcome.destination.accesses,
        ("disarm", quiet),
    ]


def test_a_migration_that_fails_replays_at_the_source(devices):
    source, _ = devices(mixed("pnn"))
    destination, _ = devices(mixed("pnn", "d1", [Fault("RESUMING->STOP", "errno")]))
    here, there = Watched(source), Watched(destination)
    outcome = migrate(source, destination, policy=ON, trap=here, trap_there=there)
    assert isinstance(outcome.source_error, RemoteError)
    assert_source_runs(source)
    delivered = [states for step, states in here.calls if step == "deliver"]
    assert delivered
    assert {(s["d0"], s["d1"], s["d2"]) for s in delivered} == {
        (S.RUNNING_P2P, S.RUNNING, S.RUNNING)
    }
    assert "deliver" not in [step for step, _ in there.calls]


@pytest.mark.parametrize("event", ["quiesce", "stop", "stop-copy"])
def test_cancelled_in_the_window(devices, event):
    source, destination = devices(mixed("pnc"))

    def cancel(side, seen):
        return side == "source" and isinstance(seen, events.BarrierPassed) and seen.name == event

    outcome = migrate(source, destination, policy=ON, cancel=cancel)
    assert isinstance(outcome.source_error, asyncio.CancelledError)
    assert_source_runs(source)


def test_the_next_migration_of_the_same_devices(devices):
    """The trap is open again: what is sent now arrives at once."""
    source, destination = devices(mixed("pn"))

    def cancel(side, seen):
        return (
            side == "source" and isinstance(seen, events.BarrierPassed) and seen.name == "stop-copy"
        )

    migrate(source, destination, policy=ON, cancel=cancel)
    assert_source_runs(source)
    assert migrate(source, destination, policy=ON).source.outcome == "completed"
    assert ledger(destination).balanced


# ------------------------------------------------------------------------------- bounds


def test_more_than_the_queue_holds_is_a_failed_migration(devices):
    """Nothing is lost even so: who would have written waits."""
    source, destination = devices(mixed("pnn"))
    policy = Policy(downtime_limit=5.0, access_queue="writes", access_limit=1)
    outcome = migrate(source, destination, policy=policy)
    assert isinstance(outcome.source_error, AccessError)
    assert "more accesses to stopped devices than the queue holds (1 writes" in str(
        outcome.source_error
    )
    assert_source_runs(source)


def test_the_fabric_s_own_bound_makes_senders_wait(devices):
    source, destination = devices(mixed("pnn"))
    trap = SimTrap(source, room=2)
    outcome = migrate(source, destination, policy=ON, trap=trap)
    assert outcome.source.outcome == "completed"
    assert outcome.source.accesses == 2
    assert ledger(destination).balanced


def test_what_comes_after_the_commit_is_told(devices):
    """It should not: then it is in the report, and whoever made it hears."""
    source, destination = devices(mixed("nn"))
    traps, errors = [], []

    class Kept(SimTrap):
        def arm(self, devices, queue):
            traps.append(queue)
            super().arm(devices, queue)

    def watch(side, event):
        if side == "source" and isinstance(event, events.Committed):
            traps[0].write("d1", 0, 0, bytes(8), "d0")
        if (
            side == "source"
            and isinstance(event, events.PhaseEntered)
            and event.phase is events.Phase.DONE
        ):
            with pytest.raises(AccessError, match="device d1: it runs elsewhere now"):
                traps[0].write("d1", 0, 0, bytes(8), "d0")
            errors.append(True)

    outcome = migrate(source, destination, policy=ON, trap=Kept(source), watch=watch)
    late = "migrated, but device d1 was written to after everything had stopped"
    assert (outcome.source.outcome, outcome.source.error) == ("completed", late)
    assert errors == [True]


# ------------------------------------------------------------------------------ refusals


def test_it_is_off_unless_asked_for(devices):
    source, destination = devices(mixed("pn"))
    outcome = migrate(source, destination)
    assert isinstance(outcome.source_error, AdmissionError)
    assert set(outcome.source_error.reasons) == {"d1"}
    assert "no P2P states" in outcome.source_error.reasons["d1"]


class Other:
    """A device that is none of the simulated ones."""

    def __init__(self, device):
        self._device = device

    def __getattr__(self, name):
        return getattr(self._device, name)


def test_devices_of_a_vmm_need_its_trap(devices):
    source, destination = devices(mixed("pn"))
    outcome = migrate([Other(d) for d in source], destination, policy=ON)
    assert isinstance(outcome.source_error, ConfigError)
    assert "migrate(trap=...)" in str(outcome.source_error)
    assert_source_runs(source)
    outcome = migrate(source, [Other(d) for d in destination], policy=ON)
    assert isinstance(outcome.source_error, AdmissionError)
    assert "listen(trap=...)" in outcome.source_error.reasons["d1"]
    assert_source_runs(source)


class Failing(SimTrap):
    def __init__(self, devices, step):
        super().__init__(devices)
        self._step = step

    def _fail(self, step):
        if step == self._step:
            raise AccessError("d1", f"cannot {step}")

    def arm(self, devices, queue):
        self._fail("arm")
        super().arm(devices, queue)

    def deliver(self, access):
        self._fail("deliver")
        super().deliver(access)


def test_a_trap_that_cannot_be_armed(devices):
    source, destination = devices(mixed("pn"))
    assert isinstance(Failing(source, ""), Trap)
    outcome = migrate(source, destination, policy=ON, trap=Failing(source, "arm"))
    assert str(outcome.source_error) == "device d1: cannot arm"
    assert_source_runs(source)
    outcome = migrate(source, destination, policy=ON, trap_there=Failing(destination, "arm"))
    assert "device d1: cannot arm" in str(outcome.source_error)
    assert_source_runs(source)
    assert {d.state for d in destination} == {S.RUNNING}


def test_a_replay_that_fails_after_the_commit_is_in_doubt(devices):
    source, destination = devices(mixed("nn"))
    outcome = migrate(source, destination, policy=ON, trap_there=Failing(destination, "deliver"))
    assert isinstance(outcome.source_error, HandoverInDoubt)
    assert "device d1: cannot deliver" in str(outcome.destination_error)
    assert {d.state for d in source} == {S.STOP_COPY}


class Careless(SimTrap):
    """Raises what it should not."""

    def disarm(self, devices):
        raise ValueError("no such thing")


def test_whatever_a_trap_raises_the_devices_are_put_back(devices):
    source, _ = devices(mixed("nn"))
    destination, _ = devices(mixed("nn", "d1", [Fault("STOP->RUNNING", "errno")]))
    before = {d.name: d.true_digest() for d in source}

    def stop():
        raise RuntimeError("late")

    hooks = Hooks(after=lambda phase: stop() if str(phase) == "stop-copy" else None)
    outcome = migrate(
        source,
        destination,
        policy=ON,
        source_hooks=hooks,
        trap=Careless(source),
        trap_there=Careless(destination),
    )
    note = "what was queued for it was not replayed: the trap failed to replay: no such thing"
    assert f"device d0: {note}" in outcome.source_error.__notes__
    assert {d.state for d in source} == {S.RUNNING}
    assert {d.state for d in destination} == {S.RUNNING}
    assert before == {d.name: d.true_digest() for d in source}


def test_a_replay_that_fails_at_the_source_is_a_note(devices):
    source, _ = devices(mixed("nn"))
    destination, _ = devices(mixed("nn", "d1", [Fault("RESUMING->STOP", "errno")]))
    outcome = migrate(source, destination, policy=ON, trap=Failing(source, "deliver"))
    assert isinstance(outcome.source_error, RemoteError)
    note = "what was queued for it was not replayed: device d1: cannot deliver"
    assert f"device d1: {note}" in outcome.source_error.__notes__
    assert {d.state for d in source} == {S.RUNNING}


def test_a_device_that_takes_nothing_keeps_nothing_from_the_others(devices):
    source, _ = devices(mixed("nnn"))
    destination, _ = devices(mixed("nnn", "d1", [Fault("RESUMING->STOP", "errno")]))

    class Deaf(SimTrap):
        def deliver(self, access):
            if access.device == "d1":
                raise OSError("it does not listen")
            super().deliver(access)

    outcome = migrate(source, destination, policy=ON, trap=Deaf(source))
    note = "what was queued for it was not replayed: it does not listen"
    assert outcome.source_error.__notes__ == [f"device d1: {note}"]
    lost = ledger(source).differences
    assert lost
    assert {each.split(":")[0] for each in lost} <= {"d0 -> d1", "d2 -> d1"}
    assert all(device.core.disarm() for device in source), "something is kept yet"


def test_a_destination_that_got_something_else_is_noticed(devices, monkeypatch):
    from vfioflow.access import codec

    source, destination = devices(mixed("nn"))
    true = codec.parts
    monkeypatch.setattr(codec, "parts", lambda data: true(codec.encode(codec.Held())))
    outcome = migrate(source, destination, policy=ON)
    assert isinstance(outcome.source_error, IntegrityError)
    assert "queued accesses" in str(outcome.source_error)
    assert_source_runs(source)


# ------------------------------------------------------------------------- the journal


def test_a_destination_that_died_replays_from_its_journal(devices, tmp_path):
    """Its process ends between COMMITTED and the first device that runs; the next one goes on."""
    source, destination = devices(mixed("nn"))
    journals = Journal(tmp_path / "here"), Journal(tmp_path / "there")

    class Died(BaseException):
        pass

    async def body():
        async with listen(
            "tcp://127.0.0.1:0", destination, policy=ON, journal=journals[1]
        ) as listener:
            sender = Source(source, listener.address, policy=ON, journal=journals[0])
            sending = asyncio.create_task(sender.run())
            session = await listener.next_session()

            async def dies(devices, control):
                raise Died

            session._take_over = dies
            with pytest.raises(Died):
                await session.run()
            address = listener.address
        async with listen(
            address, destination, policy=ON, journal=Journal(tmp_path / "there")
        ) as listener:
            revived = await listener.next_session()
            there = await revived.run()
            return await sending, there

    here, there = asyncio.run(body())
    assert here.outcome == there.outcome == "completed"
    assert there.accesses >= here.accesses > 0
    assert {d.state for d in destination} == {S.RUNNING}
    assert ledger(destination).balanced


def test_hooks_see_the_vcpus_start_after_the_replay(devices):
    source, destination = devices(mixed("nn"))
    there = Watched(destination)
    seen = []
    hooks = Hooks(start_vcpus=lambda: seen.append([step for step, _ in there.calls][-1]))
    migrate(source, destination, policy=ON, hooks=hooks, trap_there=there)
    assert seen == ["disarm"]

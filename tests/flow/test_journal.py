"""Migrations with a journal in one process: what is recorded, and what happens where it cannot be."""

import asyncio
import errno

import pytest
from session import assert_source_runs, quiet_set

from vfioflow import (
    AdmissionError,
    HandoverInDoubt,
    Journal,
    JournalError,
    Policy,
    RemoteError,
    State,
    TakenBack,
    VfioflowError,
    listen,
    migrate,
)
from vfioflow.journal import Entry
from vfioflow.story import Step

SESSION = "b7"


class Failing:
    """The disk is full where ``role`` records ``step``; ``ever``: DISCARDED and BACK too."""

    def __init__(self, monkeypatch, role, step, *, ever=False):
        record = Entry._record

        def failing(entry, wanted):
            late = ever and wanted.step in (Step.DISCARDED, Step.BACK)
            if entry.role == role and (wanted.step is step or late):
                raise JournalError(entry.path, f"cannot record {wanted.step}", errno.ENOSPC, "x")
            record(entry, wanted)

        monkeypatch.setattr(Entry, "_record", failing)


@pytest.fixture
def run(devices, tmp_path):
    """Migrate with a journal on each side: both sets, both errors."""
    source, destination = devices(quiet_set)
    policy = Policy(downtime_limit=5.0, resolve_timeout=1.0)

    async def one(work):
        try:
            await work
        except VfioflowError as error:
            return error
        return None

    async def both():
        async with listen(
            "tcp://127.0.0.1:0", destination, policy=policy, journal=Journal(tmp_path / "there")
        ) as listener:
            taking = asyncio.create_task(one(listener.receive()))
            here = await one(
                migrate(
                    source,
                    listener.address,
                    policy=policy,
                    journal=Journal(tmp_path / "here"),
                    session=SESSION,
                )
            )
            await asyncio.wait({taking}, timeout=5)
            if not taking.done():  # the source never got there
                taking.cancel()
                await asyncio.wait({taking})
                return here, None
            return here, taking.result()

    before = {d.name: d.true_digest() for d in source}
    return lambda: (source, destination, before, *asyncio.run(both()))


@pytest.fixture
def steps(tmp_path):
    def find():
        found = []
        for place, role in (("here", "source"), ("there", "destination")):
            story = Journal(tmp_path / place).find(SESSION, role)
            found.append([r.step.value for r in story.records] if story else [])
        return found

    return find


def test_what_a_migration_records(run, steps):
    source, destination, _, here, there = run()
    assert (here, there) == (None, None)
    assert {d.state for d in source} == {State.STOP}
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [
        ["BEGUN", "COMMITTED", "RELEASED"],
        ["BEGUN", "LOADED", "COMMITTED", "RUNNING", "TOLD"],
    ]


def test_the_sources_journal_fails_at_the_begin(run, steps, monkeypatch):
    Failing(monkeypatch, "source", Step.BEGUN)
    source, destination, before, here, there = run()
    assert isinstance(here, JournalError)
    assert there is None
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [[], []]


def test_the_destinations_journal_fails_at_the_begin(run, steps, monkeypatch):
    Failing(monkeypatch, "destination", Step.BEGUN)
    source, destination, before, here, there = run()
    assert isinstance(here, RemoteError)
    assert isinstance(there, JournalError)
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [["BEGUN", "BACK"], []]


def test_the_destinations_journal_fails_at_loaded(run, steps, monkeypatch):
    Failing(monkeypatch, "destination", Step.LOADED)
    source, destination, before, here, there = run()
    assert isinstance(here, RemoteError)
    assert "cannot record LOADED" in str(here)
    assert isinstance(there, JournalError)
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [["BEGUN", "BACK"], ["BEGUN", "DISCARDED"]]


def test_the_sources_journal_fails_at_committed(run, steps, monkeypatch):
    Failing(monkeypatch, "source", Step.COMMITTED)
    source, destination, before, here, there = run()
    assert isinstance(here, JournalError)
    assert isinstance(there, RemoteError)
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [["BEGUN", "BACK"], ["BEGUN", "LOADED", "DISCARDED"]]


def test_the_destinations_journal_fails_at_committed(run, steps, monkeypatch):
    """Nothing runs there yet: it makes sure that nothing ever will, and the source goes on."""
    Failing(monkeypatch, "destination", Step.COMMITTED)
    source, destination, before, here, there = run()
    assert isinstance(here, TakenBack)
    assert "cannot record COMMITTED" in str(here)
    assert isinstance(there, JournalError)
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [
        ["BEGUN", "COMMITTED", "TAKEN_BACK"],
        ["BEGUN", "LOADED", "DISCARDED"],
    ]


def test_a_destination_that_cannot_record_any_more_keeps_the_state(run, steps, monkeypatch):
    """COMMITTED may be on its disk: a process that comes back there would run."""
    Failing(monkeypatch, "destination", Step.COMMITTED, ever=True)
    source, destination, _, here, there = run()
    assert isinstance(here, HandoverInDoubt)
    assert isinstance(there, HandoverInDoubt)
    assert {d.state for d in source} == {State.STOP_COPY}
    assert {d.state for d in destination} == {State.RUNNING_P2P}
    assert steps() == [["BEGUN", "COMMITTED"], ["BEGUN", "LOADED"]]


def test_a_source_that_cannot_record_any_more_waits_for_the_promise(run, steps, monkeypatch):
    """COMMITTED may be on its disk: its devices run again because the destination discarded."""
    Failing(monkeypatch, "source", Step.COMMITTED, ever=True)
    source, destination, before, here, there = run()
    assert isinstance(here, JournalError)
    assert isinstance(there, RemoteError)
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}
    assert steps() == [["BEGUN"], ["BEGUN", "LOADED", "DISCARDED"]]


def test_what_cannot_be_recorded_afterwards_changes_nothing(run, steps, monkeypatch):
    Failing(monkeypatch, "destination", Step.RUNNING)
    source, destination, _, here, there = run()
    assert (here, there) == (None, None)
    assert {d.state for d in destination} == {State.RUNNING}
    assert {d.state for d in source} == {State.STOP}
    assert steps()[1] == ["BEGUN", "LOADED", "COMMITTED"]


def assert_refuses(devices, there, here, error):
    """A destination with this journal refuses the set, in these words, and nothing was touched."""
    source, destination = devices(quiet_set)

    async def body():
        async with listen("tcp://127.0.0.1:0", destination, journal=there) as listener:
            taking = asyncio.create_task(listener.receive())
            with here:
                await migrate(source, listener.address, session=SESSION)
            with pytest.raises(error):
                await taking

    asyncio.run(body())
    assert_source_runs(source)
    assert {d.state for d in destination} == {State.RUNNING}


def test_a_session_is_migrated_once(devices, tmp_path):
    """Its name is taken at the destination too, whatever became of the source's journal."""
    there = Journal(tmp_path)
    there.begin(SESSION, "destination", "tcp://there:1", {"nic9": True}).close()
    here = pytest.raises(RemoteError, match="known already, and BEGUN")
    assert_refuses(devices, there, here, JournalError)


def test_devices_of_a_session_that_is_in_doubt_are_not_free(devices, tmp_path):
    there = Journal(tmp_path)
    names = {name: name == "net0" for name in ("net0", "gpu1", "qat0")}
    with there.begin("a1", "destination", "tcp://there:1", names) as entry:
        entry.record(Step.LOADED, states=dict.fromkeys(names, "RUNNING_P2P"))
    here = pytest.raises(AdmissionError, match="session a1 has it, LOADED and not ended")
    assert_refuses(devices, there, here, AdmissionError)


def test_devices_that_died_with_their_process_are_free_again(run, steps, tmp_path):
    there = Journal(tmp_path / "there")
    names = dict.fromkeys(["net0", "gpu1", "qat0"], False)
    with there.begin("a1", "destination", "tcp://there:1", names) as entry:
        entry.record(Step.LOADED, states=dict.fromkeys(names, "RUNNING_P2P"))
    *_, here, there_error = run()
    assert (here, there_error) == (None, None)
    assert there.find("a1", "destination").reason == "its devices died with the process"


def test_without_a_journal_a_destination_that_forgot_says_nothing(devices, tmp_path):
    """It may have run, for all that it knows."""
    source, destination = devices(quiet_set)
    here = Journal(tmp_path / "here")
    with here.begin(SESSION, "source", "tcp://there:1", {d.name: False for d in source}) as entry:
        entry.record(Step.COMMITTED)

    async def body():
        async with listen("tcp://127.0.0.1:0", destination) as listener:
            with pytest.raises(HandoverInDoubt, match="there is no journal"):
                await migrate(source, listener.address, journal=here, session=SESSION)

    asyncio.run(body())
    assert here.find(SESSION, "source").step is Step.COMMITTED


def test_a_listener_that_is_closed_leaves_what_nobody_took_over(devices, tmp_path):
    _, destination = devices(quiet_set)
    journal = Journal(tmp_path / "there")
    states = {}
    for device in destination:
        device.set_state(State.STOP)
        states[device.name] = str(device.state)
    names = dict.fromkeys(states, True)
    with journal.begin(SESSION, "destination", "tcp://there:1", names) as entry:
        entry.record(Step.LOADED, states=states)
        entry.record(Step.COMMITTED)

    async def body():
        async with listen("tcp://127.0.0.1:0", destination, journal=journal):
            assert journal.is_held(journal.find(SESSION, "destination"))

    asyncio.run(body())
    story = journal.find(SESSION, "destination")
    assert story.step is Step.COMMITTED
    assert not journal.is_held(story)

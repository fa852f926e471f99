"""Devices that have gone on since a session ended; entries that nobody has any more."""

import asyncio
import errno
import os
import threading

import pytest
from kept import KeptDevice
from proxy import Proxy

from vfioflow import (
    AdmissionError,
    HookError,
    Hooks,
    Journal,
    JournalError,
    Policy,
    Security,
    SimDevice,
    StallError,
    State,
    TakenBack,
    VfioflowError,
    listen,
    migrate,
)
from vfioflow import journal as journal_module
from vfioflow.past import Past
from vfioflow.story import Step
from vfioflow.wire import messages

KEPT = {"nic0": True}
BRIEF = Policy(connect_timeout=2.0, resolve_timeout=2.0)


@pytest.fixture
def kept(tmp_path):
    """A device of each side whose state outlives the process, and a journal of each."""
    for side in ("here", "there"):
        (tmp_path / side).mkdir()
    return (
        KeptDevice.make(tmp_path / "here", "nic0", "x" * 65536),
        KeptDevice.make(tmp_path / "there", "nic0", ""),
        Journal(tmp_path / "journal-here"),
        Journal(tmp_path / "journal-there"),
    )


def test_an_ended_session_whose_device_has_moved_since_moves_nothing(kept):
    """It would make both sides run."""
    here, there, journal, journal_there = kept
    calls = []

    def refuses():
        raise RuntimeError("not now")

    async def body():
        async with listen(
            "tcp://127.0.0.1:0", [there], policy=BRIEF, journal=journal_there
        ) as listener:

            async def go(session, **hooks):
                await migrate(
                    [here],
                    listener.address,
                    policy=BRIEF,
                    journal=journal,
                    session=session,
                    hooks=Hooks(**hooks),
                )

            taking = asyncio.create_task(listener.receive())
            with pytest.raises(HookError):
                await go("b7", stop_vcpus=refuses)
            with pytest.raises(VfioflowError):
                await taking
            taking = asyncio.create_task(listener.receive())
            await go("b8")
            await taking
            with pytest.raises(
                AdmissionError, match="session b8 has had it since, and is RELEASED"
            ):
                await go("b7", start_vcpus=lambda: calls.append("start"))

    asyncio.run(body())
    assert (here.state, there.state, calls) == (State.STOP, State.RUNNING, [])


@pytest.mark.parametrize("role", ["source", "destination"])
def test_an_ended_session_leaves_a_device_alone_that_another_is_at_work_on(kept, role):
    here, _, journal, _ = kept
    with journal.begin("b7", "source", "tcp://there:1", KEPT) as entry:
        entry.record(Step.COMMITTED)
        entry.record(Step.RELEASED)
    here.set_state(State.STOP_COPY)
    with (
        journal.begin("b9", role, "tcp://there:1", KEPT),
        pytest.raises(AdmissionError, match="session b9 has had it since, and is BEGUN"),
    ):
        asyncio.run(migrate([here], "tcp://127.0.0.1:1", journal=journal, session="b7"))
    assert here.state is State.STOP_COPY


def test_what_an_ended_session_left_half_done_is_done(kept):
    """Its process died between the record and the devices."""
    here, _, journal, _ = kept
    calls = []
    hooks = Hooks(start_vcpus=lambda: calls.append("start"))
    with journal.begin("b7", "source", "tcp://127.0.0.1:1", KEPT) as entry:
        entry.record(Step.COMMITTED)
        entry.record(Step.TAKEN_BACK, reason="x")
    here.set_state(State.STOP_COPY)
    for _ in range(2):  # the second time there is nothing left to do
        with pytest.raises(TakenBack):
            asyncio.run(
                migrate([here], "tcp://127.0.0.1:1", journal=journal, session="b7", hooks=hooks)
            )
        assert here.state is State.RUNNING
        assert calls == ["start"]


def begins(device, journal):
    async def body():
        async with listen("tcp://127.0.0.1:0", [device], journal=journal):
            pass

    asyncio.run(body())


def discarded(journal):
    with journal.begin("d1", "destination", "tcp://x:1", KEPT) as entry:
        entry.record(Step.DISCARDED, reason="old")


def test_what_a_discarded_session_left_is_reset(kept):
    """Its process died before it had done that."""
    _, there, _, journal = kept
    discarded(journal)
    there._keep(State.RUNNING_P2P, "leftover")
    begins(there, journal)
    assert (there.state, there.content) == (State.RUNNING, "")


@pytest.mark.parametrize("how", ["by hand", "a source in doubt", "a source that is back"])
def test_what_a_later_session_decided_about_it_stays(kept, how):
    _, there, _, journal = kept
    discarded(journal)
    state = State.STOP_COPY
    role = "destination" if how == "by hand" else "source"
    with journal.begin("d2", role, "tcp://x:1", KEPT) as entry:
        if how == "by hand":
            state = State.RUNNING_P2P
            entry.record(Step.LOADED, states={"nic0": "RUNNING_P2P"})
            entry.record(Step.BY_HAND, choice="run")
        elif how == "a source in doubt":
            entry.record(Step.COMMITTED)
        else:
            entry.record(Step.BACK)
    there._keep(state, "precious")
    begins(there, journal)
    assert (there.state, there.content) == (state, "precious")


def test_a_device_that_a_source_has_in_doubt_takes_no_state(kept):
    """In the other role too it is not free."""
    here, there, journal, _ = kept
    with journal.begin("s2", "source", "tcp://x:1", KEPT) as entry:
        entry.record(Step.COMMITTED)

    async def body():
        async with listen("tcp://127.0.0.1:0", [there], journal=journal) as listener:
            taking = asyncio.create_task(listener.receive())
            with pytest.raises(AdmissionError, match="session s2 has it as its source, COMMITTED"):
                await migrate([here], listener.address)
            with pytest.raises(AdmissionError):
                await taking

    asyncio.run(body())
    assert (here.state, there.state) == (State.RUNNING, State.RUNNING)


# ------------------------------------------------------------- a wire that swallows


def test_an_end_that_does_not_get_through_counts_as_standing_still():
    """The control connection works, the data connection's bytes are acknowledged and lost."""
    swallow = asyncio.Event()

    async def forward(link, data):
        return b"" if link.number and swallow.is_set() else data

    policy = Policy(
        stall_timeout=1.0,
        reconnect_timeout=60.0,
        reconnect_stop_copy="wait",
        downtime_limit=5.0,
        chunk_size=65536,
        window=2 * (65536 + 64),  # two frames: the end must wait for room
    )

    def device(seed):
        return SimDevice("g", profile="xe", state_size=130896, seed=seed, arc_seconds={})

    async def body(here, there):
        key = Security(psk=bytes(range(32)))
        async with (
            listen("tcp://127.0.0.1:0", [there], policy=policy, security=key) as listener,
            Proxy(forward)(listener.address) as address,
        ):
            taking = asyncio.create_task(listener.receive())
            with pytest.raises(StallError, match="nothing has moved for 1 s"):
                await migrate(
                    [here],
                    address,
                    policy=policy,
                    security=key,
                    hooks=Hooks(stop_vcpus=swallow.set),
                )
            with pytest.raises(VfioflowError):
                await taking

    with device(1) as here, device(2) as there:
        asyncio.run(body(here, there))
        assert here.state is State.RUNNING


# ----------------------------------------------------------- entries nobody has


def past(journal, **more):
    options = {"policy": Policy(), "hooks": Hooks(), "observer": None, "revive": lambda _: None}
    return Past(journal, [], **{**options, **more})


def test_a_discard_that_cannot_be_recorded_keeps_no_lock(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    asked = messages.Resolve(session="b7", decision="discard", journal=journal.identity)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def body():
        mine = past(journal)
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "_write", full)
            refused = await mine.answer(asked)
        return refused, await mine.answer(asked)

    refused, answer = asyncio.run(body())
    assert "No space left" in refused.reason
    assert isinstance(answer, messages.Discarded)


class Slow:
    """Opening an entry waits until it is let go on."""

    def __init__(self, monkeypatch):
        self.begun, self.go_on = threading.Event(), threading.Event()
        real = Journal.open

        def slow(journal, *args, **options):
            self.begun.set()
            self.go_on.wait(10)
            return real(journal, *args, **options)

        monkeypatch.setattr(Journal, "open", slow)

    def let_go(self):
        self.go_on.set()
        for thread in threading.enumerate():
            if thread.name.startswith("vfioflow-"):
                thread.join(10)


def test_a_source_that_is_cancelled_while_it_looks_keeps_no_lock(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.begin("b7", "source", "x", {"g": False}).close()
    slow = Slow(monkeypatch)

    async def body(device):
        task = asyncio.create_task(
            migrate([device], "tcp://127.0.0.1:1", journal=journal, session="b7")
        )
        await asyncio.to_thread(slow.begun.wait, 10)
        task.cancel()
        slow.go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()

    with SimDevice("g") as device:
        asyncio.run(body(device))
    slow.let_go()
    assert not journal.is_held(journal.find("b7", "source"))


def test_an_entry_that_comes_when_nobody_waits_any_more_is_free(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.begin("b7", "destination", "x", {"g": False}).close()
    slow = Slow(monkeypatch)
    asked = messages.Resolve(session="b7", decision="discard")

    async def body():
        answer = await past(journal, policy=Policy(stall_timeout=0.05)).answer(asked)
        assert "no answer for 0.05 s" in answer.reason

    asyncio.run(body())
    slow.let_go()
    assert not journal.is_held(journal.find("b7", "destination"))


def test_a_listener_that_cannot_begin_leaves_its_sessions_to_the_next(kept, monkeypatch):
    _, there, _, journal = kept
    with journal.begin("b7", "destination", "tcp://x:1", KEPT) as entry:
        entry.record(Step.LOADED, states={"nic0": "RUNNING_P2P"})
        entry.record(Step.COMMITTED)
    there._keep(State.RUNNING_P2P, "state")

    async def fails(_):
        raise JournalError(journal.directory, "stalls", errno.EIO, "x")

    with monkeypatch.context() as patch:
        patch.setattr(Past, "_reset_leftovers", fails)
        with pytest.raises(JournalError, match="stalls"):
            begins(there, journal)
    assert not journal.is_held(journal.find("b7", "destination"))
    assert there.state is State.RUNNING_P2P

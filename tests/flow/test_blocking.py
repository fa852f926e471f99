"""The engine from plain threads."""

import asyncio
import errno
import threading
from concurrent.futures import CancelledError

import pytest
from session import assert_source_runs, quiet_set

from vfioflow import ConfigError, Hooks, PeerLost, Policy, State, blocking, events
from vfioflow.errors import ResourceError
from vfioflow.events import Phase

S = State
POLICY = Policy(downtime_limit=2.0)


def test_both_sides_from_plain_threads(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
        migration = blocking.start(source, listener.address, policy=POLICY)
        there = listener.receive(timeout=20)
        here = migration.result(timeout=20)
    assert (here.outcome, there.outcome) == ("completed", "completed")
    assert here is migration.report
    assert migration.done
    assert migration.phase is Phase.DONE
    assert {d.name: d.true_digest() for d in destination} == before
    migration.cancel()
    migration.hold()
    migration.change(downtime_limit=1.0)  # it has ended: nothing
    assert here.downtime_limit_ms == 2000


def test_a_migration_is_steered_from_another_thread(devices):
    source, destination = devices(quiet_set)
    held = threading.Event()

    def observer(event):
        if isinstance(event, events.SwitchoverHeld):
            held.set()

    with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
        migration = blocking.start(source, listener.address, policy=POLICY, observer=observer)
        migration.hold()
        taking = listener.next_session(timeout=20)
        assert held.wait(20)
        assert migration.phase is Phase.PRE_COPY
        with pytest.raises(TimeoutError):
            migration.result(timeout=0.01)
        with pytest.raises(ConfigError, match="downtime_limit=-1"):
            migration.change(downtime_limit=-1)
        migration.change(downtime_limit=3.0)
        migration.go_on()
        assert migration.result(20).downtime_limit_ms == 3000
        assert taking.result(20).outcome == "completed"


def test_an_observer_may_steer_the_migration_that_it_sees(devices):
    """It runs on the loop's thread, which can wait for nothing."""
    source, destination = devices(quiet_set)
    known, migrations = threading.Event(), []

    def observer(event):
        if isinstance(event, events.PhaseEntered) and event.phase is Phase.PRE_COPY:
            known.wait()
            migrations[0].hold()
        if isinstance(event, events.SwitchoverHeld):
            migrations[0].change(downtime_limit=3.0)
            migrations[0].go_on()

    with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
        migrations.append(
            blocking.start(source, listener.address, policy=POLICY, observer=observer)
        )
        known.set()
        taking = listener.next_session(timeout=20)
        assert migrations[0].result(20).downtime_limit_ms == 3000
        assert taking.result(20).outcome == "completed"


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "none"), MemoryError()])
def test_without_descriptors_for_a_loop(devices, monkeypatch, error):
    source, _ = devices(quiet_set)

    def none():
        raise error

    monkeypatch.setattr(asyncio.events, "new_event_loop", none)
    with pytest.raises(ResourceError, match=r"out of resources: (descriptors|memory)"):
        blocking.migrate(source, "tcp://127.0.0.1:1")
    assert_source_runs(source)


def test_cancelled_from_another_thread(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
        migration = blocking.start(source, listener.address, policy=POLICY)
        migration.hold()
        taking = listener.next_session(timeout=20)
        migration.cancel()
        assert migration.wait(20)
        with pytest.raises(CancelledError):
            migration.result()
        assert taking.wait(20)
        assert (migration.report.outcome, taking.report.outcome) == ("cancelled", "failed")
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {S.RUNNING}


def test_an_error_is_the_same_as_without_threads(devices):
    source, _ = devices(quiet_set)
    with pytest.raises(PeerLost, match="refused"):
        blocking.migrate(source, "tcp://127.0.0.1:1")
    with pytest.raises(ConfigError):
        blocking.start(source, "nowhere")
    with (
        pytest.raises(ConfigError, match="198"),
        blocking.listen("tcp://198.51.100.1:4747", source),
    ):
        pass
    assert_source_runs(source)


def test_nobody_comes(devices):
    _, destination = devices(quiet_set)
    with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
        with pytest.raises(TimeoutError):
            listener.receive(timeout=0.05)
        with pytest.raises(TimeoutError):
            listener.next_session(timeout=0.05)
    with pytest.raises(RuntimeError, match="not open"):
        listener.receive()


def test_plain_hooks_may_block_and_coroutines_run_on_the_loop(devices):
    """The hook waits for this thread: on the loop's thread that would stop the migration."""
    source, destination = devices(quiet_set)
    asked, answer = threading.Event(), threading.Event()
    loops = []

    def stop_vcpus():
        asked.set()
        assert answer.wait(20)

    async def after(phase):
        loops.append((phase, asyncio.get_running_loop()))

    hooks = Hooks(stop_vcpus=stop_vcpus, after=after)
    with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
        migration = blocking.start(source, listener.address, policy=POLICY, hooks=hooks)
        taking = listener.next_session(timeout=20)
        assert asked.wait(20)
        migration.change(downtime_limit=9.0)  # the loop turns meanwhile
        answer.set()
        assert migration.result(20).outcome == "completed"
        taking.result(20)
    assert [phase for phase, _ in loops] == list(Phase)[:5]


def test_many_migrations_from_many_threads(devices):
    """Six threads, each with both sides of its own."""
    sets = [devices(quiet_set) for _ in range(6)]
    outcomes = [None] * len(sets)

    def both(n):
        source, destination = sets[n]
        with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
            migration = blocking.start(source, listener.address, policy=POLICY)
            there = listener.receive(timeout=30)
            outcomes[n] = (migration.result(30).outcome, there.outcome)

    threads = [threading.Thread(target=both, args=(n,)) for n in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [("completed", "completed")] * len(sets)


def test_from_a_thread_that_has_a_loop_of_its_own(devices):
    """It blocks that loop, as every blocking call does; it works."""
    source, destination = devices(quiet_set)

    async def body():
        with blocking.listen("tcp://127.0.0.1:0", destination) as listener:
            migration = blocking.start(source, listener.address, policy=POLICY)
            listener.receive(timeout=20)
            return migration.result(20)

    assert asyncio.run(body()).outcome == "completed"

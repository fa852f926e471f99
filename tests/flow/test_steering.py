"""What a stack may decide while a migration runs: to hold it, to let it go on, other limits, its end."""

import asyncio
from dataclasses import replace

import pytest
from session import assert_source_runs, assert_went_back, migrate, quiet_set, run

from vfioflow import ConfigError, HookError, Hooks, Policy, SimDevice, State, events
from vfioflow.events import Phase
from vfioflow.precopy import Verdict

MIB = 1 << 20


class Steer:
    """Does something with the source when it sees an event of it."""

    def __init__(self, act):
        self.act = act
        self.seen = []

    def began(self, source):
        self.source = source

    def watch(self, side, event):
        if side == "source":
            self.seen.append(event)
            self.act(self, event)

    def of(self, kind):
        return [event for event in self.seen if isinstance(event, kind)]

    def run(self, source, destination, **more):
        return migrate(source, destination, watch=self.watch, began=self.began, **more)


def test_a_switchover_that_is_held_waits_until_it_may_go_on(devices):
    source, destination = devices(quiet_set)
    held = []

    def act(steer, event):
        if isinstance(event, events.Began):
            steer.source.hold()
        if isinstance(event, events.SwitchoverHeld):
            held.append(event.reason)
        if isinstance(event, events.Decided) and len(held) and event.iteration >= 4:
            steer.source.go_on()

    steer = Steer(act)
    outcome = steer.run(source, destination)
    assert outcome.source.outcome == "completed"
    assert held == ["held"]
    kept = [e.decision for e in steer.of(events.Decided) if e.decision.reason.startswith("held: ")]
    assert len(kept) >= 2
    assert {decision.verdict for decision in kept} == {Verdict.ITERATE}
    [decided] = steer.of(events.SwitchoverDecided)
    assert decided.iteration >= 4


def test_no_limit_of_pre_copy_counts_while_it_is_held(devices):
    """Ten rounds are allowed, and more than ten pass."""
    source, destination = devices(quiet_set)

    def act(steer, event):
        if isinstance(event, events.Began):
            steer.source.hold()
        if isinstance(event, events.Decided):
            steer.source._gate.turn()  # a round after the other, without the pause
            if event.iteration == 15:
                steer.source.go_on()

    outcome = Steer(act).run(
        source, destination, policy=Policy(downtime_limit=2.0, max_iterations=10)
    )
    assert outcome.source.outcome == "completed"
    assert outcome.source.iterations >= 15


def test_a_held_migration_can_be_cancelled(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}

    def act(steer, event):
        if isinstance(event, events.Began):
            steer.source.hold()
        if isinstance(event, events.SwitchoverHeld):
            steer.source.cancel()

    outcome = Steer(act).run(source, destination)
    assert isinstance(outcome.source_error, asyncio.CancelledError)
    assert outcome.source.outcome == "cancelled"
    assert_went_back(source, destination, before)


def test_cancelled_before_it_runs(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(source, destination, began=lambda source: source.cancel())
    assert isinstance(outcome.source_error, asyncio.CancelledError)
    assert outcome.source.outcome == "cancelled"
    assert_source_runs(source, before)


def test_the_phase_is_told_all_along(devices):
    source, destination = devices(quiet_set)
    phases = []

    def act(steer, event):
        if isinstance(event, events.PhaseEntered):
            phases.append((event.phase, steer.source.phase))

    steer = Steer(act)
    steer.run(source, destination)
    assert phases == [(p, p) for p in Phase if p is not Phase.GOING_BACK]
    assert steer.source.phase is Phase.DONE


# ------------------------------------------------------------- a say in switchover


def test_a_stack_that_says_no_is_asked_again_after_a_round(devices):
    source, destination = devices(quiet_set)
    asked = []

    def may(decision):
        asked.append((decision.verdict, {d.state for d in source} & {State.STOP_COPY}))
        return len(asked) == 3

    steer = Steer(lambda steer, event: None)
    outcome = steer.run(source, destination, source_hooks=Hooks(may_switch_over=may))
    assert outcome.source.outcome == "completed"
    assert asked == [(Verdict.SWITCH_OVER, set())] * 3
    assert [e.reason for e in steer.of(events.SwitchoverHeld)] == [
        "the hook may_switch_over says no"
    ]


def test_the_stack_says_no_by_a_coroutine_and_yes_later(devices):
    source, destination = devices(quiet_set)
    asked = []

    async def may(decision):
        asked.append(decision.exact <= decision.threshold)
        await asyncio.sleep(0)
        return len(asked) > 1

    outcome = migrate(source, destination, source_hooks=Hooks(may_switch_over=may))
    assert outcome.source.outcome == "completed"
    assert asked == [True, True]


def test_a_say_that_fails_is_a_failed_migration(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}

    def may(decision):
        raise LookupError("nobody knows")

    outcome = migrate(source, destination, source_hooks=Hooks(may_switch_over=may))
    assert isinstance(outcome.source_error, HookError)
    assert str(outcome.source_error) == "the hook may_switch_over failed: nobody knows"
    assert_went_back(source, destination, before)


# --------------------------------------------------------------------- other limits


def busy_set():
    """What it dirties never fits a downtime limit of a millisecond, and easily one of seconds."""
    return [
        SimDevice("net0", profile="mlx5", state_size=24 * MIB, initial_bytes=8 * MIB, seed=1,
                  dirty_rate=8 * MIB, arc_seconds={}, load_seconds=0.0)
    ]  # fmt: skip


def test_a_longer_downtime_limit_lets_it_switch_over(devices):
    source, destination = devices(busy_set)

    def act(steer, event):
        if isinstance(event, events.IterationDone) and event.iteration == 3:
            steer.source.change(downtime_limit=20.0)

    steer = Steer(act)
    outcome = steer.run(source, destination, policy=Policy(downtime_limit=1e-6))
    assert outcome.source.outcome == "completed"
    assert steer.of(events.LimitsChanged) == [events.LimitsChanged(20.0, None)]
    assert outcome.source.downtime_limit_ms == 20_000
    assert outcome.source.policy["downtime_limit"] == 20.0
    thresholds = [e.decision.threshold for e in steer.of(events.Decided)]
    assert thresholds[0] == 0
    assert thresholds[-1] > 0


def test_a_bandwidth_limit_holds_from_the_next_frame_on_and_is_measured_anew(devices):
    source, destination = devices(busy_set)
    limit = 4 * MIB

    def act(steer, event):
        if isinstance(event, events.IterationDone) and event.iteration == 2:
            steer.source.change(max_bandwidth=limit)
        if isinstance(event, events.Decided) and event.bandwidth and event.bandwidth < 2 * limit:
            steer.source.change(max_bandwidth=None, downtime_limit=20.0)

    steer = Steer(act)
    outcome = steer.run(
        source, destination, policy=Policy(downtime_limit=1e-6, switchover_ack=False)
    )
    assert outcome.source.outcome == "completed"
    rates = [e.bandwidth for e in steer.of(events.Decided)]
    assert rates[0] > 10 * limit
    assert rates[2] < 2 * limit  # what was measured before does not count
    assert [e.max_bandwidth for e in steer.of(events.LimitsChanged)] == [limit, None]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"downtime_limit": 0.0}, "downtime_limit=0.0: must be above 0 seconds"),
        ({"max_bandwidth": 0}, "max_bandwidth=0: must be above 0 bytes per second, or None"),
        ({"max_bandwidth": 1000}, "max_bandwidth=1000: at least 279621 bytes per second"),
    ],
)
def test_limits_that_are_wrong_change_nothing(devices, limits, said):
    source, destination = devices(quiet_set)
    errors = []

    def act(steer, event):
        if isinstance(event, events.InitialLoaded):
            try:
                steer.source.change(**limits)
            except ConfigError as error:
                errors.append(str(error))

    steer = Steer(act)
    outcome = steer.run(source, destination)
    assert outcome.source.outcome == "completed"
    assert [said in error for error in errors] == [True]
    assert steer.of(events.LimitsChanged) == []
    policy = Policy(downtime_limit=2.0)
    assert outcome.source.policy == {name: getattr(policy, name) for name in outcome.source.policy}


def test_what_was_changed_before_it_runs_is_what_it_begins_with(devices):
    source, destination = devices(quiet_set)
    outcome = migrate(
        source, destination, began=lambda source: source.change(max_bandwidth=512 * MIB)
    )
    assert outcome.source.outcome == "completed"
    assert outcome.source.policy == outcome.source.policy | {"max_bandwidth": 512 * MIB}
    assert replace(Policy(downtime_limit=2.0), max_bandwidth=512 * MIB).frame_size == MIB


def test_many_at_once_in_one_process(devices):
    """Eight sets on one loop; one of them is cancelled, which no other notices."""
    sets = [devices(quiet_set) for _ in range(8)]

    async def all_of_them():
        def act(steer, event):
            if isinstance(event, events.InitialLoaded):
                steer.source.cancel()

        steer = Steer(act)
        return await asyncio.gather(
            *(run(source, destination) for source, destination in sets[1:]),
            run(*sets[0], watch=steer.watch, began=steer.began),
        )

    *others, cancelled = asyncio.run(all_of_them())
    assert [o.source.outcome for o in others] == ["completed"] * 7
    assert all(o.digests_match for o in others)
    assert cancelled.source.outcome == "cancelled"
    assert {d.state for d in sets[0][0]} == {State.RUNNING}

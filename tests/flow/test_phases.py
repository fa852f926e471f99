"""The hooks around each phase: when they are called, and what it means that one fails."""

import pytest
from session import assert_source_runs, assert_went_back, migrate, quiet_set

from vfioflow import Fault, HookError, Hooks, RemoteError, State
from vfioflow.events import Phase

S, P = State, Phase
WHOLE = [P.CONNECT, P.SET_UP, P.PRE_COPY, P.STOP_COPY, P.HAND_OVER]


def noting(calls, side, devices, fail=None):
    """Hooks that note when they are called, and where the devices stand; one of them may fail."""

    def note(when):
        def hook(phase=None):
            calls.append((side, when, phase, {device.state for device in devices}))
            if fail == (when, phase):
                raise RuntimeError(f"not {when} {phase}")

        return hook

    return Hooks(
        before=note("before"),
        after=note("after"),
        stop_vcpus=lambda: note("stop")() if side == "source" else None,
        start_vcpus=lambda: note("start")(),
    )


def run(devices, *, here=None, there=None, faults=()):
    calls = []
    source, _ = devices(quiet_set)
    destination, _ = devices(lambda: quiet_set("gpu1", faults))
    before = {d.name: d.true_digest() for d in source}
    outcome = migrate(
        source,
        destination,
        source_hooks=noting(calls, "source", source, here),
        hooks=noting(calls, "destination", destination, there),
    )
    mine = [call[1:3] for call in calls if call[0] == "source"]
    its = [call[1:3] for call in calls if call[0] == "destination"]
    return outcome, source, destination, before, calls, mine, its


def both(phases):
    return [(when, phase) for phase in phases for when in ("before", "after")]


def test_each_phase_is_between_its_hooks_and_the_vcpus_stop_within(devices):
    outcome, *_, calls, mine, its = run(devices)
    assert outcome.source_error is None
    around = both(WHOLE)
    around.insert(around.index(("before", P.STOP_COPY)) + 1, ("stop", None))
    assert mine == around
    expected = both(WHOLE[1:])
    expected.insert(expected.index(("before", P.HAND_OVER)) + 1, ("start", None))
    assert its == expected
    where = {call[:3]: call[3] for call in calls}
    assert where["source", "before", P.PRE_COPY] == {S.RUNNING}
    assert where["source", "after", P.PRE_COPY] == {S.PRE_COPY, S.RUNNING}  # qat0 has none
    assert where["source", "before", P.STOP_COPY] == {S.PRE_COPY, S.RUNNING}
    assert where["source", "after", P.STOP_COPY] == {S.STOP_COPY}
    assert where["source", "after", P.HAND_OVER] == {S.STOP}
    assert where["destination", "before", P.SET_UP] == {S.RUNNING}
    assert where["destination", "after", P.SET_UP] == {S.RESUMING}
    assert where["destination", "before", P.HAND_OVER] == {S.RESUMING}
    assert where["destination", "after", P.HAND_OVER] == {S.RUNNING}


def test_hooks_in_the_downtime_are_counted_there(devices):
    outcome, *_ = run(devices)
    report = outcome.source
    assert "hooks" in report.steps_ms
    assert report.downtime_ms == pytest.approx(sum(report.steps_ms.values()))


@pytest.mark.parametrize(("when", "phase"), both(WHOLE)[:-1], ids=str)
def test_a_hook_of_the_source_that_fails_before_the_commit(devices, when, phase):
    outcome, source, destination, before, _, mine, _ = run(devices, here=(when, phase))
    assert isinstance(outcome.source_error, HookError)
    assert str(outcome.source_error) == (
        f"the hook {when} failed of the phase {phase}: not {when} {phase}"
    )
    assert_went_back(source, destination, before)
    ends = both([P.GOING_BACK])
    if ("stop", None) in mine:
        ends.insert(1, ("start", None))
    began = mine[: -len(ends)]
    assert began == [c for c in began if c[1] is not P.GOING_BACK]
    assert began[-1] == (when, phase)
    assert mine[-len(ends) :] == ends


@pytest.mark.parametrize(
    ("when", "phase"),
    [c for c in both(WHOLE[1:]) if c != ("after", P.HAND_OVER)],
    ids=str,
)
def test_a_hook_of_the_destination_that_fails_before_the_commit(devices, when, phase):
    outcome, source, destination, before, _, _, its = run(devices, there=(when, phase))
    assert isinstance(outcome.destination_error, HookError)
    assert isinstance(outcome.source_error, RemoteError)
    assert f"not {when} {phase}" in str(outcome.source_error)
    assert_went_back(source, destination, before)
    assert its[-2:] == both([P.GOING_BACK])


@pytest.mark.parametrize("side", ["here", "there"])
def test_the_last_hook_does_not_undo_a_migration(devices, side):
    outcome, source, destination, *_ = run(devices, **{side: ("after", P.HAND_OVER)})
    assert (outcome.source_error, outcome.destination_error) == (None, None)
    report = outcome.source if side == "here" else outcome.destination
    assert report.outcome == "completed"
    assert "the hook after failed of the phase hand over: not after hand over" in report.error
    assert {d.state for d in source} == {S.STOP}
    assert {d.state for d in destination} == {S.RUNNING}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_on_the_way_back_is_a_note(devices, when):
    faults = [Fault("RESUMING->STOP", "errno")]
    outcome, source, *_ = run(devices, here=(when, P.GOING_BACK), faults=faults)
    assert isinstance(outcome.source_error, RemoteError)
    note = f"the hook {when} failed of the phase going back: not {when} going back"
    assert note in outcome.source_error.__notes__
    assert note in outcome.source.error
    assert_source_runs(source)


def test_a_coroutine_is_waited_for(devices):
    source, destination = devices(quiet_set)
    seen = []

    async def before(phase):
        seen.append((phase, {d.state for d in destination}))

    outcome = migrate(source, destination, hooks=Hooks(before=before))
    assert outcome.source_error is None
    assert [phase for phase, _ in seen] == WHOLE[1:]
    assert seen[0][1] == {S.RUNNING}

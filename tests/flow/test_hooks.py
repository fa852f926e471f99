"""Hooks that fail, and what becomes of the devices and the vCPUs."""

import asyncio

from session import assert_source_runs, assert_went_back, migrate, quiet_set

from vfioflow import (
    Fault,
    HandoverInDoubt,
    HookError,
    Hooks,
    RemoteError,
    State,
)

S = State


def test_a_stop_hook_that_fails(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    calls = []

    def stop():
        raise RuntimeError("the VMM says no")

    outcome = migrate(
        source,
        destination,
        source_hooks=Hooks(stop_vcpus=stop, start_vcpus=lambda: calls.append("start")),
    )
    assert isinstance(outcome.source_error, HookError)
    assert str(outcome.source_error) == "the hook stop_vcpus failed: the VMM says no"
    assert isinstance(outcome.source_error.__cause__, RuntimeError)
    assert calls == ["start"]
    assert_went_back(source, destination, before)
    assert "the VMM says no" in str(outcome.destination_error)


def test_vcpus_are_started_again_after_a_failure(devices):
    source, _ = devices(quiet_set)
    destination, _ = devices(lambda: quiet_set("gpu1", [Fault("RESUMING->STOP", "errno")]))
    calls = []
    outcome = migrate(
        source,
        destination,
        source_hooks=Hooks(
            stop_vcpus=lambda: calls.append(("stop", source[0].state)),
            start_vcpus=lambda: calls.append(("start", source[0].state)),
        ),
        hooks=Hooks(start_vcpus=lambda: calls.append(("destination", None))),
    )
    assert isinstance(outcome.source_error, RemoteError)
    assert calls == [("stop", S.PRE_COPY), ("start", S.RUNNING)]


def test_a_start_hook_that_fails_after_commit_is_in_doubt(devices):
    source, destination = devices(quiet_set)

    def start():
        raise RuntimeError("no vCPUs")

    outcome = migrate(source, destination, hooks=Hooks(start_vcpus=start))
    assert isinstance(outcome.source_error, HandoverInDoubt)
    assert isinstance(outcome.destination_error, HandoverInDoubt)
    assert "no vCPUs" in str(outcome.source_error)
    assert (outcome.source.outcome, outcome.destination.outcome) == ("in-doubt", "in-doubt")
    assert {d.state for d in source} == {S.STOP_COPY}
    assert {d.state for d in destination} == {S.RUNNING}


def test_a_device_that_does_not_resume_after_commit_is_in_doubt(devices):
    source, _ = devices(quiet_set)
    destination, _ = devices(lambda: quiet_set("gpu1", [Fault("RUNNING_P2P->RUNNING", "errno")]))
    outcome = migrate(source, destination)
    assert isinstance(outcome.source_error, HandoverInDoubt)
    assert isinstance(outcome.destination_error, HandoverInDoubt)
    assert "gpu1" in str(outcome.destination_error)
    assert {d.state for d in source} == {S.STOP_COPY}  # the state is still there, and stopped


def test_a_start_hook_that_is_cancelled_after_commit_is_in_doubt(devices):
    """The task that it awaits was cancelled: no reason to leave the source without a word."""
    source, destination = devices(quiet_set)

    async def start():
        raise asyncio.CancelledError

    outcome = migrate(source, destination, hooks=Hooks(start_vcpus=start))
    assert isinstance(outcome.source_error, HandoverInDoubt)
    assert isinstance(outcome.destination_error, HandoverInDoubt)
    assert (outcome.source.outcome, outcome.destination.outcome) == ("in-doubt", "in-doubt")
    assert "CancelledError" in outcome.source.error


def test_both_errors_are_told_when_the_vcpus_cannot_be_started_again(devices):
    source, destination = devices(quiet_set)

    def fail(what):
        raise RuntimeError(what)

    outcome = migrate(
        source,
        destination,
        source_hooks=Hooks(stop_vcpus=lambda: fail("first"), start_vcpus=lambda: fail("second")),
    )
    assert str(outcome.source_error) == "the hook stop_vcpus failed: first"
    assert "the vCPUs are stopped: the hook start_vcpus failed: second" in outcome.source.error
    assert_source_runs(source)

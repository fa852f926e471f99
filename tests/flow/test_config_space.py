"""Hooks that save and load what travels besides the device data."""

import pytest
from session import assert_source_runs, migrate, mixed_set

from vfioflow import ConfigError, Hooks, Policy, State
from vfioflow.source import CONFIG_LIMIT

QUICK = Policy(downtime_limit=3.0, stall_timeout=10.0)
NAMES = {"net0", "gpu0", "gpu1", "tty0"}


def config_of(name: str) -> bytes:
    return name.encode() * 64


async def config_later(name: str) -> bytes:
    return config_of(name)


@pytest.mark.parametrize("save", [config_of, config_later])
@pytest.mark.parametrize("after", [False, True])
def test_it_arrives_before_or_after_the_data(devices, save, after):
    source, destination = devices(mixed_set)
    loaded, states, marks = {}, set(), []

    def load(name: str, data: bytes) -> None:
        loaded[name] = data
        states.update(device.state for device in destination)
        # Before the data: what stop-copy has to give is still all there at the source.
        marks.append(any(device.stop_copy_size() for device in source if device.name != "pds"))

    outcome = migrate(
        source,
        destination,
        policy=QUICK,
        hooks=Hooks(load_config=load, config_after_data=after),
        source_hooks=Hooks(save_config=save),
    )
    assert outcome.source_error is None
    assert outcome.digests_match
    assert loaded == {name: config_of(name) for name in NAMES}
    assert states == {State.RESUMING}
    assert marks == [not after] * 4
    assert "config" in outcome.source.steps_ms


def test_without_hooks_nothing_is_carried(devices):
    source, destination = devices(mixed_set)
    outcome = migrate(source, destination, policy=QUICK)
    assert outcome.source_error is None
    assert "config" not in outcome.source.steps_ms


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        (Hooks(), Hooks(save_config=config_of), "no load_config hook"),
        (Hooks(load_config=lambda name, data: None), Hooks(), "sent no config space"),
    ],
)
def test_one_side_alone_is_refused(devices, there, here, text):
    source, destination = devices(mixed_set)
    outcome = migrate(source, destination, policy=QUICK, hooks=there, source_hooks=here)
    assert isinstance(outcome.destination_error, ConfigError)
    assert text in str(outcome.destination_error)
    assert text in str(outcome.source_error)
    assert_source_runs(source)
    assert {d.state for d in destination} == {State.RUNNING}


def test_a_hook_that_fails_ends_the_migration(devices):
    source, destination = devices(mixed_set)

    def load(name: str, data: bytes) -> None:
        raise OSError(5, "no such register")

    outcome = migrate(
        source,
        destination,
        policy=QUICK,
        hooks=Hooks(load_config=load),
        source_hooks=Hooks(save_config=config_of),
    )
    assert "no such register" in str(outcome.source_error)
    assert_source_runs(source)


def test_too_much_is_refused(devices):
    source, destination = devices(mixed_set)
    outcome = migrate(
        source,
        destination,
        policy=QUICK,
        hooks=Hooks(load_config=lambda name, data: None),
        source_hooks=Hooks(save_config=lambda name: bytes(CONFIG_LIMIT // 4 + 1)),
    )
    assert isinstance(outcome.source_error, ConfigError)
    assert_source_runs(source)

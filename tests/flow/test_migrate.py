"""Whole migrations: what moves, in which order, and what both sides report."""

import asyncio

import pytest
from session import MIB, migrate, mixed_set

from vfioflow import AdmissionError, ConfigError, Hooks, Policy, SimDevice, State
from vfioflow import migrate as api_migrate
from vfioflow.devices.sim import ledger
from vfioflow.events import Decided, InitialSent, Phase, PhaseEntered
from vfioflow.precopy import Verdict

S = State


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"channels": 1},
        {"channels": 7},
        {"compression": "auto"},
        {"compression": "zstd:1", "channels": 6},
        {"digest": False},
        {"chunk_size": 4096},
        {"chunk_size": 16 * MIB, "switchover_ack": False},
        {"max_bandwidth": 2**40},
    ],
    ids=str,
)
def test_a_mixed_set_arrives_whole(devices, policy):
    source, destination = devices(mixed_set)
    outcome = migrate(source, destination, policy=Policy(downtime_limit=3.0, **policy))
    assert outcome.source_error is None
    assert outcome.destination_error is None
    assert outcome.digests_match
    assert {d.state for d in source} == {S.STOP}
    assert {d.state for d in destination} == {S.RUNNING}
    assert ledger(source).balanced
    assert ledger(source).messages > 0
    assert ledger(destination).balanced


def test_the_report_says_what_happened(devices):
    source, destination = devices(mixed_set)
    outcome = migrate(source, destination)
    report, other = outcome.source, outcome.destination
    assert (report.outcome, other.outcome) == ("completed", "completed")
    assert report.session == other.session != ""
    assert set(report.steps_ms) == {
        "stop_vcpus",
        "quiesce",
        "stop_copy",
        "drain",
        "load",
        "validate",
        "ready",
        "commit",
        "resume",
        "start_vcpus",
    }
    assert min(report.steps_ms.values()) >= 0
    assert report.downtime_ms == pytest.approx(sum(report.steps_ms.values()))
    assert report.total_ms > report.downtime_ms
    by_name = {d.name: d for d in report.devices}
    assert [d.profile for d in report.devices] == ["mlx5", "vgpu", "xe", "mtty"]
    assert by_name["gpu1"].bytes_precopy == by_name["gpu1"].iterations == 0
    assert by_name["gpu1"].bytes_stopcopy >= 3 * MIB
    assert by_name["net0"].bytes_precopy >= 4 * MIB
    assert by_name["net0"].iterations >= 1
    for mine, theirs in zip(report.devices, other.devices, strict=True):
        assert mine.digest == theirs.digest != ""
        assert mine.digest_ok is theirs.digest_ok is True
        assert (mine.final_state, theirs.final_state) == ("STOP", "RUNNING")
        assert mine.bytes_wire == theirs.bytes_wire > 0
    assert report.bytes_total == other.bytes_total
    assert report.from_json(report.to_json()) == report


def test_the_steps_come_in_the_order_of_the_protocol(devices):
    source, destination = devices(mixed_set)
    outcome = migrate(source, destination)
    at = outcome.at
    names = [d.name for d in source]
    # Barrier 1 before any STOP_COPY; barrier 2 before anything is validated.
    for name in names:
        quiet = S.RUNNING_P2P if name == "gpu1" else S.PRE_COPY_P2P
        assert at(("source", name, quiet)) < at(("source", "barrier", "quiesce"))
        assert at(("source", "barrier", "quiesce")) < at(("source", name, S.STOP_COPY))
        assert at(("source", "barrier", "stop-copy")) < at(("destination", name, S.STOP))
        # Barrier 3: all are loaded before any is in RUNNING_P2P; all there before any runs.
        assert at(("destination", name, S.STOP)) < at(("destination", "barrier", "validate"))
        assert at(("destination", "barrier", "validate")) < at(("destination", name, S.RUNNING_P2P))
        assert at(("destination", "barrier", "ready")) < at(("destination", name, S.RUNNING))
        # The source gives nothing up before the destination runs.
        assert at(("destination", "barrier", "resume")) < at(("source", name, S.STOP))


def test_without_the_barrier_messages_are_lost(devices):
    """The check that the barrier tests rest on can fail: the same set, one after the other."""
    source, _ = devices(mixed_set)
    for device in source:
        device.set_state(S.STOP)
    assert not ledger(source).balanced


def test_hooks_run_in_order_sync_and_async(devices):
    source, destination = devices(mixed_set)
    calls = []

    async def start():
        await asyncio.sleep(0)  # a hook that really lets others run
        calls.append(("start", [d.state for d in destination]))

    def stop():
        calls.append(("stop", [d.state for d in source]))

    outcome = migrate(
        source, destination, source_hooks=Hooks(stop_vcpus=stop), hooks=Hooks(start_vcpus=start)
    )
    assert outcome.source.outcome == "completed"
    assert calls == [
        ("stop", [S.PRE_COPY, S.PRE_COPY, S.RUNNING, S.PRE_COPY]),
        ("start", [S.RUNNING] * 4),
    ]


@pytest.mark.parametrize("profile", ["hisi_acc", "qat", "pds", "virtio", "xe", "mtty", "mlx5"])
def test_each_driver_alone(devices, profile):
    """Also the ones without P2P or without pre-copy: alone they may migrate."""
    size = {"xe": MIB, "mlx5": MIB, "virtio": MIB}.get(profile)
    options = {"state_size": size} if size else {}
    if profile in ("mlx5", "virtio"):
        options["initial_bytes"] = size // 2
    source, destination = devices(lambda: [SimDevice("d", profile=profile, seed=5, **options)])
    outcome = migrate(source, destination)
    assert outcome.source_error is None
    if source[0].info.flags & 2:  # without P2P there is no moment at which both stand still
        assert outcome.digests_match
    assert outcome.destination.outcome == "completed"
    assert source[0].state is S.STOP
    assert destination[0].state is S.RUNNING


def test_many_devices_share_few_channels(devices):
    def many():
        return [
            SimDevice(f"d{i:02}", profile="mlx5", state_size=MIB, initial_bytes=MIB // 2, seed=i)
            for i in range(24)
        ]

    source, destination = devices(many)
    outcome = migrate(source, destination, policy=Policy(downtime_limit=5.0, channels=3))
    assert outcome.source_error is None
    assert outcome.digests_match
    assert ledger(destination).balanced


def test_there_and_back_again(devices):
    """What was loaded is a source like any other."""
    source, destination = devices(mixed_set)
    assert migrate(source, destination).digests_match
    for device in source:
        device.reset()
    outcome = migrate(destination, source)
    assert outcome.source_error is None
    assert outcome.digests_match
    assert {d.state for d in source} == {S.RUNNING}
    assert ledger(source).balanced


def test_initial_data_is_announced_once_per_device(devices):
    source, destination = devices(mixed_set)
    seen = []
    outcome = migrate(
        source,
        destination,
        watch=lambda side, event: seen.append(event) if side == "source" else None,
    )
    assert outcome.source_error is None
    assert sorted(e.device for e in seen if isinstance(e, InitialSent)) == ["gpu0", "net0", "tty0"]
    decisions = [e.decision for e in seen if isinstance(e, Decided)]
    assert decisions[-1].verdict is Verdict.SWITCH_OVER
    assert all(d.verdict is Verdict.ITERATE for d in decisions[:-1])
    phases = [e.phase for e in seen if isinstance(e, PhaseEntered)]
    assert phases == [
        Phase.CONNECT,
        Phase.SET_UP,
        Phase.PRE_COPY,
        Phase.STOP_COPY,
        Phase.HAND_OVER,
        Phase.DONE,
    ]


# ------------------------------------------------------------------ refusals


def test_a_set_without_p2p_is_refused_beforehand(devices):
    source, destination = devices(
        lambda: [SimDevice("net0", profile="mlx5"), SimDevice("acc0", profile="hisi_acc")]
    )
    outcome = migrate(source, destination)
    assert isinstance(outcome.source_error, AdmissionError)
    assert list(outcome.source_error.reasons) == ["acc0"]
    assert "no P2P states" in outcome.source_error.reasons["acc0"]
    assert outcome.destination is None  # nobody was even called
    assert outcome.order == []


def test_a_destination_that_does_not_match_is_told_on_both_sides(devices):
    source, _ = devices(
        lambda: [SimDevice("net0", profile="mlx5", state_size=MIB, initial_bytes=0)]
    )
    other, _ = devices(lambda: [SimDevice("net0", profile="xe", state_size=MIB)])
    outcome = migrate(source, other)
    for error in (outcome.source_error, outcome.destination_error):
        assert isinstance(error, AdmissionError)
        assert error.reasons == {
            "net0": "its driver is mlx5_vfio_pci, the destination's is xe_vfio_pci; bind both to"
            " the same driver; the destination's lacks PRE_COPY; the same driver and firmware on"
            " both hosts"
        }
    assert outcome.order == []
    assert source[0].state is other[0].state is S.RUNNING


def test_a_device_that_does_not_run_is_refused(devices):
    source, destination = devices(lambda: [SimDevice("net0", profile="mlx5")])
    source[0].set_state(S.STOP)
    outcome = migrate(source, destination)
    assert outcome.source_error.reasons == {
        "net0": "it is in STOP; only a RUNNING device can be migrated; end what was begun with it,"
        " or reset it"
    }
    assert source[0].state is S.STOP


def test_a_wrong_address_is_a_config_error(devices):
    source, _ = devices(lambda: [SimDevice("net0", profile="mlx5")])
    with pytest.raises(ConfigError, match="write tcp://HOST:PORT"):
        asyncio.run(api_migrate(source, "somewhere"))

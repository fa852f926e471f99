"""Connections that break and come back: nothing is lost, nothing comes twice."""

import pytest
from proxy import Proxy
from session import assert_source_runs, migrate, mixed_set, quiet_set

from vfioflow import PeerLost, Policy, State
from vfioflow.events import BarrierPassed, Phase, PhaseEntered, Reconnected

S = State
PATIENT = Policy(
    downtime_limit=2.0,
    channels=2,
    chunk_size=64 << 10,
    window=256 << 10,
    reconnect_timeout=10.0,
    reconnect_stop_copy="wait",
)


def cut_every(most):
    """A wire that breaks each connection when so many bytes have passed on it; each new one again."""

    async def forward(link, data):
        if link.number and len(link.seen) > most:
            # What the pieces before brought is through; this one is lost.
            wire.cut([link])
        return data

    wire = Proxy(forward)
    return wire


def assert_moved(outcome, source, destination):
    assert outcome.source_error is None
    assert outcome.destination_error is None
    assert outcome.digests_match
    assert {d.state for d in source} == {S.STOP}
    assert {d.state for d in destination} == {S.RUNNING}


@pytest.mark.parametrize("compression", ["none", "zstd:1", "auto"])
@pytest.mark.parametrize("every", [300_000, 1_000_000])
def test_a_wire_that_breaks_again_and_again_loses_nothing(devices, every, compression):
    source, destination = devices(mixed_set)
    wire = cut_every(every)
    policy = Policy(
        downtime_limit=5.0,
        channels=3,
        chunk_size=32 << 10,
        window=192 << 10,
        compression=compression,
        reconnect_timeout=10.0,
        reconnect_stop_copy="wait",
    )
    resent = []

    def watch(_, event):
        if isinstance(event, Reconnected) and event.connection.startswith("channel"):
            resent.append(event.resent)

    outcome = migrate(source, destination, policy=policy, through=wire, watch=watch)
    assert_moved(outcome, source, destination)
    assert wire.cuts > 2
    assert outcome.source.reconnects >= wire.cuts
    assert 0 < max(resent) <= policy.window  # what the proxy did not pass on was sent again


@pytest.mark.parametrize(
    "which", [slice(None), slice(1), slice(1, 2)], ids=["all", "control", "data"]
)
@pytest.mark.parametrize("phase", [Phase.PRE_COPY, Phase.STOP_COPY, Phase.HAND_OVER])
def test_a_break_in_any_phase_is_mended(devices, phase, which):
    source, destination = devices(mixed_set)
    wire, back = Proxy(), []

    def watch(side, event):
        if side == "source" and event == PhaseEntered(phase):
            wire.cut(wire.open[which])
        if isinstance(event, Reconnected):
            back.append(event.connection)

    outcome = migrate(source, destination, policy=PATIENT, through=wire, watch=watch)
    assert_moved(outcome, source, destination)
    assert wire.cuts > 0
    assert all(name == "the control connection" or name.startswith("channel ") for name in back)


def test_a_break_while_the_commit_is_under_way_is_mended(devices):
    source, destination = devices(quiet_set)
    wire = Proxy()

    def watch(side, event):
        if side == "destination" and isinstance(event, BarrierPassed) and event.name == "resume":
            wire.cut()

    outcome = migrate(source, destination, policy=PATIENT, through=wire, watch=watch)
    assert_moved(outcome, source, destination)


def test_a_wire_that_does_not_come_back_ends_as_one_that_broke(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    wire = Proxy()

    def watch(side, event):
        if side == "source" and event == PhaseEntered(Phase.STOP_COPY):
            wire.cut(for_good=True)

    policy = Policy(downtime_limit=0.4, reconnect_timeout=2.0, reconnect_stop_copy="go-back")
    outcome = migrate(source, destination, policy=policy, through=wire, watch=watch)
    assert isinstance(outcome.source_error, PeerLost)
    assert "was lost for" in str(outcome.source_error)
    assert_source_runs(source, before)

"""Connections that break and come back: nothing is lost, nothing comes twice."""

import asyncio
import contextlib

import pytest
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


class Wire:
    """A proxy that breaks connections; ``every``: after so many bytes of device data on one, again
    and again; ``deaf``: from then on nobody is let through."""

    def __init__(self, every=None):
        self.every = every
        self.cuts = 0
        self.deaf = False
        self.open = []

    def cut(self, which=slice(None)):
        """Break connections, in the order in which they were made."""
        for near, far in self.open[which]:
            self.cuts += 1
            near.transport.abort()
            far.transport.abort()

    @contextlib.asynccontextmanager
    async def __call__(self, target):
        host, port = target.removeprefix("tcp://").rsplit(":", 1)

        async def pump(reader, writer, most, own):
            passed = 0
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    passed += len(data)
                    if most is not None and passed > most:
                        # What the pieces before brought is through; this one is lost.
                        self.cuts += 1
                        for each in own:
                            each.transport.abort()
                        return
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()

        async def accept(reader, writer):
            if self.deaf:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            own = (writer, far_writer)
            self.open.append(own)
            await asyncio.gather(
                pump(reader, far_writer, self.every, own), pump(far_reader, writer, None, own)
            )
            self.open.remove(own)
            for each in own:
                each.close()

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for own in self.open:
                for each in own:
                    each.transport.abort()


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
    wire = Wire(every)
    policy = Policy(
        downtime_limit=5.0,
        channels=3,
        chunk_size=32 << 10,
        window=192 << 10,
        compression=compression,
        reconnect_timeout=10.0,
        reconnect_stop_copy="wait",
    )
    outcome = migrate(source, destination, policy=policy, through=wire)
    assert_moved(outcome, source, destination)
    assert wire.cuts > 2
    assert outcome.source.reconnects >= wire.cuts


@pytest.mark.parametrize(
    "which", [slice(None), slice(1), slice(1, 2)], ids=["all", "control", "data"]
)
@pytest.mark.parametrize("phase", [Phase.PRE_COPY, Phase.STOP_COPY, Phase.HAND_OVER])
def test_a_break_in_any_phase_is_mended(devices, phase, which):
    source, destination = devices(mixed_set)
    wire, back = Wire(), []

    def watch(side, event):
        if side == "source" and event == PhaseEntered(phase):
            wire.cut(which)
        if isinstance(event, Reconnected):
            back.append(event.connection)

    outcome = migrate(source, destination, policy=PATIENT, through=wire, watch=watch)
    assert_moved(outcome, source, destination)
    assert wire.cuts > 0
    assert all(name == "the control connection" or name.startswith("channel ") for name in back)


def test_a_break_while_the_commit_is_under_way_is_mended(devices):
    source, destination = devices(quiet_set)
    wire = Wire()

    def watch(side, event):
        if side == "destination" and isinstance(event, BarrierPassed) and event.name == "resume":
            wire.cut()

    outcome = migrate(source, destination, policy=PATIENT, through=wire, watch=watch)
    assert_moved(outcome, source, destination)


def test_a_wire_that_does_not_come_back_ends_as_one_that_broke(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    wire = Wire()

    def watch(side, event):
        if side == "source" and event == PhaseEntered(Phase.STOP_COPY):
            wire.deaf = True
            wire.cut()

    policy = Policy(downtime_limit=0.4, reconnect_timeout=2.0, reconnect_stop_copy="go-back")
    outcome = migrate(source, destination, policy=policy, through=wire, watch=watch)
    assert isinstance(outcome.source_error, PeerLost)
    assert "was lost for" in str(outcome.source_error)
    assert_source_runs(source, before)

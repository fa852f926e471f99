"""A wire that breaks, and peers that are none of ours."""

import asyncio
import contextlib
import socket
import struct

import pytest
from proxy import Proxy, flip
from session import assert_source_runs, assert_went_back, migrate, quiet_set, run

from vfioflow import (
    HandoverInDoubt,
    IntegrityError,
    NoConvergence,
    PeerError,
    PeerLost,
    Policy,
    ProtocolError,
    RemoteError,
    State,
    listen,
)
from vfioflow import migrate as api_migrate
from vfioflow.destination import Destination
from vfioflow.devices.sim import ledger
from vfioflow.events import BarrierPassed, Phase, PhaseEntered
from vfioflow.wire.opening import Preamble, Role

S = State
HOLDING = {"net0": S.RUNNING_P2P, "gpu1": S.RUNNING_P2P, "qat0": S.RUNNING_P2P}
"""Where the quiet set's devices stand while they hold the state, stopped."""

BRIEF = Policy(downtime_limit=2.0, resolve_timeout=0.5)


def cut_after(most):
    """A wire that breaks for good when so many bytes have passed towards the destination."""
    passed = 0

    async def forward(link, data):
        nonlocal passed
        passed += len(data)
        if passed > most:
            wire.cut(for_good=True)
        return data

    wire = Proxy(forward)
    return wire


@pytest.fixture(scope="module")
def total():
    """How many bytes a whole migration of the quiet set takes towards the destination."""
    with contextlib.ExitStack() as stack:
        source, destination = (
            [stack.enter_context(device) for device in quiet_set()] for _ in range(2)
        )
        return migrate(source, destination).source.bytes_wire


@pytest.mark.parametrize("part", [0, 31, 33, 200, 400_000, 0.3, 0.7, 0.95, 0.999, 1.0])
def test_a_cut_wire_never_leaves_two_that_run(devices, total, part):
    # The probe's pad bytes come on top and vary; fractions cut the device data somewhere behind it.
    wire = cut_after(part if isinstance(part, int) else int(total * part))
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    empty = {d.name: d.true_digest() for d in destination}
    outcome = migrate(source, destination, policy=BRIEF, through=wire)
    assert wire.cuts > 0
    assert isinstance(outcome.source_error, PeerError | HandoverInDoubt)
    there = outcome.destination.outcome if outcome.destination is not None else "failed"
    if isinstance(outcome.source_error, HandoverInDoubt):
        assert {d.state for d in source} == {S.STOP_COPY}
        assert there in ("completed", "in-doubt")
    else:
        assert_source_runs(source, before)
        assert there in ("failed", "in-doubt")
    if there == "in-doubt":
        assert S.RUNNING not in {d.state for d in destination}
    elif there == "failed":
        assert {d.name: d.true_digest() for d in destination} == empty


def test_a_flipped_bit_on_the_wire_is_found_before_it_is_loaded(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    stopped, flipped = [], []

    def watch(side, event):
        if side == "source" and isinstance(event, BarrierPassed) and event.name == "stop-copy":
            stopped.append(event)

    async def forward(link, data):
        if not stopped or flipped or len(data) <= 4096:  # no device data
            return data
        flipped.append(link.number)
        return flip(data, len(data) // 2)

    outcome = migrate(source, destination, through=Proxy(forward), watch=watch)
    assert flipped
    assert isinstance(outcome.destination_error, IntegrityError)
    assert isinstance(outcome.source_error, RemoteError)
    assert str(outcome.destination_error) in str(outcome.source_error)
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {S.RUNNING}


# ---------------------------------------------------------- other peers


async def fake_server(answer: bytes, *, close: bool = True):
    """A server that is no vfioflow."""

    async def accept(reader, writer):
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        if close:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    return server, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(32), ProtocolError, "wrong magic"),
        (b"", PeerLost, "closed the connection"),
        (b"VFIOFLOW", PeerLost, "closed the connection"),
        (b"VFIOFLOW\x09\x00\x01" + bytes(21), ProtocolError, "version 9"),
        (
            Preamble(Role.CONTROL).pack() + struct.pack("<II", 2**31, 0),
            ProtocolError,
            "greeting of 2147483648 bytes",
        ),
        (
            Preamble(Role.CONTROL).pack() + struct.pack("<II", 4, 0) + b"\xff\xff\xff\xff",
            ProtocolError,
            "control message that is none",
        ),
    ],
    ids=["http", "nothing", "half", "other version", "huge", "garbage"],
)
def test_a_server_that_is_no_vfioflow(devices, answer, kind, match):
    source, _ = devices(quiet_set)

    async def body():
        server, address = await fake_server(answer)
        async with server:
            with pytest.raises(kind, match=match) as caught:
                await api_migrate(source, address, policy=Policy(connect_timeout=5))
        return caught.value

    assert asyncio.run(body()).exit_code == 5
    assert_source_runs(source)


def test_nobody_there(devices):
    source, _ = devices(quiet_set)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(PeerLost, match=f"cannot connect to {address}: Connection refused"):
        asyncio.run(api_migrate(source, address))
    assert_source_runs(source)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        b"VFIO",
        bytes(64),
        Preamble(Role.DATA, 0, b"x" * 16).pack(),
        b"VFIOFLOW\x63\x00\x01" + bytes(21),
    ],
    ids=["http", "nothing", "half", "zeros", "wrong token", "other version"],
)
def test_garbage_on_the_port_disturbs_nobody(devices, garbage, caplog):
    """It is logged, and the next source is served."""
    source, destination = devices(quiet_set)

    @contextlib.asynccontextmanager
    async def through(address):
        host, port = address.removeprefix("tcp://").rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        writer.write_eof()
        with contextlib.suppress(ConnectionResetError):  # bytes that nobody read
            assert await reader.read() == b""
        writer.close()
        yield address

    outcome = migrate(source, destination, through=through)
    assert outcome.source_error is None
    assert outcome.digests_match
    assert "refused a connection from tcp://127.0.0.1" in caplog.text


def test_one_listener_serves_one_migration_after_the_other(devices):
    """A failed one leaves the destination as it was."""
    source, destination = devices(quiet_set)

    async def body():
        first = await run(source, destination, policy=Policy(downtime_limit=1e-6))
        second = await run(source, destination)
        return first, second

    first, second = asyncio.run(body())
    assert isinstance(first.source_error, NoConvergence)
    assert second.source_error is None
    assert second.digests_match
    assert ledger(source).balanced


def cut_at(wire, barrier, **how):
    """A watcher that cuts the wire when the destination has passed a barrier."""

    def watch(side, event):
        if side == "destination" and isinstance(event, BarrierPassed) and event.name == barrier:
            wire.cut(**how)

    return watch


def test_a_wire_cut_before_loaded_is_said_leaves_the_source_running(devices):
    """The destination is ready and cannot say so: it holds the state, stopped, until told."""
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    wire = Proxy()
    watch = cut_at(wire, "ready", for_good=True)
    outcome = migrate(source, destination, policy=BRIEF, through=wire, watch=watch)
    assert isinstance(outcome.source_error, PeerLost)
    assert_source_runs(source, before)
    assert isinstance(outcome.destination_error, HandoverInDoubt)
    assert outcome.destination.outcome == "in-doubt"
    assert "see whether the source runs" in str(outcome.destination_error)
    assert {d.name: d.state for d in destination} == HOLDING


def test_a_wire_cut_after_the_commit_leaves_the_source_stopped(devices):
    source, destination = devices(quiet_set)
    wire = Proxy()
    watch = cut_at(wire, "resume", for_good=True)
    outcome = migrate(source, destination, policy=BRIEF, through=wire, watch=watch)
    assert isinstance(outcome.source_error, HandoverInDoubt)
    assert outcome.source.outcome == "in-doubt"
    assert "see whether the destination runs" in str(outcome.source_error)
    assert {d.state for d in source} == {S.STOP_COPY}
    assert outcome.destination.outcome == "completed"
    assert "the source could not be told" in outcome.destination.error
    assert {d.state for d in destination} == {S.RUNNING}


def test_a_wire_that_is_back_before_loaded_is_said_tells_the_destination_to_let_go(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    wire = Proxy()
    outcome = migrate(source, destination, through=wire, watch=cut_at(wire, "ready"))
    assert isinstance(outcome.source_error, PeerLost)
    assert_went_back(source, destination, before)
    assert isinstance(outcome.destination_error, RemoteError)
    assert "gave the session up" in str(outcome.destination_error)


def test_a_wire_that_is_back_after_the_commit_completes_it(devices):
    source, destination = devices(quiet_set)
    wire = Proxy()
    outcome = migrate(source, destination, through=wire, watch=cut_at(wire, "resume"))
    assert wire.cuts > 0
    assert (outcome.source_error, outcome.destination_error) == (None, None)
    assert (outcome.source.error, outcome.destination.error) == (None, None)
    assert {d.state for d in source} == {S.STOP}
    assert {d.state for d in destination} == {S.RUNNING}


def test_word_of_the_switchover_may_be_slower_than_the_data(devices, monkeypatch):
    """It is held on the control connection until the destination waits for nothing else."""
    source, destination = devices(quiet_set)
    stopped, waiting = asyncio.Event(), asyncio.Event()
    phases = []
    wait = Destination._await_switchover

    async def waits(session, failure):
        waiting.set()
        await wait(session, failure)

    async def forward(link, data):
        if link.number == 0 and stopped.is_set():
            await waiting.wait()
        return data

    def watch(side, event):
        if side == "source" and event == PhaseEntered(Phase.STOP_COPY):
            stopped.set()
        if side == "destination" and isinstance(event, PhaseEntered):
            phases.append(event.phase)
            if event.phase is Phase.HAND_OVER:
                waiting.set()  # it has not waited at all

    monkeypatch.setattr(Destination, "_await_switchover", waits)
    outcome = migrate(source, destination, through=Proxy(forward), watch=watch)
    assert (outcome.source_error, outcome.destination_error) == (None, None)
    assert outcome.digests_match
    assert phases[-3:] == [Phase.STOP_COPY, Phase.HAND_OVER, Phase.DONE]


def test_a_source_that_had_to_wait_does_not_take_that_for_the_wires_round_trip(devices):
    """Nobody receives before a stranger's greeting is overdue."""
    source, destination = devices(quiet_set)

    async def body():
        policy = Policy(connect_timeout=1.0)
        async with listen("tcp://127.0.0.1:0", destination, policy=policy) as listener:
            host, port = listener.address.removeprefix("tcp://").rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(Preamble(Role.CONTROL).pack())
            going = asyncio.create_task(
                api_migrate(source, listener.address, policy=Policy(downtime_limit=0.6))
            )
            assert len(await reader.read()) == 32
            writer.close()
            await writer.wait_closed()
            await listener.receive()
            return await going

    report = asyncio.run(body())
    assert report.outcome == "completed"
    assert {d.state for d in source} == {S.STOP}

"""Who is let in, who is not, what each side is told, and what changes on the way."""

import asyncio
import contextlib
import logging
import os
import socket
import struct

import pytest
from certificates import Authority
from proxy import Proxy, flip
from session import assert_source_runs, migrate, mixed_set, quiet_set
from test_reconnect import PATIENT, cut_every

from vfioflow import (
    AuthenticationError,
    ConfigError,
    HandoverInDoubt,
    IntegrityError,
    PeerError,
    Policy,
    ProtocolError,
    Security,
    State,
    listen,
)
from vfioflow import migrate as api_migrate
from vfioflow.events import Phase, PhaseEntered
from vfioflow.wire import messages
from vfioflow.wire.greeting import MAX_GREETING
from vfioflow.wire.opening import Preamble, Role

S = State
KEY = Security(psk=bytes(range(32)))
OTHER_KEY = Security(psk=bytes(range(1, 33)))
NOTHING = Security()


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def pki(authority, tmp_path_factory):
    return authority.folder(tmp_path_factory.mktemp("tls") / "pki")


@contextlib.contextmanager
def warning():
    """An event that is set when the listener has said something of a connection."""
    said = asyncio.Event()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.set()
    logger = logging.getLogger("vfioflow")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def both(security):
    return {"security": security, "source_security": security}


@pytest.mark.parametrize("how", ["key", "certificates"])
@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_sides_that_know_each_other_migrate(devices, pki, how, compression):
    security = KEY if how == "key" else Security.from_tls_dir(pki)
    source, destination = devices(mixed_set)
    policy = Policy(downtime_limit=2.0, channels=6, compression=compression)
    outcome = migrate(source, destination, policy=policy, **both(security))
    assert outcome.source_error is None
    assert outcome.digests_match
    assert {d.state for d in destination} == {S.RUNNING}


@pytest.mark.parametrize("how", ["key", "certificates"])
@pytest.mark.parametrize("phase", [Phase.PRE_COPY, Phase.STOP_COPY, Phase.HAND_OVER])
def test_a_break_is_mended_under_protection(devices, pki, how, phase):
    """What is sent again has the same numbers, and so the same tags."""
    security = KEY if how == "key" else Security.from_tls_dir(pki)
    source, destination = devices(mixed_set)
    wire = Proxy()

    def watch(side, event):
        if side == "source" and event == PhaseEntered(phase):
            wire.cut()

    outcome = migrate(
        source, destination, policy=PATIENT, through=wire, watch=watch, **both(security)
    )
    assert outcome.source_error is None
    assert outcome.digests_match
    assert wire.cuts > 0


def test_a_key_and_a_wire_that_breaks_again_and_again(devices):
    source, destination = devices(mixed_set)
    wire = cut_every(300_000)
    outcome = migrate(source, destination, policy=PATIENT, through=wire, **both(KEY))
    assert outcome.source_error is None
    assert outcome.digests_match
    assert wire.cuts > 2


MISMATCHES = {
    "other key": (KEY, OTHER_KEY, "do not have the same key", "do not have the same key"),
    "no key here": (NOTHING, KEY, "it has a key, this side has none", "it has no key"),
    "no key there": (KEY, NOTHING, "it has no key, this side has one", "it has a key"),
    "no tls here": (NOTHING, "pki", "takes only TLS connections", "does not use TLS"),
    "no tls there": ("pki", NOTHING, "it does not speak TLS", "the peer uses TLS"),
    "tls and key": ("pki", KEY, "it does not speak TLS", "the peer uses TLS"),
    "key and tls": (KEY, "pki", "takes only TLS connections", "does not use TLS"),
    "other name there": ("wrong name", "pki", "Hostname mismatch", "not accept this side's"),
    "other name here": ("pki", "wrong peer", "another name", "certificate is for source.test"),
    "other ca here": ("other ca", "pki", "not of the CA in ca-cert.pem", "not accept this side's"),
    "other ca there": ("trusts", "pki", "not accept this side's", "not of the CA in ca-cert.pem"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_who_is_not_known_is_told_so_and_touches_nothing(
    devices, authority, pki, tmp_path, caplog, case
):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    mine, theirs, told, logged = MISMATCHES[case]
    made = {
        "pki": lambda: Security.from_tls_dir(pki),
        "wrong name": lambda: Security.from_tls_dir(pki, hostname="other.test"),
        "wrong peer": lambda: Security.from_tls_dir(pki, peer="other.test"),
        "other ca": lambda: Security.from_tls_dir(Authority().folder(tmp_path / "ca")),
        "trusts": lambda: Security.from_tls_dir(crossed(authority, tmp_path)),
    }

    async def body():
        here, there = (made[s]() if isinstance(s, str) else s for s in (mine, theirs))
        with warning() as warned:
            return await attempt(here, there, warned)

    async def attempt(here, there, warned):
        async with listen("tcp://127.0.0.1:0", destination, security=there) as listener:
            with pytest.raises(AuthenticationError, match=told) as caught:
                await api_migrate(source, listener.address, security=here)
            # The listener goes on, for one who is known.
            await warned.wait()
            taking = asyncio.create_task(listener.receive())
            good = made["pki"]() if theirs == "wrong peer" else there
            if theirs == "wrong peer":
                taking.cancel()
            else:
                await api_migrate(source, listener.address, security=good)
                await taking
        return caught.value

    error = asyncio.run(body())
    assert error.exit_code == 5
    assert logged in caplog.text
    for secret in (KEY, OTHER_KEY):
        assert secret.psk.hex() not in caplog.text
    if theirs == "wrong peer":
        assert_source_runs(source, before)


def crossed(authority, tmp_path):
    """A source that trusts the destination's CA, with a certificate of another."""
    folder = authority.folder(tmp_path / "good")
    other = Authority().folder(tmp_path / "bad")
    for name in ("client-cert.pem", "client-key.pem"):
        (folder / name).write_bytes((other / name).read_bytes())
    chain = (folder / "ca-cert.pem").read_bytes() + (other / "ca-cert.pem").read_bytes()
    (folder / "ca-cert.pem").write_bytes(chain)
    return folder


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "fd"])
def test_an_address_that_others_reach_needs_protection(devices, address):
    _, destination = devices(quiet_set)

    async def body():
        with socket.create_server(("0.0.0.0", 0)) as sock:
            where = f"fd://{os.dup(sock.fileno())}" if address == "fd" else address
            with pytest.raises(ConfigError, match=r"--psk FILE.*--tls DIR.*127\.0\.0\.1"):
                await listen(where, destination).__aenter__()
        async with listen("tcp://0.0.0.0:0", destination, security=KEY) as listener:
            return listener.address

    assert asyncio.run(body()).startswith("tcp://0.0.0.0:")


# -------------------------------------------------------- changed on the way


def assert_refused(outcome, source, before):
    assert isinstance(outcome.source_error, PeerError)
    assert not isinstance(outcome.source_error, HandoverInDoubt)
    assert_source_runs(source, before)


@pytest.mark.parametrize("where", ["control", "data"])
def test_a_bit_that_changes_on_the_way_is_found(devices, where):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    done = []

    async def forward(link, data):
        # Behind the greetings on the control connection; in a frame on the first channel.
        behind = 700 if where == "control" else 4096
        if link.number == (where == "data") and len(link.seen) > behind and not done:
            done.append(link.number)
            return flip(data, -20 if where == "control" else len(data) // 2)
        return data

    outcome = migrate(source, destination, through=Proxy(forward), **both(KEY))
    assert done
    assert_refused(outcome, source, before)
    assert isinstance(outcome.destination_error, IntegrityError)


def test_bytes_that_come_twice_are_found(devices):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}

    async def forward(link, data):
        first = link.number == 1 and len(link.seen) - len(data) == 32  # behind the preamble
        return data + data if first else data

    outcome = migrate(source, destination, through=Proxy(forward), **both(KEY))
    assert_refused(outcome, source, before)
    assert isinstance(outcome.destination_error, IntegrityError)


def test_what_was_recorded_opens_nothing_again(devices, caplog):
    """A second control connection, and a second data connection, with all that the first ones said."""
    source, destination = devices(quiet_set)
    wire = Proxy()

    async def body():
        async with listen("tcp://127.0.0.1:0", destination, security=KEY) as listener:
            taking = asyncio.create_task(listener.receive())
            async with wire(listener.address) as address:

                async def again(data):
                    reader, writer = await asyncio.open_connection(*wire.target)
                    writer.write(data)
                    with contextlib.suppress(ConnectionError):
                        await reader.read(-1)
                    writer.close()

                def copy(event):
                    if event == PhaseEntered(Phase.STOP_COPY):
                        # While the session runs, and its channels are known.
                        tasks.append(asyncio.create_task(again(wire.links[1].seen)))

                tasks = []
                report = await api_migrate(
                    source, address, policy=Policy(downtime_limit=2.0), security=KEY, observer=copy
                )
                await taking
                await asyncio.gather(*tasks)
                await again(wire.links[0].seen)
                await again(wire.links[1].seen)
            return report

    assert asyncio.run(body()).outcome == "completed"
    assert caplog.text.count("a data connection that belongs to no session here") == 2
    assert "do not have the same key" in caplog.text
    assert {d.state for d in destination} == {S.RUNNING}


def test_tls_finds_what_changes_on_the_way(devices, pki):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in source}
    done = []

    async def forward(link, data):
        if link.number == 1 and len(link.seen) > 100_000 and not done:
            done.append(link.number)
            return flip(data, len(data) // 2)
        return data

    outcome = migrate(
        source, destination, through=Proxy(forward), **both(Security.from_tls_dir(pki))
    )
    assert done
    assert_refused(outcome, source, before)


# ------------------------------------------------------------- strangers


@contextlib.asynccontextmanager
async def strangers(address, count, words=b""):
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    made = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
    for _, writer in made:
        writer.write(words)
    yield made
    for _, writer in made:
        writer.close()


@pytest.mark.parametrize("words", [b"", b"VFIO", Preamble(Role.CONTROL).pack()], ids=len)
@pytest.mark.parametrize("how", ["nothing", "key", "certificates"])
def test_connections_that_say_nothing_hold_up_nobody(devices, pki, how, words):
    security = {"nothing": NOTHING, "key": KEY}.get(how) or Security.from_tls_dir(pki)
    source, destination = devices(quiet_set)

    async def body():
        patient = Policy(connect_timeout=600.0)
        async with (
            listen("tcp://127.0.0.1:0", destination, policy=patient, security=security) as listener,
            strangers(listener.address, 64, words),
        ):
            taking = asyncio.create_task(listener.receive())
            report = await api_migrate(
                source, listener.address, security=security, policy=Policy(downtime_limit=2.0)
            )
            await taking
            return report

    assert asyncio.run(body()).outcome == "completed"


def message(data):
    return struct.pack("<II", len(data), 0) + data


@pytest.mark.parametrize(
    ("words", "logged"),
    [
        (struct.pack("<II", MAX_GREETING + 1, 0), "announced a greeting of 4097 bytes"),
        (struct.pack("<II", 2**32 - 1, 0), "announced a greeting of 4294967295 bytes"),
        (message(messages.encode(messages.Commit())), "something else than its greeting"),
        (message(b"\xc1"), "a control message that is none"),
    ],
    ids=["4097 bytes", "4 GiB", "commit", "garbage"],
)
def test_little_is_read_of_a_stranger(devices, words, logged, caplog):
    _, destination = devices(quiet_set)

    async def body():
        async with (
            listen("tcp://127.0.0.1:0", destination, security=KEY) as listener,
            strangers(listener.address, 1, Preamble(Role.CONTROL).pack() + words) as made,
        ):
            with warning() as warned:
                (reader, writer), *_ = made
                await reader.read(-1)
                writer.close()
                await warned.wait()

    asyncio.run(body())
    assert logged in caplog.text


def offered(**about):
    device = {"name": "net0", "driver": "x", "profile": "x", "flags": 3, "size": 1, **about}
    return messages.OfferedDevice(**device)


@pytest.mark.parametrize(
    ("devices_offered", "match"),
    [
        ([offered(size=2**63)], "a device net0 of 9223372036854775808 bytes"),
        ([offered(name="x" * 256)], "a name that cannot be one"),
        ([offered(name="\x1b[2J")], "a name that cannot be one"),
    ],
)
def test_an_offer_out_of_this_world_is_refused(devices, devices_offered, match):
    offer = messages.Offer(
        devices=devices_offered, channels=1, chunk_size=4096, digests=True, window=0,
        reconnect_seconds=0.0,
    )  # fmt: skip
    with pytest.raises(ProtocolError, match=match):
        offer.check()

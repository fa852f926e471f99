"""What would a destination say?  Asked over a real socket; nothing is touched, here or there."""

import asyncio
import json

import pytest
from processes import running
from session import migrate as migrate_both
from session import quiet_set

from vfioflow import (
    AuthenticationError,
    Hooks,
    Journal,
    PeerLost,
    Policy,
    Security,
    SimDevice,
    listen,
    migrate,
)
from vfioflow.admission import Level, judge
from vfioflow.inventory import look
from vfioflow.planning import ask
from vfioflow.states import State

KEY = Security(psk=b"a key of both sides")


def plan(source, destination, *, security=(None, None), journal=None):
    """What the source hears; then a migration is made over the same listener."""

    async def body():
        facts = await look(source, timeout=10, sized=True)
        async with listen(
            "tcp://127.0.0.1:0", destination, journal=journal, security=security[1]
        ) as listener:
            return facts, await ask(facts, listener.address, security=security[0])

    return asyncio.run(body())


def test_a_destination_that_would_take_them(devices, tmp_path):
    source, destination = devices(quiet_set)
    before = {d.name: d.true_digest() for d in destination}
    journal = Journal(tmp_path / "journal")
    facts, answer = plan(source, destination, journal=journal)
    assert answer.reasons == {}
    assert [d.name for d in answer.devices] == [d.name for d in destination]
    assert [d.driver for d in answer.devices] == [d.info.driver for d in destination]
    assert judge(facts, destination=answer.devices).level < Level.MAY_NOT
    assert {d.state for d in (*source, *destination)} == {State.RUNNING}
    assert {d.name: d.true_digest() for d in destination} == before
    assert journal.stories() == []


def test_one_that_would_not_says_why_for_each():
    with (
        SimDevice("net0", profile="mlx5", state_size="1MiB", initial_bytes=0) as net,
        SimDevice("gpu0", profile="xe", state_size="1MiB") as gpu,
        SimDevice("net0", profile="virtio", state_size="1MiB", initial_bytes=0) as other,
    ):
        facts, answer = plan([net, gpu], [other])
        assert set(answer.reasons) == {"net0", "gpu0"}
        assert "its driver is mlx5_vfio_pci, the destination's is virtio" in answer.reasons["net0"]
        assert "has no device of this name" in answer.reasons["gpu0"]
        assert judge(facts, destination=answer.devices).reasons() == answer.reasons


def test_one_that_is_asked_goes_on_waiting_and_is_asked_by_its_key(devices):
    source, destination = devices(quiet_set)

    async def body():
        facts = await look(source, timeout=10)
        async with listen("tcp://127.0.0.1:0", destination, security=KEY) as listener:
            with pytest.raises(AuthenticationError):
                await ask(facts, listener.address)
            for _ in range(3):
                assert (await ask(facts, listener.address, security=KEY)).reasons == {}
            taking = asyncio.create_task(listener.receive())
            await migrate(source, listener.address, security=KEY)
            await taking

    asyncio.run(body())
    assert {d.state for d in destination} == {State.RUNNING}


def test_one_that_is_busy_says_so(devices):
    """Its devices are in RESUMING while a migration is under way."""
    source, destination = devices(quiet_set)
    heard = []

    async def body():
        async with listen("tcp://127.0.0.1:0", destination) as listener:
            taking = asyncio.create_task(listener.receive())

            async def stop():
                facts = await look(source, timeout=10)
                heard.append(await ask(facts, listener.address))

            await migrate(
                source,
                listener.address,
                policy=Policy(downtime_limit=5),
                hooks=Hooks(stop_vcpus=stop),
            )
            await taking

    asyncio.run(body())
    [answer] = heard
    assert {d.state for d in answer.devices} == {"RESUMING"}
    assert all("at the destination it is in RESUMING" in why for why in answer.reasons.values())
    assert set(answer.reasons) == {d.name for d in destination}


def test_nobody_there(devices):
    source, _ = devices(quiet_set)

    async def body():
        await ask(await look(source, timeout=10), "tcp://127.0.0.1:1")

    with pytest.raises(PeerLost, match="cannot connect"):
        asyncio.run(body())


def test_a_refusal_on_the_way_is_the_same_as_in_the_plan(devices):
    """`send` goes by the same rules."""
    source, destination = devices(quiet_set)
    facts, answer = plan(source, destination[:2])
    outcome = migrate_both(source, destination[:2])
    assert outcome.source_error.reasons == answer.reasons
    assert judge(facts, destination=answer.devices).reasons() == answer.reasons


# ----------------------------------------------------------------- the commands

THREE = """
[[device]]
name = "net0"
profile = "mlx5"
state_size = "1MiB"
initial_bytes = 0

[[device]]
name = "acc0"
profile = "hisi_acc"

[[device]]
name = "gpu0"
profile = "xe"
state_size = "200MiB"
"""


@pytest.fixture
def three(tmp_path):
    file = tmp_path / "three.toml"
    file.write_text(THREE)
    return file


def says(*args):
    """Exit code and standard output, without the breaks that only fit the width."""
    with running(*args) as command:
        code, out, _ = command.end()
    return code, " ".join(out.split())


def test_why_three_may_not_go_together(three):
    code, out = says("plan", "--devices", three)
    assert code == 3
    assert "net0, acc0 and gpu0 may not migrate together." in out
    assert "acc0 may not its driver hisi_acc_vfio_pci has no P2P states: net0 and gpu0 could" in out
    assert "[p2p] -> migrate it alone, or without it" in out
    assert "Smallest sets that are refused net0 + acc0 acc0 + gpu0 Largest" in out
    assert "Largest sets that may go net0 + gpu0 acc0 alone" in out
    assert "net0 - no yes acc0 no - no gpu0 yes no -" in out


def test_a_part_that_may_within_the_limit_and_not(three):
    code, out = says("plan", "--devices", three, "net0", "gpu0", "--bandwidth=10Gbit")
    assert code == 0
    assert "net0 and gpu0 may migrate together, with a condition." in out
    assert "its 200.1 MiB take 168 ms of the downtime limit of 300 ms [large]" in out
    code, out = says("plan", "--devices", three, "net0", "gpu0", "--bandwidth=2Gbit")
    assert code == 3
    assert "the limit is 300 ms [downtime] -> a faster wire, fewer devices at once, or" in out


def test_the_same_for_programs(three):
    code, out = says("plan", "--devices", three, "--json", "--with", "postcopy")
    told = json.loads(out)
    assert code == 3
    assert told["may"] is False
    assert told["smallest_refused"][:2] == [["net0"], ["acc0"]]  # nothing goes with post-copy
    assert told["largest_that_may"] == []
    [finding] = [f for f in told["findings"] if f["rule"] == "p2p"]
    assert (finding["devices"], finding["because"]) == (["acc0"], ["net0", "gpu0"])
    assert "VFIO_MIGRATION_P2P" in finding["source"]
    assert [d["flags"] for d in told["devices"]][2] == ["STOP_COPY", "P2P"]


def test_a_destination_is_asked_by_the_command(three, tmp_path):
    there = tmp_path / "there.toml"
    there.write_text(THREE.replace("hisi_acc", "qat"))
    with running("receive", "--devices", there, "--listen", "tcp://127.0.0.1:0") as receive:
        to = receive.wait_for("listening on").split()[-1]
        code, out = says("plan", "--devices", three, "--to", to)
        assert code == 3
        assert "its driver is hisi_acc_vfio_pci, the destination's is qat_vfio_pci [driver]" in out
        code, out = says("plan", "--devices", three, "--to", to, "--json", "net0", "gpu0")
        told = json.loads(out)
        assert [f["devices"] for f in told["findings"] if f["rule"] == "empty"] == [["acc0"]]
        assert told["destination_refuses"] == {}  # it says nothing that is not said here
        assert receive.process.poll() is None


def test_a_name_that_is_none(three):
    with running("plan", "--devices", three, "net1") as command:
        code, out, log = command.end()
    assert (code, out) == (2, "")
    assert "there is no device net1; there is net0, acc0, gpu0" in log


def test_an_inventory(three):
    code, out = says("probe", "--devices", three)
    assert code == 0
    assert "net0 mlx5_vfio_pci yes yes yes" in out
    assert "acc0 hisi_acc_vfio_pci yes no yes" in out
    assert "200.1 MiB RUNNING" in out
    assert "acc0: loads in RESUMING -> STOP" in out
    code, out = says("probe", "--devices", three, "--json")
    told = {device["name"]: device for device in json.loads(out)}
    assert told["gpu0"]["flags"] == ["STOP_COPY", "P2P"]
    assert told["net0"]["quirks"] == ["STOP_COPY -> STOP is slow"]
    assert told["net0"]["state"] == "RUNNING"

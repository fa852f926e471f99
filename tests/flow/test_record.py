"""Devices that are watched without being migrated: what is written of them, and that they run again."""

import asyncio
import errno
import json
import signal
import tomllib

import pytest
from processes import running

from vfioflow import ConfigError, DeviceError, Fabric, Fault, SimDevice, State, listen, migrate
from vfioflow.cli import cli
from vfioflow.devices.profile import profile
from vfioflow.devices.sim import ledger, live
from vfioflow.events import StateChanged
from vfioflow.lab.fitting import fit
from vfioflow.lab.recorder import Recorder, record

MIB = 1 << 20
S = State


@pytest.fixture
def opened(nothing_left):
    """Makes devices, and closes them; all of them run when the test ends."""
    made = []

    def make(name="nic0", **options):
        device = SimDevice(name, **{"state_size": 8 * MIB, **options})
        made.append(device)
        return device

    yield make
    states = [device.state for device in made]
    for device in made:
        device.close()
    assert states == [S.RUNNING] * len(made)
    assert live() == {"devices": 0, "sessions": 0}


def watch(*devices, seconds=0.2, **options):
    return asyncio.run(record(devices, seconds=seconds, step=0.02, **options))


@pytest.mark.parametrize("name", ["generic", "mlx5", "vgpu", "qat", "hisi_acc", "mtty", "virtio"])
def test_sizes_are_replayed_to_the_byte(opened, name):
    size = {"generic": 5_000_001, "mlx5": 20 * MIB, "vgpu": 30 * MIB}.get(name)
    [seen] = watch(opened(profile=name, state_size=size, dirty_rate=0), stop_copy=True)
    p = fit(seen).profile
    [again] = watch(
        opened("copy", state_size=p.state_size, initial_bytes=p.initial_bytes), stop_copy=True
    )
    assert (again.told, again.watched.initial) == (seen.told, seen.watched.initial)
    assert again.watched.read == seen.watched.read == seen.watched.initial
    assert again.stopped.size == seen.stopped.size == seen.told - seen.watched.read


@pytest.mark.parametrize(
    ("name", "arcs"),
    [
        ("mlx5", "RUNNING->PRE_COPY PRE_COPY->PRE_COPY_P2P PRE_COPY_P2P->STOP_COPY STOP_COPY->STOP"
         " STOP->RUNNING_P2P RUNNING_P2P->RUNNING"),
        ("xe", "RUNNING->RUNNING_P2P RUNNING_P2P->STOP STOP->STOP_COPY STOP_COPY->STOP"
         " STOP->RUNNING_P2P RUNNING_P2P->RUNNING"),
        ("hisi_acc", "RUNNING->PRE_COPY PRE_COPY->STOP_COPY STOP_COPY->STOP STOP->RUNNING"),
    ],
)  # fmt: skip
def test_each_direct_arc_is_timed(opened, name, arcs):
    times = dict.fromkeys(set(profile(name).arc_seconds) & set(arcs.split()), 0.03)
    size = None if name == "hisi_acc" else MIB
    [seen] = watch(
        opened(profile=name, state_size=size, arc_seconds=times, dirty_rate=0), stop_copy=True
    )
    assert list(seen.arcs) == arcs.split()
    assert all(seen.arcs[arc] >= 0.03 for arc in times)
    fitted = fit(seen).profile.arc_seconds
    assert all(fitted[arc] == seen.arcs[arc] for arc in times)


def test_without_stop_copy_no_device_stands_still(opened):
    changes = []
    devices = [opened(), opened("gpu0", profile="xe", state_size=MIB)]
    nic, gpu = watch(*devices, observer=changes.append)
    seen = {state for event in changes for state in [getattr(event, "end", None)] if state}
    assert seen == {S.PRE_COPY, S.RUNNING}
    assert (gpu.watched, gpu.stopped, nic.stopped, gpu.arcs) == (None, None, None, {})
    assert fit(gpu).profile.state_size == MIB
    assert fit(gpu).profile.initial_bytes == 0


def test_peers_lose_no_message_while_they_are_stopped(opened):
    devices = [opened(name) for name in ("nic0", "nic1", "nic2")]
    Fabric(devices)
    watch(*devices, stop_copy=True)
    book = ledger(devices)
    assert book.balanced
    assert book.messages > 0


def test_what_it_compresses_to(opened):
    for content, zeros in (("zeros", True), ("random", False)):
        [seen] = watch(opened(content, content=content, initial_bytes=8 * MIB))
        assert (seen.packing.ratio < 0.01) is zeros
        assert fit(seen).profile.content == ("zeros" if zeros else "mix:0,0")


def test_the_recording_migrates(opened, tmp_path):
    file = tmp_path / "p.toml"
    devices = tmp_path / "d.toml"
    devices.write_text('[[device]]\nname = "nic0"\nprofile = "mlx5"\nstate_size = "9MiB"\n')
    with running("-q", "record", devices, "--for", "300ms", "--to-file", file) as command:
        code, _, log = command.end()
    assert (code, log) == (0, "")
    here, there = (opened(profile=str(file)) for _ in range(2))

    async def move():
        async with listen("tcp://127.0.0.1:0", [there]) as listener:
            taking = asyncio.create_task(listener.receive())
            report = await migrate([here], listener.address)
            await taking
            return report

    report = asyncio.run(move())
    assert report.devices[0].digest_ok
    here.reset()


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "at",
    [
        "RUNNING->PRE_COPY",
        "PRE_COPY->PRE_COPY_P2P",
        "PRE_COPY_P2P->STOP_COPY",
        "STOP_COPY->STOP",
        "STOP->RUNNING_P2P",
        "RUNNING_P2P->RUNNING",
    ],
)
@pytest.mark.parametrize("left", [None, S.ERROR], ids=["stays", "in ERROR"])
def test_an_arc_that_fails(opened, at, left):
    bad = opened("bad", faults=[Fault(at, "errno", errno=errno.EBUSY, state=left)])
    with pytest.raises(DeviceError) as failed:
        watch(opened(), bad, stop_copy=True)
    assert (failed.value.device, failed.value.errno) == ("bad", errno.EBUSY)


@pytest.mark.parametrize("offset", [1000, 7 * MIB])
def test_a_read_that_fails(opened, offset):
    bad = opened("bad", faults=[Fault("read", "errno", offset=offset)])
    with pytest.raises(DeviceError, match="read") as failed:
        watch(opened(), bad, stop_copy=True)
    assert (failed.value.device, failed.value.errno) == ("bad", errno.EIO)


async def cancelled(device):
    """Cancel a recording as soon as the device is in PRE_COPY."""
    watching = asyncio.Event()

    def see(event):
        if isinstance(event, StateChanged) and event.end is S.PRE_COPY:
            watching.set()

    recorder = Recorder([device], timeout=10.0, observer=see)
    task = asyncio.create_task(recorder.run(seconds=600.0, stop_copy=True))
    await watching.wait()
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


def test_a_cancellation(opened):
    assert asyncio.run(cancelled(opened()))


def test_a_cancellation_while_a_device_hands_out_nothing(opened):
    assert asyncio.run(cancelled(opened(faults=[Fault("read", "hang", offset=1000)])))


def test_one_that_does_not_run(opened):
    device = opened()
    device.set_state(S.STOP)
    with pytest.raises(ConfigError, match="nic0 is STOP: only one that runs is recorded"):
        watch(device)
    device.set_state(S.RUNNING)


def test_no_p2p_states_and_others(opened):
    with pytest.raises(ConfigError, match=r"record it alone, or without --stop-copy"):
        watch(opened(), opened("acc0", profile="hisi_acc", state_size=None), stop_copy=True)


# -------------------------------------------------------------------- the command

DEVICES = """
[[device]]
name = "nic0"
profile = "mlx5"
state_size = "4MiB"
[[device]]
name = "gpu0"
profile = "xe"
state_size = "2MiB"
"""


def test_the_command_writes_a_table_for_each(tmp_path):
    devices, file = tmp_path / "d.toml", tmp_path / "p.toml"
    devices.write_text(DEVICES)
    args = ("record", devices, "--for", "300ms", "--stop-copy", "--to-file", file, "--json")
    with running(*args) as command:
        code, out, log = command.end()
    assert (code, log) == (0, "vfioflow: watching nic0, gpu0 for 0.3 s, after their initial data\n")
    tables = tomllib.loads(file.read_text())
    assert [table["state_size"] for table in tables.values()] == [4 * MIB, 2 * MIB]
    assert tables["nic0"]["source"] == "recorded from mlx5_vfio_pci in 0.3 s of pre-copy and a stop"
    nic, gpu = json.loads(out)
    assert nic["watched"]["read"] >= nic["watched"]["initial"] > 3 * MIB
    assert gpu["stopped"]["size"] > gpu["profile"]["state_size"] == 2 * MIB
    assert nic["profile"]["state_size"] == profile(f"{file}:nic0").state_size


def test_ctrl_c_writes_nothing(tmp_path):
    devices, file = tmp_path / "d.toml", tmp_path / "p.toml"
    devices.write_text(DEVICES)
    with running("record", devices, "--for", "10min", "--to-file", file) as command:
        command.wait_for("watching nic0, gpu0")
        command.process.send_signal(signal.SIGINT)
        code, out, log = command.end()
    assert (code, out) == (130, "")
    assert log.endswith("interrupted: every device is RUNNING again; nothing was written\n")
    assert not file.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["none.toml", "--to-file", "p.toml"], "none.toml: No such file"),
        (["no-such-device", "--to-file", "p.toml"], "no-such-device"),
        (["none.toml", "--to-file", "no/such/p.toml"], "no/such/p.toml: cannot be written"),
        (["none.toml", "--to-file", "p.toml", "--for", "0"], "--for: must be more than 0"),
        (["none.toml"], "--to-file"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(["record", *args])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

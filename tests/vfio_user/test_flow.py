"""Migrations between two servers, each a process: byte for byte, or put back whatever a server does."""

from __future__ import annotations

import asyncio
import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vfioflow import (
    AdmissionError,
    DeviceError,
    PeerError,
    Policy,
    SimDevice,
    StallError,
    listen,
    migrate,
)
from vfioflow.cli import cli
from vfioflow.states import State

MIB = 1 << 20
READ, WRITE = 17, 18
SMALL = {"size": 2 * MIB, "initial": 1 * MIB, "passes": 0}
OTHER = {**SMALL, "seed": 2}
PLAN = Policy(downtime_limit=5.0, stall_timeout=20.0)


async def both(source, destination, policy: Policy) -> tuple[object, object]:
    """Reports, or errors, of both sides."""
    async with listen("tcp://127.0.0.1:0", destination, policy=policy) as listener:
        taking = asyncio.create_task(listener.receive())
        [here] = await asyncio.gather(
            migrate(source, listener.address, policy=policy), return_exceptions=True
        )
        if isinstance(here, AdmissionError):
            taking.cancel()
        [there] = await asyncio.gather(taking, return_exceptions=True)
        return here, there


def move(source, destination, policy: Policy = PLAN) -> tuple[object, object]:
    return asyncio.run(both(source, destination, policy))


@pytest.mark.parametrize(
    "options",
    [
        {"device": {"size": 24 * MIB, "initial": 16 * MIB, "dirties": 30, "passes": 4}},
        {"device": {"size": 3 * MIB, "flags": 1}},
        {"device": {"size": 3 * MIB, "short": 5000}, "padded": False},
        {"device": {"size": 3 * MIB, "passes": 0, "initial": 3 * MIB}, "size_feature": True},
        {"device": {"size": 2 * MIB}, "limit": 10_000},
        {"device": {"size": 2 * MIB}, "version": [0, 0, None]},
    ],
)
def test_byte_for_byte(process, connect, options):
    one, two = process("nic0", **options), process("other", **options)
    two.ask("content_of_zeros")
    source, destination = connect(one), connect(two, name="nic0")
    here, there = move([source], [destination])
    assert (here.outcome, there.outcome) == ("completed", "completed")
    assert (source.state, destination.state) == (State.STOP, State.RUNNING)
    assert two.ask("digest") == one.ask("digest")
    assert one.ask("sent") == two.ask("written") == here.bytes_total
    assert one.ask("short_bodies") == two.ask("short_bodies") == 0
    copied = options["device"].get("flags", 5) == 5
    assert bool(here.devices[0].bytes_precopy) is copied
    assert one.ask("arcs") == (["2->6", "6->3", "3->1"] if copied else ["2->1", "1->3", "3->1"])
    assert two.ask("arcs") == ["2->1", "1->4", "4->1", "1->2"]


def test_the_example_of_the_documentation_runs(process, tmp_path):
    root = Path(__file__).parents[2]
    text = (root / "docs" / "embedding.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    [example] = [block for block in blocks if "VfioUserDevice" in block]
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    one, two = process("nic0", device=SMALL), process("other", device=OTHER)
    done = subprocess.run(
        [sys.executable, "-W", "error", script, one.path, two.path],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root)},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{one.ask('sent')} bytes: STOP here, RUNNING there\n"
    assert two.ask("digest") == one.ask("digest")


def test_together_with_other_devices_it_is_refused(stack, process, connect):
    source = connect(process("nic0"))
    sims = [stack.enter_context(SimDevice("gpu0", profile="mlx5")) for _ in range(2)]
    destination = connect(process("other"), name="nic0")
    here, there = move([source, sims[0]], [destination, sims[1]])
    assert isinstance(here, AdmissionError)
    assert re.search("vfio-user has no P2P states: gpu0", here.reasons["nic0"])
    assert isinstance(there, asyncio.CancelledError)
    assert (source.state, sims[0].state) == (State.RUNNING, State.RUNNING)


def test_without_migration_it_is_refused(process, connect):
    source = connect(process("nic0", device={"flags": 0}))
    destination = connect(process("other"), name="nic0")
    here, _ = move([source], [destination])
    assert isinstance(here, AdmissionError)
    assert "its driver vfio-user does not support migration" in here.reasons["nic0"]


SOURCE = [
    ((READ, 2, "id", 999), "reply with id 999, where that to"),
    ((READ, 6, "id", 999), "reply with id 999, where that to"),
    ((READ, 2, "reply command", 5), "reply to command 5, where that to command 17"),
    ((READ, 2, "flags", 3), "message of type 3"),
    ((READ, 2, "size", 3), "says that it has 3 bytes"),
    ((READ, 2, "size", 0xFFFFFFFF), "4294967279 bytes after its header, where at most"),
    ((READ, 2, "data size", 0x7FFFFFFF), "2147483647 bytes of data, at most"),
    ((READ, 1, "swap", 0), "where that to"),
    ((READ, 2, "close", 0), "the server closed the connection"),
    ((READ, 2, "half", 0), "in the middle of a message"),
    ((READ, 2, "error", errno.EIO), "EIO"),
    ((READ, 6, "bare error", errno.ENODATA), "ENODATA"),
]


@pytest.mark.parametrize(("fault", "reason"), SOURCE)
@pytest.mark.parametrize("flags", [5, 1])
def test_a_source_that_misbehaves(process, connect, fault, reason, flags):
    one, two = process("nic0", device={**SMALL, "flags": flags}), process("other", device=OTHER)
    source, destination = connect(one), connect(two, name="nic0")
    before = one.ask("digest")
    one.ask("fault", *fault)
    here, there = move([source], [destination])
    assert isinstance(here, DeviceError), here
    assert here.device == "nic0"
    assert re.search(f"device nic0: reading its state at byte \\d+ .*{reason}", str(here))
    assert isinstance(there, PeerError)
    assert "device nic0: reading its state" in str(there)
    assert (one.ask("state"), one.ask("digest")) == (State.RUNNING, before)
    assert (source.state, destination.state) == (State.RUNNING, State.RUNNING)
    assert getattr(here, "__notes__", []) == []
    # The same servers, once they behave.
    here, _ = move([source], [destination])
    assert here.outcome == "completed"
    assert two.ask("digest") == before


DESTINATION = [
    ((WRITE, 2, "id", 999), "reply with id 999, where that to"),
    ((WRITE, 2, "size", 1 << 30), "where at most"),
    ((WRITE, 2, "close", 0), "closed the connection"),
    ((WRITE, 2, "error", errno.ENOSPC), "ENOSPC"),
    ((WRITE, 40, "bare error", 0), "EINVAL"),
]


@pytest.mark.parametrize(("fault", "reason"), DESTINATION)
def test_a_destination_that_misbehaves(process, connect, fault, reason):
    one, two = process("nic0", device=SMALL), process("other", device=OTHER)
    source, destination = connect(one), connect(two, name="nic0")
    before = one.ask("digest")
    two.ask("fault", *fault)
    here, there = move([source], [destination])
    assert isinstance(there, DeviceError), there
    assert there.device == "nic0"
    assert re.search(f"device nic0: loading its state at byte \\d+ .*{reason}", str(there))
    assert isinstance(here, PeerError)
    assert "device nic0: loading its state" in str(here)
    assert (one.ask("state"), one.ask("digest")) == (State.RUNNING, before)
    assert (source.state, destination.state) == (State.RUNNING, State.RUNNING)
    assert getattr(there, "__notes__", []) == []


@pytest.mark.parametrize(
    ("side", "fail", "error"),
    [
        ("source", {"2->6": [errno.EBUSY, 2]}, "RUNNING -> PRE_COPY: EBUSY"),
        ("source", {"6->3": [errno.EIO, 6]}, "PRE_COPY -> STOP_COPY: EIO"),
        ("source", {"6->3": [errno.EIO, 0]}, "ERROR, which only a reset leaves"),
        ("destination", {"1->4": [errno.ENOMEM, 1]}, "RUNNING -> RESUMING: ENOMEM"),
        ("destination", {"4->1": [errno.EINVAL, 4]}, "RESUMING -> STOP: EINVAL"),
    ],
)
def test_a_change_of_state_that_fails(process, connect, side, fail, error):
    faulty = {"source": "nic0", "destination": "other"}[side]
    one, two = (
        process(name, device={**SMALL, "fail": fail if name == faulty else {}})
        for name in ("nic0", "other")
    )
    source, destination = connect(one), connect(two, name="nic0")
    before = one.ask("digest")
    here, there = move([source], [destination])
    failed, told = (here, there) if side == "source" else (there, here)
    assert isinstance(failed, DeviceError)
    assert re.search(f"device nic0: .*{error}", str(failed))
    assert isinstance(told, PeerError)
    assert (source.state, destination.state) == (State.RUNNING, State.RUNNING)
    if fail != {"6->3": [errno.EIO, 0]}:  # whose state is lost in the reset
        assert one.ask("digest") == before


@pytest.mark.parametrize(
    ("side", "fault"),
    [
        ("nic0", (READ, 2, "hang")),
        ("nic0", (READ, 2, "half and hang")),
        ("other", (WRITE, 3, "hang")),
    ],
)
def test_a_server_that_hangs(process, connect, side, fault):
    one, two = process("nic0", device=SMALL), process("other", device=OTHER)
    source, destination = connect(one, timeout=1.0), connect(two, name="nic0", timeout=1.0)
    (one if side == "nic0" else two).ask("fault", *fault)
    before = one.ask("digest")
    here, there = move([source], [destination], Policy(downtime_limit=5.0, stall_timeout=1.0))
    assert isinstance(here, StallError | PeerError)
    assert "device nic0" in f"{here} {there}"
    assert "nothing has moved for 1 s" in f"{here} {there}"
    assert (source.state, destination.state) == (State.RUNNING, State.RUNNING)
    assert one.ask("digest") == before


def test_a_server_that_dies(process, connect):
    one, two = process("nic0", device=SMALL), process("other", device=OTHER)
    source, destination = connect(one), connect(two, name="nic0")
    two.ask("fault", WRITE, 3, "exit")
    here, there = move([source], [destination])
    assert isinstance(there, DeviceError)
    assert re.search("device nic0: loading its state at byte .*closed the connection", str(there))
    # It may still be accepting connections while it dies.
    gone = r"device nic0: .*(left its socket behind|closed the connection)"
    assert any(re.search(gone, note) for note in there.__notes__)
    assert "device nic0" in str(here)
    assert source.state is State.RUNNING
    assert two.process.wait(10) == 1
    with pytest.raises(DeviceError, match="left its socket behind"):
        _ = destination.state


def test_a_server_that_asks_for_memory_is_told_no(process, connect):
    one, two = process("nic0", device=SMALL), process("other", device=OTHER)
    source, destination = connect(one), connect(two, name="nic0")
    one.ask("fault", READ, 2, "command")
    two.ask("fault", WRITE, 5, "quiet command")
    here, _ = move([source], [destination])
    assert here.outcome == "completed"
    assert two.ask("digest") == one.ask("digest")


def test_cancelled(process, connect):
    one, two = process("nic0", device={**SMALL, "passes": 1 << 30}), process("other", device=OTHER)
    source, destination = connect(one), connect(two, name="nic0")

    async def run() -> tuple[object, object]:
        policy = Policy(downtime_limit=1e-6)  # so that it copies on and on
        async with listen("tcp://127.0.0.1:0", [destination]) as listener:
            taking = asyncio.create_task(listener.receive())
            copying = asyncio.Event()

            def see(event: object) -> None:
                if type(event).__name__ == "InitialLoaded":
                    copying.set()

            giving = asyncio.create_task(
                migrate([source], listener.address, policy=policy, observer=see)
            )
            await copying.wait()
            giving.cancel()
            return await asyncio.gather(giving, taking, return_exceptions=True)

    here, there = asyncio.run(run())
    assert isinstance(here, asyncio.CancelledError)
    assert isinstance(there, PeerError)
    assert (source.state, destination.state) == (State.RUNNING, State.RUNNING)


def test_a_devices_file_with_nobody_behind_its_socket(tmp_path, capsys):
    file = tmp_path / "devices.toml"
    file.write_text(f'[[device]]\nname = "nic0"\nkind = "vfio-user"\nsocket = "{tmp_path}/none"\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["send", "--devices", str(file), "--to", "tcp://127.0.0.1:1"])
    assert ended.value.code == 4
    said = capsys.readouterr().err
    assert f"device nic0: connect to {tmp_path}/none: ENOENT" in said
    assert "is its server running?" in said
    assert "Traceback" not in said

"""Whole migrations of real devices, from this process to another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from serial import fill, read_back

import vfioflow
from vfioflow import Hooks, PeerError, Policy, State, _vfio
from vfioflow.events import StateChanged

HERE = Path(__file__).parent
SOON = Policy(stall_timeout=15.0)


class Destination:
    """The other process."""

    def __init__(self, how: str, scenario: str, devices: dict[str, str]) -> None:
        pairs = [f"{name}={device}" for name, device in devices.items()]
        self.process = subprocess.Popen(
            [sys.executable, HERE / "destination.py", how, scenario, *pairs],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line, "the destination did not start"
        self.address = json.loads(line)

    def result(self):
        rest, _ = self.process.communicate(timeout=60)
        return json.loads(rest) if rest else None


@pytest.fixture
def destination(mdev, how):
    """Starts the other process on devices of given kinds."""
    with contextlib.ExitStack() as stack:

        def start(kinds: dict[str, str], scenario: str = "") -> Destination:
            devices = {name: mdev(kind) for name, kind in kinds.items()}
            there = Destination(how, scenario, devices)
            stack.callback(there.process.stdout.close)
            stack.callback(there.process.wait)
            stack.callback(there.process.kill)
            return there

        yield start


@pytest.fixture
def pair(open_device):
    """Two source devices, and what must be read back from each."""
    devices = [open_device(name="a"), open_device(name="b")]
    return devices, [fill(device, number) for number, device in enumerate(devices)]


PAIR = {"a": "mtty-2", "b": "mtty-2"}


def test_a_set_of_two(pair, destination):
    devices, expected = pair
    there = destination(PAIR)
    report = asyncio.run(vfioflow.migrate(devices, there.address, policy=SOON))
    assert report.outcome == "completed"
    assert [d.bytes_precopy for d in report.devices] == [24, 24]
    assert [d.bytes_stopcopy for d in report.devices] == [72, 72]
    result = there.result()
    assert (result["outcome"], result["states"]) == ("completed", ["RUNNING", "RUNNING"])
    assert result["seen"] == expected
    assert [device.state for device in devices] == [State.STOP, State.STOP]


def test_config_space_goes_along(pair, destination):
    devices, expected = pair
    for device in devices:
        device.write_region(_vfio.CONFIG_REGION, 0x3C, b"\x0b")
    by_name = {device.name: device for device in devices}
    there = destination(PAIR, "config")
    hooks = Hooks(save_config=lambda name: by_name[name].save_config())
    asyncio.run(vfioflow.migrate(devices, there.address, policy=SOON, hooks=hooks))
    result = there.result()
    assert result["interrupt_lines"] == [0x0B, 0x0B]
    assert result["seen"] == expected


def assert_usable(devices, expected, destination):
    """The source runs with all it had, and the same devices migrate at the next try."""
    assert [device.state for device in devices] == [State.RUNNING] * len(devices)
    there = destination({device.name: "mtty-2" for device in devices})
    report = asyncio.run(vfioflow.migrate(devices, there.address, policy=SOON))
    assert report.outcome == "completed"
    assert there.result()["seen"] == expected


def test_destination_killed_before_commit(pair, destination):
    devices, expected = pair
    there = destination(PAIR, "die")
    with pytest.raises(PeerError):
        asyncio.run(vfioflow.migrate(devices, there.address, policy=SOON))
    assert there.process.wait(10) == -9
    assert_usable(devices, expected, destination)


def test_wire_cut_in_stop_copy(pair, destination):
    devices, expected = pair
    there = destination(PAIR)

    async def migrate() -> None:
        host, _, port = there.address.removeprefix("tcp://").rpartition(":")
        writers: list[asyncio.StreamWriter] = []
        copies: list[asyncio.Task[None]] = []

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writers.extend([writer, far_writer])
            copies.extend(
                asyncio.create_task(copy(a, b))
                for a, b in ((reader, far_writer), (far_reader, writer))
            )

        def observe(event: object) -> None:
            if isinstance(event, StateChanged) and event.end is State.STOP_COPY:
                for writer in writers:
                    writer.transport.abort()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            cut = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(PeerError):
                await vfioflow.migrate(devices, cut, policy=SOON, observer=observe)
            await asyncio.wait(copies, timeout=5)

    asyncio.run(migrate())
    result = there.result()
    assert result["outcome"] == "failed"
    assert result["states"] == ["RUNNING", "RUNNING"]
    assert_usable(devices, expected, destination)


def test_a_wrong_type_is_refused_beforehand(pair, destination):
    devices, expected = pair
    there = destination({"a": "mtty-2", "b": "mtty-1"})
    words = "b: it is a mtty-2, the destination's is a mtty-1"
    with pytest.raises(vfioflow.AdmissionError, match=words):
        asyncio.run(vfioflow.migrate(devices, there.address, policy=SOON))
    result = there.result()
    assert result["error"].startswith("AdmissionError: ")
    assert result["states"] == ["RUNNING", "RUNNING"]
    assert_usable(devices, expected, destination)


def test_a_wrong_type_that_nobody_knows_is_found_by_the_driver(pair, destination):
    """As with fds that were handed over, which do not tell it."""
    devices, expected = pair
    for device in devices:
        device._host = None
    there = destination({"a": "mtty-2", "b": "mtty-1"})
    with pytest.raises(PeerError, match="device b"):
        asyncio.run(vfioflow.migrate(devices, there.address, policy=SOON))
    result = there.result()
    assert result["error"].startswith("DeviceError: device b")
    assert result["states"] == ["RUNNING", "RUNNING"]
    assert_usable(devices, expected, destination)


def test_a_driver_without_migration(open_device, destination):
    devices = [open_device(name="a"), open_device("mdpy-vga", name="b")]
    expected = fill(devices[0], 0)
    with pytest.raises(vfioflow.AdmissionError, match="does not support migration"):
        asyncio.run(vfioflow.migrate(devices, "tcp://127.0.0.1:1", policy=SOON))
    assert devices[0].state == State.RUNNING
    assert read_back(devices[0]) == expected

"""A device behind a vfio-user socket, watched without being migrated."""

from __future__ import annotations

import asyncio

import pytest

from vfioflow import DeviceError, State
from vfioflow.lab.fitting import fit
from vfioflow.lab.recorder import record

MIB = 1 << 20
READ = 17


def watch(device, **options):
    [seen] = asyncio.run(record([device], seconds=0.1, step=0.02, **options))
    assert device.state == State.RUNNING
    return seen


def test_in_precopy_alone(process, connect):
    server = process("nic0", device={"size": 6 * MIB, "initial": 4 * MIB, "passes": 0})
    seen = watch(connect(server))
    assert server.ask("arcs") == ["2->6", "6->2"]
    assert seen.watched.offered == seen.watched.read == server.ask("sent")
    assert seen.watched.initial < seen.watched.read  # it does not tell, so that was a guess
    assert seen.stopped is None
    assert abs(fit(seen).profile.initial_bytes - 4 * MIB) <= 65536


def test_through_stop_copy(process, connect):
    server = process("nic0", device={"size": 6 * MIB, "initial": 4 * MIB, "passes": 0})
    seen = watch(connect(server), stop_copy=True)
    assert server.ask("arcs") == ["2->6", "6->3", "3->1", "1->2"]
    assert seen.watched.read + seen.stopped.size == server.ask("sent")
    assert list(seen.arcs) == [
        "RUNNING->PRE_COPY",
        "PRE_COPY->STOP_COPY",
        "STOP_COPY->STOP",
        "STOP->RUNNING",
    ]


def test_a_server_that_fails_in_a_read(process, connect):
    server = process("nic0", device={"size": 6 * MIB, "initial": 4 * MIB, "passes": 0})
    server.ask("fault", READ, 2, "error", 5)
    device = connect(server)
    with pytest.raises(DeviceError, match="EIO"):
        watch(device)
    assert device.state == State.RUNNING

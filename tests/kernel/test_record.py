"""A real device, watched without being migrated."""

from __future__ import annotations

import asyncio

import pytest
from serial import fill, read_back

from vfioflow import SimDevice, State
from vfioflow.lab.fitting import fit
from vfioflow.lab.recorder import record

ARCS = {
    "RUNNING->PRE_COPY",
    "PRE_COPY->PRE_COPY_P2P",
    "PRE_COPY_P2P->STOP_COPY",
    "STOP_COPY->STOP",
    "STOP->RUNNING_P2P",
    "RUNNING_P2P->RUNNING",
}


@pytest.mark.parametrize("stop_copy", [False, True])
def test_an_mtty_keeps_what_it_has(open_device, stop_copy):
    device = open_device()
    expected = fill(device, 1)
    [seen] = asyncio.run(record([device], seconds=0.2, step=0.05, stop_copy=stop_copy))
    assert device.state == State.RUNNING
    assert read_back(device) == expected
    assert (seen.watched.initial, seen.watched.read, seen.watched.drained) == (24, 24, "0")
    if stop_copy:
        assert seen.stopped.size == 72
        assert seen.arcs.keys() == ARCS
    else:
        assert seen.arcs.keys() == {"RUNNING->PRE_COPY", "PRE_COPY->RUNNING"}


def test_two_at_once_and_the_profile_makes_a_device(open_device):
    devices = [open_device(name="a"), open_device(name="b")]
    seen = asyncio.run(record(devices, seconds=0.1, step=0.05, stop_copy=True))
    assert [device.state for device in devices] == [State.RUNNING] * 2
    p = fit(seen[0]).profile
    assert (p.driver, p.drained, p.state_size, p.initial_bytes) == ("mtty", "0", 96, 24)
    with SimDevice("like-a", **{f: getattr(p, f) for f in ("driver", "state_size")}) as replayed:
        assert replayed.profile.state_size == 96

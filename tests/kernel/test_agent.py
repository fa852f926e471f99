"""Real devices that a VMM has opened go to an agent by descriptor, and migrate."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from agents import Running, ends, start

from vfioflow import State


@pytest.fixture
def agent(tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-m", "vfioflow", "agent", "--socket", tmp_path / "a", "--no-journal"],
        stderr=subprocess.PIPE,
    )

    class Command:
        process = command

    try:
        assert b"serving on" in command.stderr.readline()
        yield Running(tmp_path / "a", Command)
    finally:
        command.kill()
        command.wait()
        command.stderr.close()


@contextlib.contextmanager
def both(agent, one, two):
    with agent.client() as here, agent.client() as there:
        for peer, device in ((here, one), (there, two)):
            about = peer.call("device.add", fds=[device.fileno()], name="tty", fd=0, driver="mtty")
            assert {"STOP_COPY", "PRE_COPY"} <= set(about["flags"])
        yield here, there, there.call("destination.listen", address="tcp://127.0.0.1:0")


def test_two_devices_by_descriptor(open_device, agent):
    one, two = open_device(), open_device()
    with both(agent, one, two) as (here, there, port):
        sent, taken = start(here, there, port)
        assert ends(here, sent)["outcome"] == "completed"
        assert ends(there, taken)["outcome"] == "completed"
        assert (one.state, two.state) == (State.STOP, State.RUNNING)


def test_a_client_that_goes_away_leaves_the_device_running(open_device, agent):
    one, two = open_device(), open_device()
    with both(agent, one, two) as (here, there, port):
        _, taken = start(here, there, port, hold=True, events=True)
        here.wait_for(lambda _, about: about.get("event") == "switchover-held")
        assert one.state == State.PRE_COPY
        here.kill()
        assert ends(there, taken)["outcome"] in ("failed", "cancelled")
        while one.state != State.RUNNING:
            pass
        assert two.state == State.RUNNING

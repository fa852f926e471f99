"""Devices that are handed to an agent by descriptor, and outlive it and its clients: where are they then?"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from agents import Running, ends, names

from vfioflow.states import State

MIB = 1 << 20
SMALL = {"size": 2 * MIB, "initial": 1 * MIB, "passes": 0}


@pytest.fixture
def agent(stack, tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-m", "vfioflow", "agent", "--socket", tmp_path / "a", "--no-journal"],
        stderr=subprocess.PIPE,
    )

    class Command:
        process = command

    stack.callback(command.stderr.close)
    stack.callback(command.wait)
    stack.callback(command.kill)
    assert b"serving on" in command.stderr.readline()
    return Running(tmp_path / "a", Command)


def hand_over(peer, server):
    """A connection to the server goes to the agent, as a descriptor."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.path))
        return peer.call("device.add", fds=[sock.fileno()], name="nic0", socket_fd=0)


@contextlib.contextmanager
def both(agent, one, two, **hooks):
    """A client for each side, which were handed the two servers; how the migration is begun."""
    with agent.client(hooks) as here, agent.client() as there:
        for peer, server in ((here, one), (there, two)):
            assert hand_over(peer, server)["driver"] == "vfio-user"
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            port.listen()
            where = there.call("destination.listen", fds=[port.fileno()], fd=0)

        def begin(**options):
            sent = here.call("source.start", to=where["address"], hooks=names(hooks), **options)
            taken = there.call("destination.accept", listener=where["listener"])
            return sent["migration"], taken["migration"]

        yield here, there, begin


def until(server, state):
    """It is in that state, some time: its client has gone, and nobody tells when all is done."""
    while server.ask("state") != state:
        pass


def test_devices_and_port_by_descriptor(agent, process):
    one, two = process("one", device=SMALL), process("two", device={**SMALL, "seed": 2})
    with both(agent, one, two) as (here, there, begin):
        sent, taken = begin()
        assert ends(here, sent)["outcome"] == "completed"
        assert ends(there, taken)["outcome"] == "completed"
        assert two.ask("digest") == one.ask("digest")
        assert (one.ask("state"), two.ask("state")) == (State.STOP, State.RUNNING)


@pytest.mark.parametrize("moment", ["held", "stop_vcpus", "stop-copy", "hand over"])
def test_a_client_that_goes_away_leaves_its_device_running(agent, process, moment):
    one, two = process("one", device=SMALL), process("two", device=SMALL)
    reached, killed = threading.Event(), threading.Event()

    def wait(phase=moment, **_):
        if phase == moment:
            reached.set()
            assert killed.wait(20)

    hooks = {} if moment == "held" else {f"hook.{_name(moment)}": wait}
    with both(agent, one, two, **hooks) as (here, there, begin):
        _, taken = begin(hold=moment == "held", events=True)
        if moment == "held":
            here.wait_for(lambda _, about: about.get("event") == "switchover-held")
        else:
            assert reached.wait(20)
        here.kill()
        killed.set()
        assert ends(there, taken)["outcome"] in ("failed", "cancelled")
        until(one, State.RUNNING)
        assert two.ask("state") == State.RUNNING
        assert one.ask("arcs")[-1].endswith("->2")


def _name(moment):
    return "stop_vcpus" if moment == "stop_vcpus" else "before"


def test_sigterm_leaves_the_device_running(agent, process):
    one, two = process("one", device=SMALL), process("two", device=SMALL)
    with both(agent, one, two) as (here, _, begin):
        begin(hold=True, events=True)
        here.wait_for(lambda _, about: about.get("event") == "switchover-held")
        assert one.ask("state") == State.PRE_COPY
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(30) == 0
        assert (one.ask("state"), two.ask("state")) == (State.RUNNING, State.RUNNING)


def test_a_descriptor_stays_open_with_whoever_handed_it_over(agent, process):
    one = process("one", device=SMALL)
    with agent.client() as peer, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(one.path))
        peer.call("device.add", fds=[sock.fileno()], name="nic0", socket_fd=0)
        peer.call("device.remove", name="nic0")
        assert os.fstat(sock.fileno())
        assert peer.call("device.list") == {"devices": []}

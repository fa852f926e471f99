"""A side is killed at each step of the hand-over and comes back: exactly one side runs, and says so."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from kept import Machine
from processes import running

from vfioflow import AdmissionError, Journal, State, migrate
from vfioflow.story import Step

SESSION = "s-1"
SOURCE_POINTS = [
    "before BEGUN", "after BEGUN", "event pre-copy", "event quiesce", "event stop-copy",
    "event hand over", "before COMMITTED", "after COMMITTED", "event release",
    "before RELEASED", "after RELEASED",
]  # fmt: skip
DESTINATION_POINTS = [
    "before BEGUN", "after BEGUN", "event resuming", "event validate", "event ready",
    "before LOADED", "after LOADED", "before COMMITTED", "after COMMITTED", "event resume",
    "hook", "before RUNNING", "after RUNNING", "before TOLD", "after TOLD",
]  # fmt: skip


class Sides:
    """Both machines, their journals, and the port, which stays whoever listens at it."""

    def __init__(self, tmp_path, listening):
        self.tmp_path = tmp_path
        self.listening = listening
        self.address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        self.source = Machine.make(tmp_path / "source", content="x")
        self.destination = Machine.make(tmp_path / "destination")

    def journal(self, role):
        return Journal(self.tmp_path / f"{role}-journal")

    def step(self, role):
        story = self.journal(role).find(SESSION, role)
        return None if story is None else story.step

    @contextmanager
    def run(self, role, point=""):
        where = self.address if role == "source" else f"fd://{self.listening.fileno()}"
        words = [role, self.tmp_path / role, self.journal(role).directory, where, SESSION, point]
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kept.py"), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[self.listening.fileno()],
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def assert_one_runs(self):
        assert self.source.runs != self.destination.runs, (
            self.source.states,
            self.destination.states,
            self.step("source"),
            self.step("destination"),
        )
        if self.destination.runs:
            assert self.step("source") is Step.RELEASED
            assert set(self.source.states.values()) == {"STOP"}
            assert self.step("destination") in (Step.RUNNING, Step.TOLD)
        else:
            assert self.step("source") in (Step.BACK, Step.TAKEN_BACK)
            assert self.step("destination") in (None, Step.DISCARDED)
            assert set(self.destination.states.values()) == {"RUNNING"}


@pytest.fixture
def sides(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        made = Sides(tmp_path, listening)
        yield made
        made.source.close()
        made.destination.close()


def end(process):
    """What a side says until its end, which it is asked for; None: it was killed."""
    out, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err
    lines = [json.loads(line) for line in out.splitlines() if line != "listening"]
    return None if process.returncode else lines


def test_nobody_is_killed(sides):
    with sides.run("destination") as there, sides.run("source") as here:
        assert end(here) == [{"outcome": "completed", "error": None, "kind": ""}]
        assert end(there) == [{"outcome": "completed", "error": None, "kind": ""}]
    sides.assert_one_runs()
    assert sides.destination.runs
    assert sides.step("destination") is Step.TOLD


@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_the_source_is_killed_and_comes_back(sides, point):
    with sides.run("destination") as there:
        with sides.run("source", point) as here:
            assert end(here) is None
        with sides.run("source") as here:
            (said,) = end(here)
        end(there)
    sides.assert_one_runs()
    assert (said["outcome"] == "completed") == sides.destination.runs
    assert said["kind"] == ("" if sides.destination.runs else "TakenBack")
    if point == "before BEGUN":
        assert sides.destination.runs  # nothing was begun: it is migrated now
    elif point in SOURCE_POINTS[: SOURCE_POINTS.index("after COMMITTED")]:
        assert sides.source.runs
    else:
        assert sides.destination.runs


@pytest.mark.parametrize("point", DESTINATION_POINTS)
def test_the_destination_is_killed_and_comes_back(sides, point):
    with sides.run("source") as here:
        with sides.run("destination", point) as there:
            there.wait()
        with sides.run("destination") as there:
            (said,) = end(here)
            end(there)
    sides.assert_one_runs()
    assert (said["outcome"] == "completed") == sides.destination.runs
    if point in DESTINATION_POINTS[: DESTINATION_POINTS.index("after LOADED")]:
        assert sides.source.runs
        assert said["kind"] == "PeerLost"
    elif point in DESTINATION_POINTS[DESTINATION_POINTS.index("before COMMITTED") :]:
        assert sides.destination.runs


def kill_both(sides, here_at, there_at):
    """One at its point, then the other; the one without a point as soon as the other is gone."""
    with sides.run("destination", there_at) as there, sides.run("source", here_at) as here:
        first = there if there_at else here
        first.wait()


@pytest.mark.parametrize("first", ["source", "destination"])
@pytest.mark.parametrize(
    ("here_at", "there_at", "steps", "winner"),
    [
        ("before COMMITTED", "", (Step.BEGUN, Step.LOADED), "source"),
        ("after COMMITTED", "", (Step.COMMITTED, Step.LOADED), "destination"),
        ("", "event resume", (Step.COMMITTED, Step.COMMITTED), "destination"),
    ],
)
def test_both_are_killed_and_come_back(sides, here_at, there_at, steps, winner, first):
    kill_both(sides, here_at, there_at)
    assert (sides.step("source"), sides.step("destination")) == steps
    second = "destination" if first == "source" else "source"
    with sides.run(first) as one, sides.run(second) as other:
        here, there = (one, other) if first == "source" else (other, one)
        (said,) = end(here)
        end(there)
    sides.assert_one_runs()
    assert getattr(sides, winner).runs
    assert (said["outcome"] == "completed") == (winner == "destination")


def test_a_destination_that_lost_its_devices_gives_them_back(sides):
    kill_both(sides, "after COMMITTED", "")
    shutil.rmtree(sides.tmp_path / "destination")
    sides.destination = Machine.make(sides.tmp_path / "destination")
    with sides.run("destination") as there, sides.run("source") as here:
        (said,) = end(here)
        end(there)
    assert said["kind"] == "TakenBack"
    assert "do not hold the state any more" in said["error"]
    assert sides.step("source") is Step.TAKEN_BACK
    sides.assert_one_runs()
    assert sides.source.runs


def test_a_destination_that_lost_its_journal_does_not_presume(sides):
    """What was LOADED, and may have run, is in another journal: nobody is given anything back."""
    kill_both(sides, "after COMMITTED", "")
    shutil.rmtree(sides.journal("destination").directory)
    with sides.run("destination") as there, sides.run("source") as here:
        (said,) = end(here)
        end(there)
    assert said["kind"] == "HandoverInDoubt"
    assert "is not the one in which" in said["error"]
    assert not sides.source.runs
    assert not sides.destination.runs


def test_devices_that_run_here_although_they_were_committed_are_not_run_there_too(sides):
    """Somebody has moved them without `vfioflow resolve`."""
    kill_both(sides, "after COMMITTED", "")
    for device in sides.source.devices:
        device.set_state(State.RUNNING)
    with sides.run("destination") as there, sides.run("source") as here:
        (said,) = end(here)
        end(there)
    assert said["kind"] == "TakenBack"
    sides.assert_one_runs()
    assert sides.source.runs


# ---------------------------------------------------------------------- by hand


def resolve(sides, role, *words):
    """`vfioflow resolve`; what it says, and its exit code."""
    journal = sides.journal(role).directory
    with running("resolve", "--journal", journal, *words) as command:
        return command.end()


def test_the_destination_is_gone_for_good(sides):
    kill_both(sides, "after COMMITTED", "")
    code, out, _ = resolve(sides, "source", "--json")
    (known,) = json.loads(out)
    assert (code, known["session"], known["step"]) == (0, SESSION, "COMMITTED")
    code, _, log = resolve(sides, "source", SESSION, "--run", "--yes")
    assert code == 0, log
    assert "the destination must never run it" in log
    code, out, _ = resolve(sides, "source", SESSION, "--json")
    assert json.loads(out)["steps"][-1]["choice"] == "run"
    # What its owner does not do by hand, the next start does; a destination that is there is told.
    with sides.run("destination") as there, sides.run("source") as here:
        (said,) = end(here)
        end(there)
    assert said["kind"] == "TakenBack"
    assert sides.source.runs
    assert sides.step("destination") is Step.DISCARDED


def test_the_source_is_gone_for_good(sides):
    kill_both(sides, "after COMMITTED", "")
    code, _, log = resolve(sides, "destination", SESSION, "--run", "--yes")
    assert code == 0, log
    code, _, log = resolve(sides, "destination", SESSION, "--discard", "--yes")
    assert code == 2
    assert "decided by hand before: run" in log
    code, _, _ = resolve(sides, "destination", SESSION, "--run", "--yes")
    assert code == 0
    # A source that comes back after all hears of it.
    with sides.run("destination") as there, sides.run("source") as here:
        (said,) = end(here)
        end(there)
    assert said["outcome"] == "completed"
    assert sides.step("source") is Step.RELEASED


def test_a_source_with_something_to_settle_migrates_nothing_else(sides):
    kill_both(sides, "event pre-copy", "")
    devices, journal = sides.source.devices, sides.journal("source")
    with pytest.raises(AdmissionError, match=f"vfioflow send --session {SESSION}"):
        asyncio.run(migrate(devices, sides.address, journal=journal))
    assert sides.step("source") is Step.BEGUN

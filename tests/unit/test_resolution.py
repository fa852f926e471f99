"""What a side that came back does with what it finds, as tables."""

import asyncio
import base64

import pytest
from fakes import FakeDevice

from vfioflow import Journal, Policy, State
from vfioflow.access import Access, codec
from vfioflow.access.queue import Held
from vfioflow.byhand import consequence, decide, objection
from vfioflow.resolution import Verdict, judge
from vfioflow.states import FLAG_SETS
from vfioflow.story import Step

B, L, C, R = Step.BEGUN, Step.LOADED, Step.COMMITTED, Step.RUNNING
DISCARD, RUNS, CARRY_ON = Verdict.DISCARD, Verdict.RUNS, Verdict.CARRY_ON
HELD = {"a": "RUNNING_P2P", "b": "STOP"}
FRESH = {"a": "RUNNING", "b": "RUNNING"}
HALF = {"a": "RUNNING", "b": "STOP"}


@pytest.fixture
def write(tmp_path):
    journal = Journal(tmp_path / "journal")

    def story(*steps, role="destination", outlives=True, session="s", choice="run", names="ab"):
        with journal.open(session, role, create=True) as entry:
            for step in steps:
                about = {
                    Step.BEGUN: {"devices": dict.fromkeys(names, outlives)},
                    Step.LOADED: {"states": HELD},
                    Step.BY_HAND: {"choice": choice},
                }
                entry.record(step, **about.get(step, {}))
        return entry

    return story


@pytest.mark.parametrize(
    ("steps", "decision", "found", "verdict"),
    [
        ((B,), "run", FRESH, DISCARD),
        ((B,), "discard", FRESH, DISCARD),
        ((B,), None, FRESH, DISCARD),
        ((B, L), "run", HELD, CARRY_ON),
        ((B, L), "run", FRESH, DISCARD),
        ((B, L), "run", HALF, DISCARD),
        ((B, L), "run", {**HELD, "a": "ERROR"}, DISCARD),
        ((B, L), "discard", HELD, DISCARD),
        ((B, L), None, HELD, "its source has not said"),
        ((B, L), None, FRESH, "its source has not said"),
        ((B, L), "run", {"a": "RUNNING_P2P"}, "device b is not among the devices here"),
        ((B, L), "run", {**HELD, "b": "unknown (gone)"}, "state of its device b is unknown"),
        ((B, L, C), "run", HELD, CARRY_ON),
        ((B, L, C), "run", HALF, CARRY_ON),
        ((B, L, C), "run", FRESH, CARRY_ON),
        ((B, L, C), None, HALF, CARRY_ON),
        ((B, L, C), "run", {**HELD, "a": "STOP"}, "it took over, and its device a is STOP now"),
        ((B, L, C), "discard", HELD, "now says that it did not"),
        ((B, L, C, R), "run", FRESH, RUNS),
        ((B, L, C, R), "discard", FRESH, RUNS),
        ((B, L, C, R, Step.TOLD), "run", {}, RUNS),
        ((B, L, Step.DISCARDED), "run", HELD, DISCARD),
        ((B, L, Step.BY_HAND), "run", FRESH, RUNS),
        ((B, L, Step.BY_HAND), "discard", FRESH, RUNS),
        ((B, L, Step.BY_HAND, Step.TOLD), "run", FRESH, RUNS),
    ],
)
def test_what_a_destination_does(write, steps, decision, found, verdict):
    got = judge(write(*steps), decision, found)
    assert got == verdict or (isinstance(got, str) and verdict in got)


def test_devices_that_died_with_the_process_that_took_over(write):
    """They may have run: the source is not given back what it was before."""
    got = judge(write(B, L, C, outlives=False), "run", FRESH)
    assert got == "it took over, and its device a is RUNNING now"
    assert judge(write(B, L, C, outlives=False, session="t"), "run", HELD) is CARRY_ON


def test_a_person_discarded_it(write):
    assert judge(write(B, L, Step.BY_HAND, choice="discard"), "run", HELD) is DISCARD


def test_a_session_that_nobody_knows():
    assert judge(None, "run", HELD) is DISCARD
    assert judge(None, "discard", HELD) is DISCARD
    assert "not the one" in judge(None, "run", HELD, same_journal=False)


def test_another_session_with_the_same_device(write):
    story = write(B, L)
    begun = write(B, session="begun")
    loaded = write(B, L, session="loaded", names="bc")
    assert judge(story, "run", HELD, others=[begun]) is CARRY_ON
    assert "session loaded has its device b too" in judge(story, "run", HELD, others=[loaded])


@pytest.mark.parametrize(
    ("role", "steps", "run", "discard"),
    [
        ("source", (B,), "", "never committed"),
        ("source", (B, C), "", ""),
        ("source", (B, Step.BACK), "", "never committed"),
        ("source", (B, C, Step.RELEASED), "the destination runs", ""),
        ("source", (B, C, Step.TAKEN_BACK), "", "discarded it"),
        ("source", (B, C, Step.BY_HAND), "", "by hand before: run"),
        ("destination", (B,), "never loaded", ""),
        ("destination", (B, L), "", ""),
        ("destination", (B, L, C), "", ""),
        ("destination", (B, L, C, R), "", "it runs here"),
        ("destination", (B, L, C, R, Step.TOLD), "", "it runs here"),
        ("destination", (B, L, Step.DISCARDED), "its source may run", ""),
        ("destination", (B, L, Step.BY_HAND), "", "by hand before: run"),
        ("destination", (B, L, Step.BY_HAND, Step.TOLD), "", "by hand before: run"),
    ],
)
def test_what_contradicts_a_fact(write, role, steps, run, discard):
    story = write(*steps, role=role)
    for choice, why in (("run", run), ("discard", discard)):
        got = objection(story, choice)
        assert why in got
        assert bool(got) == bool(why)


def test_devices_that_do_not_hold_the_state_are_not_run_by_hand(write):
    story = write(B, L)
    assert objection(story, "run", HELD) == ""
    assert "a is RUNNING, b is not here" in objection(story, "run", {"a": "RUNNING"})


@pytest.mark.parametrize(
    ("role", "steps", "choice", "starts", "ends", "resets"),
    [
        ("source", (B, C), "run", "STOP_COPY", "RUNNING", 0),
        ("source", (B, C), "discard", "STOP_COPY", "STOP", 0),
        ("destination", (B, L), "run", "RUNNING_P2P", "RUNNING", 0),
        ("destination", (B, L), "discard", "RUNNING_P2P", "RUNNING", 1),
        ("destination", (B, L, C), "discard", "RUNNING", "RUNNING", 1),
    ],
)
def test_a_decision_moves_the_devices_of_the_session_only(
    write, role, steps, choice, starts, ends, resets
):
    path = write(*steps, role=role).path
    journal = Journal(path.parent)
    devices = [FakeDevice(name, FLAG_SETS[1]) for name in "abc"]
    for device in devices:
        device.state = State[starts]

    def again():
        with journal.open("s", role) as entry:
            return asyncio.run(decide(journal, entry, choice, devices, Policy()))

    assert again() == {}
    assert [d.state.name for d in devices] == [ends, ends, starts]
    assert [d.resets for d in devices] == [resets, resets, 0]
    story = journal.find("s", role)
    assert (story.step, story.choice, story.pending) == (Step.BY_HAND, choice, False)
    size = path.stat().st_size
    assert again() == {}  # nothing more to do
    assert path.stat().st_size == size
    assert [d.resets for d in devices] == [resets, resets, 0]


def test_what_is_not_replayed_by_hand_is_said(write, tmp_path):
    held = Held((Access(1, "a", "b", 0, 8, b"x"), Access(2, "a", "b", 0, 8, b"y")))
    queued = base64.b64encode(codec.encode(held)).decode()
    nothing = base64.b64encode(codec.encode(Held())).decode()
    for session, accesses in (("s", queued), ("t", nothing)):
        write(B, session=session)
        with Journal(tmp_path / "journal").open(session, "destination") as entry:
            entry.record(L, states=HELD, accesses=accesses)
    some, none = [
        Journal(tmp_path / "journal").find(session, "destination") for session in ("s", "t")
    ]
    assert "queued for b is not replayed by hand (2 writes)" in consequence(some, "run")
    assert "queued" not in consequence(some, "discard") + consequence(none, "run")

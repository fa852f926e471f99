"""What is told of whole migrations: which events come, in which order, and by which ways."""

import asyncio
import json
import re
import urllib.request

import pytest
from processes import running
from proxy import Proxy
from session import migrate, mixed_set, quiet_set

from vfioflow import Fault, Policy, SimDevice, events
from vfioflow.events import Phase
from vfioflow.precopy import Verdict


def told(source, destination, **more):
    """The outcome, and the events of each side without looks at the counters."""
    seen = {"source": [], "destination": []}

    def watch(side, event):
        if not isinstance(event, events.Progress):
            seen[side].append(event)

    return migrate(source, destination, watch=watch, **more), seen


def of(seen, kind):
    return [event for event in seen if isinstance(event, kind)]


def test_the_events_of_a_migration(devices):
    source, destination = devices(mixed_set)
    outcome, seen = told(source, destination, policy=Policy(downtime_limit=5.0))
    here, there = seen["source"], seen["destination"]
    names = tuple(device.name for device in source)
    began, ended = here[0], here[-1]
    assert began == events.Began(outcome.source.session, "source", outcome.source.peer, names)
    assert ended.outcome == "completed"
    assert ended.downtime == outcome.source.downtime_ms / 1e3
    assert there[0].session == began.session
    assert there[-1].outcome == "completed"
    assert [e.phase for e in of(here, events.PhaseEntered)] == [
        *(Phase.CONNECT, Phase.SET_UP, Phase.PRE_COPY, Phase.STOP_COPY, Phase.HAND_OVER, Phase.DONE)
    ]
    assert [e.name for e in of(there, events.BarrierPassed)] == [
        *("resuming", "validate", "ready", "resume")
    ]
    rounds = of(here, events.IterationDone)
    assert [e.iteration for e in rounds] == list(range(1, outcome.source.iterations + 1))
    assert sum(e.moved for e in rounds) == sum(d.bytes_precopy for d in outcome.source.devices)


def test_each_change_is_told_before_and_after(devices):
    source, destination = devices(mixed_set)
    _, seen = told(source, destination, policy=Policy(downtime_limit=5.0))
    for side in seen.values():
        going: dict[str, tuple] = {}
        barrier: tuple[str, ...] = ()
        for event in side:
            match event:
                case events.BarrierEntered(_, names):
                    assert going == {}
                    barrier = names
                case events.StateChanging(device, start, end):
                    assert device in barrier
                    going[device] = start, end
                case events.StateChanged(device, start, end, _):
                    assert going.pop(device) == (start, end)
                case events.BarrierPassed():
                    assert going == {}


def test_what_decided_and_what_comes_before_the_first_p2p_state(devices):
    source, destination = devices(mixed_set)
    outcome, seen = told(source, destination, policy=Policy(downtime_limit=5.0))
    here = seen["source"]
    [decided] = of(here, events.SwitchoverDecided)
    assert decided.decision.verdict is Verdict.SWITCH_OVER
    assert decided.decision.reason == outcome.source.switchover_reason
    assert decided.decision.predicted_downtime * 1e3 == outcome.source.predicted_downtime_ms
    assert decided.decision == of(here, events.Decided)[-1].decision
    at = [here.index(e) for e in (decided, events.Preparing(tuple(d.name for d in source)))]
    first = next(
        n for n, e in enumerate(here) if isinstance(e, events.StateChanging) and "P2P" in e.end.name
    )
    assert at[0] < at[1] < first


def test_the_point_of_no_return_is_told_on_both_sides(devices):
    source, destination = devices(quiet_set)
    order = []

    def watch(side, event):
        if isinstance(event, events.Committed | events.Resumed):
            order.append((side, type(event).__name__))

    migrate(source, destination, watch=watch)
    assert order == [
        *(("source", "Committed"), ("destination", "Committed")),
        *(("destination", "Resumed"), ("source", "Resumed")),
    ]


def test_a_fault_is_told_with_its_device_and_step(devices):
    fault = Fault("PRE_COPY_P2P->STOP_COPY", "errno", errno="EIO")
    _, destination = devices(one_device)
    with SimDevice("net0", state_size="1MiB", seed=1, faults=[fault]) as broken:
        _, seen = told([broken], destination, policy=Policy(downtime_limit=5.0))
    [fault_told] = of(seen["source"], events.Faulted)
    assert (fault_told.device, fault_told.step) == ("net0", "PRE_COPY_P2P -> STOP_COPY")
    assert fault_told.reason.startswith("device net0: PRE_COPY_P2P -> STOP_COPY: EIO")
    assert seen["source"][-1].outcome == "failed"
    assert seen["source"][-1].downtime is None
    [there] = of(seen["destination"], events.Faulted)
    assert (there.device, "device net0" in there.reason) == ("", True)
    assert not of(seen["source"], events.Committed)


def one_device():
    return [SimDevice("net0", state_size="32MiB", initial_bytes="30MiB", seed=1)]


def test_a_wire_that_takes_nothing_is_told_as_back_pressure(devices):
    """It goes on once that was told."""
    source, destination = devices(one_device)
    held, copying, go_on = [], asyncio.Event(), asyncio.Event()

    async def forward(link, data):
        if link.number and copying.is_set():
            await go_on.wait()
        return data

    def watch(side, event):
        if (side, event) == ("source", events.PhaseEntered(Phase.PRE_COPY)):
            copying.set()
        if isinstance(event, events.BackPressure):
            held.append((side, event.device))
            go_on.set()

    policy = Policy(downtime_limit=60.0)
    outcome = migrate(source, destination, policy=policy, through=Proxy(forward), watch=watch)
    assert outcome.source_error is None
    assert held[0] == ("source", "net0")


# ----------------------------------------------------------------- the commands

DEVICES = """
[[device]]
name = "nic0"
profile = "mlx5"
state_size = "4MiB"
seed = 1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(DEVICES)
    return path


def test_a_file_of_events_and_metrics_by_the_commands(file, tmp_path):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    with running(
        *("receive", "--devices", file, "--listen", "tcp://127.0.0.1:0", "--events", there),
        *("--metrics", "tcp://127.0.0.1:0"),
    ) as receive:
        url = receive.wait_for("metrics on").split()[-1]
        to = receive.wait_for("listening on").split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
        with urllib.request.urlopen(url) as answer:
            assert b"# TYPE vfioflow_device_bytes_total counter" in answer.read()
        with running("send", "--devices", file, "--to", to, "--events", here) as send:
            assert send.end()[0] == 0
        assert receive.end()[0] == 0
    for path, role in ((here, "source"), (there, "destination")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert (lines[0]["event"], lines[-1]["event"]) == ("began", "ended")
        assert {line["role"] for line in lines} == {role}
        assert len({line["session"] for line in lines}) == 1
        assert lines[-1]["outcome"] == "completed"
        assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--events=/nowhere/e.jsonl", "events cannot be written there: No such file"),
        ("--metrics=tcp://192.0.2.1:9", "metrics: cannot listen on 192.0.2.1:9"),
    ],
)
def test_ways_that_cannot_be_had_are_said_before_anything_is_touched(file, option, words):
    with running("send", "--devices", file, "--to", "tcp://127.0.0.1:9", option) as send:
        code, out, log = send.end()
    assert (code, out) == (2, "")
    assert words in log

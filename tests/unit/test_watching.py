"""Events on their way: several observers, a stream, JSON lines, metrics, spans."""

import asyncio
import dataclasses
import json
import logging
import re
import typing
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vfioflow import ConfigError, events
from vfioflow.events import Phase
from vfioflow.precopy import Decision, Verdict
from vfioflow.states import State
from vfioflow.watching import EventStream, JsonLines, as_dict, fan_out
from vfioflow.watching.metrics import METRICS, Metrics, Server
from vfioflow.watching.spans import Spans

DECISION = Decision(Verdict.SWITCH_OVER, "it fits", 100, 90, 200, 0.05)
NET = events.DeviceProgress("net0", 1000, 1100, 50)
EVERY = [
    events.Began("s1", "source", "tcp://10.0.0.2:4747", ("net0",)),
    events.PhaseEntered(Phase.PRE_COPY),
    events.Preparing(("net0",)),
    events.BarrierEntered("quiesce", ("net0",)),
    events.StateChanging("net0", State.PRE_COPY, State.PRE_COPY_P2P),
    events.StateChanged("net0", State.PRE_COPY, State.PRE_COPY_P2P, 0.01),
    events.BarrierPassed("quiesce", 0.011),
    events.InitialSent("net0"),
    events.InitialLoaded(),
    events.IterationDone(3, 4096, 0.2),
    events.Decided(3, 4096, 1e9, DECISION),
    events.SwitchoverDecided(3, 1e9, 0.04, DECISION),
    events.SwitchoverHeld("held"),
    events.LimitsChanged(0.2, None),
    events.Progress(Phase.PRE_COPY, (NET,)),
    events.BackPressure("net0", 0.6),
    events.ConnectionLost("channel 1"),
    events.Reconnected("channel 1", 2, 0.3),
    events.Committed(),
    events.Resumed(),
    events.Faulted("net0", "STOP -> STOP_COPY", "device net0: EIO"),
    events.RolledBack("net0", State.RUNNING, "set to RUNNING"),
    events.Ended("completed", None, 2.0, 0.06),
]


def test_every_class_of_events_is_among_those_tried():
    assert {type(event) for event in EVERY} == set(typing.get_args(events.Event))


@pytest.mark.parametrize("event", EVERY, ids=lambda e: type(e).__name__)
def test_an_event_in_json_has_all_of_its_fields(event):
    told = json.loads(json.dumps(as_dict(event)))
    assert told.pop("event").replace("-", "") == type(event).__name__.lower()
    assert list(told) == [field.name for field in dataclasses.fields(event)]


def test_what_is_nested_is_told_by_names():
    told = as_dict(events.SwitchoverDecided(3, 1e9, 0.04, DECISION))
    assert told == {
        "event": "switchover-decided",
        "iteration": 3,
        "bandwidth": 1e9,
        "fixed_seconds": 0.04,
        "decision": {
            "verdict": "switch over",
            "reason": "it fits",
            "estimate": 100,
            "exact": 90,
            "threshold": 200,
            "predicted_downtime": 0.05,
        },
    }
    assert as_dict(events.RolledBack("a", None, "why"))["state"] is None
    assert as_dict(events.Progress(Phase.PRE_COPY, (NET,)))["devices"] == [
        {"device": "net0", "moved": 1000, "wire_bytes": 1100, "pending": 50}
    ]


def test_one_observer_that_fails_does_not_keep_the_next_from_it(caplog):
    seen = []

    def fails(event):
        raise RuntimeError("the user's own")

    observer = fan_out([fails, None, seen.append])
    observer(EVERY[0])
    assert seen == [EVERY[0]]
    assert "the observer failed on Began" in caplog.text
    assert "the user's own" in caplog.text


# ------------------------------------------------------------------ the stream


def read(*told):
    """What a reader gets that comes after all of them."""

    async def body():
        stream = EventStream()
        for event in told:
            stream(event)
        return [event async for event in stream]

    return asyncio.run(body())


def test_a_stream_gives_all_events_until_the_last():
    assert read(*EVERY) == EVERY


def test_a_slow_reader_gets_only_the_latest_look_at_the_counters():
    looks = [events.Progress(Phase.PRE_COPY, ()), events.Progress(Phase.STOP_COPY, ())]
    assert read(EVERY[0], looks[0], looks[0], looks[1], EVERY[-1]) == [
        EVERY[0],
        looks[1],
        EVERY[-1],
    ]
    many = [looks[0], EVERY[1]] * 100
    assert read(*many, EVERY[-1]) == [looks[0], *[EVERY[1]] * 100, EVERY[-1]]


def test_a_reader_waits_for_what_comes():
    async def body():
        stream = EventStream()
        got = []

        async def reader():
            async for event in stream:
                got.append(event)

        task = asyncio.create_task(reader())
        for event in EVERY:
            stream(event)
            await asyncio.sleep(0)  # the reader's turn
        await asyncio.wait_for(task, 10)
        return got

    assert asyncio.run(body()) == EVERY


def test_a_stream_that_is_closed_ends():
    async def body():
        stream = EventStream()
        stream(EVERY[0])
        stream.close()
        stream(EVERY[1])
        return [event async for event in stream]

    assert asyncio.run(body()) == [EVERY[0]]


# ------------------------------------------------------------------ JSON lines


def test_lines_of_json(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text("")
    for _ in range(2):  # the second appends
        with JsonLines(file) as observer:
            for event in EVERY:
                observer(event)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 * len(EVERY)
    for line, event in zip(lines, EVERY * 2, strict=True):
        assert (line.pop("session"), line.pop("role")) == ("s1", "source")
        assert line.pop("time") > 1.7e9
        assert line.pop("at") >= 0
        told = as_dict(event)
        assert line == json.loads(json.dumps(told)) or event == EVERY[0]
    assert lines[0]["devices"] == ["net0"]


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(ConfigError, match="events cannot be written there: No such file"):
        JsonLines(tmp_path / "none" / "events.jsonl")


def test_a_disk_that_is_full_is_said_once(caplog):
    with JsonLines("/dev/full") as observer, caplog.at_level(logging.WARNING):
        for event in EVERY:
            observer(event)
    [record] = caplog.records
    assert record.getMessage() == "/dev/full: events are written no more: No space left on device"


# --------------------------------------------------------------------- metrics


def scrape(metrics):
    with (
        Server(metrics, "127.0.0.1", 0) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer,
    ):
        text = answer.read().decode()
    return dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )


def test_what_a_scrape_says():
    metrics = Metrics()
    observer = metrics.observer()
    for event in EVERY:
        observer(event)
    found = scrape(metrics)
    who = 'role="source",session="s1"'
    expected = {
        f'vfioflow_device_bytes_total{{device="net0",{who}}}': 1000,
        f'vfioflow_device_wire_bytes_total{{device="net0",{who}}}': 1100,
        f'vfioflow_device_pending_bytes{{device="net0",{who}}}': 50,
        f'vfioflow_device_back_pressure_seconds{{device="net0",{who}}}': 0.6,
        f'vfioflow_device_arc_seconds{{arc="PRE_COPY->PRE_COPY_P2P",device="net0",{who}}}': 0.01,
        f'vfioflow_barrier_seconds{{barrier="quiesce",{who}}}': 0.011,
        f"vfioflow_iterations_total{{{who}}}": 3,
        f"vfioflow_reconnects_total{{{who}}}": 1,
        f"vfioflow_bandwidth_bytes_per_second{{{who}}}": 1e9,
        f"vfioflow_threshold_bytes{{{who}}}": 200,
        f"vfioflow_predicted_downtime_seconds{{{who}}}": 0.05,
        f"vfioflow_downtime_seconds{{{who}}}": 0.06,
        f'vfioflow_phase{{{who},vfioflow_phase="pre-copy"}}': 1,
        f'vfioflow_phase{{{who},vfioflow_phase="connect"}}': 0,
        f'vfioflow_outcome{{{who},vfioflow_outcome="completed"}}': 1,
        f'vfioflow_outcome{{{who},vfioflow_outcome="failed"}}': 0,
    }
    assert {name: float(found[name]) for name in expected} == expected
    assert {name.partition("{")[0] for name in found} == set(METRICS)


def test_sessions_side_by_side_and_old_ones():
    metrics = Metrics(keep=2)
    for number in range(5):
        observer = metrics.observer()
        observer(events.Began(f"s{number}", "destination", "", ()))
        observer(EVERY[-1])
    running = metrics.observer()
    running(events.Began("now", "source", "", ()))
    found = scrape(metrics)
    sessions = {name.split('session="')[1].split('"')[0] for name in found}
    assert sessions == {"s3", "s4", "now"}


def test_a_port_that_is_taken():
    with (
        Server(Metrics(), "127.0.0.1", 0) as server,
        pytest.raises(ConfigError, match=rf"metrics: cannot listen on 127\.0\.0\.1:{server.port}"),
    ):
        Server(Metrics(), "127.0.0.1", server.port)


# ----------------------------------------------------------------------- spans


def spans_of(*told):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = Spans(provider.get_tracer("test"))
    for event in told:
        observer(event)
    return {span.name: span for span in exporter.get_finished_spans()}


def test_spans_of_a_session():
    found = spans_of(*[e for e in EVERY if not isinstance(e, events.Faulted)])
    session = found["vfioflow source"]
    phase, arc = found["pre-copy"], found["net0 PRE_COPY -> PRE_COPY_P2P"]
    assert phase.parent.span_id == session.context.span_id
    assert arc.parent.span_id == phase.context.span_id
    assert session.attributes["vfioflow.session"] == "s1"
    assert session.attributes["vfioflow.devices"] == ("net0",)
    assert session.attributes["vfioflow.outcome"] == "completed"
    assert session.attributes["vfioflow.downtime"] == 0.06
    assert session.status.is_ok
    assert "SwitchoverDecided" in [event.name for event in phase.events]
    assert set(found) == {"vfioflow source", "pre-copy", "net0 PRE_COPY -> PRE_COPY_P2P"}


def test_spans_of_one_that_fails():
    found = spans_of(
        EVERY[0],
        EVERY[1],
        EVERY[4],
        events.Faulted("net0", "STOP -> STOP_COPY", "device net0: EIO"),
        events.Ended("failed", "device net0: EIO", 1.0, None),
    )
    for name in ("vfioflow source", "net0 PRE_COPY -> PRE_COPY_P2P"):
        assert not found[name].status.is_ok
        assert found[name].status.description == "device net0: EIO"
        assert [event.name for event in found[name].events] == ["Faulted"]


def test_the_page_has_every_event_and_metric_with_its_fields():
    page = Path(__file__).parents[2].joinpath("docs/events.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [SD ]+\|(.*?)\| .*\|$", page, re.MULTILINE))
    assert set(rows) == {kind.__name__ for kind in typing.get_args(events.Event)}
    for kind in typing.get_args(events.Event):
        outside = re.sub(r"\([^)]*\)", "", rows[kind.__name__])
        assert re.findall(r"`(\w+)`", outside) == [f.name for f in dataclasses.fields(kind)]
    assert re.findall(r"^\| `(vfioflow_\w+)`", page, re.MULTILINE) == list(METRICS)

"""What a report says: its bound, what it means in words, on a page, and against another."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioflow import advice, events
from vfioflow.difference import changes
from vfioflow.events import Phase
from vfioflow.page import comparison, page
from vfioflow.precopy import Decision, Verdict
from vfioflow.recording import MOST, Recorder
from vfioflow.report import (
    ArcSpan,
    BarrierSpan,
    DeviceReport,
    Judged,
    PhaseSpan,
    Report,
    Sample,
    Timeline,
)
from vfioflow.states import State

MIB = 1 << 20
SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
STEPS = {
    "stop_vcpus": 5.0,
    "quiesce": 10.0,
    "stop_copy": 20.0,
    "drain": 100.0,
    "load": 5.0,
    "validate": 30.0,
    "ready": 5.0,
    "commit": 5.0,
    "resume": 20.0,
}


def example(**changed):
    timeline = Timeline(
        phases=[PhaseSpan(name="pre-copy", at=0.1), PhaseSpan(name="hand over", at=0.9)],
        arcs=[
            ArcSpan(device="gpu0", start="RUNNING_P2P", end="STOP_COPY", at=0.8, seconds=0.02),
            ArcSpan(device="net0", start="PRE_COPY_P2P", end="STOP_COPY", at=0.8, seconds=0.004),
        ],
        barriers=[BarrierSpan(name="stop-copy", at=0.8, seconds=0.02, slowest="gpu0")],
        rounds=[
            Judged(
                iteration=n,
                at=0.1 * n,
                moved=n,
                bandwidth=1e9,
                estimate=100 * MIB // n,
                exact=None,
                threshold=50 * MIB,
                predicted=0.2,
            )
            for n in range(1, 5)
        ],
        samples=[Sample(at=0.1 * n, moved=n * MIB, wire=n * MIB // 2) for n in range(8)],
    )
    values = {
        "role": "source",
        "outcome": "completed",
        "session": "s1",
        "peer": "tcp://10.0.0.2:4747",
        "total_ms": 1000.0,
        "downtime_ms": 200.0,
        "downtime_limit_ms": 300.0,
        "predicted_downtime_ms": 190.0,
        "bandwidth": 500.0 * MIB,
        "steps_ms": dict(STEPS),
        "devices": [
            DeviceReport(
                name="gpu0",
                profile="xe",
                bytes_precopy=0,
                bytes_stopcopy=60 * MIB,
                can_precopy=False,
            ),
            DeviceReport(
                name="net0",
                profile="mlx5",
                bytes_precopy=90 * MIB,
                bytes_stopcopy=20 * MIB,
                bytes_wire=55 * MIB,
                can_precopy=True,
            ),
        ],
        "policy": {"compression": "none", "downtime_limit": 0.3},
        "timeline": timeline,
    }
    return Report(**{**values, **changed})


# ------------------------------------------------------------------- the numbers


def test_the_lower_bound_by_hand():
    """80 MiB at the drain's own 800 MiB/s, the best that was measured; and the devices' 85 ms."""
    report = example()
    assert report.bytes_stopcopy == 80 * MIB
    assert report.wire_ms == pytest.approx(100.0)
    assert report.transitions_ms == 10 + 20 + 30 + 5 + 20
    assert report.lower_bound_ms == pytest.approx(185.0)
    assert report.over_bound == pytest.approx(200 / 185)
    faster = example(bandwidth=1600.0 * MIB)
    assert faster.wire_ms == pytest.approx(50.0)


def test_without_a_downtime_there_is_no_bound():
    report = example(downtime_ms=None, steps_ms={})
    assert (report.lower_bound_ms, report.over_bound) == (None, None)


def test_what_a_device_took_on_the_wire():
    assert example().devices[1].compression == 0.5
    assert DeviceReport(name="a", profile="").compression is None


# ------------------------------------------------------------------ the recording


def test_a_timeline_out_of_events():
    report = Report(role="source", outcome="failed")
    recorder = Recorder(report)
    decision = Decision(Verdict.SWITCH_OVER, "it fits", 10, 9, 20, 0.05)
    for event in (
        events.Began("s", "source", "", ("a", "b")),
        events.PhaseEntered(Phase.PRE_COPY),
        events.BarrierEntered("quiesce", ("a", "b")),
        events.StateChanging("a", State.RUNNING, State.RUNNING_P2P),
        events.StateChanging("b", State.RUNNING, State.RUNNING_P2P),
        events.StateChanged("a", State.RUNNING, State.RUNNING_P2P, 0.1),
        events.StateChanged("b", State.RUNNING, State.RUNNING_P2P, 0.3),
        events.BarrierPassed("quiesce", 0.3),
        events.Decided(1, 5, 2.0, decision),
        events.SwitchoverDecided(1, 2.0, 0.04, decision),
        events.Progress(Phase.PRE_COPY, (events.DeviceProgress("a", 7, 8, None),)),
        events.BackPressure("a", 0.5),
        events.BackPressure("a", 1.5),
        events.BackPressure("a", 0.5),
        events.StateChanging("a", State.RUNNING_P2P, State.STOP),
    ):
        recorder(event)
    line = report.timeline
    assert [phase.name for phase in line.phases] == ["pre-copy"]
    assert [(arc.device, arc.end, arc.seconds) for arc in line.arcs] == [
        *(("a", "RUNNING_P2P", 0.1), ("b", "RUNNING_P2P", 0.3), ("a", "STOP", None))
    ]
    [barrier] = line.barriers
    assert (barrier.name, barrier.seconds, barrier.slowest) == ("quiesce", 0.3, "b")
    [judged] = line.rounds
    assert (judged.exact, judged.threshold, judged.predicted) == (9, 20, 0.05)
    assert report.fixed_ms == 40.0
    assert [(sample.moved, sample.wire) for sample in line.samples] == [(7, 8)]
    assert line.held == {"a": 2.0}


def test_a_timeline_is_bounded_and_keeps_its_ends():
    report = Report(role="source", outcome="failed")
    recorder = Recorder(report)
    decision = Decision(Verdict.ITERATE, "", 1, None, 1, None)
    for number in range(5000):
        recorder(events.Decided(number, 0, None, decision))
        recorder(events.Progress(Phase.PRE_COPY, (events.DeviceProgress("a", number, 0, None),)))
    rounds, samples = report.timeline.rounds, report.timeline.samples
    assert len(rounds) <= MOST
    assert len(samples) <= MOST
    assert (rounds[0].iteration, rounds[-1].iteration) == (0, 4999)
    assert samples[0].moved == 0
    assert [s.moved for s in samples] == sorted(s.moved for s in samples)
    assert samples[-1].moved > 4900


# -------------------------------------------------------------------- in words


def test_why_and_what_would_halve_it():
    report = example()
    assert advice.headline(report) == (
        "The downtime was 200 ms: 50% wire (80.0 MiB moved at 800.0 MiB/s) and 15% validate"
        " (RESUMING -> STOP, where drivers load and check). No order of operations could do it in less"
        " than 185 ms with these devices, this wire and these bytes: it took 1.08 times that."
    )
    found = advice.causes(report)
    assert [(c.name, c.ms) for c in found[:3]] == [
        *(("wire", 100.0), ("validate", 30.0), ("stop-copy", 20.0))
    ]
    assert sum(cause.ms for cause in found) == pytest.approx(200.0)
    assert found[2].why == "the devices stop; gpu0 took longest"
    best = advice.remedies(report)[0]
    assert best.saves_ms == pytest.approx(75.0)
    assert best.what.startswith("less state in gpu0, which has no pre-copy: its 60.0 MiB")
    halves = advice.to_halve(report)
    assert halves[0] == best
    assert sum(r.saves_ms for r in halves) >= 100 > sum(r.saves_ms for r in halves[:-1])


def test_the_prediction_against_what_happened_by_its_parts():
    assert advice.prediction(example(fixed_ms=70.0)) == [
        ("what was left over the wire", 120.0, 105.0),
        ("state changes, round trips, hooks", 70.0, 95.0),
        ("in all", 190.0, 200.0),
    ]
    assert advice.prediction(example(fixed_ms=None)) == []
    words = " ".join(" ".join(Words(page(example(fixed_ms=70.0))).words).split())
    assert "Predicted and happened predicted happened what was left over the wire 120 ms" in words


def test_a_slow_device_is_worth_what_the_next_one_takes_less():
    [remedy] = [r for r in advice.remedies(example()) if "faster gpu0" in r.what]
    assert remedy.saves_ms == pytest.approx(16.0)


def test_compression_is_no_advice_for_who_has_it():
    report = example(policy={"compression": "auto"})
    assert not any("--compression" in remedy.what for remedy in advice.remedies(report))


def test_a_migration_that_failed_says_why():
    report = example(outcome="failed", error="device net0: EIO", downtime_ms=None, steps_ms={})
    assert advice.headline(report) == "The migration is failed: device net0: EIO"
    assert (advice.causes(report), advice.remedies(report), advice.to_halve(report)) == ([], [], [])


def test_the_destinations_part_is_put_in_where_both_meet():
    there = Report(role="destination", outcome="completed")
    there.timeline.phases = [PhaseSpan(name="hand over", at=5.0)]
    there.timeline.barriers = [
        BarrierSpan(name="resuming", at=1.0, seconds=0.1),
        BarrierSpan(name="validate", at=5.1, seconds=0.03, slowest="net0"),
    ]
    both = advice.with_destination(example(), there)
    [validate] = [b for b in both.timeline.barriers if b.name == "validate"]
    assert validate.at == pytest.approx(1.0)
    assert not any(b.name == "resuming" for b in both.timeline.barriers)
    assert "net0 took longest" in advice.causes(both)[1].why


# ------------------------------------------------------------------- compared


def test_what_changed_the_downtime_first():
    after = example(
        downtime_ms=150.0,
        steps_ms={**STEPS, "drain": 50.0},
        policy={"compression": "auto", "downtime_limit": 0.3},
    )
    found = changes(example(), after)
    assert (found[0].name, found[0].before, found[0].after) == ("downtime", "200.0 ms", "150.0 ms")
    assert {c.name for c in found[1:3]} == {"step drain", "lower bound"}
    assert (found[-1].name, found[-1].after) == ("policy compression", "auto")
    assert not any("quiesce" in change.name for change in found)


# ------------------------------------------------------------------- the schema


def test_the_published_schema_is_that_of_the_types():
    assert json.loads(SCHEMA.read_text()) == msgspec.json.schema(Report)


def test_a_report_fits_the_published_schema():
    jsonschema.validate(json.loads(example().to_json()), json.loads(SCHEMA.read_text()))


def test_a_report_of_before_still_loads():
    old = (
        '{"role": "source", "outcome": "completed", "downtime_ms": 3.0, "steps_ms": {"drain": 3.0}}'
    )
    report = Report.from_json(old)
    assert report.timeline == Timeline()
    assert "</html>" in page(report)


# --------------------------------------------------------------------- the page


class Words(HTMLParser):
    """The text, and the tags, of a page."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_has_the_answer_the_pictures_and_the_numbers():
    text = page(example())
    seen = Words(text)
    words = " ".join(" ".join(seen.words).split())
    assert advice.headline(example()) in words
    for part in (
        "200 ms",
        "185 ms",
        "gpu0",
        "60.0 MiB",
        "100.0 ms",
        "Pending against",
        "Throughput",
    ):
        assert part in words
    assert seen.tags.count("svg") == 2 * 4  # each picture wide and narrow
    assert "script" not in seen.tags
    assert [o for o in seen.outside if not o.startswith("http://www.w3.org")] == []
    assert "var(--c0)" in text
    assert not re.search("#0[1-9a-f]0[1-9a-f]0[1-9a-f]", text)  # no colour was forgotten
    labels = re.findall(r'aria-label="([^"]+)"', text)
    assert any("drain 100.0 ms" in label for label in labels)


def test_a_page_of_two():
    words = " ".join(Words(comparison(example(), example(downtime_ms=150.0))).words)
    assert "200.0 ms" in words
    assert "150.0 ms" in words


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
names = st.one_of(texts, st.sampled_from(["<b>", "a&b", '"', "$x$", "$", "</svg>", "%s"]))
sizes = st.integers(0, 1 << 50)
times = st.floats(0, 1e6)
reports = st.builds(
    Report,
    role=st.sampled_from(["source", "destination"]),
    outcome=st.sampled_from(["completed", "failed", "in-doubt"]),
    error=st.none() | names,
    session=names,
    peer=names,
    total_ms=times,
    downtime_ms=st.none() | times,
    predicted_downtime_ms=st.none() | times,
    bandwidth=st.none() | times,
    steps_ms=st.dictionaries(st.sampled_from([*STEPS, "config", "<i>"]), times, max_size=5),
    devices=st.lists(
        st.builds(
            DeviceReport,
            name=names,
            profile=names,
            bytes_precopy=st.none() | sizes,
            bytes_stopcopy=st.none() | sizes,
            bytes_wire=sizes,
            can_precopy=st.none() | st.booleans(),
        ),
        max_size=3,
    ),
    policy=st.dictionaries(names, names, max_size=2),
    timeline=st.builds(
        Timeline,
        phases=st.lists(st.builds(PhaseSpan, name=names, at=times), max_size=3),
        arcs=st.lists(
            st.builds(
                ArcSpan, device=names, start=names, end=names, at=times, seconds=st.none() | times
            ),
            max_size=3,
        ),
        barriers=st.lists(
            st.builds(
                BarrierSpan,
                name=st.sampled_from(["quiesce", "stop-copy", "<u>"]),
                at=times,
                seconds=times,
                slowest=names,
            ),
            max_size=2,
        ),
        samples=st.lists(st.builds(Sample, at=times, moved=sizes, wire=sizes), max_size=4),
    ),
)


@settings(max_examples=12, deadline=None)  # eight pictures each
@given(reports)
def test_any_report_survives_json_and_gives_a_page(report):
    again = Report.from_json(report.to_json())
    assert again == report
    jsonschema.validate(json.loads(report.to_json()), json.loads(SCHEMA.read_text()))
    seen = Words(page(again))
    assert {"b", "i", "u"} & set(seen.tags) <= {"b"}  # nothing of a name is markup
    assert seen.tags.count("html") == 1
    assert advice.headline(report)
    assert changes(report, again)[0].name == "downtime"

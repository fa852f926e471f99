"""The model of a migration, against cases that one can work out by hand, and what must always hold."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioflow.lab.learning import Seen, agreement, learn, with_wire
from vfioflow.lab.model import Known, predict
from vfioflow.lab.scenario import Outcome, parse_scenario
from vfioflow.policy import Policy
from vfioflow.precopy import Verdict

MIB = 1 << 20
BARE = Known(rate=1e12, connect=0.0, barrier=0.0, round=0.0, hand_over=0.0, per_device=0.0)
RECORD = 65536 / (65536 + 48)


def scenario(device, *, rate=100 * MIB, limit=1.0, latency=0.0, more=""):
    text = f"""
        [wire]
        kind = "namespaces"
        rate = {rate}
        latency = {latency}
        [policy]
        downtime_limit = {limit}
        {more}
        [[device]]
        name = "dev"
        profile = "generic"
        {device}
    """
    return parse_scenario(text, "it", "it.toml")


def test_a_device_without_pre_copy_moves_all_of_it_in_the_downtime():
    said = predict(
        scenario(
            """state_size = 52428800
            flags = ["STOP_COPY", "P2P"]
            [device.arc_seconds]
            "RUNNING->RUNNING_P2P" = 0.01
            "RUNNING_P2P->STOP" = 0.02
            "STOP->STOP_COPY" = 0.03"""
        ),
        known=BARE,
    )
    assert said.verdict is Verdict.SWITCH_OVER
    assert said.iterations == 0
    assert said.downtime == pytest.approx(0.06 + 0.5 / RECORD)
    assert said.bytes_stopcopy == said.bytes_total == int(52428800 / RECORD)


def test_what_pre_copy_moves_is_not_in_the_downtime():
    said = predict(
        scenario("state_size = 52428800\ninitial_bytes = 41943040", limit=0.2), known=BARE
    )
    assert said.verdict is Verdict.SWITCH_OVER
    assert said.downtime == pytest.approx(0.1 / RECORD, rel=0.01)
    # The probe sends 85.25 MiB; then 40 MiB in a round, and a round in which that is acknowledged.
    assert said.total == pytest.approx(0.8525 + 0.4 / RECORD + 0.05 + said.downtime)


def test_what_dirties_as_fast_as_the_wire_never_converges():
    said = predict(
        scenario(
            "state_size = 838860800\ninitial_bytes = 838860800\ndirty_rate = 1e9",
            limit=0.1,
            more="max_iterations = 20",
        ),
        known=BARE,
    )
    assert (said.verdict, said.iterations) == (Verdict.GIVE_UP, 20)
    assert (said.downtime, said.bytes_stopcopy) == (0.0, 0)


def test_what_is_dirtied_settles_where_the_wire_keeps_up():
    """Half of the wire's rate: each round leaves half of the one before, down to the shortest round's."""
    said = predict(
        scenario(
            "state_size = 209715200\ninitial_bytes = 209715200\ndirty_rate = 52428800", limit=0.1
        ),
        known=BARE,
    )
    assert said.verdict is Verdict.SWITCH_OVER
    assert 3 <= said.iterations <= 8
    assert said.downtime <= 0.1


def test_a_slow_device_counts_where_it_is_slower_than_the_wire():
    slow = scenario('state_size = 52428800\nflags = ["STOP_COPY"]\nread_rate = 26214400', limit=5.0)
    assert predict(slow, known=BARE).downtime == pytest.approx(2.0 / RECORD)


def test_latency_is_in_the_downtime_four_times():
    device = 'state_size = 65536\nflags = ["STOP_COPY"]'
    near, far = scenario(device), scenario(device, latency=0.01)
    assert predict(far, known=BARE).downtime - predict(near, known=BARE).downtime == pytest.approx(
        0.04
    )


def test_a_recorded_course_of_rates_counts_from_the_begin_of_pre_copy():
    """64 MiB take 0.64 s; all is dirtied in the first second, or all after it."""
    shape = "state_size = 67108864\ninitial_bytes = 67108864\ndirty_step = 1.0\n"
    early, late = (
        predict(scenario(f"{shape}dirty_rates = {rates}", limit=0.05), known=BARE)
        for rates in ("[30000000, 0]", "[0, 30000000]")
    )
    assert early.verdict is late.verdict is Verdict.SWITCH_OVER
    assert late.bytes_total == int(67108864 / RECORD)
    assert early.bytes_total > late.bytes_total + 10_000_000


def test_a_recorded_blend_compresses_by_its_shares():
    known = replace(BARE, ratio={"zeros": 0.0, "structured": 0.5, "random": 1.0}, compress=1e12)
    shape = "state_size = 52428800\ninitial_bytes = 0\ncontent = "
    blend, random = (
        predict(
            scenario(shape + content, limit=9.0, more='compression = "zstd:1"'), known=known
        ).bytes_wire
        for content in ('"mix:0.25,0.5"', '"random"')
    )
    assert blend == pytest.approx(random * 0.5, abs=2)


def test_compression_halves_what_it_can():
    device = 'state_size = 52428800\nflags = ["STOP_COPY"]\ncontent = "structured"'
    plain = predict(scenario(device), known=BARE)
    zstd = predict(
        scenario(device, more='compression = "zstd:1"'), known=replace(BARE, compress=1e12)
    )
    assert zstd.downtime == pytest.approx(plain.downtime / 2, rel=0.01)
    assert zstd.bytes_wire == pytest.approx(plain.bytes_wire / 2, rel=0.01)
    assert zstd.bytes_total == plain.bytes_total
    random = predict(
        scenario(device.replace("structured", "random"), more='compression = "zstd:1"'),
        known=replace(BARE, compress=1e6),
    )
    assert random.downtime > 10 * plain.downtime  # the processors are the limit


DEVICES = st.fixed_dictionaries(
    {
        "state_size": st.integers(1, 400) .map(lambda n: n * MIB),
        "share": st.floats(0, 1),
        "dirty_rate": st.floats(0, 3e8),
    }
)  # fmt: skip


def made(values, **more):
    initial = int(values["state_size"] * values["share"])
    return scenario(
        f"state_size = {values['state_size']}\ninitial_bytes = {initial}\n"
        f"dirty_rate = {values['dirty_rate']}",
        more="max_iterations = 60",
        **more,
    )


@settings(max_examples=60, deadline=None)
@given(DEVICES, st.integers(10, 1000))
def test_more_never_costs_more(values, rate):
    """A faster wire never makes a switchover impossible, nor moves less than the state once."""
    slow = predict(made(values, rate=rate * MIB), known=BARE)
    fast = predict(made(values, rate=4 * rate * MIB), known=BARE)
    for said in (slow, fast):
        if said.verdict is Verdict.SWITCH_OVER:
            assert said.downtime <= 1.0 + 1e-9
            assert said.bytes_total >= values["state_size"]
            assert 0 <= said.bytes_stopcopy <= values["state_size"] / RECORD + 1
            assert said.total >= said.downtime
    if slow.verdict is Verdict.SWITCH_OVER:
        assert fast.verdict is Verdict.SWITCH_OVER


@settings(max_examples=30, deadline=None)
@given(DEVICES, st.floats(0.05, 5.0))
def test_a_policy_of_its_own_is_used(values, limit):
    said = predict(made(values), Policy(downtime_limit=limit, max_iterations=60), BARE)
    if said.verdict is Verdict.SWITCH_OVER:
        assert said.downtime <= limit + 1e-9


# --------------------------------------------------------------------------- learning


def ran(where, known, **changes):
    """As if the world were as ``known`` says."""
    said = predict(where, known=known)
    whole = said.verdict is Verdict.SWITCH_OVER
    outcome = Outcome(downtime=said.downtime if whole else None, total=said.total, bandwidth=5e8)
    return Seen(where, replace(outcome, **changes))


PLAIN = scenario('state_size = 52428800\nflags = ["STOP_COPY"]')
HOPELESS = scenario('state_size = 524288000\nflags = ["STOP_COPY"]')


def test_what_runs_were_later_by_is_learned():
    true = replace(BARE, hand_over=0.02, connect=0.05)
    learned = learn([ran(PLAIN, true)] * 3, BARE)
    assert learned.hand_over == pytest.approx(0.02)
    assert learned.connect == pytest.approx(0.05)
    assert agreement([ran(PLAIN, true)], learned).downtime == pytest.approx((0.0, 0.0), abs=1e-6)


def test_one_run_that_was_slow_does_not_spoil_the_rest():
    true = replace(BARE, hand_over=0.02)
    late = ran(PLAIN, replace(true, hand_over=3.0))
    assert learn([ran(PLAIN, true), late, ran(PLAIN, true)], BARE).hand_over == pytest.approx(0.02)


def test_the_engine_s_rate_comes_from_wires_without_a_limit():
    free = replace(PLAIN, wire=replace(PLAIN.wire, rate=None))
    assert learn([ran(free, BARE)], BARE).rate == 5e8
    assert learn([ran(PLAIN, BARE)], BARE).rate == 1e12
    assert with_wire(BARE, 7.0).rate == 7.0
    assert with_wire(BARE, None) is BARE


def test_verdicts_are_counted_and_failures_teach_nothing():
    assert predict(HOPELESS, known=BARE).verdict is Verdict.GIVE_UP
    failed = Seen(PLAIN, Outcome(error="it broke", total=1.0))
    assert learn([failed], BARE) == BARE
    found = agreement([ran(PLAIN, BARE), ran(HOPELESS, BARE), failed], BARE)
    assert found.verdicts == pytest.approx(2 / 3)
    assert found.runs == 3
    with pytest.raises(ValueError, match="no run migrated"):
        agreement([failed], BARE)

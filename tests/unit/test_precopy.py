"""When to iterate and when to switch over."""

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow.policy import Policy
from vfioflow.precopy import Bandwidth, Move, Pending, Round, Verdict, decide, slowest
from vfioflow.states import FLAG_SETS, Flags, State

MB = 1 << 20
ALL = FLAG_SETS[3]


def a_round(
    *pending, bandwidth=1000 * MB, fixed=0.125, iteration=5, elapsed=3.0, acknowledged=True
):
    return Round(iteration, elapsed, pending, bandwidth, fixed, acknowledged)


def test_what_fits_and_is_acknowledged_switches_over():
    now = a_round(Pending("net0", True, 0, 50 * MB, 60 * MB))
    decision = decide(now, Policy(downtime_limit=0.375))
    assert decision.verdict is Verdict.SWITCH_OVER
    assert decision.threshold == 250 * MB
    assert (decision.estimate, decision.exact) == (50 * MB, 60 * MB)
    assert decision.predicted_downtime == pytest.approx(0.185)
    assert decision.reason == "60.0 MiB fit the threshold of 250.0 MiB"


def test_the_threshold_leaves_out_what_the_state_changes_take():
    now = a_round(Pending("net0", True, 0, 150 * MB, 150 * MB), fixed=0.25)
    decision = decide(now, Policy(downtime_limit=0.375))
    assert decision.threshold == 125 * MB
    assert decision.verdict is Verdict.ITERATE
    assert decision.predicted_downtime == pytest.approx(0.4)


def test_exact_sizes_are_asked_for_only_when_the_estimate_fits():
    def never():
        raise AssertionError("the estimate does not fit")

    now = a_round(Pending("net0", True, 0, 251 * MB))
    assert decide(now, Policy(downtime_limit=0.375), never).exact is None


def test_exact_sizes_overrule_the_estimate():
    now = a_round(Pending("net0", True, 0, 10 * MB))
    decision = decide(
        now, Policy(downtime_limit=0.375), lambda: [Pending("net0", True, 0, 10 * MB, 300 * MB)]
    )
    assert decision.verdict is Verdict.ITERATE
    assert (decision.estimate, decision.exact) == (10 * MB, 300 * MB)
    assert decision.reason == "300.0 MiB are left, 250.0 MiB fit the downtime limit"


def test_initial_bytes_hold_the_switchover_back():
    now = a_round(Pending("net0", True, 1, 0, 1))
    assert decide(now, Policy()).verdict is Verdict.ITERATE


@pytest.mark.parametrize(
    ("wanted", "verdict"), [(True, Verdict.ITERATE), (False, Verdict.SWITCH_OVER)]
)
def test_the_acknowledgement_is_waited_for_if_the_policy_says_so(wanted, verdict):
    now = a_round(Pending("net0", True, 0, 1, 1), acknowledged=False)
    assert decide(now, Policy(switchover_ack=wanted)).verdict is verdict


def test_devices_without_precopy_count_with_their_whole_size():
    now = a_round(Pending("net0", True, 0, 1, 1), Pending("gpu0", False, stop_copy=300 * MB))
    decision = decide(now, Policy(downtime_limit=0.375))
    assert decision.estimate == 300 * MB + 1
    assert decision.verdict is Verdict.ITERATE


def test_a_size_that_is_not_known_counts_the_precopy_part():
    assert Pending("virtio", True, 5, 7, None).exact == 12
    assert Pending("virtio", True, 5, 7, 3).exact == 12
    assert Pending("virtio", False).exact == 0


@pytest.mark.parametrize(
    ("choice", "verdict"), [("abort", Verdict.GIVE_UP), ("switchover", Verdict.SWITCH_OVER)]
)
@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (
            a_round(Pending("gpu0", False, stop_copy=300 * MB)),
            "pre-copy has moved all it can and 300.0 MiB are left, 250.0 MiB fit",
        ),
        (
            a_round(Pending("net0", True, 0, 300 * MB), iteration=10),
            "after 10 iterations 300.0 MiB are left",
        ),
        (
            a_round(Pending("net0", True, 0, 300 * MB), elapsed=60.0),
            "after 60.0 s of pre-copy 300.0 MiB are left",
        ),
        (
            a_round(Pending("net0", True, 0, 1 * MB, 401 * MB)),
            "400.0 MiB exist only in stop-copy, 250.0 MiB fit",
        ),
        (
            a_round(Pending("net0", True, 0, 0, 10), fixed=0.5),
            "pre-copy has moved all it can and state changes and round trips alone take 500 ms,"
            " the downtime limit is 375 ms",
        ),
    ],
    ids=["moved all", "iterations", "time", "stop-copy only", "transitions"],
)
def test_what_does_not_converge_is_the_users_choice(now, reason, choice, verdict):
    policy = Policy(
        downtime_limit=0.375, max_iterations=10, precopy_timeout=60, on_no_convergence=choice
    )
    decision = decide(now, policy)
    assert decision.verdict is verdict
    assert decision.reason.startswith(reason)


def test_a_set_is_not_hopeless_before_the_wire_was_measured_twice():
    hopeless = Pending("gpu0", False, stop_copy=900 * MB)
    assert decide(a_round(hopeless, elapsed=1.9), Policy()).verdict is Verdict.ITERATE
    assert decide(a_round(hopeless, elapsed=2.0), Policy()).verdict is Verdict.GIVE_UP


def test_without_a_bandwidth_nothing_is_known():
    now = a_round(Pending("net0", True, 0, 10, 10), bandwidth=None)
    decision = decide(now, Policy())
    assert decision.verdict is Verdict.ITERATE
    assert decision.threshold == 0
    assert decision.predicted_downtime is None


pendings = st.builds(
    Pending,
    st.text(min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 10**10),
    st.integers(0, 10**10),
    st.none() | st.integers(0, 10**10),
)


@given(
    st.lists(pendings, min_size=1, max_size=5),
    st.none() | st.floats(1, 1e11),
    st.floats(0, 1),
    st.booleans(),
    st.floats(0.01, 2),
)
def test_no_decision_breaks_the_limit_knowingly(pending, bandwidth, fixed, acknowledged, limit):
    """With "abort", a switchover means: acknowledged, nothing initial left, and a prediction within."""
    now = Round(3, 1.0, tuple(pending), bandwidth, fixed, acknowledged)
    decision = decide(now, Policy(downtime_limit=limit))
    if decision.verdict is Verdict.SWITCH_OVER:
        assert acknowledged
        assert sum(p.initial for p in pending) == 0
        left = sum(p.exact for p in pending)
        assert left <= decision.threshold
        if bandwidth:
            assert left / bandwidth + fixed <= limit * (1 + 1e-9) or left == 0


class TestBandwidth:
    def test_short_samples_are_passed_over(self):
        bandwidth = Bandwidth()
        bandwidth.add(Bandwidth.MIN_BYTES - 1, 10.0)
        bandwidth.add(100 * MB, Bandwidth.MIN_SECONDS / 2)
        assert bandwidth.value is None

    def test_assumed_until_measured(self):
        bandwidth = Bandwidth()
        bandwidth.assume(5e9)
        assert bandwidth.value == 5e9
        bandwidth.add(100 * MB, 0.1)
        assert bandwidth.value == pytest.approx(1000 * MB)

    def test_a_probe_refreshes_up_to_the_best_sample(self):
        """The wire may be faster than the devices: then what they have shown is the limit."""
        bandwidth = Bandwidth()
        assert bandwidth.add(100 * MB, 0.1)
        assert bandwidth.add(100 * MB, 0.5)
        assert not bandwidth.add(1, 1.0)
        low = bandwidth.value
        for _ in range(20):
            bandwidth.refresh(64 * MB, 0.001)
        assert low < bandwidth.value == pytest.approx(1000 * MB, rel=0.01)
        for _ in range(20):
            bandwidth.refresh(64 * MB, 1.0)
        assert bandwidth.value == pytest.approx(64 * MB, rel=0.01)

    def test_large_samples_weigh_more_and_old_ones_fade(self):
        bandwidth = Bandwidth()
        bandwidth.add(900 * MB, 0.9)
        bandwidth.add(10 * MB, 0.1)
        assert bandwidth.value == pytest.approx((450 + 10) * MB / (0.45 + 0.1))


class TestExpectedTimes:
    arcs: ClassVar = {
        "PRE_COPY->PRE_COPY_P2P": 0.25,
        "PRE_COPY_P2P->STOP_COPY": 0.5,
        "STOP->RUNNING": 9.0,
    }

    def test_composed_changes_add_up(self):
        assert Move(ALL, self.arcs, State.PRE_COPY, State.STOP_COPY).seconds == 0.75

    def test_what_a_device_cannot_do_takes_no_time(self):
        assert Move(Flags.STOP_COPY, self.arcs, State.PRE_COPY, State.STOP_COPY).seconds == 0.0

    def test_a_barrier_takes_as_long_as_its_slowest(self):
        moves = [
            Move(ALL, {"RUNNING->RUNNING_P2P": t}, State.RUNNING, State.RUNNING_P2P)
            for t in (0.1, 0.3, 0.2)
        ]
        assert slowest(moves) == 0.3
        assert slowest([]) == 0.0

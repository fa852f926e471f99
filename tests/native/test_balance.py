"""When compression is worth it: the decision alone, in a world of constant rates (bytes a nanosecond)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow._balance import Balance

MIB = 1 << 20
SECOND = 10**9
LEVELS = (1, -5, 3)  # by their number


class Lane:
    """A lane that moves bytes, and what its balance learns from that.

    Args:
        wire: what it takes.
        speed: what one compressor thread takes in; for all levels, or for each.
        ratio: how much smaller the data becomes; for all levels, or for each.
        threads: the lane's share of the compressors.
        busy: the share of its time that the lane's thread computes.
    """

    def __init__(self, *, wire=0.3, speed=0.5, ratio=4.0, threads=2.0, busy=0.2):
        self.balance = Balance()
        self.wire, self.threads, self.busy = wire, threads, busy
        self.speed = speed if isinstance(speed, dict) else dict.fromkeys(LEVELS, speed)
        self.ratio = ratio if isinstance(ratio, dict) else dict.fromkeys(LEVELS, ratio)
        self.now = self.cpu = 0

    def period(self, rate=None):
        """Move bytes until a decision is due: as fast as the wire takes them, or at this rate."""
        if rate is None:
            rate = self.wire * (self.ratio[self.balance.level] if self.balance.packing else 1)
        began = self.now
        while self.now == began or not self.balance.due():
            self.balance.sent(MIB, int(MIB / rate))
            self.now += int(MIB / rate)
        self.cpu += int(self.busy * (self.now - began))
        for which, level in enumerate(LEVELS if self.balance.packing else LEVELS[:1]):
            self.balance.sampled(
                which, MIB, int(MIB / self.ratio[level]), int(MIB / self.speed[level])
            )
        self.balance.decide(self.now, self.cpu, 0, self.threads)
        return self.balance.packing

    def periods(self, count):
        return [self.period() for _ in range(count)]

    def until_packing(self):
        """How long it goes without compression; ends behind the first period with it, which never counts."""
        began = self.now
        while not self.period():
            assert self.now - began < 60 * SECOND
        raw = self.now - began
        self.period()
        return raw


def test_it_begins_raw():
    balance = Balance()
    assert not balance.packing
    assert balance.raw_rate == 0
    assert balance.level in LEVELS


def test_it_packs_what_shrinks_on_a_slow_wire():
    lane = Lane()
    assert lane.periods(10)[-1]
    assert lane.balance.raw_rate == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(
    "world",
    [
        {"ratio": 1.0},
        {"ratio": 0.99},
        {"ratio": 1.01},
        {"wire": 2.0},
        {"threads": 0.1},
        {"busy": 0.95},
    ],
    ids=["random", "grows", "hardly shrinks", "fast wire", "many lanes", "busy thread"],
)
def test_it_stays_raw_where_packing_gains_nothing(world):
    assert not any(Lane(**world).periods(30))


def test_it_begins_to_pack_when_the_wire_becomes_slow():
    lane = Lane(wire=5.0)
    assert not any(lane.periods(5))
    lane.wire = 0.1
    assert lane.periods(10)[-1]


@pytest.mark.parametrize(
    ("wire", "level"), [(0.05, 3), (0.35, 1), (0.6, -5)], ids=["slow", "middling", "fast"]
)
def test_the_level_is_the_one_with_the_best_goodput(wire, level):
    lane = Lane(
        wire=wire, speed={-5: 1.0, 1: 0.5, 3: 0.3}, ratio={-5: 2.2, 1: 2.5, 3: 2.7}, threads=2
    )
    assert lane.periods(10)[-1]
    assert lane.balance.level == level


def test_the_level_follows_the_share_of_the_compressors():
    lane = Lane(
        wire=0.1, speed={-5: 1.0, 1: 0.5, 3: 0.3}, ratio={-5: 2.2, 1: 2.5, 3: 2.7}, threads=2
    )
    lane.periods(10)
    assert lane.balance.level == 3
    lane.threads = 0.15  # other lanes came
    lane.periods(10)
    assert lane.balance.packing
    assert lane.balance.level == -5


# ------------------------------------------------------------ a change of mind


@pytest.fixture
def packing():
    lane = Lane()
    lane.periods(10)
    assert lane.balance.packing
    return lane


def test_one_slow_period_may_be_chance(packing):
    slow = 0.9 * packing.balance.raw_rate
    assert packing.period(slow)
    assert packing.period()
    assert packing.period(slow)
    assert not packing.period(slow)


def test_the_first_period_warms_up():
    lane = Lane()
    while not lane.period():
        pass
    assert lane.period(0.1 * lane.balance.raw_rate)
    assert not lane.period(0.1 * lane.balance.raw_rate)


def test_one_very_slow_period_is_enough(packing):
    assert not packing.period(0.5 * packing.balance.raw_rate)


def test_after_the_hold_it_takes_two_slow_periods_again(packing):
    slow = 0.9 * packing.balance.raw_rate
    assert [packing.period(slow), packing.period(slow)] == [True, False]
    packing.until_packing()
    assert [packing.period(slow), packing.period(slow)] == [True, False]


def test_each_failure_holds_for_longer_up_to_a_limit(packing):
    held = []
    for _ in range(8):
        packing.period(0.5 * packing.balance.raw_rate)
        held.append(packing.until_packing() / SECOND)
    assert 0 < held[0] < 2
    assert held == sorted(held)
    assert held[2] > 1.5 * held[1] > 1.5 * held[0]
    assert held[-2] == held[-1] == pytest.approx(8, abs=1)


def test_it_leaves_packing_when_the_data_no_longer_shrinks(packing):
    packing.ratio = dict.fromkeys(LEVELS, 1.0)
    assert not packing.periods(20)[-1]


# ------------------------------------------------------------------- the rate


def test_what_only_filled_the_sockets_is_no_rate():
    """Only a quarter of what was sent has left the socket."""
    balance = Balance()
    balance.sent(16 * MIB, 100 * MIB)
    balance.decide(100 * MIB, 0, 12 * MIB, 2.0)
    assert balance.raw_rate == pytest.approx(0.04)


def test_nothing_on_the_wire_yet_is_no_rate_at_all():
    balance = Balance()
    balance.sampled(0, MIB, MIB // 4, MIB)
    balance.sent(4 * MIB, 100 * MIB)
    balance.decide(100 * MIB, 0, 4 * MIB, 2.0)
    assert balance.raw_rate == 0
    assert not balance.packing


def test_what_waited_in_the_sockets_before_does_not_count_against_the_rate():
    balance = Balance()
    balance.decide(0, 0, 12 * MIB, 2.0)
    balance.sent(16 * MIB, 100 * MIB)
    balance.decide(100 * MIB, 0, 12 * MIB, 2.0)
    assert balance.raw_rate == pytest.approx(0.16)


# ----------------------------------------------------------------- anything at all

sizes = st.one_of(st.integers(0, 3), st.integers(0, 2**50))
calls = st.one_of(
    st.tuples(st.just("sent"), sizes, sizes),
    st.tuples(st.just("sampled"), st.integers(0, 2), sizes, sizes, sizes),
    st.tuples(st.just("decide"), sizes, sizes, sizes, st.floats(0, 1000)),
)


@given(st.lists(calls, max_size=60))
def test_whatever_is_measured_the_answer_makes_sense(calls):
    balance = Balance()
    now = cpu = 0
    for name, *numbers in calls:
        if name == "decide":
            passed, computed, backlog, threads = numbers
            now, cpu = now + passed, cpu + computed
            balance.decide(now, cpu, backlog, threads)
        else:
            getattr(balance, name)(*numbers)
        assert balance.level in LEVELS
        assert 0 <= balance.raw_rate < math.inf
        assert balance.raw_rate > 0 or not balance.packing

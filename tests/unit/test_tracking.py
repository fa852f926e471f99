"""The log of a set: who tells, which pages, and what counts when nobody does."""

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow import ConfigError, DeviceError, DirtySet, SimDevice
from vfioflow.devices.simlog import SimLog
from vfioflow.devices.tracking import MAX_RANGES, Log, coarsen, merge
from vfioflow.states import FINAL, State, all_final, all_running

PAGE = 4096
S = State


@pytest.fixture
def make():
    made = []

    def make(*tracking):
        made.extend(
            SimDevice(f"net{n}", profile="mlx5", tracking=each, state_size=1 << 20)
            for n, each in enumerate(tracking, len(made))
        )
        return made[-len(tracking) :]

    yield make
    for device in made:
        device.close()


class Pages(SimLog):
    """A log that is told what was written, with a page size of its own, and faults."""

    supported = True

    def __init__(self, device, *, page_size=PAGE, fails=""):
        super().__init__(device)
        self.size = page_size
        self.fails = fails
        self.asked = []

    def start(self, ranges, page_size=PAGE):
        self._ask("start")
        return super().start(ranges, self.size)

    def report(self, iova, length, page_size=0):
        self._ask("report")
        return super().report(iova, length, page_size)

    def stop(self):
        self.asked.append("stop")
        super().stop()

    def _ask(self, what):
        self.asked.append(what)
        if self.fails == what:
            raise DeviceError("net0", what, errno.ENOMEM)


def bits(bitmap):
    number = int.from_bytes(bitmap, "little")
    return {n for n in range(number.bit_length()) if number >> n & 1}


# --------------------------------------------------------------------- who tells


def test_each_device_tells_where_all_can(make):
    devices = make("device", "device")
    logs = {device.name: Pages(device) for device in devices}
    with DirtySet(devices, logs=logs) as written:
        assert (written.teller, written.without_log, written.all_tracking) == ("device", (), False)
        assert written.start([(0, 64 * PAGE)]) == PAGE
        assert written.all_tracking
        logs["net0"].wrote(3 * PAGE, 1)
        logs["net1"].wrote(5 * PAGE - 1, 2)
        assert bits(written.report(0, 64 * PAGE)) == {3, 4, 5}
        assert bits(written.report(0, 64 * PAGE)) == set()  # asking clears
        logs["net1"].wrote(40 * PAGE, PAGE)
        assert bits(written.report(32 * PAGE, 32 * PAGE)) == {8}
    assert [log.asked[-1] for log in logs.values()] == ["stop", "stop"]
    assert not written.all_tracking


def test_simulated_devices_have_logs_of_their_own(make):
    with DirtySet(make("device", "device")) as written:
        assert written.teller == "device"
        written.start([(0, 4 * PAGE)])
        assert bits(written.report(0, 4 * PAGE)) == set()
    with DirtySet(make("device", "none")) as written:
        assert (written.teller, written.without_log) == ("nobody", ("net3",))


def test_the_iommu_tells_for_all_where_one_cannot(make):
    devices = make("device", "none")
    iommu = Pages(devices[0])
    assert isinstance(iommu, Log)
    with DirtySet(devices, iommu=iommu) as written:
        assert (written.teller, written.without_log) == ("iommu", ("net1",))
        written.start([(0, 8 * PAGE)])
        iommu.wrote(PAGE, PAGE)
        assert bits(written.report(0, 8 * PAGE)) == {1}
        assert written.all_tracking


def test_every_page_counts_where_nobody_tells(make):
    devices = make("device", "none")
    iommu = Pages(devices[0])
    iommu.supported = False
    with DirtySet(devices, iommu=iommu) as written:
        assert written.teller == "nobody"
        written.start([(0, 70 * PAGE)])
        assert not written.all_tracking
        for _ in range(2):
            assert bits(written.report(0, 70 * PAGE)) == set(range(70))
        assert len(written.report(0, 70 * PAGE)) == 16


def test_a_set_of_none_has_written_nothing():
    with DirtySet([]) as written:
        written.start([(0, PAGE)])
        assert written.all_tracking
        assert bits(written.report(0, PAGE)) == set()


# ------------------------------------------------------------------------ faults


def test_one_that_cannot_begin_ends_the_others(make):
    devices = make("device", "device", "device")
    logs = {d.name: Pages(d) for d in devices}
    logs["net1"].fails = "start"
    written = DirtySet(devices, logs=logs)
    with pytest.raises(DeviceError, match="start"):
        written.start([(0, PAGE)])
    assert [log.asked for log in logs.values()] == [["start", "stop"], ["start"], []]
    assert not written.all_tracking
    logs["net1"].fails = ""
    written.start([(0, PAGE)])
    assert written.all_tracking


def test_a_report_that_fails_says_that_all_is_written_from_then_on(make, caplog):
    devices = make("device", "device")
    logs = {d.name: Pages(d) for d in devices}
    written = DirtySet(devices, logs=logs)
    written.start([(0, 8 * PAGE)])
    logs["net0"].fails = "report"
    assert bits(written.report(0, 8 * PAGE)) == set(range(8))
    logs["net0"].fails = ""
    assert bits(written.report(0, 8 * PAGE)) == set(range(8))
    assert not written.all_tracking
    assert "all of guest memory counts as written" in caplog.text
    written.stop()
    written.start([(0, 8 * PAGE)])
    assert written.all_tracking
    assert bits(written.report(0, 8 * PAGE)) == set()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda w: w.report(0, PAGE), "nothing is logged"),
        (lambda w: w.start([]), "no ranges"),
        (lambda w: w.start([(0, 0)]), "no range to log"),
        (lambda w: w.start([(0, PAGE)], 5000), "power of two"),
        (lambda w: w.start([(0, PAGE)], 2048), "power of two"),
        (lambda w: (w.start([(0, PAGE)]), w.start([(0, PAGE)])), "logged already"),
        (lambda w: (w.start([(0, PAGE)]), w.report(1, PAGE)), "no range of pages"),
        (lambda w: (w.start([(0, PAGE)]), w.report(0, 0)), "no range of pages"),
    ],
)
def test_what_cannot_be_asked(make, ask, said):
    with DirtySet(make("device")) as written, pytest.raises(ConfigError, match=said):
        ask(written)


# ------------------------------------------------------------------ pages of all sizes


def test_the_largest_page_size_counts(make):
    devices = make("device", "device")
    logs = {"net0": Pages(devices[0]), "net1": Pages(devices[1], page_size=4 * PAGE)}
    written = DirtySet(devices, logs=logs)
    assert written.start([(0, 64 * PAGE)]) == 4 * PAGE == written.page_size
    logs["net0"].wrote(9 * PAGE, PAGE)
    logs["net1"].wrote(17 * PAGE, PAGE)
    assert bits(written.report(0, 64 * PAGE)) == {2, 4}


@given(st.sets(st.integers(0, 255)), st.sampled_from([1, 2, 4, 8, 32]))
def test_coarse_pages_are_written_where_a_fine_one_is(pages, factor):
    bitmap = sum(1 << page for page in pages).to_bytes(32, "little")
    assert bits(coarsen(bitmap, factor)) == {page // factor for page in pages}


RANGES = st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(1, 1 << 16)), min_size=1)


@given(RANGES, st.integers(1, 5))
def test_merged_ranges_hold_what_was_asked_and_are_few_and_apart(ranges, most):
    merged = merge(ranges, most=most)
    assert 1 <= len(merged) <= most
    for iova, length in merged:
        assert (iova % PAGE, length % PAGE) == (0, 0)
    for (start, length), (after, _) in itertools.pairwise(merged):
        assert start + length < after
    for iova, length in ranges:
        assert any(start <= iova and iova + length <= start + n for start, n in merged)


@given(RANGES)
def test_with_room_enough_nothing_else_is_logged(ranges):
    merged = merge(ranges, most=1 << 30)
    pages = {page for iova, n in ranges for page in range(iova // PAGE, (iova + n - 1) // PAGE + 1)}
    assert sum(length for _, length in merged) == len(pages) * PAGE


def test_too_many_ranges_lose_the_smallest_gaps():
    many = [(n * 10 * PAGE, PAGE) for n in range(300)]
    assert len(merge(many)) == MAX_RANGES
    assert merge([(0, PAGE), (2 * PAGE, PAGE), (9 * PAGE, PAGE)], most=2) == (
        (0, 3 * PAGE),
        (9 * PAGE, PAGE),
    )


# -------------------------------------------------------------------- which states


@given(st.lists(st.sampled_from(State), max_size=6))
def test_running_and_final_are_about_stop_and_stop_copy_alone(states):
    assert {S.STOP, S.STOP_COPY} == FINAL
    assert all_running(states) == (S.STOP not in states and S.STOP_COPY not in states)
    assert all_final(states) == all(state in (S.STOP, S.STOP_COPY) for state in states)


def test_the_p2p_states_still_write():
    assert all_running([S.PRE_COPY_P2P, S.RUNNING_P2P, S.PRE_COPY, S.RUNNING])
    assert not all_final([S.STOP_COPY, S.PRE_COPY_P2P])

"""The access queue: against a model, and each rule by itself."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vfioflow import Policy, ProtocolError
from vfioflow.access import Access, AccessQueue, Window, codec
from vfioflow.access.queue import MAX_WIDTH, MAX_WRITES, Held
from vfioflow.errors import AccessError

DEVICES = ("disk0", "gpu0", "net0")


def replay(queue, **more):
    """Everything that it gives to a device, in order."""
    done = []
    queue.replay(done.append, **more)
    return done


# ------------------------------------------------------------------------ against a model


class Machine(RuleBasedStateMachine):
    """What was written comes out once, in its order, on whichever side; nothing else does."""

    def __init__(self):
        super().__init__()
        self.here, self.there = AccessQueue(limit=1000), AccessQueue(limit=1000)
        self.carried = None
        self.made, self.later = [], []
        self.raised = {}
        self.done, self.interrupts = [], []
        self.runs = False
        self.failed = False

    @rule(
        device=st.sampled_from(DEVICES),
        data=st.binary(min_size=1, max_size=8),
        region=st.integers(0, 8),
    )
    def write(self, device, data, region):
        entry = (device, region, len(self.made) + len(self.later), data)
        side = self.there if self.carried is not None else self.here
        side.write(device, region, entry[2], data, origin="vcpu")
        (self.later if self.carried is not None else self.made).append(entry)

    @rule(device=st.sampled_from(DEVICES), vector=st.integers(0, 3))
    def interrupt(self, device, vector):
        if not self.runs and self.carried is None:
            self.here.interrupt(device, vector)
            key = (device, vector)
            self.raised[key] = self.raised.get(key, 0) + 1

    @rule()
    def carry(self):
        """All stand still: what was queued goes over; what is written over there comes behind it."""
        if self.carried is None and not self.runs:
            data = codec.encode(self.here.seal())
            self.carried = codec.decode(data, DEVICES)
            self.there.put_first(self.carried)

    @rule()
    def run_there(self):
        if self.carried is not None and not self.runs:
            self._run(self.there)

    @rule()
    def go_back(self):
        """It fails before the commit: the source's own queue still has what it carried."""
        if not self.runs and not self.later:
            self._run(self.here)
            self.carried = None

    def _run(self, queue):
        self.runs = True
        queue.replay(self.done.append, interrupt=lambda *each: self.interrupts.append(each))

    @invariant()
    def all_of_it_in_order_and_nothing_twice(self):
        if not self.runs:
            assert (self.done, self.interrupts) == ([], [])
            return
        seen = [(a.device, a.region, a.offset, a.data) for a in self.done]
        assert seen == self.made + self.later
        assert [a.order for a in self.done] == sorted({a.order for a in self.done})
        assert sorted(self.interrupts) == sorted(
            key for key, times in self.raised.items() for _ in range(times)
        )


TestAgainstAModel = Machine.TestCase
TestAgainstAModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# ------------------------------------------------------------------------------- writes


def test_writes_of_several_threads_keep_each_one_s_order():
    queue = AccessQueue()

    def write(origin):
        for number in range(500):
            queue.write("gpu0", 0, number, b"x", origin)

    threads = [threading.Thread(target=write, args=(f"vcpu{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    everything = replay(queue)  # and what they write from then on
    for thread in threads:
        thread.join()
    assert [a.order for a in everything] == list(range(1, 2001))
    for n in range(4):
        assert [a.offset for a in everything if a.origin == f"vcpu{n}"] == list(range(500))


def test_a_write_without_room_waits_and_the_migration_fails():
    queue = AccessQueue(limit=2)
    queue.write("gpu0", 0, 0, b"a")
    queue.write("gpu0", 0, 1, b"b")
    third = threading.Thread(target=queue.write, args=("gpu0", 0, 2, b"c"))
    third.start()
    while not queue.failure:
        pass
    assert queue.failure == (
        "more accesses to stopped devices than the queue holds (2 writes, 16777216 bytes)"
    )
    assert len(queue) == 2
    done = []
    queue.replay(done.append)
    third.join()
    assert [a.data for a in done] == [b"a", b"b", b"c"]


def test_bytes_count_too():
    queue = AccessQueue(limit_bytes=200)
    queue.write("gpu0", 0, 0, bytes(100))
    blocked = threading.Thread(target=queue.write, args=("gpu0", 0, 0, bytes(100)))
    blocked.start()
    while not queue.failure:
        pass
    assert len(replay(queue)) >= 1
    blocked.join()


def test_a_write_after_everything_has_stopped_is_kept_and_fails_the_migration():
    queue = AccessQueue()
    queue.write("gpu0", 0, 0, b"a")
    assert [a.data for a in queue.seal().writes] == [b"a"]
    queue.write("gpu0", 0, 0, b"b")
    assert queue.failure == "device gpu0 was written to after everything had stopped"
    assert [a.data for a in replay(queue)] == [b"a", b"b"]


def test_a_write_that_cannot_be_delivered_stays():
    queue = AccessQueue()
    for data in (b"a", b"b", b"c"):
        queue.write("gpu0", 0, 0, data)
    done = []

    def deliver(access):
        if access.data == b"b" and len(done) == 1:
            done.append(None)
            raise AccessError("gpu0", "not now")
        done.append(access.data)

    with pytest.raises(AccessError, match="device gpu0: not now"):
        queue.replay(deliver)
    assert len(queue) == 2
    queue.replay(deliver)
    assert done == [b"a", None, b"b", b"c"]


@pytest.mark.parametrize(
    ("region", "offset", "size"),
    [(0, 0, 0), (0, 0, MAX_WIDTH + 1), (-1, 0, 1), (0, -1, 1), (0, 1 << 64, 1), (1 << 64, 0, 1)],
)
def test_accesses_that_cannot_be(region, offset, size):
    queue = AccessQueue()
    with pytest.raises(AccessError, match="device gpu0"):
        queue.write("gpu0", region, offset, bytes(size))
    with pytest.raises(AccessError, match="device gpu0"):
        queue.read("gpu0", region, offset, size)
    assert len(queue) == 0


# --------------------------------------------------------------------------- interrupts


def test_interrupts_go_on_when_all_is_replayed():
    """Until the trap is opened again they still come here."""
    queue, raised = AccessQueue(), []
    queue.interrupt("gpu0", 1)

    def interrupt(device, vector):
        raised.append((device, vector))
        if len(raised) == 1:
            queue.interrupt("gpu0", 2)

    queue.replay(lambda access: None, interrupt=interrupt)
    queue.interrupt("gpu0", 3)
    assert raised == [("gpu0", 1), ("gpu0", 2), ("gpu0", 3)]


def test_a_device_may_interrupt_while_it_is_written_to():
    """From a thread of its own, for which whoever delivers the write waits."""
    queue, raised, stuck = AccessQueue(), [], []

    def deliver(access):
        device = threading.Thread(target=queue.interrupt, args=("gpu0", 1), daemon=True)
        device.start()
        device.join(10)
        stuck.append(device.is_alive())

    queue.replay(deliver, interrupt=lambda *each: raised.append(each))
    queue.write("gpu0", 0, 0, b"late")
    assert (stuck, raised) == ([False], [("gpu0", 1)])


def test_an_interrupt_after_everything_has_stopped_is_kept_and_fails_the_migration():
    queue, raised = AccessQueue(), []
    queue.seal()
    queue.interrupt("gpu0", 1)
    assert queue.failure == "device gpu0 raised an interrupt after everything had stopped"
    queue.replay(lambda access: None, interrupt=lambda *each: raised.append(each))
    assert raised == [("gpu0", 1)]


@pytest.mark.parametrize("vector", [-1, 1 << 16])
def test_interrupts_that_cannot_be(vector):
    with pytest.raises(AccessError, match="device gpu0: an interrupt of vector"):
        AccessQueue().interrupt("gpu0", vector)


# -------------------------------------------------------------------------------- reads


def reader(queue, answers):
    thread = threading.Thread(target=lambda: answers.append(queue.read("gpu0", 2, 16, 4)))
    thread.start()
    return thread


def test_a_read_is_held_until_the_device_has_had_the_writes_before_it():
    queue, answers, device = AccessQueue(hold_limit=60), [], {16: b"old!"}
    queue.write("gpu0", 2, 16, b"new!")
    held = reader(queue, answers)
    queue.replay(
        lambda access: device.update({access.offset: access.data}),
        read=lambda name, region, offset, width: device[offset][:width],
    )
    held.join()
    assert answers == [b"new!"]
    assert queue.failure == ""


def test_a_read_that_is_held_too_long_fails_the_migration_and_is_answered_then():
    queue, answers = AccessQueue(hold_limit=0.01), []
    held = reader(queue, answers)
    while not queue.failure:
        pass
    assert queue.failure == "a read from device gpu0 waited 0.01 s"
    assert answers == []
    queue.replay(lambda access: None, read=lambda *about: b"true")
    held.join()
    assert answers == [b"true"]


def test_a_read_may_be_answered_as_by_a_device_that_is_gone():
    queue = AccessQueue(reads="ones")
    assert queue.read("gpu0", 0, 0, 8) == b"\xff" * 8
    assert (queue.ones, queue.failure) == (1, "")
    queue.replay(lambda access: None, read=lambda *about: b"real")
    assert queue.read("gpu0", 0, 0, 4) == b"real"


def test_a_read_may_fail_the_migration():
    queue, answers = AccessQueue(reads="fail"), []
    held = reader(queue, answers)
    while not queue.failure:
        pass
    assert queue.failure == "device gpu0 was read from while it stood still"
    queue.replay(lambda access: None, read=lambda *about: b"back")
    held.join()
    assert answers == [b"back"]


def test_a_read_that_is_held_when_everything_has_stopped_fails_the_migration():
    queue, answers = AccessQueue(hold_limit=60), []
    held = reader(queue, answers)
    while not queue._held_reads:
        pass
    queue.seal()
    assert queue.failure == "a read was still held when everything had stopped"
    queue.replay(lambda access: None, read=lambda *about: b"true")
    held.join()
    assert answers == [b"true"]


def test_a_read_after_everything_has_stopped_fails_the_migration():
    queue, answers = AccessQueue(hold_limit=60), []
    queue.seal()
    held = reader(queue, answers)
    while not queue.failure:
        pass
    assert queue.failure == "device gpu0 was read from after everything had stopped"
    queue.replay(lambda access: None, read=lambda *about: b"true")
    held.join()


def test_who_waits_for_a_device_that_runs_elsewhere_hears_so():
    queue, errors = AccessQueue(limit=1, reads="fail"), []
    queue.write("gpu0", 0, 0, b"a")
    queue.seal()

    def attempt(call, *about):
        try:
            call("gpu0", *about)
        except AccessError as error:
            errors.append(str(error))

    waiting = [
        threading.Thread(target=attempt, args=(queue.write, 0, 0, b"b")),
        threading.Thread(target=attempt, args=(queue.read, 0, 0, 4)),
    ]
    for thread in waiting:
        thread.start()
    while not queue.failure:
        pass
    queue.close()
    for thread in waiting:
        thread.join()
    attempt(queue.write, 0, 0, b"c")
    attempt(queue.read, 0, 0, 4)
    assert errors == ["device gpu0: it runs elsewhere now: nothing reaches it here any more"] * 4


# ----------------------------------------------------------------------------- a window


class Slow:
    """A trap that takes its time."""

    def __init__(self):
        self.calls = []
        self.at_work, self.may = threading.Event(), threading.Event()

    def arm(self, devices, queue):
        self.at_work.set()
        self.may.wait()
        self.calls.append("arm")

    def collect(self, queue):
        self.at_work.set()
        self.may.wait()
        self.calls.append("collect")
        return True

    def disarm(self, devices):
        self.calls.append("disarm")
        return True

    deliver = read = interrupt = None


@pytest.mark.parametrize("step", ["arm", "seal"])
def test_a_trap_is_called_once_at_a_time_also_when_cancelled(step):
    trap = Slow()

    async def body():
        window = Window(trap, [], Policy())
        if step == "seal":
            trap.may.set()
            await window.arm()
            trap.may.clear()
            trap.at_work.clear()
        task = asyncio.create_task(getattr(window, step)())
        await asyncio.to_thread(trap.at_work.wait)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        ended = task.done()
        trap.may.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended
        await window.replay()

    asyncio.run(body())
    assert trap.calls == ["arm", *(["collect"] if step == "seal" else []), "collect", "disarm"]


# --------------------------------------------------------------------------- on the wire


WRITES = st.lists(
    st.tuples(
        st.sampled_from(DEVICES), st.binary(min_size=1, max_size=40), st.integers(0, 1 << 40)
    ),
    max_size=30,
)


@given(
    WRITES,
    st.dictionaries(
        st.sampled_from(DEVICES), st.dictionaries(st.integers(0, 9), st.integers(1, 5))
    ),
)
def test_what_is_encoded_is_decoded(writes, interrupts):
    held = Held(
        tuple(Access(n + 1, "o", d, 0, offset, data) for n, (d, data, offset) in enumerate(writes)),
        interrupts,
    )
    data = codec.encode(held)
    assert b"".join(codec.parts(data)) == data
    assert codec.decode(data, DEVICES) == held


def test_many_writes_come_in_parts():
    held = Held(tuple(Access(n + 1, "o", "gpu0", 0, n, bytes(4096)) for n in range(1000)))
    parts = list(codec.parts(codec.encode(held)))
    assert len(parts) == 8
    assert {len(part) for part in parts[:-1]} == {codec.PART}
    assert list(codec.parts(b"")) == [b""]


ONE = (1, "o", "gpu0", 0, 0, b"x")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (b"", "no such thing"),
        (b"\xc1", "no such thing"),
        ([2, [], {}], "of version 2"),
        ([1, [], {}, 0], "no such thing"),
        ([1, [(*ONE[:2], "other", *ONE[3:])], {}], "not of the set"),
        ([1, [ONE, ONE], {}], "not in order"),
        ([1, [(0, *ONE[1:])], {}], "not in order"),
        ([1, [(*ONE[:5], b"")], {}], "cannot be"),
        ([1, [(*ONE[:5], bytes(MAX_WIDTH + 1))], {}], "cannot be"),
        ([1, [(*ONE[:3], -1, 0, b"x")], {}], "cannot be"),
        ([1, [], {"other": {0: 1}}], "not of the set"),
        ([1, [], {"gpu0": {0: 0}}], "cannot be"),
        ([1, [], {"gpu0": {1 << 20: 1}}], "cannot be"),
    ],
)
def test_what_a_peer_may_not_send(form, said):
    import msgspec

    data = form if isinstance(form, bytes) else msgspec.msgpack.encode(form)
    with pytest.raises(ProtocolError, match=said):
        codec.decode(data, DEVICES)


def test_more_writes_than_a_queue_may_hold_are_not_taken_apart():
    """The peer says how many: nothing is made of them before that is looked at."""
    many = b"\x93\x01\xdd" + (MAX_WRITES + 1).to_bytes(4, "big")
    with pytest.raises(ProtocolError, match="length <= 1048576"):
        codec.decode(many, DEVICES)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_is_accesses(data):
    try:
        held = codec.decode(data, DEVICES)
    except ProtocolError:
        return
    assert held.devices <= set(DEVICES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_queue": "reads"},
        {"access_limit": 0},
        {"access_bytes": 1 << 40},
        {"access_reads": "guess"},
        {"access_hold": 0},
    ],
)
def test_a_policy_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)

"""Leaving a host: what is simulated, and what no schedule can do."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioflow.devices.profile import Profile
from vfioflow.errors import ConfigError
from vfioflow.fleet.alone import look_at, remedies, within
from vfioflow.fleet.events import SET_UP, Departure, simulate
from vfioflow.fleet.machines import Fleet, FleetDevice, Machine, Memory, Wire
from vfioflow.fleet.reading import parse_fleet
from vfioflow.fleet.traffic import SHORTEST_ROUND, Stream, Traffic
from vfioflow.policy import Policy

MIB = 1 << 20
WIRE = Wire(100 * MIB)
POLICY = Policy(max_iterations=40)


def device(name="d", **fields):
    return FleetDevice(name, Profile().override({"initial_bytes": 0, "arc_seconds": {}, **fields}))


def no_precopy(size, **fields):
    return device(flags=("STOP_COPY", "P2P"), state_size=size, **fields)


def copying(size, initial, **fields):
    return device(state_size=size, initial_bytes=initial, **fields)


# ------------------------------------------------------------------- the streams


def test_writes_hit_what_is_pending_already_too():
    stream = Stream("s", offered=100 * MIB, rest=0, hot=10 * MIB, dirty_rate=10 * MIB)
    stream.run(1)
    assert stream.dirty == 0  # nothing was sent that could be dirtied
    stream.take(100 * MIB)
    stream.run(1)
    assert stream.dirty == pytest.approx(10 * MIB * (1 - math.exp(-1)))
    stream.run(1000)
    assert stream.dirty == pytest.approx(10 * MIB)


def test_what_is_left_of_a_stream_at_least_is_what_a_round_dirties():
    slow = Stream("s", offered=100 * MIB, rest=MIB, hot=100 * MIB, dirty_rate=10 * MIB)
    shortest = 100 * MIB * -math.expm1(-0.1 * SHORTEST_ROUND)
    assert slow.least_left(100 * MIB) == pytest.approx(MIB + shortest)
    # At 11 MiB/s a round that dirties as much as it moves takes longer: f(T) = 11 MiB/s * T.
    fixed = slow.least_left(9.9 * MIB * 100 / 99) - MIB
    seconds = fixed / (10 * MIB)
    assert 100 * MIB * -math.expm1(-0.1 * seconds) <= fixed * 1.001


def test_the_memory_counts_as_a_stream():
    machine = Machine("m", (), memory=Memory(64 * MIB, 8 * MIB, 16 * MIB))
    traffic = Traffic(machine, WIRE)
    assert [(p.name, p.initial, p.dirty) for p in traffic.pending()] == [("memory", 0, 64 * MIB)]
    assert machine.size == 64 * MIB


# ---------------------------------------------------------------- from event to event


def test_a_device_without_precopy_moves_all_of_it_in_the_downtime():
    arcs = {"RUNNING->RUNNING_P2P": 0.01, "STOP->STOP_COPY": 0.02, "RUNNING_P2P->RUNNING": 0.03}
    like = no_precopy(20 * MIB, arc_seconds=arcs, load_in="write", load_seconds=0.04)
    machine = Machine("m", (like,), downtime_limit=0.5)
    wire = Wire(100 * MIB, latency=0.005)
    [passage] = simulate([Departure(machine, 0.5)], wire, POLICY)
    # 30 ms until STOP_COPY, 200 ms on the wire, 40 ms of load, 30 ms to RUNNING, two round trips
    assert passage.downtime == pytest.approx(0.03 + 0.2 + 0.04 + 0.03 + 0.02)
    assert passage.stopped == pytest.approx(SET_UP)
    assert passage.predicted == pytest.approx(passage.downtime)
    assert passage.bytes_stopcopy == passage.bytes_total == 20 * MIB


def test_precopy_moves_what_it_can_before():
    machine = Machine("m", (copying(20 * MIB, 15 * MIB),), downtime_limit=0.1)
    [passage] = simulate([Departure(machine, 0.1)], WIRE, POLICY)
    # In a second round the destination says that it has the initial bytes.
    assert passage.stopped == pytest.approx(SET_UP + 0.15 + SHORTEST_ROUND)
    assert passage.downtime == pytest.approx(0.05)
    assert (passage.rounds, passage.bytes_stopcopy) == (2, 5 * MIB)


def test_a_slow_device_leaves_the_rest_of_the_wire_to_others():
    slow = Machine("slow", (copying(20 * MIB, 20 * MIB, read_rate=25 * MIB),), downtime_limit=1)
    quick = Machine("quick", (copying(75 * MIB, 75 * MIB),), downtime_limit=1)
    passages = simulate([Departure(m, 1) for m in (slow, quick)], WIRE, POLICY)
    # 75 MiB/s of the wire for 0.8 s, and then all of it; and a round for the acknowledgement
    assert [p.stopped for p in passages] == pytest.approx([SET_UP + 0.85, SET_UP + 1.0])


def test_who_goes_its_own_way_shares_the_wire_while_it_stands_still():
    machines = [Machine(name, (no_precopy(10 * MIB),), downtime_limit=0.4) for name in "ab"]
    departures = [Departure(machine, 0.4) for machine in machines]
    apart = simulate(departures, WIRE, POLICY, coordinated=False)
    assert [p.downtime for p in apart] == pytest.approx([0.2, 0.2])
    together = simulate(departures, WIRE, POLICY)
    assert [p.downtime for p in together] == pytest.approx([0.1, 0.1])
    assert together[1].held == pytest.approx(0.1)
    one_by_one = simulate(departures, WIRE, POLICY, at_once=1, coordinated=False)
    assert one_by_one[1].started == pytest.approx(one_by_one[0].left)


def test_who_dirties_faster_than_its_share_does_not_converge():
    hot = Memory(200 * MIB, 70 * MIB, 100 * MIB)
    machines = [Machine(name, (), downtime_limit=0.2, memory=hot) for name in "ab"]
    both = simulate([Departure(m, 0.2) for m in machines], WIRE, POLICY, coordinated=False)
    assert [p.away for p in both] == [False, False]
    assert both[0].reason.startswith("after 40 iterations ")
    alone = simulate([Departure(machines[0], 0.4)], WIRE, POLICY)
    assert alone[0].away


def test_a_limit_that_is_not_reached_grows_as_far_as_its_ceiling():
    machine = Machine("m", (no_precopy(20 * MIB),), downtime_limit=0.3)
    [stays] = simulate([Departure(machine, 0.1)], WIRE, POLICY)
    assert not stays.away
    [grown] = simulate([Departure(machine, 0.1, ceiling=0.3, patience=1.0)], WIRE, POLICY)
    assert grown.away
    # It takes 8 steps of a tenth from 100 ms to 200 ms; pre-copy would give up before.
    assert grown.stopped == pytest.approx(SET_UP + 2, abs=0.1)
    [low] = simulate([Departure(machine, 0.1, ceiling=0.15, patience=1.0)], WIRE, POLICY)
    assert not low.away


# --------------------------------------------------------------------------- alone


def test_patience_gives_a_lower_limit():
    memory = Memory(200 * MIB, 20 * MIB, 50 * MIB)
    machine = Machine("m", (), downtime_limit=0.3, memory=memory)
    alone = look_at(Fleet(WIRE, (machine,), POLICY), machine)
    assert len(alone.limits) == 2
    assert alone.limits[-1] == 0.3
    assert alone.patient.downtime < 0.5 * alone.quick.downtime
    assert alone.patient.downtime == pytest.approx(alone.bound, rel=1e-6)


def test_a_slow_device_gets_a_limit_that_keeps_the_machine_within_its_own():
    """The rate of the whole is high, and what is left is a slow device's: the prediction is too low."""
    slow = copying(24 * MIB, 20 * MIB, read_rate=25 * MIB, dirty_rate=20 * MIB)
    machine = Machine("m", (slow,), downtime_limit=0.25, memory=Memory(800 * MIB))
    fleet = Fleet(WIRE, (machine,), POLICY)
    [own] = simulate([Departure(machine, 0.25)], WIRE, POLICY)
    assert own.predicted < 0.25 < own.downtime
    alone = look_at(fleet, machine)
    assert alone.can
    assert all(limit < 0.25 for limit in alone.limits)
    assert within(alone.patient, machine)
    assert within(alone.quick, machine)


@pytest.mark.parametrize(
    ("machine", "kinds"),
    [
        (Machine("m", (no_precopy(100 * MIB),), 0.5), ["downtime_limit", "wire"]),
        (
            Machine("m", (no_precopy(1, arc_seconds={"RUNNING->RUNNING_P2P": 0.6}),), 0.5),
            ["downtime_limit"],
        ),
        (
            Machine("m", (), 0.1, memory=Memory(400 * MIB, 300 * MIB)),
            ["downtime_limit", "wire", "dirty_rate"],
        ),
    ],
)
def test_what_would_help_does(machine, kinds):
    fleet = Fleet(WIRE, (machine,), POLICY)
    assert not look_at(fleet, machine).can
    found = remedies(fleet, machine)
    assert [remedy.kind for remedy in found] == kinds
    for remedy in found:
        for share, helps in ((1.0, True), (0.8, False)):
            other, wire = machine, WIRE
            value = remedy.value * share
            if remedy.kind == "downtime_limit":
                other = replace(machine, downtime_limit=value)
            elif remedy.kind == "wire":
                wire = Wire(int(value))
            else:
                rate = machine.memory.dirty_rate * remedy.value / share
                other = replace(machine, memory=replace(machine.memory, dirty_rate=rate))
            assert look_at(Fleet(wire, (other,), POLICY), other).can is helps, (remedy, share)


# ------------------------------------------------------------------ what always holds


@st.composite
def machines(draw, name="m"):
    rate = st.sampled_from([0, 2 * MIB, 20 * MIB, 60 * MIB])
    devices = [
        device(
            f"d{number}",
            state_size=draw(st.integers(1, 60)) * MIB,
            flags=("STOP_COPY", "P2P", "PRE_COPY"),
            initial_bytes=draw(st.integers(0, 1)) * MIB,
            dirty_rate=draw(rate),
            read_rate=draw(st.sampled_from([0, 30 * MIB])),
            arc_seconds={"RUNNING_P2P->RUNNING": draw(st.sampled_from([0, 0.02]))},
        )
        for number in range(draw(st.integers(1, 2)))
    ]
    memory = None
    if draw(st.booleans()):
        size = draw(st.integers(1, 300)) * MIB
        memory = Memory(size, draw(rate), draw(st.sampled_from([-1, size // 4])))
    return Machine(
        name,
        tuple(devices),
        downtime_limit=draw(st.sampled_from([0.2, 0.5, 1.0, 2.0])),
        priority=draw(st.integers(1, 3)),
        deadline=draw(st.sampled_from([math.inf, math.inf, 2.0, 5.0])),
        memory=memory,
    )


@st.composite
def fleets(draw, most=4):
    count = draw(st.integers(1, most))
    policy = Policy(max_iterations=25)
    return Fleet(WIRE, tuple(draw(machines(f"m{number}")) for number in range(count)), policy)


@given(fleets(), st.booleans(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_schedule_beats_the_bound_or_the_wire(fleet, coordinated, at_once):
    departures = [Departure(machine, machine.downtime_limit) for machine in fleet.machines]
    passages = simulate(departures, WIRE, fleet.policy, at_once=at_once, coordinated=coordinated)
    assert [p.name for p in passages] == [m.name for m in fleet.machines]
    for machine, passage in zip(fleet.machines, passages, strict=True):
        if passage.away:
            bound = Traffic(machine, WIRE).least_downtime(WIRE.rate)
            assert passage.downtime >= bound * (1 - 1e-6)
            assert passage.bytes_total >= machine.size
    end = max(passage.left for passage in passages)
    assert sum(p.bytes_total - len(passages) for p in passages) <= WIRE.rate * end * (1 + 1e-6)


@given(fleets())
@settings(max_examples=40, deadline=None)
def test_only_one_stands_still_and_sends_where_that_is_agreed_on(fleet):
    departures = [Departure(machine, machine.downtime_limit) for machine in fleet.machines]
    passages = [p for p in simulate(departures, WIRE, fleet.policy) if p.away]
    still = sorted((p.stopped, p.drained) for p in passages)
    for (_, end), (begin, _) in itertools.pairwise(still):
        assert begin >= end - 1e-9


# ------------------------------------------------------------------------- plan files

PLAN = """
[wire]
rate = "10Gbit"
latency = "50us"

[policy]
downtime_limit = "250ms"
max_iterations = 50

[[machines]]
name = "db"
priority = 2
deadline = "1min"
devices = "db.toml"

[[machines]]
name = "web"
count = 2
downtime_limit = 0.1
[[machines.devices]]
name = "nic"
count = 2
profile = "mlx5"
state_size = "10MiB"
[machines.memory]
size = "1GiB"
dirty_rate = "8Mbit"
"""

FILES = {"db.toml": '[[device]]\nname = "disk"\nprofile = "virtio"\nseed = 3\n'}


def test_a_plan_is_read_with_the_devices_files_it_names():
    fleet = parse_fleet(PLAN, "p.toml", FILES.__getitem__)
    assert fleet.wire.rate == 1_250_000_000
    assert fleet.wire.latency == pytest.approx(50e-6)
    assert fleet.policy == Policy(downtime_limit=0.25, max_iterations=50)
    db, *web = fleet.machines
    assert (db.name, db.downtime_limit, db.priority, db.deadline) == ("db", 0.25, 2, 60.0)
    assert [(d.name, d.profile.driver) for d in db.devices] == [("disk", "virtio_vfio_pci")]
    assert [m.name for m in web] == ["web0", "web1"]
    assert web[0] == replace(web[1], name="web0")
    assert [d.name for d in web[0].devices] == ["nic0", "nic1"]
    assert web[0].devices[0].profile.state_size == 10 * MIB
    assert web[0].memory == Memory(1 << 30, 1e6)
    assert web[0].deadline == math.inf


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('rate = "10Gbit"', "", "p.toml: needs the wire that all share"),
        ('rate = "10Gbit"', 'rate = "fast"', "p.toml: wire: rate: 'fast' is no bandwidth"),
        ('latency = "50us"', "speed = 1", "p.toml: wire: unknown key 'speed'"),
        ("max_iterations = 50", "channels = 2", "p.toml: policy: unknown key 'channels'"),
        ('name = "web"', "", "p.toml: machine number 2: needs a name"),
        ("priority = 2", "priority = 0", "p.toml: machine db: priority = 0: must be"),
        ('deadline = "1min"', "deadline = -1", "p.toml: machine db: deadline = -1.0: must be"),
        ('"db.toml"', '"kernel.toml"', "machine db: kernel.toml: device nic: kind = 'kernel'"),
        ('"db.toml"', '"odd.toml"', "p.toml: machine db: odd.toml: not TOML"),
        ('"db.toml"', "[]", "p.toml: machine db: devices = '[]': must be at least one"),
        ('profile = "mlx5"', 'profile = "x"', "machine web: device nic: unknown profile 'x'"),
        ('size = "1GiB"', "", "p.toml: machine web: memory: size = 0: must be 1 byte"),
        ("count = 2\ndown", "count = 500\ndown", "machine web: count = 500: must be"),
        ("[wire]", "[wire", "p.toml: not TOML"),
    ],
)
def test_what_is_wrong_is_named(before, after, message):
    files = {
        **FILES,
        "kernel.toml": '[[device]]\nname = "nic"\nkind = "kernel"\ndevice = "0000:01:00.0"\n',
        "odd.toml": "[[",
    }
    text = PLAN.replace(before, after, 1)
    assert text != PLAN
    with pytest.raises(ConfigError) as caught:
        parse_fleet(text, "p.toml", files.__getitem__)
    assert message in str(caught.value)


def test_a_name_may_be_there_only_once():
    with pytest.raises(ConfigError, match=r"^p: machine db: the name is there twice$"):
        parse_fleet(PLAN.replace('"web"\ncount = 2', '"db"'), "p", FILES.__getitem__)

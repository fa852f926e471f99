"""Which of many may go together: against a look at every subset, for small sets."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vfioflow import Policy
from vfioflow.admission import (
    Circumstances,
    Facts,
    Level,
    judge,
    largest_that_may,
    refused_pairs,
    smallest_refused,
)
from vfioflow.states import FLAG_SETS, Flags

STOP_COPY, P2P, PRE_COPY, ALL = FLAG_SETS
MIB = 1 << 20
AROUND = Circumstances(policy=Policy(downtime_limit=0.3), bandwidth=100e6)


def device(number, flags, size, seconds):
    return Facts(
        name=f"d{number}",
        driver="driver",
        flags=flags,
        stop_copy_bytes=size,
        arc_seconds={"RUNNING_P2P->STOP": seconds, "RUNNING->STOP": seconds},
    )


kinds = st.tuples(
    st.sampled_from([Flags.NONE, STOP_COPY, P2P, P2P, ALL, ALL, PRE_COPY]),
    st.sampled_from([0, 3 * MIB, 9 * MIB, 12 * MIB, 40 * MIB]),
    st.sampled_from([0.0, 0.0, 0.05, 0.2]),
)
sets = st.lists(kinds, min_size=1, max_size=6).map(
    lambda found: [device(number, *kind) for number, kind in enumerate(found)]
)


def subsets(devices):
    for count in range(1, len(devices) + 1):
        yield from itertools.combinations(devices, count)


def may(devices):
    return judge(devices, AROUND).level < Level.MAY_NOT


def names(devices):
    return tuple(device.name for device in devices)


@given(sets)
def test_what_is_refused_is_refused_of_every_larger_set(devices):
    for part in subsets(devices):
        for more in devices:
            if more not in part and not may(part):
                assert not may([*part, more])


@given(sets)
def test_the_smallest_that_are_refused(devices):
    refused = [part for part in subsets(devices) if not may(part)]
    minimal = {
        names(part)
        for part in refused
        if all(may(less) for less in itertools.combinations(part, len(part) - 1) if less)
    }
    found = smallest_refused(devices, AROUND)
    assert len(found) == len(set(found))
    assert set(found) <= minimal
    assert {part for part in minimal if len(part) <= 2} == {p for p in found if len(p) <= 2}
    assert bool(found) == (not may(devices))


@given(sets)
def test_the_largest_that_may(devices):
    allowed = {names(part) for part in subsets(devices) if may(part)}
    maximal = {part for part in allowed if not any(set(part) < set(other) for other in allowed)}
    found = largest_that_may(devices, AROUND)
    assert len(found) == len(set(found))
    assert set(found) <= maximal
    assert {name for part in found for name in part} == {name for p in allowed for name in p}
    assert [len(part) for part in found] == sorted(map(len, found), reverse=True)


@given(sets)
def test_pairs_that_are_refused_are_of_devices_that_may_go_alone(devices):
    expected = [
        names(pair)
        for pair in itertools.combinations(devices, 2)
        if may(pair[:1]) and may(pair[1:]) and not may(pair)
    ]
    assert refused_pairs(devices, AROUND) == expected


def test_sixty_four_devices_without_a_look_at_every_set():
    """Half of them without P2P: 32 may go together, each of the others alone."""
    devices = [device(n, ALL if n % 2 else STOP_COPY, MIB, 0.0) for n in range(64)]
    found = largest_that_may(devices, AROUND)
    assert found[0] == names(devices[1::2])
    assert found[1:] == [(d.name,) for d in devices[0::2]]
    assert len(smallest_refused(devices, AROUND)) == 32 * 31 // 2 + 32 * 32


def test_a_part_of_a_set_is_judged_by_its_own_devices_there():
    """What the destination has besides is nothing against it."""
    devices = [device(n, ALL, MIB, 0.0) for n in range(3)]
    assert largest_that_may(devices, AROUND, there=devices) == [names(devices)]
    assert largest_that_may(devices, AROUND, there=devices[:2]) == [names(devices[:2])]

"""The state machine against a table that was computed from the kernel's own."""

from __future__ import annotations

import inspect
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vfioflow.errors import IllegalTransition
from vfioflow.states import (
    ARCS,
    FLAG_SETS,
    SAVING,
    Flags,
    State,
    can_initiate_dma,
    can_receive_dma,
    opens_data_fd,
    path,
    quiesced,
)

# Every change that Linux allows, as the states it passes through; what is not here is refused.
# Computed by walking vfio_mig_get_next_state() of drivers/vfio/vfio_main.c for each set of flags.
KERNEL = {
    Flags.STOP_COPY: """
        RUNNING > STOP
        RUNNING > STOP > STOP_COPY
        RUNNING > STOP > RESUMING
        STOP > RUNNING
        STOP > STOP_COPY
        STOP > RESUMING
        STOP_COPY > STOP > RUNNING
        STOP_COPY > STOP
        STOP_COPY > STOP > RESUMING
        RESUMING > STOP > RUNNING
        RESUMING > STOP
        RESUMING > STOP > STOP_COPY
    """,
    Flags.STOP_COPY | Flags.P2P: """
        RUNNING > RUNNING_P2P
        RUNNING > RUNNING_P2P > STOP
        RUNNING > RUNNING_P2P > STOP > STOP_COPY
        RUNNING > RUNNING_P2P > STOP > RESUMING
        RUNNING_P2P > RUNNING
        RUNNING_P2P > STOP
        RUNNING_P2P > STOP > STOP_COPY
        RUNNING_P2P > STOP > RESUMING
        STOP > RUNNING_P2P > RUNNING
        STOP > RUNNING_P2P
        STOP > STOP_COPY
        STOP > RESUMING
        STOP_COPY > STOP > RUNNING_P2P > RUNNING
        STOP_COPY > STOP > RUNNING_P2P
        STOP_COPY > STOP
        STOP_COPY > STOP > RESUMING
        RESUMING > STOP > RUNNING_P2P > RUNNING
        RESUMING > STOP > RUNNING_P2P
        RESUMING > STOP
        RESUMING > STOP > STOP_COPY
    """,
    Flags.STOP_COPY | Flags.PRE_COPY: """
        RUNNING > PRE_COPY
        RUNNING > STOP
        RUNNING > STOP > STOP_COPY
        RUNNING > STOP > RESUMING
        PRE_COPY > RUNNING
        PRE_COPY > RUNNING > STOP
        PRE_COPY > STOP_COPY
        PRE_COPY > RUNNING > STOP > RESUMING
        STOP > RUNNING
        STOP > RUNNING > PRE_COPY
        STOP > STOP_COPY
        STOP > RESUMING
        STOP_COPY > STOP > RUNNING
        STOP_COPY > STOP
        STOP_COPY > STOP > RESUMING
        RESUMING > STOP > RUNNING
        RESUMING > STOP > RUNNING > PRE_COPY
        RESUMING > STOP
        RESUMING > STOP > STOP_COPY
    """,
    Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY: """
        RUNNING > RUNNING_P2P
        RUNNING > PRE_COPY
        RUNNING > RUNNING_P2P > PRE_COPY_P2P
        RUNNING > RUNNING_P2P > STOP
        RUNNING > RUNNING_P2P > STOP > STOP_COPY
        RUNNING > RUNNING_P2P > STOP > RESUMING
        RUNNING_P2P > RUNNING
        RUNNING_P2P > RUNNING > PRE_COPY
        RUNNING_P2P > PRE_COPY_P2P
        RUNNING_P2P > STOP
        RUNNING_P2P > STOP > STOP_COPY
        RUNNING_P2P > STOP > RESUMING
        PRE_COPY > RUNNING
        PRE_COPY > RUNNING > RUNNING_P2P
        PRE_COPY > PRE_COPY_P2P
        PRE_COPY > RUNNING > RUNNING_P2P > STOP
        PRE_COPY > PRE_COPY_P2P > STOP_COPY
        PRE_COPY > RUNNING > RUNNING_P2P > STOP > RESUMING
        PRE_COPY_P2P > RUNNING_P2P > RUNNING
        PRE_COPY_P2P > RUNNING_P2P
        PRE_COPY_P2P > PRE_COPY
        PRE_COPY_P2P > RUNNING_P2P > STOP
        PRE_COPY_P2P > STOP_COPY
        PRE_COPY_P2P > RUNNING_P2P > STOP > RESUMING
        STOP > RUNNING_P2P > RUNNING
        STOP > RUNNING_P2P
        STOP > RUNNING_P2P > RUNNING > PRE_COPY
        STOP > RUNNING_P2P > PRE_COPY_P2P
        STOP > STOP_COPY
        STOP > RESUMING
        STOP_COPY > STOP > RUNNING_P2P > RUNNING
        STOP_COPY > STOP > RUNNING_P2P
        STOP_COPY > STOP
        STOP_COPY > STOP > RESUMING
        RESUMING > STOP > RUNNING_P2P > RUNNING
        RESUMING > STOP > RUNNING_P2P
        RESUMING > STOP > RUNNING_P2P > RUNNING > PRE_COPY
        RESUMING > STOP > RUNNING_P2P > PRE_COPY_P2P
        RESUMING > STOP
        RESUMING > STOP > STOP_COPY
    """,
}


def parse(table: str) -> dict[tuple[State, State], tuple[State, ...]]:
    chains = [tuple(State[name] for name in row.split(" > ")) for row in table.split("\n")]
    return {(chain[0], chain[-1]): chain[1:] for chain in chains}


EXPECTED = {flags: parse(inspect.cleandoc(table)) for flags, table in KERNEL.items()}
KNOWN = {flags: {state for pair in rows for state in pair} for flags, rows in EXPECTED.items()}
EVERY_PAIR = [
    pytest.param(flags, start, end, id=f"{flags}-{start}-{end}")
    for flags in FLAG_SETS
    for start in State
    for end in State
]


def walk(flags: Flags, start: State, end: State) -> tuple[State, ...] | None:
    """``path``, with None for a refusal."""
    try:
        return path(flags, start, end)
    except IllegalTransition:
        return None


def test_the_table_is_whole() -> None:
    assert list(KERNEL) == list(FLAG_SETS)
    assert [len(rows) for rows in EXPECTED.values()] == [12, 20, 19, 40]


@pytest.mark.parametrize(("flags", "start", "end"), EVERY_PAIR)
def test_every_pair(flags: Flags, start: State, end: State) -> None:
    expected = EXPECTED[flags].get((start, end))
    if start == end and start in KNOWN[flags]:
        expected = ()
    assert walk(flags, start, end) == expected


@pytest.mark.parametrize("flags", FLAG_SETS, ids=str)
def test_arcs_are_the_one_step_rows(flags: Flags) -> None:
    assert ARCS[flags] == {pair for pair, steps in EXPECTED[flags].items() if len(steps) == 1}


def test_numbers_are_the_uapi() -> None:
    assert [(state.name, int(state)) for state in State] == [
        ("ERROR", 0),
        ("STOP", 1),
        ("RUNNING", 2),
        ("STOP_COPY", 3),
        ("RESUMING", 4),
        ("RUNNING_P2P", 5),
        ("PRE_COPY", 6),
        ("PRE_COPY_P2P", 7),
    ]
    assert (Flags.STOP_COPY, Flags.P2P, Flags.PRE_COPY) == (1, 2, 4)


def test_text() -> None:
    assert str(State.PRE_COPY_P2P) == "PRE_COPY_P2P"
    assert [str(flags) for flags in (Flags.NONE, *FLAG_SETS)] == [
        "none",
        "STOP_COPY",
        "STOP_COPY|P2P",
        "STOP_COPY|PRE_COPY",
        "STOP_COPY|P2P|PRE_COPY",
    ]


def test_arcs_that_open_a_data_fd() -> None:
    opening = {(a, b) for a in State for b in State if opens_data_fd(a, b)}
    assert opening == {
        (State.STOP, State.STOP_COPY),
        (State.STOP, State.RESUMING),
        (State.RUNNING, State.PRE_COPY),
        (State.RUNNING_P2P, State.PRE_COPY_P2P),
    }


def test_dma() -> None:
    initiating = {State.RUNNING, State.PRE_COPY}
    assert {state for state in State if can_initiate_dma(state)} == initiating
    assert {state for state in State if can_receive_dma(state)} == initiating | {
        State.RUNNING_P2P,
        State.PRE_COPY_P2P,
    }


def test_quiesced() -> None:
    assert {state: quiesced(state) for state in (State.RUNNING, State.PRE_COPY)} == {
        State.RUNNING: State.RUNNING_P2P,
        State.PRE_COPY: State.PRE_COPY_P2P,
    }
    both = Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY
    for state in (State.RUNNING, State.RUNNING_P2P, State.PRE_COPY, State.PRE_COPY_P2P):
        target = quiesced(state)
        assert len(path(both, state, target)) == (state != target)
        assert not can_initiate_dma(target)
        assert can_receive_dma(target)


@pytest.mark.parametrize("target", [State.PRE_COPY, State.PRE_COPY_P2P], ids=str)
@pytest.mark.parametrize("flags", range(8))
def test_stop_copy_never_goes_back_to_pre_copy(flags: int, target: State) -> None:
    # Asking Linux 6.12.95 for this sends the kernel into an endless loop.
    with pytest.raises(IllegalTransition):
        path(Flags(flags), State.STOP_COPY, target)


@pytest.mark.parametrize(
    ("flags", "start", "end", "message"),
    [
        (
            Flags.STOP_COPY | Flags.PRE_COPY,
            State.STOP_COPY,
            State.PRE_COPY,
            "STOP_COPY -> PRE_COPY is refused: "
            "the stream of a stopped device cannot go back to pre-copy",
        ),
        (
            Flags.STOP_COPY,
            State.RUNNING,
            State.PRE_COPY,
            "RUNNING -> PRE_COPY is refused: a device with the flags STOP_COPY has no PRE_COPY",
        ),
        (
            Flags.P2P,
            State.RUNNING,
            State.STOP,
            "RUNNING -> STOP is refused: the flags P2P are not a set that VFIO allows",
        ),
        (
            Flags.STOP_COPY,
            State.ERROR,
            State.RUNNING,
            "ERROR -> RUNNING is refused: only a device reset leaves ERROR",
        ),
    ],
)
def test_a_refusal_says_why(flags: Flags, start: State, end: State, message: str) -> None:
    with pytest.raises(IllegalTransition) as caught:
        path(flags, start, end)
    assert str(caught.value) == message
    assert (caught.value.start, caught.value.end) == (start, end)


all_flags = st.integers(0, 7).map(Flags)
flag_sets = st.sampled_from(FLAG_SETS)
states = st.sampled_from(State)


@given(flag_sets, states, states)
def test_each_step_of_a_path_is_a_direct_arc(flags: Flags, start: State, end: State) -> None:
    chain = walk(flags, start, end)
    assume(chain)
    assert chain[-1] == end
    assert set(pairwise((start, *chain))) <= ARCS[flags]


@given(flag_sets, states, states)
def test_composing_rules(flags: Flags, start: State, end: State) -> None:
    chain = walk(flags, start, end)
    assume(chain)
    interior = set(chain[:-1])
    if start in SAVING and end in SAVING:
        assert interior <= SAVING
    else:
        assert not interior & SAVING
    # so one change opens at most one session, as set_state can return one data fd
    assert sum(opens_data_fd(a, b) for a, b in pairwise((start, *chain))) <= 1


@given(flag_sets, states, states)
def test_the_rest_of_a_path_is_the_path_of_the_rest(flags: Flags, start: State, end: State) -> None:
    # The kernel decides step by step, so a device that stopped half-way can be asked again.
    chain = walk(flags, start, end)
    assume(chain)
    for done, state in enumerate(chain, 1):
        assert path(flags, state, end) == chain[done:]


@given(all_flags, states)
def test_no_path_leaves_or_enters_error(flags: Flags, other: State) -> None:
    assert walk(flags, State.ERROR, other) is None
    assert walk(flags, other, State.ERROR) is None


@given(all_flags.filter(lambda flags: flags not in FLAG_SETS), states, states)
def test_flags_that_vfio_does_not_allow_go_nowhere(flags: Flags, start: State, end: State) -> None:
    assert walk(flags, start, end) is None

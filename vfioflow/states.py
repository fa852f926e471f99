"""The VFIO migration state machine (protocol v2) as data.

Everything here is pure: which states exist, which arcs a device offers for its
flags, how the kernel composes a longer change out of them, and which changes it
refuses.  The engine asks :func:`path` before every ``set_state``, so that an
illegal change never reaches a device.

Source of the rules: ``enum vfio_device_mig_state`` in the kernel's
``include/uapi/linux/vfio.h`` and the table in ``drivers/vfio/vfio_main.c``.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from functools import cache

from vfioflow.errors import IllegalTransition

__all__ = [
    "ARCS",
    "FINAL",
    "FLAG_SETS",
    "Flags",
    "SAVING",
    "State",
    "all_final",
    "all_running",
    "can_initiate_dma",
    "can_receive_dma",
    "opens_data_fd",
    "path",
    "quiesced",
]


class State(enum.IntEnum):
    """Device states, numbered as in ``enum vfio_device_mig_state``."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7

    def __str__(self) -> str:
        return self.name


class Flags(enum.IntFlag):
    """What a device supports, numbered as ``VFIO_MIGRATION_*`` in the uAPI."""

    NONE = 0
    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4

    def __str__(self) -> str:
        return "|".join(f.name or "" for f in Flags if f in self) or "none"


FLAG_SETS: tuple[Flags, ...] = (
    Flags.STOP_COPY,
    Flags.STOP_COPY | Flags.P2P,
    Flags.STOP_COPY | Flags.PRE_COPY,
    Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY,
)
"""The sets of flags that the uAPI allows; STOP_COPY is always among them."""

_S = State
_ALWAYS = (
    (_S.STOP, _S.STOP_COPY),
    (_S.STOP_COPY, _S.STOP),
    (_S.STOP, _S.RESUMING),
    (_S.RESUMING, _S.STOP),
)
_NO_P2P = ((_S.RUNNING, _S.STOP), (_S.STOP, _S.RUNNING))
_P2P = (
    (_S.RUNNING, _S.RUNNING_P2P),
    (_S.RUNNING_P2P, _S.RUNNING),
    (_S.RUNNING_P2P, _S.STOP),
    (_S.STOP, _S.RUNNING_P2P),
)
_PRE_COPY = ((_S.RUNNING, _S.PRE_COPY), (_S.PRE_COPY, _S.RUNNING))
_PRE_COPY_NO_P2P = ((_S.PRE_COPY, _S.STOP_COPY),)
_PRE_COPY_P2P = (
    (_S.RUNNING_P2P, _S.PRE_COPY_P2P),
    (_S.PRE_COPY_P2P, _S.RUNNING_P2P),
    (_S.PRE_COPY, _S.PRE_COPY_P2P),
    (_S.PRE_COPY_P2P, _S.PRE_COPY),
    (_S.PRE_COPY_P2P, _S.STOP_COPY),
)

ARCS: dict[Flags, frozenset[tuple[State, State]]] = {
    FLAG_SETS[0]: frozenset(_ALWAYS + _NO_P2P),
    FLAG_SETS[1]: frozenset(_ALWAYS + _P2P),
    FLAG_SETS[2]: frozenset(_ALWAYS + _NO_P2P + _PRE_COPY + _PRE_COPY_NO_P2P),
    FLAG_SETS[3]: frozenset(_ALWAYS + _P2P + _PRE_COPY + _PRE_COPY_P2P),
}
"""The direct arcs that a driver implements, for each set of flags."""

SAVING = frozenset({_S.STOP_COPY, _S.PRE_COPY, _S.PRE_COPY_P2P})
"""States with an open saving session: one data stream runs through all of them."""

FINAL = frozenset({_S.STOP, _S.STOP_COPY})
"""States in which a device of a source writes to no memory any more, and what it has written is final."""

_OPENS_DATA_FD = frozenset(
    {
        (_S.STOP, _S.STOP_COPY),
        (_S.STOP, _S.RESUMING),
        (_S.RUNNING, _S.PRE_COPY),
        (_S.RUNNING_P2P, _S.PRE_COPY_P2P),
    }
)


def opens_data_fd(start: State, end: State) -> bool:
    """Whether the direct arc ``start -> end`` opens a session and so hands out a data fd."""
    return (start, end) in _OPENS_DATA_FD


def can_initiate_dma(state: State) -> bool:
    """Whether a device in ``state`` may start DMA of its own, to memory or to a peer."""
    return state in (_S.RUNNING, _S.PRE_COPY)


def can_receive_dma(state: State) -> bool:
    """Whether a device in ``state`` must still answer DMA and MMIO from its peers."""
    return state in (_S.RUNNING, _S.RUNNING_P2P, _S.PRE_COPY, _S.PRE_COPY_P2P)


def all_running(states: Iterable[State]) -> bool:
    """Whether every device may still write to guest memory: none is in STOP or in STOP_COPY.

    The P2P states count as running: there a device starts nothing towards its peers, and the uAPI
    promises no more.  While this holds and a migration is under way, a stack that iterates over RAM asks
    the devices' logs again before each round.
    """
    return FINAL.isdisjoint(states)


def all_final(states: Iterable[State]) -> bool:
    """Whether no device writes to guest memory any more: all are in STOP or STOP_COPY.

    The report of a log that is asked for from then on is the last one.
    """
    return FINAL.issuperset(states)


def quiesced(state: State) -> State:
    """The state to which the first barrier takes a P2P-capable device that is in ``state``."""
    return _S.PRE_COPY_P2P if state in (_S.PRE_COPY, _S.PRE_COPY_P2P) else _S.RUNNING_P2P


@cache
def path(flags: Flags, start: State, end: State) -> tuple[State, ...]:
    """The states a device passes through from ``start`` (not included) to ``end`` (included).

    The kernel's rules for composing: the shortest chain of direct arcs; a chain
    between two saving states stays among the saving states (the stream goes on),
    any other chain has no saving state in its interior.  ``()`` when the device
    is already there.

    Raises:
        IllegalTransition: no such chain exists, the flags lack one of the states,
            or ``start`` is ERROR, which only a reset leaves.
    """
    if flags not in ARCS:
        raise IllegalTransition(start, end, f"the flags {flags} are not a set that VFIO allows")
    arcs = ARCS[flags]
    known = {state for arc in arcs for state in arc}
    if start is _S.ERROR:
        raise IllegalTransition(start, end, "only a device reset leaves ERROR")
    for state in (start, end):
        if state not in known:
            raise IllegalTransition(start, end, f"a device with the flags {flags} has no {state}")
    if start == end:
        return ()
    both_saving = start in SAVING and end in SAVING
    queue: deque[tuple[State, ...]] = deque([(start,)])
    seen: set[State] = {start}
    while queue:
        chain = queue.popleft()
        for state in sorted(b for a, b in arcs if a == chain[-1]):
            if state == end:
                return (*chain[1:], end)
            if state not in seen and (state in SAVING) == both_saving:
                seen.add(state)
                queue.append((*chain, state))
    raise IllegalTransition(start, end, "the stream of a stopped device cannot go back to pre-copy")

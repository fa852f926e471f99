"""Every event that a migration reports, declared in one place.

An observer is any callable that takes one event.  It runs on the event loop's thread and must
return quickly; what it raises is logged and otherwise ignored.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vfioflow.precopy import Decision
from vfioflow.states import State

__all__ = [
    "BarrierPassed",
    "Decided",
    "DeviceProgress",
    "Event",
    "InitialLoaded",
    "InitialSent",
    "Observer",
    "Phase",
    "PhaseEntered",
    "Progress",
    "Reconnected",
    "RolledBack",
    "StateChanged",
    "emit",
]

log = logging.getLogger("vfioflow")


class Phase(enum.Enum):
    """Where a session stands."""

    CONNECT = "connect"
    SET_UP = "set up"
    PRE_COPY = "pre-copy"
    STOP_COPY = "stop-copy"
    HAND_OVER = "hand over"
    DONE = "done"
    GOING_BACK = "going back"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class PhaseEntered:
    """The session entered ``phase``."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A device went from ``start`` to ``end`` in ``seconds``."""

    device: str
    start: State
    end: State
    seconds: float


@dataclass(frozen=True, slots=True)
class BarrierPassed:
    """All devices of the set have arrived; ``seconds`` is how long that took."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class InitialSent:
    """All initial bytes of a device are on the wire (source)."""

    device: str


@dataclass(frozen=True, slots=True)
class InitialLoaded:
    """The destination has loaded the initial bytes of every pre-copy device."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A round was judged.  ``bandwidth`` in device bytes per second, ``moved`` in bytes."""

    iteration: int
    moved: int
    bandwidth: float | None
    decision: Decision


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """What has moved of one device, in bytes; ``pending`` is None where nothing is known."""

    device: str
    moved: int
    wire_bytes: int
    pending: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A look at the counters, several times a second while data moves."""

    phase: Phase
    devices: tuple[DeviceProgress, ...]


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A connection that broke works again, ``seconds`` later; ``attempt`` counts tries (source)."""

    connection: str
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A device was put back after a failure; ``how``, or why it could not be."""

    device: str
    state: State | None
    how: str


Event: TypeAlias = (
    PhaseEntered
    | StateChanged
    | BarrierPassed
    | InitialSent
    | InitialLoaded
    | Decided
    | Progress
    | Reconnected
    | RolledBack
)
Observer: TypeAlias = Callable[[Event], None]


def emit(observer: Observer | None, event: Event) -> None:
    """Log ``event`` and hand it to the observer, if there is one.

    The observer is somebody else's code: whatever it raises is logged, and the migration goes on.
    """
    if not isinstance(event, Progress):
        log.debug("%s", event)
    if observer is None:
        return
    try:
        observer(event)
    except Exception:  # whatever somebody else's code may raise
        log.exception("the observer failed on %s", type(event).__name__)

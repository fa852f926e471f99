"""Every event that a migration reports, declared in one place.

An observer is any callable that takes one event.  It runs on the event loop's thread and must
return quickly; what it raises is logged and otherwise ignored.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vfioflow.precopy import Decision
from vfioflow.states import State

__all__ = [
    "BackPressure",
    "BarrierEntered",
    "BarrierPassed",
    "Began",
    "Committed",
    "ConnectionLost",
    "Decided",
    "DeviceProgress",
    "Ended",
    "Event",
    "Faulted",
    "InitialLoaded",
    "InitialSent",
    "IterationDone",
    "LimitsChanged",
    "Observer",
    "Phase",
    "PhaseEntered",
    "Preparing",
    "Progress",
    "Reconnected",
    "Resumed",
    "RolledBack",
    "StateChanged",
    "StateChanging",
    "SwitchoverDecided",
    "SwitchoverHeld",
    "deliver",
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
class Began:
    """A session began: the first of its events.  ``devices`` by name, in the order of their lanes."""

    session: str
    role: Literal["source", "destination"]
    peer: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """It has ended, as its report says: the last of its events.  Times in seconds."""

    outcome: str
    error: str | None
    total: float
    downtime: float | None


@dataclass(frozen=True, slots=True)
class PhaseEntered:
    """The session entered ``phase``."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Preparing:
    """The devices will stop: before the vCPUs do, and before the first goes to a P2P state (source).

    The moment for a guest to be told of a pause, as with QEMU's pre-copy-p2p-prepare.
    """

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StateChanging:
    """A device is about to go from ``start`` to ``end``."""

    device: str
    start: State
    end: State


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A device went from ``start`` to ``end`` in ``seconds``."""

    device: str
    start: State
    end: State
    seconds: float


@dataclass(frozen=True, slots=True)
class BarrierEntered:
    """These devices start their changes at once."""

    name: str
    devices: tuple[str, ...]


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
class IterationDone:
    """A round of pre-copy has moved so many device bytes in so many seconds (source)."""

    iteration: int
    moved: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SwitchoverDecided:
    """It switches over, and the numbers that decided it (source).

    Device bytes per second; seconds, of which ``fixed_seconds`` are state changes and round trips.
    """

    iteration: int
    bandwidth: float | None
    fixed_seconds: float
    decision: Decision


@dataclass(frozen=True, slots=True)
class SwitchoverHeld:
    """It could switch over, and does not yet: it is held, or the hook says no (source).

    Once, not for each round; what lasts then copies on.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class LimitsChanged:
    """The user changed limits while it runs: seconds, bytes per second or None (source)."""

    downtime_limit: float
    max_bandwidth: int | None


@dataclass(frozen=True, slots=True)
class Committed:
    """The point of no return is passed: the source has recorded it, or the destination has."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Devices and vCPUs run at the destination; at the source: that word has come."""


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
class BackPressure:
    """For so many seconds a device's data could not go out: wire or destination do not take it (source).

    The first after half a second, then each second while it lasts.
    """

    device: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection broke, and is opened again (source)."""

    connection: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A connection that broke works again, ``seconds`` later; ``attempt`` counts tries (source).

    ``resent``: bytes of frames that were sent again; of the control connection, messages.
    """

    connection: str
    attempt: int
    seconds: float
    resent: int = 0


@dataclass(frozen=True, slots=True)
class Faulted:
    """The session fails, for this reason; ``device`` and ``step`` are empty where it is no device's."""

    device: str
    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A device was put back after a failure; ``how``, or why it could not be."""

    device: str
    state: State | None
    how: str


Event: TypeAlias = (
    Began
    | PhaseEntered
    | Preparing
    | BarrierEntered
    | StateChanging
    | StateChanged
    | BarrierPassed
    | InitialSent
    | InitialLoaded
    | IterationDone
    | Decided
    | SwitchoverDecided
    | SwitchoverHeld
    | LimitsChanged
    | Progress
    | BackPressure
    | ConnectionLost
    | Reconnected
    | Committed
    | Resumed
    | Faulted
    | RolledBack
    | Ended
)
Observer: TypeAlias = Callable[[Event], None]


def emit(observer: Observer | None, event: Event) -> None:
    """Log ``event`` and hand it to the observer, if there is one.

    The observer is somebody else's code: whatever it raises is logged, and the migration goes on.
    """
    if not isinstance(event, Progress):
        log.debug("%s", event)
    if observer is not None:
        deliver(observer, event)


def deliver(observer: Observer, event: Event) -> None:
    """Hand an event to an observer; what that raises is logged."""
    try:
        observer(event)
    except Exception:  # whatever somebody else's code may raise
        log.exception("the observer failed on %s", type(event).__name__)

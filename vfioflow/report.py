"""What happened in a migration: the typed result, and its JSON form."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

__all__ = [
    "SCHEMA_VERSION",
    "TRANSITIONS",
    "ArcSpan",
    "BarrierSpan",
    "Clock",
    "DeviceReport",
    "Judged",
    "PendingReport",
    "PhaseSpan",
    "Report",
    "Sample",
    "Timeline",
]

SCHEMA_VERSION = 2

TRANSITIONS = ("quiesce", "stop", "stop_copy", "validate", "ready", "resume")
"""Steps of the downtime that are the devices' own."""


class PhaseSpan(msgspec.Struct, kw_only=True):
    """A phase, and when it began: seconds since the session did."""

    name: str
    at: float


class ArcSpan(msgspec.Struct, kw_only=True):
    """A device's change of state: when it began, and how long it took.  ``seconds`` None: not to its end."""

    device: str
    start: str
    end: str
    at: float
    seconds: float | None = None


class BarrierSpan(msgspec.Struct, kw_only=True):
    """A barrier: when the first device started, until the last arrived; ``slowest`` names that one."""

    name: str
    at: float
    seconds: float
    slowest: str = ""


class Judged(msgspec.Struct, kw_only=True):
    """What was known when a round was judged.  Bytes, device bytes per second, seconds."""

    iteration: int
    at: float
    moved: int
    bandwidth: float | None
    estimate: int
    exact: int | None
    threshold: int
    predicted: float | None


class Sample(msgspec.Struct, kw_only=True):
    """Device bytes that had moved by then, all devices together, and on the wire."""

    at: float
    moved: int
    wire: int


class Timeline(msgspec.Struct, kw_only=True):
    """When what happened, in seconds since the session began.  Bounded, see :mod:`vfioflow.recording`."""

    phases: list[PhaseSpan] = msgspec.field(default_factory=list)
    arcs: list[ArcSpan] = msgspec.field(default_factory=list)
    barriers: list[BarrierSpan] = msgspec.field(default_factory=list)
    rounds: list[Judged] = msgspec.field(default_factory=list)
    samples: list[Sample] = msgspec.field(default_factory=list)
    held: dict[str, float] = msgspec.field(default_factory=dict)
    """By device: seconds in which its data could not go out."""


class DeviceReport(msgspec.Struct, kw_only=True):
    """One device's part.  Bytes are device bytes unless the name says wire."""

    name: str
    profile: str
    """The profile of a simulated device, or the driver of a real one."""
    bytes_precopy: int | None = None
    """None at the destination, which does not tell the two apart."""
    bytes_stopcopy: int | None = None
    bytes_wire: int = 0
    """Bytes of its frames on the wire, headers included."""
    iterations: int = 0
    """Pre-copy rounds in which it moved data."""
    digest: str = ""
    """CRC32C of its stream in hexadecimal; empty when the policy turns digests off."""
    digest_ok: bool | None = None
    """Whether the destination found the stream's digest right; None when it was not checked."""
    final_state: str = ""
    can_precopy: bool | None = None

    @property
    def bytes_total(self) -> int:
        """Device bytes that moved, as far as this side tells the parts apart."""
        return (self.bytes_precopy or 0) + (self.bytes_stopcopy or 0)

    @property
    def compression(self) -> float | None:
        """Bytes on the wire for each device byte; None where it is not known."""
        return self.bytes_wire / self.bytes_total if self.bytes_total else None


class PendingReport(msgspec.Struct, kw_only=True):
    """What the stack moved besides the devices, over its own connections.  Bytes."""

    name: str
    bytes_precopy: int = 0
    bytes_stopcopy: int = 0
    iterations: int = 0
    """Pre-copy rounds in which it moved something."""


class Report(msgspec.Struct, kw_only=True):
    """The result of one side of a migration.

    ``outcome`` is "completed", "failed" (every source device runs on at the source, or ``error``
    says which does not), "cancelled", or "in-doubt" (the connection was lost in the hand-over;
    the source keeps its devices stopped).

    ``downtime_ms`` runs on the source's clock from the call of the ``stop_vcpus`` hook to the
    arrival of RUNNING, which the destination sends when its ``start_vcpus`` hook has returned; so
    it includes that message's way back.  ``steps_ms`` splits it, and adds up to it.
    """

    role: Literal["source", "destination"]
    outcome: Literal["completed", "failed", "cancelled", "in-doubt"]
    error: str | None = None
    session: str = ""
    peer: str = ""
    total_ms: float = 0.0
    downtime_ms: float | None = None
    predicted_downtime_ms: float | None = None
    downtime_limit_ms: float | None = None
    iterations: int = 0
    bandwidth: float | None = None
    """Device bytes per second, as measured last before the switchover."""
    bytes_total: int = 0
    bytes_wire: int = 0
    accesses: int = 0
    """Writes to devices that stood still, which were queued; at the destination: replayed."""
    reconnects: int = 0
    """Connections that broke and were opened again (source)."""
    switchover_reason: str = ""
    steps_ms: dict[str, float] = msgspec.field(default_factory=dict)
    devices: list[DeviceReport] = msgspec.field(default_factory=list)
    pending: list[PendingReport] = msgspec.field(default_factory=list)
    """The stack's own sources, such as guest RAM (source); ``bytes_total`` does not count them."""
    schema_version: int = SCHEMA_VERSION
    policy: dict[str, Any] = msgspec.field(default_factory=dict)
    fixed_ms: float | None = None
    """The part of the prediction that state changes and round trips were expected to take."""
    timeline: Timeline = msgspec.field(default_factory=Timeline)

    @property
    def bytes_stopcopy(self) -> int:
        """Bytes that moved while the virtual machine stood still, of devices and the stack's own (source)."""
        return sum(device.bytes_stopcopy or 0 for device in self.devices) + sum(
            part.bytes_stopcopy for part in self.pending
        )

    @property
    def wire_ms(self) -> float | None:
        """What those bytes take at the rate of the wire: the best that was measured, this drain included."""
        rate = max(self.bandwidth or 0.0, self._drain_rate())
        return self.bytes_stopcopy / rate * 1e3 if rate else None

    @property
    def transitions_ms(self) -> float:
        """What the devices' own changes of state and loads took, each barrier by its slowest."""
        return sum(self.steps_ms.get(step, 0.0) for step in TRANSITIONS)

    @property
    def lower_bound_ms(self) -> float | None:
        """No order of operations is faster with these devices, this wire, and these bytes left."""
        if self.downtime_ms is None or self.wire_ms is None:
            return None
        return self.wire_ms + self.transitions_ms

    @property
    def over_bound(self) -> float | None:
        """The downtime over its lower bound."""
        bound = self.lower_bound_ms
        return self.downtime_ms / bound if bound and self.downtime_ms is not None else None

    def _drain_rate(self) -> float:
        drain = self.steps_ms.get("drain", 0.0)
        return self.bytes_stopcopy / drain * 1e3 if drain else 0.0

    def to_json(self) -> str:
        """The report as one JSON object, on one line."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that :meth:`to_json` wrote.  Raises msgspec.ValidationError."""
        return msgspec.json.decode(text, type=cls)

    @staticmethod
    def destination_in(text: str | bytes) -> Report | None:
        """The destination's report that ``demo --json`` puts into the source's; None: there is none."""
        return msgspec.json.decode(text, type=_Both).destination


class _Both(msgspec.Struct):
    destination: Report | None = None


class Clock:
    """Laps of the downtime, in milliseconds, that add up to the whole."""

    def __init__(self, steps: dict[str, float]) -> None:
        self._steps = steps
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.monotonic()
        self._steps[name] = (now - self._last) * 1e3
        self._last = now

    def split(self, name: str, **seconds: float) -> None:
        """Take what parts of a lap took out of it, into steps of their own; one may come again."""
        for part, value in seconds.items():
            took = min(value * 1e3, self._steps[name])
            self._steps[name] -= took
            self._steps[part] = self._steps.get(part, 0.0) + took

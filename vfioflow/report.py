"""What happened in a migration: the typed result, and its JSON form."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

__all__ = ["Clock", "DeviceReport", "Report"]


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
    reconnects: int = 0
    """Connections that broke and were opened again (source)."""
    switchover_reason: str = ""
    steps_ms: dict[str, float] = msgspec.field(default_factory=dict)
    devices: list[DeviceReport] = msgspec.field(default_factory=list)

    def to_json(self) -> str:
        """The report as one JSON object, on one line."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that :meth:`to_json` wrote.  Raises msgspec.ValidationError."""
        return msgspec.json.decode(text, type=cls)


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

"""Metrics for Prometheus.  Needs ``pip install "vfioflow[metrics]"``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from vfioflow import events
from vfioflow.errors import ConfigError
from vfioflow.events import Event, Observer, Phase

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        Metric,
        StateSetMetricFamily,
    )
except ImportError:
    raise ConfigError(
        'metrics need the package prometheus-client: pip install "vfioflow[metrics]"'
    ) from None

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["METRICS", "Metrics", "Server"]

_LABELS = ("session", "role")
_PHASES = [str(phase) for phase in Phase]

METRICS = {
    "vfioflow_device_bytes_total": "Device bytes that have moved",
    "vfioflow_device_wire_bytes_total": "Bytes of the device's frames on the wire",
    "vfioflow_device_pending_bytes": "Device bytes that are left, as last asked for",
    "vfioflow_device_arc_seconds": "Seconds that the last change of state took, by its ends",
    "vfioflow_device_back_pressure_seconds": "How long the device's data has not gone out, when last seen",
    "vfioflow_iterations_total": "Rounds of pre-copy",
    "vfioflow_bandwidth_bytes_per_second": "Device bytes per second, as measured last",
    "vfioflow_threshold_bytes": "What fits the downtime limit",
    "vfioflow_predicted_downtime_seconds": "The downtime if it switched over now",
    "vfioflow_downtime_seconds": "The downtime that it was",
    "vfioflow_barrier_seconds": "Seconds from the first device's start to the last one's arrival",
    "vfioflow_reconnects_total": "Connections that broke and were opened again",
    "vfioflow_phase": "The phase that the session is in",
    "vfioflow_outcome": "How the session ended",
}
"""Names and what they say; labels are session and role, and device, arc or barrier where it says so."""

_OUTCOMES = ["completed", "failed", "cancelled", "in-doubt"]


@dataclass
class _Session:
    """What is known of one session."""

    labels: tuple[str, str]
    phase: str = str(Phase.CONNECT)
    outcome: str = ""
    moved: dict[str, int] = field(default_factory=dict)
    wire: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    arcs: dict[tuple[str, str], float] = field(default_factory=dict)
    barriers: dict[str, float] = field(default_factory=dict)
    iterations: int = 0
    bandwidth: float | None = None
    threshold: int | None = None
    predicted: float | None = None
    downtime: float | None = None
    reconnects: int = 0

    def take(self, event: Event) -> None:
        match event:
            case events.PhaseEntered(phase):
                self.phase = str(phase)
            case events.Progress(_, devices):
                for device in devices:
                    self.moved[device.device] = device.moved
                    self.wire[device.device] = device.wire_bytes
                    if device.pending is not None:
                        self.pending[device.device] = device.pending
            case events.StateChanged(device, start, end, seconds):
                self.arcs[device, f"{start}->{end}"] = seconds
            case events.BarrierPassed(name, seconds):
                self.barriers[name] = seconds
            case events.IterationDone(iteration, _, _):
                self.iterations = iteration
            case events.Decided(_, _, bandwidth, decision):
                self.bandwidth, self.threshold = bandwidth, decision.threshold
                self.predicted = decision.predicted_downtime
            case events.BackPressure(device, seconds):
                self.held[device] = seconds
            case events.Reconnected():
                self.reconnects += 1
            case events.Ended(outcome, _, _, downtime):
                self.outcome, self.downtime = outcome, downtime
            case _:
                pass


class Metrics:
    """What migrations do, as a collector for a ``prometheus_client`` registry.

    Give :meth:`observer` to each session.  Of sessions that have ended the last ``keep`` are kept.
    Reading is possible from any thread.
    """

    def __init__(self, *, keep: int = 16) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._sessions: list[_Session] = []

    def observer(self) -> Observer:
        """An observer for the sessions of one source, or of one listener."""
        session: _Session | None = None

        def observer(event: Event) -> None:
            nonlocal session
            with self._lock:
                if isinstance(event, events.Began):
                    session = _Session((event.session, event.role))
                    self._add(session)
                elif session is not None:
                    session.take(event)

        return observer

    def _add(self, session: _Session) -> None:
        ended = [each for each in self._sessions if each.outcome]
        for old in ended[: max(len(ended) - self._keep, 0)]:
            self._sessions.remove(old)
        self._sessions.append(session)

    def collect(self) -> Iterator[Metric]:
        """For the registry: all families, with a sample per session, device, arc or barrier."""
        with self._lock:
            yield from self._collect()

    def _collect(self) -> Iterator[Metric]:
        yield self._each("vfioflow_device_bytes_total", lambda s: s.moved, counter=True)
        yield self._each("vfioflow_device_wire_bytes_total", lambda s: s.wire, counter=True)
        yield self._each("vfioflow_device_pending_bytes", lambda s: s.pending)
        yield self._each("vfioflow_device_back_pressure_seconds", lambda s: s.held)
        yield self._each("vfioflow_device_arc_seconds", lambda s: s.arcs, more=("arc",))
        yield self._each("vfioflow_barrier_seconds", lambda s: s.barriers, first="barrier")
        yield self._one("vfioflow_iterations_total", lambda s: s.iterations, counter=True)
        yield self._one("vfioflow_reconnects_total", lambda s: s.reconnects, counter=True)
        yield self._one("vfioflow_bandwidth_bytes_per_second", lambda s: s.bandwidth)
        yield self._one("vfioflow_threshold_bytes", lambda s: s.threshold)
        yield self._one("vfioflow_predicted_downtime_seconds", lambda s: s.predicted)
        yield self._one("vfioflow_downtime_seconds", lambda s: s.downtime)
        for name, every in (("phase", _PHASES), ("outcome", _OUTCOMES)):
            full = f"vfioflow_{name}"
            states = StateSetMetricFamily(full, METRICS[full], labels=_LABELS)
            for session in self._sessions:
                now = getattr(session, name)
                states.add_metric(session.labels, {each: each == now for each in every})
            yield states

    def _family(self, name: str, labels: tuple[str, ...], *, counter: bool) -> Any:
        kind = CounterMetricFamily if counter else GaugeMetricFamily
        return kind(name, METRICS[name], labels=labels)

    def _each(
        self,
        name: str,
        values: Callable[[_Session], Mapping[Any, float]],
        *,
        counter: bool = False,
        first: str = "device",
        more: tuple[str, ...] = (),
    ) -> Metric:
        family = self._family(name, (*_LABELS, first, *more), counter=counter)
        for session in self._sessions:
            for key, value in values(session).items():
                words = key if isinstance(key, tuple) else (key,)
                family.add_metric((*session.labels, *words), value)
        made: Metric = family
        return made

    def _one(
        self, name: str, value: Callable[[_Session], float | None], *, counter: bool = False
    ) -> Metric:
        family = self._family(name, _LABELS, counter=counter)
        for session in self._sessions:
            if (number := value(session)) is not None:
                family.add_metric(session.labels, number)
        made: Metric = family
        return made


class Server:
    """Serves metrics over HTTP at ``/metrics``, on a thread, without a password; for the commands.

    Raises ConfigError: it cannot listen there.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(metrics)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"metrics: cannot listen on {host}:{port}: {error.strerror}"
            ) from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def close(self) -> None:
        """End it, and its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

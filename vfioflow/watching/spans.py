"""Spans for OpenTelemetry.  Needs ``pip install "vfioflow[otel]"``."""

from __future__ import annotations

from vfioflow import events
from vfioflow.errors import ConfigError
from vfioflow.events import Event

try:
    from opentelemetry import trace
    from opentelemetry.trace import Span, StatusCode, Tracer
except ImportError:
    raise ConfigError(
        'spans need the package opentelemetry-api: pip install "vfioflow[otel]"'
    ) from None

__all__ = ["Spans"]


class Spans:
    """An observer that makes a span of a session, of each phase in it, and of each device's change in that.

    Names: ``vfioflow source`` (or ``destination``), the phase, and ``DEVICE START -> END``.  Attributes
    begin with ``vfioflow.``.  What is no stretch of time is an event of the span it happens in.

    Args:
        tracer: of the program around it; default: the global one's ``vfioflow``.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("vfioflow")
        self._session: Span | None = None
        self._phase: Span | None = None
        self._arcs: dict[str, Span] = {}

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case events.Began(session, role, peer, devices):
                self._session = self._tracer.start_span(
                    f"vfioflow {role}",
                    attributes={
                        "vfioflow.session": session,
                        "vfioflow.role": role,
                        "vfioflow.peer": peer,
                        "vfioflow.devices": devices,
                    },
                )
            case events.PhaseEntered(phase):
                self._end_phase()
                self._phase = self._under(self._session, str(phase))
            case events.StateChanging(device, start, end):
                span = self._under(self._phase or self._session, f"{device} {start} -> {end}")
                span.set_attribute("vfioflow.device", device)
                self._arcs[device] = span
            case events.StateChanged(device, _, _, _):
                if device in self._arcs:
                    self._arcs.pop(device).end()
            case events.Faulted(device, step, reason):
                self._fault(device, step, reason)
            case events.Ended(outcome, error, _, downtime):
                self._end(outcome, error, downtime)
            case events.Progress():
                pass
            case _:
                self._note(event)

    def _under(self, parent: Span | None, name: str) -> Span:
        context = trace.set_span_in_context(parent) if parent is not None else None
        return self._tracer.start_span(name, context=context)

    def _note(self, event: Event) -> None:
        span = self._phase or self._session
        if span is None:
            return
        about: dict[str, str | float] = {}
        if isinstance(event, events.BarrierPassed):
            about = {"vfioflow.barrier": event.name, "vfioflow.seconds": event.seconds}
        elif isinstance(event, events.IterationDone):
            about = {"vfioflow.iteration": event.iteration, "vfioflow.moved": event.moved}
        elif isinstance(event, events.SwitchoverDecided):
            decision = event.decision
            about = {"vfioflow.reason": decision.reason, "vfioflow.threshold": decision.threshold}
        elif isinstance(event, events.SwitchoverHeld):
            about = {"vfioflow.reason": event.reason}
        span.add_event(type(event).__name__, about)

    def _fault(self, device: str, step: str, reason: str) -> None:
        about = {"vfioflow.device": device, "vfioflow.step": step}
        for span in (self._arcs.pop(device, None), self._session):
            if span is not None:
                span.add_event("Faulted", about)
                span.set_status(StatusCode.ERROR, reason)
                if span is not self._session:
                    span.end()

    def _end_phase(self) -> None:
        for span in self._arcs.values():
            span.end()
        self._arcs.clear()
        if self._phase is not None:
            self._phase.end()
            self._phase = None

    def _end(self, outcome: str, error: str | None, downtime: float | None) -> None:
        self._end_phase()
        if self._session is None:
            return
        self._session.set_attribute("vfioflow.outcome", outcome)
        if downtime is not None:
            self._session.set_attribute("vfioflow.downtime", downtime)
        if outcome != "completed":
            self._session.set_status(StatusCode.ERROR, error or outcome)
        self._session.end()
        self._session = None

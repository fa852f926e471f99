"""An observer that keeps what a report needs of the events.

Bounded: of rounds and of looks at the counters at most ``MOST`` are kept, every second one dropped
when there are more; all others are as many as the devices' changes.
"""

from __future__ import annotations

import time

from vfioflow import events
from vfioflow.events import Event
from vfioflow.report import (
    ArcSpan,
    BarrierSpan,
    Judged,
    PhaseSpan,
    Report,
    Sample,
)

__all__ = ["MOST", "Recorder"]

MOST = 500
"""Rounds, and samples, that a report keeps."""


class Recorder:
    """Fills the timeline of ``report``."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._line = report.timeline
        self._began = time.monotonic()
        self._going: dict[str, ArcSpan] = {}
        self._entered = 0.0
        self._held: dict[str, float] = {}
        self._every = self._skipped = 1
        self._last_round: Judged | None = None

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        at = time.monotonic() - self._began
        line = self._line
        match event:
            case events.Began():
                self._began = time.monotonic()
            case events.PhaseEntered(phase):
                line.phases.append(PhaseSpan(name=str(phase), at=at))
            case events.BarrierEntered():
                self._entered = at
            case events.StateChanging(device, start, end):
                arc = ArcSpan(device=device, start=str(start), end=str(end), at=at)
                self._going[device] = arc
                line.arcs.append(arc)
            case events.StateChanged(device, _, _, seconds):
                if arc_done := self._going.pop(device, None):
                    arc_done.seconds = seconds
            case events.BarrierPassed(name, seconds):
                line.barriers.append(
                    BarrierSpan(
                        name=name, at=self._entered, seconds=seconds, slowest=self._slowest()
                    )
                )
            case events.Decided():
                self._judged(event, at)
            case events.SwitchoverDecided(_, _, fixed, _):
                self._report.fixed_ms = fixed * 1e3
            case events.Progress(_, devices):
                self._sample(devices, at)
            case events.BackPressure(device, seconds):
                self._pressure(device, seconds)
            case _:
                pass

    def _slowest(self) -> str:
        """Of the changes that began with the barrier that was entered last."""
        arcs = [a for a in self._line.arcs if a.at >= self._entered and a.seconds is not None]
        return max(arcs, key=lambda a: a.seconds or 0.0).device if arcs else ""

    def _judged(self, event: events.Decided, at: float) -> None:
        decision = event.decision
        rounds = self._line.rounds
        rounds.append(
            Judged(
                iteration=event.iteration,
                at=at,
                moved=event.moved,
                bandwidth=event.bandwidth,
                estimate=decision.estimate,
                exact=decision.exact,
                threshold=decision.threshold,
                predicted=decision.predicted_downtime,
            )
        )
        if len(rounds) > MOST:
            del rounds[1:-1:2]

    def _sample(self, devices: tuple[events.DeviceProgress, ...], at: float) -> None:
        self._skipped += 1
        if self._skipped < self._every:
            return
        self._skipped = 0
        samples = self._line.samples
        moved = sum(device.moved for device in devices)
        samples.append(Sample(at=at, moved=moved, wire=sum(d.wire_bytes for d in devices)))
        if len(samples) > MOST:
            del samples[1:-1:2]
            self._every *= 2

    def _pressure(self, device: str, seconds: float) -> None:
        """It is told again while it lasts, with the whole of it."""
        before = self._held.get(device, 0.0)
        more = seconds - before if seconds > before else seconds
        self._held[device] = seconds
        self._line.held[device] = self._line.held.get(device, 0.0) + more

"""What a source's session works with: its lanes, its connections, and how calls that use them end."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vfioflow import barrier, events
from vfioflow.access import Window
from vfioflow.errors import DeviceError, StallError
from vfioflow.events import emit
from vfioflow.lanes import Outbound, drive
from vfioflow.pending import Part
from vfioflow.precopy import Bandwidth
from vfioflow.probe import Probe
from vfioflow.reconnect import Redial
from vfioflow.report import DeviceReport, PendingReport
from vfioflow.rounds import Lane
from vfioflow.session import Session
from vfioflow.states import SAVING, State
from vfioflow.threads import in_thread, settle
from vfioflow.wire.control import Control

__all__ = ["Giver"]

T = TypeVar("T")

_PRESSURE_FIRST, _PRESSURE_EVERY = 0.5, 1.0
"""Seconds until it is said that a device's data does not go out; until it is said again."""


@dataclass(slots=True)
class _Held:
    """A device's bytes, since when there are no more, and when that is said next."""

    sent: int
    since: float
    due: float


class Giver(Session):
    """A source's session, without the order of its steps."""

    _lanes: list[Lane]
    _parts: list[Part]
    _window: Window | None = None
    """Where accesses to devices that stand still are queued."""
    _bandwidth: Bandwidth
    _control: Control | None = None
    _out: Outbound | None = None
    _probe: Probe | None = None
    _redial: Redial | None = None
    _redialing: asyncio.Task[None] | None = None
    _ending = False
    """Whether all that is left to send is that nothing more comes."""
    _vcpus_stopped = False
    _stopped_at = 0.0
    _held: dict[str, _Held]

    def _patience(self) -> float:
        """How long a connection may stay broken now, in seconds."""
        policy = self._policy
        if self._committed or not self._vcpus_stopped or policy.reconnect_stop_copy == "wait":
            return policy.reconnect_timeout
        left = self._stopped_at + policy.downtime_limit - time.monotonic()
        return min(left, policy.reconnect_timeout)

    async def _hang_up(self) -> None:
        """From now on a connection that breaks stays so."""
        if self._redialing is not None and self._redial is not None:
            self._redialing.cancel()
            await asyncio.wait([self._redialing])
            self._redialing = None
            self.report.reconnects = self._redial.reconnects

    @property
    def _peer(self) -> Control:
        assert self._control is not None
        return self._control

    @property
    def _wire(self) -> Outbound:
        assert self._out is not None
        return self._out

    async def _cross(self, name: str, moves: Sequence[tuple[Lane, State]]) -> None:
        crossing = await self.order.cross(
            name,
            [(lane.device, state) for lane, state in moves],
            timeout=self._policy.stall_timeout,
            observer=self._observer,
        )
        lanes = {lane.name: lane for lane, _ in moves}
        crossing.hand_out(lambda name, data_fd: lanes[name].adopt(data_fd))
        for lane, state in moves:
            if state in SAVING and lane.port is None:
                raise DeviceError(lane.name, f"entering {state}", errno.EBADF, "it gave no data fd")

    async def _call(self, function: Callable[[], T], *, name: str) -> T:
        """Run a short blocking call on a thread."""
        limit = self._policy.stall_timeout
        future = in_thread(function, name=name)
        if not await settle([future], timeout=limit):
            raise StallError(f"{', '.join(self._busy())}: no answer for {limit:g} s")
        return future.result()

    async def _drive(self, futures: Sequence[asyncio.Future[T]]) -> list[T]:
        """Wait for calls that use the lanes."""
        out = self._wire
        try:
            return await drive(
                futures,
                stop=self._stop,
                failure=self._peer.failure,
                busy=lambda: {
                    **dict.fromkeys(
                        self._busy(), sum(channel.wire_bytes for channel in out.channels)
                    ),
                    **{f"pending source {p.name}": p.sent for p in self._parts if p.busy},
                },
                stall_timeout=self._policy.stall_timeout,
                stalled=lambda error: self._tell_early(self._peer, error),
                tick=self._progress,
            )
        finally:
            # A pump that does not return keeps its data fd: closing it would free the number.
            self._stuck = not all(future.done() for future in futures)

    def _stop(self) -> None:
        self._wire.stop()
        for part in self._parts:
            part.stop()

    def _busy(self) -> list[str]:
        busy = [f"device {lane.name}" for lane in self._lanes if lane.busy]
        if not busy and self._probe is not None and self._probe.running:
            return ["the probe of the wire"]
        if not busy and self._ending:
            return ["the end of the data"]
        return busy

    def _progress(self) -> None:
        self._look_for_pressure()
        emit(
            self._observer,
            events.Progress(
                self._phase,
                tuple(
                    events.DeviceProgress(
                        lane.name, lane.sent, lane.stream.wire_bytes, lane.pending.exact
                    )
                    for lane in self._lanes
                )
                + tuple(
                    events.DeviceProgress(part.name, part.sent, part.sent, part.pending.exact)
                    for part in self._parts
                ),
            ),
        )

    def _look_for_pressure(self) -> None:
        """Which devices' data does not go out although there is some."""
        now = time.monotonic()
        for lane in self._lanes:
            was = self._held.get(lane.name)
            if not lane.busy or was is None or was.sent != lane.sent:
                self._held[lane.name] = _Held(lane.sent, now, now + _PRESSURE_FIRST)
            elif now >= was.due and self._wire.unsent():
                was.due = now + _PRESSURE_EVERY
                emit(self._observer, events.BackPressure(lane.name, now - was.since))

    async def _fill_report(self) -> None:
        report = self.report
        report.bandwidth = self._bandwidth.value
        states = await barrier.states(self._devices, timeout=1.0)
        for lane in self._lanes:
            out = lane.out
            report.devices.append(
                DeviceReport(
                    name=lane.name,
                    profile=lane.info.profile or lane.info.driver,
                    bytes_precopy=lane.precopy_bytes,
                    bytes_stopcopy=lane.sent - lane.precopy_bytes,
                    bytes_wire=0 if out is None else out.wire_bytes,
                    iterations=lane.iterations,
                    digest=f"{out.digest:08x}" if out is not None and self._policy.digest else "",
                    digest_ok=True if self._committed and self._policy.digest else None,
                    final_state=states[lane.name],
                    can_precopy=lane.can_precopy,
                )
            )
        for part in self._parts:
            moved = part.sent
            report.pending.append(
                PendingReport(
                    name=part.name,
                    bytes_precopy=part.precopy_bytes,
                    bytes_stopcopy=moved - part.precopy_bytes,
                    iterations=part.iterations,
                )
            )
        report.bytes_total = sum(lane.sent for lane in self._lanes)
        report.bytes_wire = sum(d.bytes_wire for d in report.devices)

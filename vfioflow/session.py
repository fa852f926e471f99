"""What the two sides of a migration have in common: phases, failure, and the way it is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from vfioflow import events
from vfioflow.devices.base import Device
from vfioflow.errors import DeviceError, RemoteError, VfioflowError
from vfioflow.events import Observer, Phase, emit
from vfioflow.hooks import Hooks
from vfioflow.policy import Policy
from vfioflow.recording import Recorder
from vfioflow.report import Report
from vfioflow.watching import fan_out
from vfioflow.wire import messages
from vfioflow.wire.control import Control

__all__ = ["Session"]

log = logging.getLogger("vfioflow")

_TELL_SECONDS = 1.0
"""How long to try to tell the peer that this side gives up."""


class Session:
    """One side of one migration.  ``report`` is there however it ends."""

    def __init__(
        self,
        devices: Sequence[Device],
        report: Report,
        *,
        policy: Policy,
        hooks: Hooks,
        observer: Observer | None,
    ) -> None:
        self.report = report
        self._devices = list(devices)
        self._policy = policy
        self._hooks = hooks
        self._observer = fan_out([Recorder(report), observer])
        report.policy = asdict(policy)
        self._phase = Phase.CONNECT
        # Whether a device's state was changed; whether COMMIT was said; whether a pump did not
        # return, whose fds then stay open: closing them would free their numbers for others;
        # whether the peer knows already why this side gives up.
        self._touched = False
        self._committed = False
        self._stuck = False
        self._told = False

    def _begin(self) -> None:
        """The session begins."""
        report = self.report
        names = tuple(device.name for device in self._devices)
        emit(self._observer, events.Began(report.session, report.role, report.peer, names))

    def _end(self) -> None:
        """It has ended, and its report is filled."""
        report = self.report
        downtime = None if report.downtime_ms is None else report.downtime_ms / 1e3
        total = report.total_ms / 1e3
        emit(self._observer, events.Ended(report.outcome, report.error, total, downtime))

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        emit(self._observer, events.PhaseEntered(phase))

    def _failed(self, error: BaseException) -> messages.Failed:
        """Put a failure into the report; what to tell the peer about it."""
        cancelled = isinstance(error, asyncio.CancelledError)
        self.report.outcome = "cancelled" if cancelled else "failed"
        self.report.error = "cancelled" if cancelled else str(error)
        if not cancelled:
            device, step = "", ""
            if isinstance(error, DeviceError):
                device, step = error.device, error.action
            emit(self._observer, events.Faulted(device, step, self.report.error))
        self._enter(Phase.GOING_BACK)
        return messages.Failed(reason=self.report.error, cancelled=cancelled)

    @staticmethod
    def _reason(error: BaseException) -> BaseException:
        """What happened: a cancellation that had to wait comes with it as its cause."""
        if isinstance(error, asyncio.CancelledError) and error.__cause__ is not None:
            return error.__cause__
        return error

    def _in_doubt(self, error: BaseException, advice: str) -> None:
        self.report.outcome = "in-doubt"
        self.report.error = f"the hand-over is in doubt: {str(error) or 'cancelled'}. {advice}"

    async def _tell_early(self, control: Control, error: VfioflowError) -> None:
        """Tell the peer what is wrong, now: what has to be done first may take long."""
        self._told = True
        await self._tell(control, messages.Failed(reason=str(error)))

    async def _tell(self, control: Control, message: messages.Message) -> bool:
        """Tell the peer that this side gives up; whether it knows, as far as one can see here."""
        if control.failure.done():
            return isinstance(control.failure.exception(), RemoteError)
        try:
            async with asyncio.timeout(_TELL_SECONDS):
                await control.send(message)
        except (TimeoutError, VfioflowError) as lost:
            log.debug("%s could not be told: %s", control.peer, str(lost))
            return False
        return not control.lost.is_set()

    def _add_trouble(self, trouble: Mapping[str, str], error: BaseException) -> None:
        """Devices that could not simply be put back, into the report and the error."""
        for name, how in trouble.items():
            self.report.error = f"{self.report.error}; device {name}: {how}"
            error.add_note(f"device {name}: {how}")

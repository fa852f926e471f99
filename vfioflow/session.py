"""What the two sides of a migration have in common: phases, failure, and the way it is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from vfioflow import events
from vfioflow.devices.base import Device
from vfioflow.errors import DeviceError, HookError, RemoteError, VfioflowError
from vfioflow.events import Observer, Phase, emit
from vfioflow.hooks import Hooks, at_phase
from vfioflow.order import Order
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

    order = Order()
    """To be changed before it runs, for comparison only."""

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
        # The phase that `before` was called for and not yet `after`; whether any was.
        self._hooked: Phase | None = None
        self._began = False
        self._turning = asyncio.Lock()
        self._task: asyncio.Task[object] | None = None
        self._cancelled = False
        # Whether a device's state was changed; whether COMMIT was said; whether a pump did not
        # return, whose fds then stay open: closing them would free their numbers for others;
        # whether the peer knows already why this side gives up.
        self._touched = False
        self._committed = False
        self._stuck = False
        self._told = False

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self._phase

    def cancel(self) -> None:
        """End it, as cancelling the task that awaits :meth:`run` does; from the event loop's thread.

        Nothing where it has ended already; before it has begun, it will end at once.
        """
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        """The session begins."""
        report = self.report
        self._task = asyncio.current_task()
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

    async def _turn(self, phase: Phase) -> None:
        """The phase before has ended well, and ``phase`` begins, each with its hook.  Raises HookError."""
        async with self._turning:
            await self._end_phase()
            self._hooked = phase
            self._began = True
            await at_phase(self._hooks.before, "before", phase)
            self._enter(phase)

    async def _end_phase(self) -> None:
        if (ended := self._hooked) is not None:
            self._hooked = None
            await at_phase(self._hooks.after, "after", ended)

    async def _done(self) -> None:
        """It is completed: what the last hook raises does not undo that."""
        try:
            await self._end_phase()
        except HookError as error:
            self.report.error = f"{self.report.error or 'migrated'}, but {error}"
        self._enter(Phase.DONE)

    async def _on_the_way_back(self, when: str, error: BaseException) -> None:
        """The hook ``before`` or ``after`` of going back: what it raises is a note."""
        if not self._began:
            return
        hook = self._hooks.before if when == "before" else self._hooks.after
        try:
            await at_phase(hook, when, Phase.GOING_BACK)
        except HookError as failed:
            self.report.error = f"{self.report.error}; {failed}"
            error.add_note(str(failed))

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError

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

"""Sessions that broke off, settled by a side that came back: from its journal, and by asking the other.

The source asks (:class:`Comeback`); the destination answers (:func:`judge`), and carries on what its
source has committed (:class:`Revival`).
"""

from __future__ import annotations

import base64
import enum
import logging
import time
from collections.abc import Mapping, Sequence

from vfioflow import barrier
from vfioflow.access import Trap, Window, codec
from vfioflow.access.simulated import trap_of
from vfioflow.devices.base import Device
from vfioflow.errors import (
    AdmissionError,
    HandoverInDoubt,
    JournalError,
    PeerError,
    TakenBack,
    VfioflowError,
)
from vfioflow.events import Observer, Phase
from vfioflow.handover import Decision, Giving
from vfioflow.hooks import Hooks, call
from vfioflow.journal import Entry, Journal
from vfioflow.policy import Policy
from vfioflow.report import DeviceReport, Report
from vfioflow.session import Session
from vfioflow.states import State
from vfioflow.story import Step, Story
from vfioflow.takeover import Taker, Taking
from vfioflow.threads import finish
from vfioflow.wire import messages

__all__ = ["Comeback", "Revival", "Verdict", "judge", "what_is_found"]

log = logging.getLogger("vfioflow")


# ------------------------------------------------------------------ the source


class Comeback(Session):
    """A source that comes back to a session which its journal knows.  Nothing is migrated.

    - Not COMMITTED: the devices go to RUNNING, and the destination is told to discard.
    - COMMITTED: they stay stopped, and the destination is asked, for ``Policy.resolve_timeout``.
      It runs: they are released.  It discarded: they go to RUNNING again.
    - Ended: it is said again how, and a destination that may not know is told.  Only devices that are
      still as the session left them, in STOP_COPY, are moved: it ended, and its process died then.

    The ``start_vcpus`` hook is called where the devices are to run here, also if they did already; of a
    session that has ended only where one of them was moved.  Nothing is done to a device that a
    later session has.
    """

    def __init__(
        self,
        report: Report,
        giving: Giving,
        devices: Sequence[Device],
        *,
        policy: Policy,
        hooks: Hooks,
        observer: Observer | None,
    ) -> None:
        assert giving.log.entry is not None
        super().__init__(devices, report, policy=policy, hooks=hooks, observer=observer)
        self._giving = giving
        self._entry: Entry = giving.log.entry

    async def run(self) -> Report:
        """Settle it.  Returns the report where the destination runs.

        Raises:
            TakenBack: the devices run here.
            AdmissionError: a device of the session is not among those here; nothing was touched.
            DeviceError: a device does not go where it should; the session has not ended.
            HandoverInDoubt: the destination did not answer; the devices here stay stopped.
            JournalError: the journal cannot be written.
        """
        begin = time.monotonic()
        try:
            await finish(self._settle())
        except BaseException as error:
            self._failed(error)
            if isinstance(error, HandoverInDoubt):
                self.report.outcome, self.report.error = "in-doubt", str(error)
            raise
        finally:
            self.report.total_ms = (time.monotonic() - begin) * 1e3
            self._giving.log.close()  # first: the rest may be cancelled
            self.report.devices = await _device_reports(self._devices)
        return self.report

    async def _settle(self) -> None:
        entry, name = self._entry, self.report.session
        here = {device.name for device in self._devices}
        if missing := entry.devices.keys() - here:
            reason = f"session {name} has it, and it is not among the devices here"
            raise AdmissionError(dict.fromkeys(sorted(missing), reason))
        if later := await self._later():
            raise AdmissionError(later)
        self._devices = [device for device in self._devices if device.name in entry.devices]
        found = await barrier.states(self._devices, timeout=self._policy.stall_timeout)
        said = what_is_found(entry, found)
        log.info("session %s is %s; found %s", name, entry.step, "; ".join(said))
        self._enter(Phase.HAND_OVER)
        if not entry.pending:
            # What it left behind is in STOP_COPY; whatever else a device is in, others have put it there.
            self._devices = [d for d in self._devices if found[d.name] == "STOP_COPY"]
        if entry.step is Step.COMMITTED:
            await self._ask(found, said)
        elif entry.step is Step.RELEASED or (entry.choice == "discard"):
            await self._completed()
        else:
            committed = entry.step is not Step.BEGUN
            how = f"it was {entry.step}" if committed else "it had not been committed"
            await self._run_here(f"session {name} did not complete: {how}", said)

    async def _later(self) -> dict[str, str]:
        """Devices that a later session has, of either role; and that it has."""
        latest = await self._giving.log.call(lambda journal: journal.latest())
        return {
            name: f"session {story.session} has had it since, and is {story.step}: settle that one"
            for name, story in latest.items()
            if name in self._entry.devices and story.session != self._entry.session
        }

    async def _ask(self, found: Mapping[str, str], said: Sequence[str]) -> None:
        """COMMITTED: only the destination knows."""
        entry, name = self._entry, self.report.session
        decision: Decision = "run"
        running = [n for n, state in found.items() if state == "RUNNING" and entry.devices[n]]
        if running:
            # Not by this program, unless COMMIT was never said: so the destination must not run.
            log.warning("session %s: %s RUNNING here already", name, ", ".join(running))
            decision = "discard"
        advice = f"see whether the destination runs, then `vfioflow resolve {name}`"
        try:
            answer = await self._giving.ask(decision)
        except PeerError as error:
            where = "run" if running else "stay stopped"
            raise HandoverInDoubt(
                f"the hand-over is in doubt: {error}. The devices here {where}; {advice}"
            ) from error
        if isinstance(answer, messages.Discarded):
            # S_TAKEN_BACK, before any device runs.
            await self._giving.taken_back(answer.reason)
            reason = f"session {name}: the destination discarded it: {answer.reason}"
            await self._run_here(reason, said)
        elif running:
            raise HandoverInDoubt(
                f"the hand-over is in doubt: {', '.join(running)} RUNNING here, and the destination"
                f" RUNS too. Stop one side at once; {advice}"
            )
        else:
            await self._completed()

    async def _completed(self) -> None:
        """The destination runs, or a person said so: the devices here are given up.  S_RELEASED."""
        limit = self._policy.stall_timeout
        found = await barrier.states(self._devices, timeout=limit)
        done = ("RUNNING", "STOP", "ERROR")
        targets = [(d, State.STOP) for d in self._devices if found[d.name] not in done]
        try:
            await barrier.cross("release", targets, timeout=limit, observer=self._observer)
        except VfioflowError as error:
            self.report.error = f"migrated, but a device here was not released: {error}"
        if trouble := await self._giving.released():
            self.report.error = f"migrated, but that could not be recorded: {trouble}"
        self.report.outcome = "completed"
        self._enter(Phase.DONE)

    async def _run_here(self, reason: str, said: Sequence[str]) -> None:
        """All to RUNNING; then S_BACK, unless it has ended already.  Raises TakenBack."""
        error = TakenBack(f"{reason}; the devices run here")
        for line in said:
            error.add_note(line)
        trouble = await barrier.back_to_running(
            self._devices, timeout=self._policy.stall_timeout, observer=self._observer
        )
        for name, how in trouble.items():
            error.add_note(f"device {name}: {how}")
        if self._entry.pending or self._devices:
            await call(self._hooks.start_vcpus, "start_vcpus")
        if self._entry.step is Step.BEGUN:
            if note := await self._giving.back(self._devices, "the source came back"):
                error.add_note(note)
            if self._entry.step is Step.BEGUN:
                error.add_note("the session has not ended: run this again")
        if self._entry.step is not Step.TAKEN_BACK and (alarm := await self._giving.discard()):
            error.add_note(alarm)
        raise error


def what_is_found(story: Story, found: Mapping[str, str]) -> list[str]:
    """Each device's present state, and what that means, in words."""
    said = []
    for name, outlives in story.devices.items():
        state = found.get(name, "not here")
        fresh = state == "RUNNING" and not outlives and story.pending
        why = " (fresh: its state died with the process that held it)" if fresh else ""
        said.append(f"{name} is {state}{why}")
    return said


async def _device_reports(devices: Sequence[Device]) -> list[DeviceReport]:
    states = await barrier.states(devices, timeout=1.0)
    return [
        DeviceReport(
            name=d.name, profile=d.info.profile or d.info.driver, final_state=states[d.name]
        )
        for d in devices
    ]


# ------------------------------------------------------------- the destination


class Verdict(enum.Enum):
    """What a destination does about a session of its journal that it is asked about."""

    RUNS = "it runs here"
    DISCARD = "it does not run here and never will"
    CARRY_ON = "its devices hold the state: take over"


def judge(
    story: Story | None,
    decision: Decision | None,
    found: Mapping[str, str],
    *,
    others: Sequence[Story] = (),
    same_journal: bool = True,
) -> Verdict | str:
    """What a destination that came back does, from what it finds; a text: why it cannot know.

    Args:
        story: of the session; None: the journal does not know it.
        decision: the source's; None: it has not said anything.
        found: the present state of each device here.
        others: other sessions of the journal that have yet to end.
        same_journal: whether the source means this journal.  Another one's silence says nothing.
    """
    if story is None or story.step is None:
        if same_journal:
            return Verdict.DISCARD  # D_DISCARDED: presumed abort
        return "this journal is not the one in which the session was LOADED"
    if not story.pending:
        return Verdict.RUNS if story.runs else Verdict.DISCARD
    if story.step is Step.BEGUN:
        return Verdict.DISCARD  # it never said LOADED, so nobody has committed
    if decision == "discard":
        if story.step is Step.LOADED:
            return Verdict.DISCARD
        return "its source committed it, and now says that it did not"
    if story.step is Step.LOADED and decision is None:
        return "its source has not said what becomes of it"
    return _whether_held(story, found, others)


def _whether_held(story: Story, found: Mapping[str, str], others: Sequence[Story]) -> Verdict | str:
    """LOADED and its source committed, or COMMITTED here: whether the devices hold the state."""
    for name in story.devices:
        if name not in found:
            return f"its device {name} is not among the devices here"
        if found[name].startswith("unknown"):
            return f"the state of its device {name} is {found[name]}"
        for other in others:
            if name in other.devices and other.step is not Step.BEGUN:
                return f"session {other.session} has its device {name} too"
    loaded = story.get(Step.LOADED)
    as_loaded = {n: found[n] == (loaded.states if loaded else {}).get(n) for n in story.devices}
    if story.step is Step.LOADED:
        return Verdict.CARRY_ON if all(as_loaded.values()) else Verdict.DISCARD
    # It may have run, and then its guest has been seen and has written to its disks: whatever
    # became of it, the source must not go on from before that.  So never DISCARD.
    for name, outlives in story.devices.items():
        if not as_loaded[name] and not (found[name] == "RUNNING" and outlives):
            return f"it took over, and its device {name} is {found[name]} now"
    return Verdict.CARRY_ON


class Revival(Taker):
    """A session that a dead process left LOADED (and its source has committed) or COMMITTED.

    Made by a listener; owns the entry.
    """

    def __init__(
        self,
        journal: Journal,
        entry: Entry,
        devices: Sequence[Device],
        *,
        policy: Policy,
        hooks: Hooks,
        observer: Observer | None,
        trap: Trap | None = None,
    ) -> None:
        self._trap = trap
        report = Report(
            role="destination", outcome="failed", session=entry.session, peer=entry.peer
        )
        mine = [device for device in devices if device.name in entry.devices]
        super().__init__(mine, report, policy=policy, hooks=hooks, observer=observer)
        self.taking = Taking(journal, entry.session, policy, give_up=lambda _: None, entry=entry)
        self._entry = entry

    async def run(self) -> Report:
        """Take over.  Once per object.

        Raises:
            JournalError: nothing was touched, and the session is where it was.
            HandoverInDoubt: a device does not run.
        """
        begin = time.monotonic()
        try:
            await finish(self._carry_on())
        except BaseException as error:
            if self.report.outcome == "failed":
                self._failed(error)
            raise
        finally:
            self.report.total_ms = (time.monotonic() - begin) * 1e3
            self.taking.close()  # first: the rest may be cancelled
            self.report.devices = await _device_reports(self._devices)
        return self.report

    async def _carry_on(self) -> None:
        self._enter(Phase.HAND_OVER)
        await self._recall_accesses()
        if self._entry.step is Step.LOADED:
            try:
                await self.taking.committed()
            except JournalError as error:
                self.taking.in_doubt(str(error))
                raise
        await self._take_over(self._devices, None)

    async def _recall_accesses(self) -> None:
        """What was queued for devices that stood still is in the journal.

        Raises HandoverInDoubt: some of it may have been replayed already.
        """
        loaded = self._entry.get(Step.LOADED)
        if loaded is None or not loaded.accesses:
            return
        names = [device.name for device in self._devices]
        held = codec.decode(base64.b64decode(loaded.accesses), names)
        states = await barrier.states(self._devices, timeout=self._policy.stall_timeout)
        trap = self._trap or trap_of(self._devices)
        why = ""
        if trap is None:
            why = "accesses to them are to be replayed, and there is no trap here: listen(trap=...)"
        elif run := sorted(held.devices & {n for n, s in states.items() if s == "RUNNING"}):
            why = f"{', '.join(run)} run already, and may have had some of the accesses that were queued"
        if trap is None or why:
            self._in_doubt(HandoverInDoubt(why), "See what the devices have, and decide by hand")
            self.taking.in_doubt(why)
            raise HandoverInDoubt(self.report.error or why)
        self._window = Window(trap, self._devices, self._policy)
        self._window.take(held)
        await self._window.arm()

    def abandon(self) -> None:
        """Nobody runs it: leave it to the journal."""
        self.taking.close()

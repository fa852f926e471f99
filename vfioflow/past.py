"""What a listener knows of sessions that are not its present one, for sources that come back and ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from vfioflow import barrier
from vfioflow.access import Trap
from vfioflow.devices.base import Device
from vfioflow.errors import JournalError
from vfioflow.events import Observer
from vfioflow.handover import Decision, Log
from vfioflow.hooks import Hooks
from vfioflow.journal import Entry, Journal
from vfioflow.policy import Policy
from vfioflow.resolution import Revival, Verdict, judge
from vfioflow.story import Step, Story
from vfioflow.takeover import Taking
from vfioflow.wire import messages

__all__ = ["Past"]

log = logging.getLogger("vfioflow")

_MOST = 64
"""Sessions that have ended, and of which a source may still ask without a journal."""


class Past:
    """The sessions of one listener: those that this process has had, and those of its journal.

    ``revive`` gets each session that is to be carried on here.
    """

    def __init__(
        self,
        journal: Journal | None,
        devices: Sequence[Device],
        *,
        policy: Policy,
        hooks: Hooks,
        observer: Observer | None,
        trap: Trap | None = None,
        revive: Callable[[Revival], None],
    ) -> None:
        self._journal = journal
        self._devices = list(devices)
        self._policy = policy
        self._hooks = hooks
        self._observer = observer
        self._trap = trap
        self._revive = revive
        self._log = Log(journal, timeout=policy.stall_timeout)
        self._known: dict[str, Taking] = {}
        self._judging = asyncio.Lock()

    def add(self, session: str, taking: Taking) -> None:
        """A session of this process.  Of those that have ended the last ``_MOST`` are remembered."""
        self._known[session] = taking
        ended = [name for name, each in self._known.items() if each.closed]
        for name in ended[: max(len(ended) - _MOST, 0)]:
            del self._known[name]

    async def begin(self) -> None:
        """Settle what dead processes left and that needs no source: BEGUN, and COMMITTED.

        Says what stays in doubt.  Raises JournalError: it cannot be read or written.
        """
        if self._journal is None:
            return
        await self._log.call(lambda journal: journal.identity)
        names = {device.name for device in self._devices}
        for story in await self._log.call(lambda journal: journal.pending("destination")):
            if story.devices and story.devices.keys() <= names:
                await self._begin(story)
        await self._reset_leftovers()

    async def _reset_leftovers(self) -> None:
        """Devices of discarded sessions whose process died before it had reset them."""
        latest = await self._log.call(lambda journal: journal.latest())
        pending = await self._log.call(lambda journal: journal.pending())
        claimed = {name for story in pending for name in story.devices}
        left = {
            name
            for name, story in latest.items()
            if story.role == "destination" and story.step is Step.DISCARDED
        }
        mine = [device for device in self._devices if device.name in left - claimed]
        states = await barrier.states(mine, timeout=self._policy.stall_timeout)
        await barrier.reset_all(
            [device for device in mine if states[device.name] != "RUNNING"],
            timeout=self._policy.stall_timeout,
            observer=self._observer,
        )

    async def _begin(self, story: Story) -> None:
        if await self._log.call(lambda journal: journal.is_held(story)):
            return
        async with self._judging:
            answer = await self._judge(story.session, None, "")
        if isinstance(answer, messages.Failed):
            log.warning(
                "session %s of %s is %s here, and in doubt: %s; it waits for its source to come back"
                " (or `vfioflow resolve %s` decides)",
                story.session,
                story.peer,
                story.step,
                answer.reason,
                story.session,
            )

    async def answer(self, asked: messages.Resolve) -> messages.Message:
        """What to tell a source that came back, once it is decided: running, discarded, or failed."""
        for _ in range(2):
            taking = self._known.get(asked.session)
            if taking is not None:
                answer = await taking.resolve(asked.decision)
                if answer is not None:
                    return answer
            try:
                async with self._judging:
                    answer = await self._judge(asked.session, asked.decision, asked.journal)
            except JournalError as error:
                answer = messages.Failed(reason=str(error))
            if answer is not None:
                return answer
        return messages.Failed(reason=f"session {asked.session} could not be carried on")

    async def told(self, session: str) -> None:
        """The source knows that it runs here."""
        taking = self._known.get(session)
        if taking is not None:
            taking.heard()
        if self._journal is None or (taking is not None and taking.log.entry is not None):
            return

        def record(journal: Journal) -> None:
            entry = journal.open(session, "destination")
            if entry is not None:
                with entry:
                    if entry.allows(Step.TOLD):
                        entry.record(Step.TOLD)

        with suppress(JournalError):
            await self._log.call(record)

    async def _judge(
        self, session: str, decision: Decision | None, identity: str
    ) -> messages.Message | None:
        """Judge by the journal and the devices, and act.  None: it is carried on, see :meth:`add`."""
        if self._journal is None:
            if decision == "discard" and not identity:
                return messages.Discarded(reason="nothing is known of it here")
            return messages.Failed(
                reason=f"session {session} is not known here, and there is no journal"
            )
        found = await barrier.states(self._devices, timeout=self._policy.stall_timeout)
        with ExitStack() as owned:
            entry = await self._open(session)
            if entry is not None:
                owned.callback(entry.close)
            others = await self._log.call(lambda journal: journal.pending())
            mine = await self._log.call(lambda journal: journal.identity)
            verdict = judge(
                entry,
                decision,
                found,
                others=[story for story in others if story.session != session],
                same_journal=identity == mine or (decision == "discard" and not identity),
            )
            if verdict is Verdict.RUNS:
                return messages.Running(resume_seconds=0.0, start_vcpus_seconds=0.0)
            if verdict is Verdict.DISCARD:
                return await self._discard(session, entry, others, decision)
            if isinstance(verdict, str):
                return messages.Failed(reason=verdict)
            assert entry is not None
            owned.pop_all()
        revival = Revival(
            self._journal,
            entry,
            self._devices,
            policy=self._policy,
            hooks=self._hooks,
            observer=self._observer,
            trap=self._trap,
        )
        self.add(session, revival.taking)
        self._revive(revival)
        return None

    async def _open(self, session: str) -> Entry | None:
        """The entry of a session, locked.  One that comes when nobody waits any more is closed."""
        waits = True

        def open_it(journal: Journal) -> Entry | None:
            entry = journal.open(session, "destination")
            if entry is not None and not waits:
                entry.close()
                return None
            return entry

        try:
            return await self._log.call(open_it)
        except BaseException:
            waits = False
            raise

    async def _discard(
        self,
        session: str,
        entry: Entry | None,
        others: Sequence[Story],
        decision: Decision | None,
    ) -> messages.Discarded:
        """D_DISCARDED: recorded, then its devices are reset, then it may be said."""
        if entry is not None and not entry.pending:
            return messages.Discarded(reason=entry.reason or f"it is {entry.step} {entry.choice}")
        if entry is None:
            reason = "nothing is known of it here"
        elif entry.step is Step.BEGUN:
            reason = "it was never loaded"
        elif decision == "discard":
            reason = "its source gave it up"
        else:
            reason = "its devices do not hold the state any more"

        def record(journal: Journal) -> None:
            with ExitStack() as owned:
                mine = entry or journal.open(session, "destination", create=True)
                assert mine is not None
                if entry is None:
                    owned.enter_context(mine)
                mine.record(Step.DISCARDED, reason=reason)

        await self._log.call(record)
        log.info("session %s is discarded: %s", session, reason)
        if entry is not None:
            taken = {n for o in others if o.session != session for n in o.devices}
            latest = await self._log.call(lambda journal: journal.latest())
            taken |= {name for name, story in latest.items() if story.session != session}
            states = await barrier.states(self._devices, timeout=self._policy.stall_timeout)
            stopped = [
                device
                for device in self._devices
                if device.name in entry.devices.keys() - taken and states[device.name] != "RUNNING"
            ]
            await barrier.reset_all(
                stopped, timeout=self._policy.stall_timeout, observer=self._observer
            )
        return messages.Discarded(reason=reason)

"""The source's part in the hand-over: what it records before what it says.

The names in capitals (S_COMMIT, ...) are the transitions of the model in `docs/model/`.  The
destination's part is in :mod:`vfioflow.takeover`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias, TypeVar

from vfioflow import barrier
from vfioflow.devices.base import Device
from vfioflow.errors import (
    AdmissionError,
    JournalError,
    PeerError,
    PeerLost,
    ProtocolError,
    RemoteError,
    TakenBack,
)
from vfioflow.journal import Entry, Journal
from vfioflow.policy import Policy
from vfioflow.story import Role, Step
from vfioflow.threads import finish, in_thread, settle
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.control import Control
from vfioflow.wire.greeting import call
from vfioflow.wire.security import Guard
from vfioflow.wire.trouble import printable

__all__ = ["Decision", "Giving", "Log", "ask"]

log = logging.getLogger("vfioflow")

Decision: TypeAlias = Literal["run", "discard"]
T = TypeVar("T")

_Answer: TypeAlias = messages.Running | messages.Discarded

_PAUSES = (0.05, 1.0)
"""Seconds before the peer is asked again: the first time, and at most; each is twice the one before."""


class Log:
    """One side's entry in the journal, for coroutines; without a journal it keeps nothing.

    Every method that writes raises JournalError, also when it does not return in ``timeout`` seconds.
    """

    def __init__(self, journal: Journal | None, *, timeout: float) -> None:
        self.journal = journal
        self._timeout = timeout
        self.entry: Entry | None = None
        self.identity = ""
        """The journal's, once an entry was begun."""
        self.seconds = 0.0
        """What writing has taken since :meth:`lap`."""
        self._closed = False
        self._owning = threading.Lock()

    async def call(self, function: Callable[[Journal], T]) -> T:
        """Run something that blocks on the journal, which must be there."""
        assert self.journal is not None
        future = in_thread(function, self.journal, name="journal")
        if not await settle([future], timeout=self._timeout):
            raise JournalError(
                self.journal.directory,
                f"no answer for {self._timeout:g} s",
                errno.ETIMEDOUT,
                "see what is wrong with its disk",
            )
        return future.result()

    async def begin(self, session: str, role: Role, peer: str, devices: Sequence[Device]) -> None:
        """Record BEGUN, in a new entry, unless a session that has yet to end names a device.

        Raises AdmissionError too, which names that session.
        """
        if self.journal is None:
            return
        outlives = {device.name: device.info.outlives for device in devices}

        def begin(journal: Journal) -> None:
            journal.prune()
            if reasons := _claims(journal, role, list(outlives)):
                raise AdmissionError(reasons)
            self.identity = journal.identity
            entry = journal.begin(session, role, peer, outlives)
            if not self._own(entry):
                with entry:
                    step = Step.BACK if role == "source" else Step.DISCARDED
                    entry.record(step, reason="begun too late: nobody waited for it any more")

        await self.call(begin)

    async def find(self, session: str, role: Role) -> bool:
        """Take the entry of a session that the journal knows already, if it does."""
        if self.journal is None:
            return False

        def find(journal: Journal) -> None:
            entry = journal.open(session, role)
            if entry is not None and not self._own(entry):
                entry.close()

        await self.call(find)
        return self.entry is not None

    def _own(self, entry: Entry) -> bool:
        """Keep it until :meth:`close`, unless that was before."""
        with self._owning:
            if not self._closed:
                self.entry = entry
            return not self._closed

    async def record(self, step: Step, **about: Any) -> None:
        """Record a step; does nothing without an entry."""
        entry = self.entry
        if entry is not None:
            begin = time.monotonic()
            await self.call(lambda _: entry.record(step, **about))
            self.seconds += time.monotonic() - begin

    def lap(self) -> float:
        """Seconds that writing took since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        """Give the entry's lock up."""
        with self._owning:
            self._closed = True
            if self.entry is not None:
                self.entry.close()
                self.entry = None


def _claims(journal: Journal, role: Role, devices: Sequence[str]) -> dict[str, str]:
    """Why these devices are not free: sessions that dead processes left.

    One whose state died with its process is no reason: at the destination it is discarded here.
    """
    reasons = {}
    for name, story in journal.claims(devices).items():
        if story.role != role:
            # Of the other side: what its devices hold is still there only where they outlive it.
            if any(story.devices.values()):
                reasons[name] = (
                    f"session {story.session} has it as its {story.role}, {story.step} and not ended:"
                    f" `vfioflow resolve {story.session}` shows it"
                )
        elif role == "source":
            reasons[name] = (
                f"session {story.session} has it, {story.step} and not ended: settle it with"
                f" `vfioflow send --session {story.session}`, or by hand with"
                f" `vfioflow resolve {story.session}`"
            )
        elif story.step is Step.COMMITTED or any(story.devices.values()):
            reasons[name] = (
                f"at the destination session {story.session} has it, {story.step} and not ended:"
                f" its source settles it, or `vfioflow resolve {story.session}` by hand"
            )
        elif entry := journal.open(story.session, role):
            with entry:
                if entry.pending:
                    entry.record(Step.DISCARDED, reason="its devices died with the process")
    return reasons


async def ask(
    address: Address,
    guard: Guard,
    session: str,
    decision: Decision,
    identity: str,
    *,
    limit: float,
    each: float,
    heard: Callable[[], Awaitable[str]] | None = None,
) -> messages.Running | messages.Discarded:
    """Ask the destination, on new connections, what has become of a session that broke off.

    Args:
        address: where it listens.
        guard: what its connections are opened with.
        session: which.
        decision: "run", of a source that has committed, or "discard", of one that never will.
        identity: of the journal in which the destination recorded LOADED, as far as that is known.
        limit: seconds to try again.
        each: seconds for one connection to be made.
        heard: records that the destination runs, and returns why it could not; only after that the
            destination is told that the source knows, upon which it may forget the session.

    Raises:
        RemoteError: it cannot say.
        PeerError: the last reason why nobody answered.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + limit
    pause = _PAUSES[0]
    problem: PeerError = PeerLost("it was not asked again")
    while (left := until - loop.time()) > 0:
        try:
            return await _ask(
                address, guard, session, decision, identity, min(each, left), left, heard
            )
        except RemoteError:
            raise
        except PeerError as error:
            problem = error
        await asyncio.sleep(min(pause, max(until - loop.time(), 0)))
        pause = min(2 * pause, _PAUSES[1])
    raise problem


async def _ask(
    address: Address,
    guard: Guard,
    session: str,
    decision: Decision,
    identity: str,
    each: float,
    limit: float,
    heard: Callable[[], Awaitable[str]] | None,
) -> messages.Running | messages.Discarded:
    control, _ = await call(address, session, guard, each)
    try:
        await control.send(messages.Resolve(session=session, decision=decision, journal=identity))
        answer = await control.expect(
            messages.Running, messages.Discarded, timeout=limit, what="what became of the session"
        )
        if isinstance(answer, messages.Running) and heard is not None and not await heard():
            with suppress(PeerError):
                await control.send(messages.Goodbye())
        if isinstance(answer, messages.Discarded):
            return messages.Discarded(reason=printable(answer.reason))
        return answer
    finally:
        await finish(control.close())


class Giving:
    """The source's part."""

    def __init__(
        self,
        journal: Journal | None,
        session: str,
        address: Address,
        guard: Guard,
        policy: Policy,
    ) -> None:
        self.log = Log(journal, timeout=policy.stall_timeout)
        self._session = session
        self._address = address
        self._guard = guard
        self._policy = policy
        self._identity = ""
        self._unsure = False

    async def find(self) -> bool:
        """Whether the journal knows the session already; then this process holds its entry."""
        return await self.log.find(self._session, "source")

    async def begin(self, devices: Sequence[Device]) -> None:
        """S_BEGIN: before any device leaves RUNNING.

        Raises:
            AdmissionError: a session that has yet to end has one of the devices.
            JournalError: it cannot be recorded.
        """
        await self.log.begin(self._session, "source", str(self._address), devices)

    async def commit(self, identity: str) -> float:
        """S_COMMIT: before COMMIT is said.  Returns the seconds that it took.

        ``identity`` is that of the destination's journal.  Raises JournalError: COMMIT must not be
        said, and :meth:`withdraw` tells whether the devices here may run again.
        """
        self._identity = identity
        self.log.lap()
        self._unsure = True
        await self.log.record(Step.COMMITTED, identity=identity)
        self._unsure = False
        return self.log.lap()

    async def deliver(self, control: Control) -> messages.Running:
        """Say COMMIT and hear what becomes of it; where the connection is lost, on another one.

        Raises:
            TakenBack: S_TAKEN_BACK: the destination never runs; the devices here may.
            PeerError: in doubt.
        """
        answer: messages.Running | messages.Discarded
        try:
            await control.send(messages.Commit())
            answer = await control.expect(
                messages.Running,
                messages.Discarded,
                timeout=2 * self._policy.stall_timeout,
                what="word that it runs",
            )
        except (RemoteError, ProtocolError):
            raise
        except PeerError as lost:
            limit = self._policy.resolve_timeout
            if not limit:
                raise
            log.warning("%s; asking again for %g s what became of the commit", str(lost), limit)
            try:
                answer = await self.ask("run")
            except PeerError as error:
                raise PeerLost(f"{lost}; asked again for {limit:g} s: {error}") from lost
        if isinstance(answer, messages.Discarded):
            reason = printable(answer.reason)
            await self.taken_back(reason)
            raise TakenBack(f"the destination discarded the session: {reason}")
        return answer

    async def ask(self, decision: Decision, limit: float | None = None) -> _Answer:
        """:func:`ask` about this session, for ``Policy.resolve_timeout`` or less.  Raises PeerError."""
        policy = self._policy
        identity = self._identity
        if not identity and self.log.entry is not None:
            committed = self.log.entry.get(Step.COMMITTED)
            identity = committed.identity if committed is not None else ""
        return await ask(
            self._address,
            self._guard,
            self._session,
            decision,
            identity,
            limit=policy.resolve_timeout if limit is None else limit,
            each=policy.connect_timeout,
            heard=self.released if decision == "run" else None,
        )

    async def released(self) -> str:
        """S_RELEASED: RUNNING was heard.  Returns why that could not be recorded, if so."""
        return await self._note(Step.RELEASED)

    async def taken_back(self, reason: str) -> str:
        """S_TAKEN_BACK: the destination has durably promised never to run.  As :meth:`released`.

        Where it cannot be recorded the devices may run all the same: whoever asks the destination
        again gets the same answer.
        """
        return await self._note(Step.TAKEN_BACK, reason=reason)

    async def back(self, devices: Sequence[Device], reason: str) -> str:
        """S_BACK, if every device is RUNNING again, and COMMIT was never said.  As :meth:`released`."""
        if self.log.entry is None:
            return ""
        states = await barrier.states(devices, timeout=self._policy.stall_timeout)
        if set(states.values()) != {"RUNNING"}:
            return ""
        return await self._note(Step.BACK, reason=reason)

    async def withdraw(self) -> str:
        """S_BACK before any device runs, where COMMITTED may be on the disk although writing it failed.

        Else a process that comes back would take the commit for said.  Returns "", or why the
        devices may not run: neither is BACK recorded, nor has the destination promised to discard.
        """
        if not self._unsure:
            return ""
        trouble = await self._note(Step.BACK, reason="the commit could not be recorded")
        if not trouble:
            return ""
        try:
            answer = await self.ask("discard")
        except PeerError as error:
            return f"{trouble}; the destination does not say that it discards the session: {error}"
        if isinstance(answer, messages.Running):
            return f"{trouble}; the destination RUNS this session"
        return ""

    async def discard(self) -> str:
        """Tell a destination that may hold the state to let it go.  What went wrong, if that matters."""
        limit = min(self._policy.connect_timeout, self._policy.resolve_timeout)
        try:
            answer = await self.ask("discard", limit)
        except PeerError as error:
            log.warning("the destination could not be told to discard the session: %s", str(error))
            return ""
        if isinstance(answer, messages.Running):
            return "the destination RUNS this session too: stop one side at once"
        return ""

    async def _note(self, step: Step, **about: Any) -> str:
        entry = self.log.entry
        if entry is None or not entry.allows(step):
            return ""
        try:
            await self.log.record(step, **about)
        except JournalError as error:
            log.warning("%s", str(error))
            return str(error)
        return ""

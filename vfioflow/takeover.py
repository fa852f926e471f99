"""The destination's part in the hand-over: what it records before what it says, and whose word counts.

The names in capitals (D_LOADED, ...) are the transitions of the model in `docs/model/`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from vfioflow.access import Window
from vfioflow.devices.base import Device
from vfioflow.errors import HandoverInDoubt, JournalError, PeerError, PeerLost, RemoteError
from vfioflow.events import Resumed, emit
from vfioflow.handover import Decision, Log
from vfioflow.hooks import call
from vfioflow.journal import Entry, Journal
from vfioflow.policy import Policy
from vfioflow.session import Session
from vfioflow.states import Flags, State
from vfioflow.story import Step
from vfioflow.wire import messages
from vfioflow.wire.control import Control

__all__ = ["Taker", "Taking"]

log = logging.getLogger("vfioflow")


class Taking:
    """The destination's part.  ``give_up`` ends the session from outside, before it is LOADED."""

    def __init__(
        self,
        journal: Journal | None,
        session: str,
        policy: Policy,
        *,
        give_up: Callable[[PeerError], None],
        entry: Entry | None = None,
    ) -> None:
        self.log = Log(journal, timeout=policy.stall_timeout)
        self.log.entry = entry
        self._session = session
        self._policy = policy
        self._give_up = give_up
        self._loaded = entry is not None
        self.closed = False
        """Whether the session has ended."""
        loop = asyncio.get_running_loop()
        self._asked: asyncio.Future[Decision] = loop.create_future()
        self._answer: asyncio.Future[messages.Message | None] = loop.create_future()
        self._told = asyncio.Event()

    # ---------------------------------------------------- a source that comes back

    async def resolve(self, decision: Decision) -> messages.Message | None:
        """What to answer to a source that asks on another connection, once it is decided.

        None: this process does not know any more, the journal may.
        """
        if not self._asked.done():
            # Who was never told LOADED cannot have committed.
            self._asked.set_result(decision if self._loaded else "discard")
            if not self._loaded:
                self._give_up(RemoteError("the source came back and gave the session up"))
        return await asyncio.shield(self._answer)

    def heard(self) -> None:
        """The source has said, on another connection, that it knows."""
        self._told.set()

    async def until_told(self) -> None:
        """Wait for a source that comes back to hear the answer.  Raises PeerLost."""
        limit = self._policy.resolve_timeout
        try:
            async with asyncio.timeout(limit):
                await self._told.wait()
        except TimeoutError:
            raise PeerLost(f"it did not come back within {limit:g} s") from None

    # -------------------------------------------------------------------- records

    async def begin(self, peer: str, devices: Sequence[Device]) -> None:
        """D_BEGIN: before any device is touched.  Raises as :meth:`Giving.begin`."""
        await self.log.begin(self._session, "destination", peer, devices)

    async def loaded(self, states: Mapping[str, str], accesses: bytes) -> tuple[str, float]:
        """D_LOADED: before LOADED is said.  From now on only the source's word counts.

        Returns the journal's identity and the seconds that it took.  Raises JournalError: the
        devices are to be reset.
        """
        self.log.lap()  # BEGUN was before the downtime
        queued = base64.b64encode(accesses).decode()
        await self.log.record(Step.LOADED, states=dict(states), accesses=queued)
        self._loaded = True
        return self.log.identity, self.log.lap()

    async def word(self, control: Control, loaded: messages.Loaded) -> None:
        """Say LOADED; return when the source commits, there or on another connection.

        Raises:
            RemoteError: it gave up: the devices are to be reset.
            PeerError: it did not say: in doubt.
        """
        limit = self._policy.stall_timeout
        commit = asyncio.create_task(_commit(control, loaded, limit))
        try:
            waits: set[asyncio.Future[Any]] = {commit, self._asked}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if commit.done() and not self._asked.done():
                error = commit.exception()
                if error is None:
                    return
                if not isinstance(error, PeerLost):
                    raise error
                seconds = self._policy.resolve_timeout
                log.warning("%s; waiting %g s for the source to come back", str(error), seconds)
                await asyncio.wait({self._asked}, timeout=seconds)
                if not self._asked.done():
                    raise error
        finally:
            commit.cancel()
            await asyncio.wait({commit})
        if self._asked.result() == "discard":
            raise RemoteError("the source came back and gave the session up")

    async def committed(self) -> None:
        """D_COMMITTED: COMMIT was heard, and no device has been touched since.

        Raises JournalError.  Then nothing has run here, and nothing may; but the record may be on the
        disk.  Once DISCARDED is behind it the devices are reset, and the source, which holds the same
        state, can take it back; without that it is in doubt.
        """
        await self.log.record(Step.COMMITTED)

    async def running(self, message: messages.Running) -> tuple[messages.Running, str]:
        """D_RUNNING: devices and vCPUs run; before RUNNING is said.

        Returns what to say, and why it could not be recorded, if so: it runs all the same.
        """
        trouble = ""
        try:
            await self.log.record(Step.RUNNING)
        except JournalError as error:
            trouble = str(error)
        message = messages.Running(
            resume_seconds=message.resume_seconds,
            replay_seconds=message.replay_seconds,
            start_vcpus_seconds=message.start_vcpus_seconds,
            journal_seconds=self.log.lap(),
        )
        self._settle(message)
        return message, trouble

    async def discard(self, reason: str) -> str:
        """D_DISCARDED, before the devices are reset.  Why it could not be recorded, if so."""
        if self.log.entry is not None and self.log.entry.allows(Step.DISCARDED):
            try:
                await self.log.record(Step.DISCARDED, reason=reason)
            except JournalError as error:
                return str(error)
        return ""

    def discarded(self, reason: str) -> None:
        """The devices are reset: from now on a source that asks is told so."""
        self._settle(messages.Discarded(reason=reason))

    async def told(self) -> None:
        """The source knows that it runs: the entry has served its purpose."""
        entry = self.log.entry
        if entry is not None and entry.allows(Step.TOLD):
            with suppress(JournalError):
                await self.log.record(Step.TOLD)

    def in_doubt(self, reason: str) -> None:
        """Some device may run, and not all do: there is no answer but this one."""
        self._settle(messages.Failed(reason=reason))

    def close(self) -> None:
        """The session has ended: the entry is free, and who asks is referred to the journal."""
        self.closed = True
        self._give_up = lambda _: None  # it would keep the connection
        self.log.close()
        self._settle(None)

    def _settle(self, answer: messages.Message | None) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)


async def _commit(control: Control, loaded: messages.Loaded, limit: float) -> None:
    await control.send(loaded)
    await control.expect(messages.Commit, timeout=limit, what="its commit")


class Taker(Session):
    """A destination's session, from COMMITTED on."""

    _window: Window | None = None
    taking: Taking
    """Where a source that comes back is answered."""
    _patience = 0.0
    """How long a source may take to open a connection again that broke."""

    async def _take_over(self, devices: Sequence[Device], control: Control | None) -> None:
        """Barrier 4: all to RUNNING; start the vCPUs; RUNNING, and wait until the source knows.

        ``control``: None where the source has to come back on another connection.
        """
        begin = time.monotonic()
        try:
            resumed, replayed = await self._resume(devices)
            begin = time.monotonic()
            await call(self._hooks.start_vcpus, "start_vcpus")
        except BaseException as error:  # a hook may end in a cancellation of its own
            self._in_doubt(error, "The source has given its devices up; see why they do not run")
            reason = str(error) or type(error).__name__
            self.taking.in_doubt(reason)
            if control is not None:
                await self._tell(control, messages.Failed(reason=reason))
            raise HandoverInDoubt(self.report.error) from error
        self.report.outcome = "completed"
        emit(self._observer, Resumed())
        self.report.steps_ms["resume"] = resumed * 1e3
        if self._window is not None:
            self.report.steps_ms["replay"] = replayed * 1e3
        message, trouble = await self.taking.running(
            messages.Running(
                resume_seconds=resumed,
                replay_seconds=replayed,
                start_vcpus_seconds=time.monotonic() - begin,
            )
        )
        if trouble:
            self.report.error = f"runs here, but that could not be recorded: {trouble}"
        if lost := await self._until_told(control, message):
            self.report.error = f"runs here, but the source could not be told: {lost}"
        else:
            await self.taking.told()
        await self._done()

    async def _resume(self, devices: Sequence[Device]) -> tuple[float, float]:
        """All to RUNNING; those without P2P states first where accesses to them were queued.

        Then the others start nothing before these have had what was queued.  Seconds of the changes,
        and of the replay.
        """
        if self._window is None:
            return await self._run_all("resume", devices), 0.0
        quiet = [device for device in devices if device.info.flags & Flags.P2P]
        seconds = await self._run_all("resume", [d for d in devices if d not in quiet])
        begin = time.monotonic()
        await self._window.replay()
        replayed = time.monotonic() - begin
        self.report.accesses = self._window.replayed
        return seconds + await self._run_all("resume-p2p", quiet), replayed

    async def _run_all(self, name: str, devices: Sequence[Device]) -> float:
        crossing = await self.order.cross(
            name,
            [(device, State.RUNNING) for device in devices],
            timeout=self._policy.stall_timeout,
            observer=self._observer,
        )
        return crossing.seconds

    async def _until_told(self, control: Control | None, message: messages.Running) -> str:
        """Say RUNNING until the source knows, here or on another connection; else why it does not."""
        lost = "it did not come back"
        waits = {asyncio.create_task(self.taking.until_told())}
        if control is not None:
            # Closing before the source has read it could destroy it.
            limit = self._policy.connect_timeout + self._patience
            waits.add(asyncio.create_task(_say(control, message, limit)))
        for each in waits:  # one that ends badly beside another that ends well is no news
            each.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while waits:
                done, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    try:
                        each.result()
                    except PeerError as error:
                        lost = str(error)
                    else:
                        return ""
        finally:
            for each in waits:
                each.cancel()
            if waits:
                await asyncio.wait(waits)
        return lost


async def _say(control: Control, message: messages.Running, limit: float) -> None:
    await control.send(message)
    await control.expect(messages.Goodbye, timeout=limit, what="its goodbye")

"""The destination's port: finds out what each connection is for, and starts sessions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from vfioflow import planning
from vfioflow.access import Trap
from vfioflow.destination import Caller, Destination
from vfioflow.devices.base import Device
from vfioflow.door import Door
from vfioflow.errors import PeerError, ProtocolError
from vfioflow.events import Observer
from vfioflow.hooks import Hooks
from vfioflow.journal import Journal
from vfioflow.past import Past
from vfioflow.policy import Policy
from vfioflow.report import Report
from vfioflow.resolution import Revival
from vfioflow.threads import finish
from vfioflow.wire import messages
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble
from vfioflow.wire.security import Security
from vfioflow.wire.trouble import printable

__all__ = ["Listener", "listen"]

log = logging.getLogger("vfioflow")

_CALLERS = 64
"""Sources that have greeted and wait for their turn."""


def listen(
    address: str,
    devices: Sequence[Device],
    *,
    policy: Policy | None = None,
    hooks: Hooks | None = None,
    observer: Observer | None = None,
    journal: Journal | None = None,
    security: Security | None = None,
    trap: Trap | None = None,
) -> Listener:
    """A listener for one migration after the other onto ``devices``.

    ``async with listen("tcp://127.0.0.1:0", devices) as listener:`` binds the port (see
    :attr:`Listener.address`), then ``report = await listener.receive()``.

    Args:
        address: "tcp://HOST:PORT", or "fd://N" for a listening socket that was handed over.
        devices: the set that takes the state: RUNNING, idle, and nobody's.
        policy: only ``connect_timeout``, ``stall_timeout``, ``resolve_timeout`` and
            ``stream_factor`` matter at the destination.
        hooks: ``start_vcpus`` is called when every device runs.
        observer: gets every event of :mod:`vfioflow.events`.
        journal: where to record what is decided, so that it outlives this process.  What an earlier
            one left there is carried on: see :meth:`Listener.next_session`.
        security: how the two sides know each other: a key or certificates; None: not at all, which
            only a loopback address may.
        trap: the VMM's part in a source's ``access_queue``; simulated devices have their own.

    Raises (on entering):
        ConfigError: the address is wrong or taken, or not a loopback one without ``security``.
        JournalError: the journal cannot be read or written.
    """
    return Listener(
        address,
        devices,
        policy=policy,
        hooks=hooks,
        observer=observer,
        journal=journal,
        security=security,
        trap=trap,
    )


class Listener(Door):
    """A bound port, where one migration after the other arrives."""

    def __init__(
        self,
        address: str,
        devices: Sequence[Device],
        *,
        policy: Policy | None = None,
        hooks: Hooks | None = None,
        observer: Observer | None = None,
        journal: Journal | None = None,
        security: Security | None = None,
        trap: Trap | None = None,
    ) -> None:
        super().__init__(address, policy or Policy(), security)
        self._devices = list(devices)
        self._hooks = hooks or Hooks()
        self._observer = observer
        self._journal = journal
        self._trap = trap
        self._callers = 0
        self._waiting: asyncio.Queue[Caller | Revival] = asyncio.Queue()
        self._past = Past(
            journal,
            self._devices,
            policy=self._policy,
            hooks=self._hooks,
            observer=observer,
            trap=trap,
            revive=self._waiting.put_nowait,
        )
        self._session: Destination | None = None

    async def _begin(self) -> None:
        with ExitStack() as undo:
            undo.callback(self._abandon)
            await self._past.begin()
            undo.pop_all()

    async def _leave(self) -> None:
        for caller in self._abandon():
            await caller.control.close()

    def _abandon(self) -> list[Caller]:
        """Leave the sessions that wait to be carried on to the journal; the sources that wait besides."""
        callers = []
        while not self._waiting.empty():
            waiting = self._waiting.get_nowait()
            if isinstance(waiting, Revival):
                waiting.abandon()
            else:
                callers.append(waiting)
        return callers

    async def receive(self) -> Report:
        """Wait for a source and take its devices over.  Returns when they run here.

        Raises:
            AdmissionError: the source's set does not fit; nothing was touched.
            DeviceError, PeerError: every device here was reset; the source runs on.
            HandoverInDoubt: the connection was lost between LOADED and COMMIT, and the source did
                not come back; the devices hold the state, stopped.
            JournalError: it cannot be written; every device here was reset.
            asyncio.CancelledError: cancelled; every device here was reset.
        """
        return await (await self.next_session()).run()

    async def next_session(self) -> Destination | Revival:
        """Wait for a source; the session has yet to be run, and its report stays with it.

        Or for a session that an earlier process left in the journal and that is to be carried on
        here: because it was COMMITTED, or its source came back and says that it has committed.
        """
        while True:
            waiting = await self._waiting.get()
            if isinstance(waiting, Revival):
                return waiting
            self._callers -= 1
            try:
                self._session = Destination(
                    waiting,
                    self._devices,
                    policy=self._policy,
                    hooks=self._hooks,
                    observer=self._observer,
                    journal=self._journal,
                    trap=self._trap,
                )
            except OSError as error:  # out of descriptors
                reason = f"cannot serve {waiting.control.peer}: {error.strerror}"
                log.error("%s", reason)
                with suppress(PeerError):
                    await waiting.control.send(messages.Failed(reason=reason))
                await waiting.control.close()
                continue
            self._past.add(waiting.session, self._session.taking)
            return self._session

    def _take_channel(self, preamble: Preamble, sock: socket.socket) -> bool:
        return self._session is not None and self._session.take_channel(preamble, sock)

    async def _take_again(self, preamble: Preamble, sock: socket.socket) -> bool:
        return self._session is not None and await self._session.take_again(preamble, sock)

    async def _meet(self, control: Control, session: str, keys: Keys) -> None:
        """Hear what a source wants that has greeted.  Owns the connection."""
        self._callers += 1
        kept = False
        try:
            if self._callers > _CALLERS:
                await control.send(messages.Failed(reason="too many sources wait here"))
                raise ProtocolError("too many sources wait already")
            wish = await control.expect(
                messages.Offer,
                messages.Resolve,
                messages.Plan,
                messages.Tunnel,
                timeout=self._policy.stall_timeout,
                what="its offer",
            )
            if isinstance(wish, messages.Tunnel):
                await self._decline(
                    control,
                    "devices arrive here, and no stream: it is `vfioflow"
                    " tunnel receive` that takes one",
                )
                raise ProtocolError("it sends a stream, and no devices")
            if isinstance(wish, messages.Offer):
                self._waiting.put_nowait(Caller(control, session, keys, wish))
                kept = True
                return
            if isinstance(wish, messages.Plan):
                limit = self._policy.stall_timeout
                await control.send(await planning.answer(wish, self._devices, timeout=limit))
                # Closing before the source has read it could destroy it.
                await asyncio.wait({control.failure}, timeout=self._policy.connect_timeout)
                return
            if wish.session != session:
                raise ProtocolError(
                    f"it asks for session {printable(wish.session)} in that of {session}"
                )
            await self._answer(control, wish)
        except PeerError as error:
            log.warning("no migration from %s: %s", control.peer, str(error))
        finally:
            if not kept:
                self._callers -= 1
                await finish(control.close())

    async def _answer(self, control: Control, asked: messages.Resolve) -> None:
        """Tell a source that came back what has become of its session."""
        try:
            answer = await self._past.answer(asked)
            await control.send(answer)
            if isinstance(answer, messages.Running):
                limit = self._policy.connect_timeout
                await control.expect(messages.Goodbye, timeout=limit, what="its goodbye")
                await self._past.told(asked.session)
            else:
                # Closing before the source has read it could destroy it.
                await asyncio.wait({control.failure}, timeout=self._policy.connect_timeout)
        except PeerError as error:
            log.warning("%s came back, and was lost again: %s", control.peer, str(error))

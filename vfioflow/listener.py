"""The destination's port: finds out what each connection is for, and starts sessions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vfioflow import planning
from vfioflow.destination import Caller, Destination
from vfioflow.devices.base import Device
from vfioflow.errors import PeerError, PeerLost, ProtocolError
from vfioflow.events import Observer
from vfioflow.hooks import Hooks
from vfioflow.journal import Journal
from vfioflow.past import Past
from vfioflow.policy import Policy
from vfioflow.report import Report
from vfioflow.resolution import Revival
from vfioflow.threads import finish
from vfioflow.wire import messages
from vfioflow.wire.address import Address, bind
from vfioflow.wire.control import Control
from vfioflow.wire.greeting import answer
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble, Role, accept, send_all
from vfioflow.wire.security import Guard, Security, is_loopback
from vfioflow.wire.trouble import printable

__all__ = ["Listener", "listen"]

log = logging.getLogger("vfioflow")

_STRANGERS = 64
"""Connections whose greeting is not complete; more wait in the system's queue."""

_A_CHANCE = 1.0
"""Seconds that each of them gets at least, before another may take its place."""

_CALLERS = 64
"""Sources that have greeted and wait for their turn."""

_ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be accepted, before the next try."""


def listen(
    address: str,
    devices: Sequence[Device],
    *,
    policy: Policy | None = None,
    hooks: Hooks | None = None,
    observer: Observer | None = None,
    journal: Journal | None = None,
    security: Security | None = None,
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
    )


class Listener:
    """A bound port.  Connections that are no vfioflow's are logged, closed, and disturb nobody."""

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
    ) -> None:
        self._where = address
        self._devices = list(devices)
        self._policy = policy or Policy()
        self._hooks = hooks or Hooks()
        self._observer = observer
        self._journal = journal
        self._socket: socket.socket | None = None
        self._security = security or Security()
        self._guard = Guard()
        self._strangers: dict[asyncio.Task[None], _Stranger] = {}
        self._fresh: set[socket.socket] = set()
        self._callers = 0
        self._waiting: asyncio.Queue[Caller | Revival] = asyncio.Queue()
        self._past = Past(
            journal,
            self._devices,
            policy=self._policy,
            hooks=self._hooks,
            observer=observer,
            revive=self._waiting.put_nowait,
        )
        self._session: Destination | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._socket = bind(self._where)
        with ExitStack() as undo:
            undo.callback(self._socket.close)
            undo.callback(self._abandon)
            here = Address.of(self._socket)
            self._guard = self._security.for_destination(loopback=is_loopback(here.host))
            await self._past.begin()
            undo.pop_all()
        self._start(self._accept(self._socket))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for sock in self._fresh:
            sock.close()
        for caller in self._abandon():
            await caller.control.close()
        if self._socket is not None:
            self._socket.close()

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

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose."""
        if self._socket is None:
            raise RuntimeError("the listener is not open: use it with `async with`")
        return str(Address.of(self._socket))

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

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._make_room()
            # Not loop.sock_accept: a cancellation could lose what it has just accepted.
            await _readable(listening)
            try:
                sock, where = listening.accept()
            except BlockingIOError:  # whoever it was has gone again
                continue
            except OSError as error:  # out of descriptors, or the peer is gone already
                log.error("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            peer = Address(where[0], where[1])
            self._fresh.add(sock)
            task = self._start(self._serve(sock, peer))
            self._strangers[task] = _Stranger(peer.host, loop.time())
            task.add_done_callback(self._no_stranger)

    def _no_stranger(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._strangers.pop(task, None)

    async def _make_room(self) -> None:
        """Wait until another connection can be greeted; one that says nothing holds up nobody for long.

        The longest there of the host that has most of them has to go, once it had its chance.
        """
        loop = asyncio.get_running_loop()
        while len(self._strangers) >= _STRANGERS:
            hosts = Counter(stranger.host for stranger in self._strangers.values())
            (host, _), *_ = hosts.most_common(1)
            task = next(task for task, who in self._strangers.items() if who.host == host)
            left = self._strangers[task].since + _A_CHANCE - loop.time()
            if left > 0:
                await asyncio.wait(
                    self._strangers, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                continue
            log.warning("dropped a connection from %s: it said nothing, and others wait", host)
            self._no_stranger(task)
            task.cancel()

    async def _serve(self, sock: socket.socket, peer: Address) -> None:
        """Find out what a connection is for.  Owns the socket until it is passed on."""
        self._fresh.discard(sock)
        limit = self._policy.connect_timeout
        try:
            with ExitStack() as owned:
                try:
                    async with asyncio.timeout(limit):
                        sock, preamble = await accept(sock, peer, self._guard)
                        owned.callback(sock.close)
                        if preamble.role is Role.CONTROL and not preamble.attempt:
                            await send_all(sock, Preamble(Role.CONTROL).pack())
                            control, session, keys = await answer(sock, self._guard)
                            owned.pop_all()
                except TimeoutError:
                    raise PeerLost(f"it did not greet within {limit:g} s") from None
                if preamble.attempt:
                    self._no_stranger(asyncio.current_task())  # its token is looked at, at once
                    if self._session is None or not await self._session.take_again(preamble, sock):
                        # Zeros for a token: there is no such session, or not any more.
                        nobody = Preamble(preamble.role, preamble.channel, attempt=preamble.attempt)
                        await send_all(sock, nobody.pack())
                        raise ProtocolError("a connection that continues none of a session here")
                elif preamble.role is Role.CONTROL:
                    self._no_stranger(asyncio.current_task())
                    await self._meet(control, session, keys)
                elif self._session is None or not self._session.take_channel(preamble, sock):
                    raise ProtocolError("a data connection that belongs to no session here")
                owned.pop_all()
        except PeerError as error:
            log.warning("refused a connection from %s: %s", peer, str(error))

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
                timeout=self._policy.stall_timeout,
                what="its offer",
            )
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


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A connection whose greeting is not complete."""

    host: str
    since: float


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)

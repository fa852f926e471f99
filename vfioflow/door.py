"""A listening port: greets whoever comes, and finds out what each connection is for."""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vfioflow.errors import PeerError, PeerLost, ProtocolError
from vfioflow.policy import Policy
from vfioflow.wire import messages
from vfioflow.wire.address import Address, bind
from vfioflow.wire.control import Control
from vfioflow.wire.greeting import answer
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble, Role, accept, send_all
from vfioflow.wire.security import Guard, Security, is_loopback

__all__ = ["Door"]

log = logging.getLogger("vfioflow")

_STRANGERS = 64
"""Connections whose greeting is not complete; more wait in the system's queue."""

_A_CHANCE = 1.0
"""Seconds that each of them gets at least, before another may take its place."""

_ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be accepted, before the next try."""


class Door(ABC):
    """A bound port.  Connections that are no vfioflow's are logged, closed, and disturb nobody.

    What a source wants that has greeted, and which session a data connection belongs to, is for
    those to say who derive from it.

    Raises (on entering):
        ConfigError: the address is wrong or taken, or not a loopback one without ``security``.
    """

    def __init__(self, address: str, policy: Policy, security: Security | None) -> None:
        self._where = address
        self._policy = policy
        self._socket: socket.socket | None = None
        self._security = security or Security()
        self._guard = Guard()
        self._strangers: dict[asyncio.Task[None], _Stranger] = {}
        self._fresh: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._socket = bind(self._where)
        with ExitStack() as undo:
            undo.callback(self._socket.close)
            here = Address.of(self._socket)
            self._guard = self._security.for_destination(loopback=is_loopback(here.host))
            await self._begin()
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
        await self._leave()
        if self._socket is not None:
            self._socket.close()

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose."""
        if self._socket is None:
            raise RuntimeError("the listener is not open: use it with `async with`")
        return str(Address.of(self._socket))

    @abstractmethod
    async def _begin(self) -> None:
        """What is to be done before the first connection is taken."""

    @abstractmethod
    async def _leave(self) -> None:
        """What is to be done when no more are."""

    @abstractmethod
    async def _meet(self, control: Control, session: str, keys: Keys) -> None:
        """Hear what a source wants that has greeted.  Owns the connection."""

    @abstractmethod
    def _take_channel(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a data connection, if it is of a session here; owns it then."""

    @abstractmethod
    async def _take_again(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a connection that broke and was opened again, likewise."""

    async def _decline(self, control: Control, reason: str) -> None:
        """Say why a source cannot be served.  Raises PeerError."""
        await control.send(messages.Failed(reason=reason))
        # Closing before the source has read it could destroy it.
        await asyncio.wait({control.failure}, timeout=self._policy.connect_timeout)

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
                    if not await self._take_again(preamble, sock):
                        # Zeros for a token: there is no such session, or not any more.
                        nobody = Preamble(preamble.role, preamble.channel, attempt=preamble.attempt)
                        await send_all(sock, nobody.pack())
                        raise ProtocolError("a connection that continues none of a session here")
                elif preamble.role is Role.CONTROL:
                    self._no_stranger(asyncio.current_task())
                    await self._meet(control, session, keys)
                elif not self._take_channel(preamble, sock):
                    raise ProtocolError("a data connection that belongs to no session here")
                owned.pop_all()
        except PeerError as error:
            log.warning("refused a connection from %s: %s", peer, str(error))


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

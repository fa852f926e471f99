"""The destination's port: finds out what each connection is for, and starts sessions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from vfioflow.destination import Destination
from vfioflow.devices.base import Device
from vfioflow.errors import PeerError, ProtocolError
from vfioflow.events import Observer
from vfioflow.hooks import Hooks
from vfioflow.policy import Policy
from vfioflow.report import Report
from vfioflow.wire.address import Address, bind
from vfioflow.wire.opening import Preamble, Role, read_preamble, send_all

__all__ = ["Listener", "listen"]

log = logging.getLogger("vfioflow")

_GREETERS = 64
"""Connections whose purpose is not known yet; more wait in the system's queue."""

_ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be accepted, before the next try."""


def listen(
    address: str,
    devices: Sequence[Device],
    *,
    policy: Policy | None = None,
    hooks: Hooks | None = None,
    observer: Observer | None = None,
) -> Listener:
    """A listener for one migration after the other onto ``devices``.

    ``async with listen("tcp://127.0.0.1:0", devices) as listener:`` binds the port (see
    :attr:`Listener.address`), then ``report = await listener.receive()``.

    Args:
        address: "tcp://HOST:PORT", or "fd://N" for a listening socket that was handed over.
        devices: the set that takes the state: RUNNING, idle, and nobody's.
        policy: only ``connect_timeout`` and ``stall_timeout`` matter at the destination.
        hooks: ``start_vcpus`` is called when every device runs.
        observer: gets every event of :mod:`vfioflow.events`.

    Raises (on entering):
        ConfigError: the address is wrong or taken.
    """
    return Listener(address, devices, policy=policy, hooks=hooks, observer=observer)


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
    ) -> None:
        self._where = address
        self._devices = list(devices)
        self._policy = policy or Policy()
        self._hooks = hooks or Hooks()
        self._observer = observer
        self._socket: socket.socket | None = None
        self._waiting: asyncio.Queue[socket.socket] = asyncio.Queue(maxsize=_GREETERS)
        self._session: Destination | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._socket = bind(self._where)
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
        while not self._waiting.empty():
            self._waiting.get_nowait().close()
        if self._socket is not None:
            self._socket.close()

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
            HandoverInDoubt: the connection was lost between LOADED and COMMIT; the devices hold
                the state, stopped.
            asyncio.CancelledError: cancelled; every device here was reset.
        """
        return await (await self.next_session()).run()

    async def next_session(self) -> Destination:
        """Wait for a source; the session has yet to be run, and its report stays with it."""
        while True:
            sock = await self._waiting.get()
            try:
                self._session = Destination(
                    sock,
                    self._devices,
                    policy=self._policy,
                    hooks=self._hooks,
                    observer=self._observer,
                )
            except PeerError as error:
                log.warning("a source left before it said anything: %s", str(error))
                sock.close()
            except OSError as error:  # out of descriptors
                log.error("cannot serve a source: %s", error.strerror)
                sock.close()
            else:
                return self._session

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        gate = asyncio.Semaphore(_GREETERS)
        while True:
            await gate.acquire()
            try:
                # Not loop.sock_accept: a cancellation could lose what it has just accepted.
                sock, where = listening.accept()
            except BlockingIOError:
                gate.release()
                await _readable(listening)
                continue
            except OSError as error:  # out of descriptors, or the peer is gone already
                gate.release()
                log.error("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            self._start(self._greet(sock, Address(where[0], where[1]), gate))

    async def _greet(self, sock: socket.socket, peer: Address, gate: asyncio.Semaphore) -> None:
        """Find out what a connection is for.  Owns the socket until it is passed on."""
        try:
            with ExitStack() as owned:
                owned.callback(sock.close)
                preamble = await read_preamble(sock, self._policy.connect_timeout)
                if preamble.attempt:
                    if self._session is None or not await self._session.take_again(preamble, sock):
                        # Zeros for a token: there is no such session, or not any more.
                        nobody = Preamble(preamble.role, preamble.channel, attempt=preamble.attempt)
                        await send_all(sock, nobody.pack())
                        raise ProtocolError("a connection that continues none of a session here")
                elif preamble.role is Role.CONTROL:
                    await send_all(sock, Preamble(Role.CONTROL).pack())
                    await self._waiting.put(sock)
                elif self._session is None or not self._session.take_channel(preamble, sock):
                    raise ProtocolError("a data connection that belongs to no session here")
                owned.pop_all()
        except PeerError as error:
            log.warning("refused a connection from %s: %s", peer, str(error))
        finally:
            gate.release()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)

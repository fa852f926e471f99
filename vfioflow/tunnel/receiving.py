"""The destination's side of a tunnel.  Reads from top to bottom, step by step."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass

from vfioflow._fdio import Port
from vfioflow._inlane import InLane
from vfioflow.arrivals import Arrivals
from vfioflow.door import Door
from vfioflow.errors import EndError, PeerError, PeerLost, ProtocolError
from vfioflow.lanes import Inbound, last_words
from vfioflow.policy import Policy
from vfioflow.reconnect import Rejoin
from vfioflow.threads import finish, in_thread
from vfioflow.tunnel.ends import Output
from vfioflow.tunnel.side import TITLE, Side
from vfioflow.tunnel.summary import Summary
from vfioflow.wire import messages
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble
from vfioflow.wire.security import Security

__all__ = ["Receiver", "TunnelListener", "listen"]

log = logging.getLogger("vfioflow")

_BACK_SIZE = 64 * 1024
"""Most bytes in one `back`."""


def listen(
    address: str, into: str, *, policy: Policy | None = None, security: Security | None = None
) -> TunnelListener:
    """A listener for one stream of bytes, which goes to ``into``.

    ``async with listen("tcp://127.0.0.1:0", "out.bin") as listener:`` binds the port, then
    ``summary = await listener.receive()``.

    Args:
        address: "tcp://HOST:PORT", or "fd://N" for a listening socket that was handed over.
        into: "-" (standard output), "fd:N" (which this closes), "unix:PATH" (connects there), or a path: of a
            FIFO or device, or of a file, which has its name only once it is whole.
        policy: only ``connect_timeout``, ``stall_timeout`` and ``reconnect_limit`` matter here.
        security: as in :func:`vfioflow.listen`.

    Raises (on entering):
        ConfigError: an argument is wrong, or the port is taken.
    """
    return TunnelListener(address, into, policy=policy, security=security)


class TunnelListener(Door):
    """A bound port, where one stream arrives."""

    def __init__(
        self,
        address: str,
        into: str,
        *,
        policy: Policy | None = None,
        security: Security | None = None,
    ) -> None:
        super().__init__(address, policy or Policy(), security)
        self._output = Output(into)
        self._caller: asyncio.Future[Caller] | None = None
        self._session: Receiver | None = None

    async def _begin(self) -> None:
        self._output.prepare()
        self._caller = asyncio.get_running_loop().create_future()

    async def _leave(self) -> None:
        assert self._caller is not None
        if self._session is not None:
            return
        if self._caller.done():
            await self._caller.result().control.close()
        self._output.close(whole=False)

    async def receive(self) -> Summary:
        """Wait for a source and take its stream.  Returns when all of it is in the output.

        Raises:
            EndError: the output cannot be written.
            PeerError: the source failed, or was lost; the output was not finished.
            asyncio.CancelledError: cancelled; likewise.
        """
        return await (await self.next_session()).run()

    async def next_session(self) -> Receiver:
        """Wait for the source; the session has yet to be run, and its summary stays with it.  Once."""
        assert self._caller is not None
        caller = await asyncio.shield(self._caller)
        self._session = Receiver(caller, self._output, self._policy)
        return self._session

    def _take_channel(self, preamble: Preamble, sock: socket.socket) -> bool:
        return self._session is not None and self._session.take_channel(preamble, sock)

    async def _take_again(self, preamble: Preamble, sock: socket.socket) -> bool:
        return self._session is not None and await self._session.take_again(preamble, sock)

    async def _meet(self, control: Control, session: str, keys: Keys) -> None:
        assert self._caller is not None
        kept = False
        try:
            wish = await control.expect(
                messages.Tunnel,
                messages.Offer,
                messages.Plan,
                messages.Resolve,
                timeout=self._policy.stall_timeout,
                what="its offer",
            )
            if not isinstance(wish, messages.Tunnel):
                await self._decline(
                    control, "a stream arrives here, and no devices: `vfioflow receive` takes those"
                )
                raise ProtocolError("it sends devices, and no stream")
            if self._caller.done():
                await self._decline(control, "another stream has arrived here already")
                raise ProtocolError("one stream has arrived already")
            self._caller.set_result(Caller(control, session, keys, wish))
            kept = True
        except PeerError as error:
            log.warning("no stream from %s: %s", control.peer, str(error))
        finally:
            if not kept:
                await finish(control.close())


@dataclass(frozen=True, slots=True)
class Caller:
    """A source that has greeted and said what it wants."""

    control: Control
    session: str
    keys: Keys
    offer: messages.Tunnel


class Receiver(Side):
    """One tunnel, seen from the destination."""

    def __init__(self, caller: Caller, output: Output, policy: Policy) -> None:
        control = self._control = caller.control
        control.patience = 2 * policy.stall_timeout
        self._offer = caller.offer
        self._keys = caller.keys
        self._arrivals = Arrivals(caller.keys)
        self._output = output
        super().__init__(
            policy,
            Summary(
                role="destination",
                session=caller.session,
                peer=str(control.peer),
                end=output.name,
                channels=caller.offer.channels,
            ),
        )
        self._lane: InLane | None = None
        self._in: Inbound | None = None
        self._rejoin: Rejoin | None = None
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._taken = asyncio.Event()
        self._back_ended = not (output.is_socket and caller.offer.two_way)
        self._goodbye: asyncio.Future[None] = self._failure.get_loop().create_future()
        self._delivered = False

    def take_channel(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a data connection if it is this session's and still missing."""
        return self._arrivals.take(preamble, sock)

    async def take_again(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a connection that broke and was opened again, if it is this session's."""
        return self._rejoin is not None and await self._rejoin.take(preamble, sock)

    async def run(self) -> Summary:
        """Take it all.  Once per object.  Raises as :meth:`TunnelListener.receive` does."""
        try:
            self._offer.check()
            self._watch(self._peer.failure)
            port = await self._first(
                asyncio.ensure_future(self._output.open(self._policy.connect_timeout))
            )
            await self._open_channels(port)
            await self._load()
            await finish(self._deliver())
            await self._part()
            self.summary.outcome = "completed"
        except BaseException as caught:
            at = self._lane.offset if self._lane is not None else 0
            await self._give_up(caught, self._meant(caught, self._output.name, "writing", at))
        finally:
            await finish(self._close())
        return self.summary

    async def _open_channels(self, port: Port) -> None:
        """ACCEPT; then the data connections arrive by way of the listener."""
        offer, policy = self._offer, self._policy
        self._arrivals.want(offer.channels)
        await self._peer.send(messages.Accept(load_seconds=0.0))
        sockets = await self._arrivals.collect(self._failure, policy.connect_timeout)
        self._lane = InLane("stream", port)
        self._lane.title = TITLE
        self._in = Inbound(
            [self._lane],
            sockets,
            chunk_size=offer.chunk_size,
            digests=offer.digests,
            signal_fd=self._signal,
            window=offer.window,
            keys=[self._keys.frames(number) for number in range(offer.channels)],
        )
        if offer.window:
            self._peer.resumable = True
            limit = min(offer.reconnect_seconds, policy.reconnect_limit)
            self._rejoin = Rejoin(self._keys, self._peer, self._in, limit=limit)
            self._beside(self._rejoin.run(), "rejoin")
        seen = offer.digests or offer.window or self._keys.keyed
        await self._peer.send(messages.Ready(splice=port.takes_pages and not seen))

    async def _load(self) -> None:
        """The stream, to its end."""
        inbound, lane = self._in, self._lane
        assert inbound is not None
        assert lane is not None
        self._began = time.monotonic()
        self._beside(self._follow(), "follow")
        if self._output.is_socket:
            self._beside(self._carry_back(), "back")
        pumps = [
            in_thread(inbound.receive, number, name=f"channel-{number}")
            for number in range(len(inbound.channels))
        ]
        await self._run_pumps(
            pumps,
            stop=inbound.stop,
            busy=lambda: {self._output.name: lane.offset} if lane.busy else {},
            patience=self._policy.stall_timeout,
        )
        if not lane.ended:
            await last_words(self._peer.failure)
            raise PeerLost(
                f"the source ended the connection after {lane.offset} bytes, before the stream's end"
            )

    def _tick(self) -> None:
        if self._lane is not None and not self._lane.frames:
            self._began = time.monotonic()  # the input's other end may be long in coming

    async def _follow(self) -> None:
        """What the source says: that its input's other end has what was said, and that all is over."""
        while True:
            said = await self._peer.expect(
                messages.BackTaken, messages.Goodbye, timeout=None, what="its goodbye"
            )
            if isinstance(said, messages.BackTaken):
                self._taken.set()
                continue
            if not self._delivered:
                raise ProtocolError(f"{self._peer.peer} said goodbye before the stream's end")
            self._goodbye.set_result(None)
            return

    async def _carry_back(self) -> None:
        """What the output's other end says goes back to the input's."""
        while True:
            data = await self._output.hear(_BACK_SIZE)
            if data and not self._offer.two_way:
                raise EndError(
                    self._output.name,
                    "its reader talks back, and the source's input takes nothing back",
                    0,
                )
            if self._offer.two_way:
                self._taken.clear()
                await self._peer.send(messages.Back(data=data))
                await self._taken.wait()
            self.summary.bytes_back += len(data)
            if not data:
                self._back_ended = True
                return

    async def _deliver(self) -> None:
        """Finish the output, and say so.  Not to be interrupted: whoever reads it finds its end."""
        assert self._lane is not None
        await in_thread(self._output.finish, name="finish")
        self._delivered = True
        size, digest = self._lane.offset, self._lane.digest
        await self._peer.send(messages.Delivered(size=size, digest=digest))

    async def _part(self) -> None:
        """Wait for the source's goodbye.  Where nothing more can come back, it only is politeness."""
        try:
            await self._first(self._goodbye)
        except PeerError as error:
            if not self._back_ended:
                raise
            log.warning("all has arrived, but the source may not know: %s", str(error))

    async def _close(self) -> None:
        """Close everything; the output, unless it is whole, as something that failed."""
        summary = self.summary
        summary.seconds = time.monotonic() - self._began
        self._rejoin = None
        await self._end_tasks()
        if self._in is not None:
            assert self._lane is not None
            summary.bytes, summary.bytes_wire = self._lane.offset, self._lane.wire_bytes
            summary.digest = f"{self._lane.digest:08x}" if self._offer.digests else ""
            self._in.close(stuck=self._stuck)
        if not self._stuck:
            self._output.close(whole=self._delivered)
        self._arrivals.close(given=self._in is not None)
        await self._peer.close()
        os.close(self._signal)

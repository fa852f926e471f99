"""The source's side of a tunnel.  Reads from top to bottom, step by step."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

from vfioflow._fdio import Port
from vfioflow._outlane import END
from vfioflow.errors import IntegrityError, ProtocolError
from vfioflow.lanes import TICK, Outbound
from vfioflow.policy import Policy
from vfioflow.reconnect import Redial
from vfioflow.threads import finish, in_thread
from vfioflow.tunnel.ends import Input
from vfioflow.tunnel.side import TITLE, Side
from vfioflow.tunnel.summary import Summary
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.greeting import call
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble, Role, connect
from vfioflow.wire.security import Security

__all__ = ["Sender", "send"]

log = logging.getLogger("vfioflow")

_WITHOUT_END = 2**63


async def send(
    source: str, to: str, *, policy: Policy | None = None, security: Security | None = None
) -> Summary:
    """Move one stream of bytes to the tunnel's destination that listens at ``to``.

    Returns when all of it, and its end, is in the output there.

    Args:
        source: "-" (standard input), "fd:N" (which this closes), "unix:PATH" (takes one connection there),
            or the path of a file or FIFO.
        to: "tcp://HOST:PORT".
        policy: ``channels``, ``compression`` and what else concerns the wire.
        security: as in :func:`vfioflow.migrate`.

    Raises:
        ConfigError: an argument is wrong.  Nothing was read.
        EndError: the input cannot be read.
        PeerError: the destination is not there, or failed.
        asyncio.CancelledError: cancelled; the output there was not finished.
    """
    return await Sender(source, to, policy=policy, security=security).run()


class Sender(Side):
    """One tunnel, seen from the source.  Made in a running loop."""

    def __init__(
        self,
        source: str,
        to: str,
        *,
        policy: Policy | None = None,
        security: Security | None = None,
    ) -> None:
        self._address = Address.parse(to)
        self._guard = (security or Security()).for_source(self._address.host)
        self._input = Input(source)
        super().__init__(
            policy or Policy(),
            Summary(
                role="source",
                session=uuid.uuid4().hex,
                peer=str(self._address),
                end=self._input.name,
            ),
        )
        self.announce: Callable[[], None] = lambda: None
        """Called when all is ready, and somebody has yet to connect to the input."""
        self._out: Outbound | None = None
        self._keys: Keys | None = None
        self._redial: Redial | None = None
        self._arrived = asyncio.Event()
        self._ended = False
        self._delivered: asyncio.Future[messages.Delivered] = (
            self._failure.get_loop().create_future()
        )
        self._back_ended = asyncio.Event()

    async def run(self) -> Summary:
        """Move it all.  Once per object.  Raises as :func:`send` does."""
        try:
            self._input.prepare()
            await self._connect()
            await self._offer()
            await self._pump()
            await self._confirm()
            self.summary.outcome = "completed"
        except BaseException as caught:
            at = self._out.lanes[0].offset if self._out is not None else 0
            await self._give_up(caught, self._meant(caught, self._input.name, "reading", at))
        finally:
            await finish(self._close())
        return self.summary

    async def _connect(self) -> None:
        """HELLO, both ways."""
        self._control, self._keys = await call(
            self._address, self.summary.session, self._guard, self._policy.connect_timeout
        )
        self._control.patience = 2 * self._policy.stall_timeout
        self._watch(self._control.failure)

    async def _offer(self) -> None:
        """TUNNEL; once the output is open there, the data connections."""
        assert self._keys is not None
        control, policy = self._peer, self._policy
        count = self.summary.channels = policy.channel_count(1)
        await control.send(
            messages.Tunnel(
                two_way=self._input.two_way,
                channels=count,
                chunk_size=policy.frame_size,
                digests=policy.digest,
                window=policy.window_size(count),
                reconnect_seconds=policy.reconnect_timeout,
            )
        )
        limit = policy.connect_timeout + policy.stall_timeout  # it waits for its output's reader
        await control.expect(messages.Accept, timeout=limit, what="word that its output is open")
        sockets = []
        try:
            for number in range(count):
                preamble = Preamble(Role.DATA, number, self._keys.token(Role.DATA, number, 0))
                sockets.append(
                    await connect(self._address, preamble, policy.connect_timeout, self._guard)
                )
            ready = await control.expect(
                messages.Ready, timeout=policy.connect_timeout, what="word that it is ready"
            )
            keys = [self._keys.frames(number) for number in range(count)]
            self._out = Outbound(["stream"], sockets, policy, splice=ready.splice, keys=keys)
            self._out.lanes[0].title = TITLE
        finally:
            if self._out is None:
                for sock in sockets:
                    sock.close()
        if policy.reconnect_timeout:
            control.resumable = True
            self._redial = Redial(
                self._address,
                self._guard,
                self._keys,
                control,
                self._out,
                patience=lambda: policy.reconnect_timeout,
                observer=None,
            )
            self._beside(self._redial.run(), "redial")

    async def _pump(self) -> None:
        """Everything, to the input's end.  That may be long in coming: only the wire must not stand still."""
        out = self._out
        assert out is not None
        self._beside(self._follow(), "follow")
        if self._input.waits:
            self.announce()
        port = await self._first(asyncio.ensure_future(self._input.arrive()))
        self._began = time.monotonic()
        self._arrived.set()
        log.info("moving %s to %s", self._input.name, self._address)
        await self._drive(out, in_thread(self._move, out, port, name="input"))
        self._ended = True
        await self._drive(out, in_thread(out.end, name="end"))

    def _move(self, out: Outbound, port: Port) -> None:
        (lane,) = out.lanes
        if lane.pump(port, _WITHOUT_END, precopy=False) == END:
            lane.end()

    async def _drive(self, out: Outbound, pump: asyncio.Future[None]) -> None:
        def busy() -> dict[str, int]:
            unsent = out.unsent()
            moved = sum(channel.wire_bytes for channel in out.channels) - unsent
            return {"the wire": moved} if unsent else {}

        # Longer than the destination waits for its output: it knows the reason.
        patience = 2 * self._policy.stall_timeout
        await self._run_pumps([pump], stop=out.stop, busy=busy, patience=patience)

    async def _follow(self) -> None:
        """What the destination says: what its output's other end does, and that all has arrived."""
        while True:
            said = await self._peer.expect(
                messages.Back, messages.Delivered, timeout=None, what="word of its output"
            )
            if isinstance(said, messages.Delivered):
                if not self._ended or self._delivered.done():
                    raise ProtocolError(f"{self._peer.peer} says that it has what was not sent")
                self._delivered.set_result(said)
                continue
            if not self._input.two_way or self._back_ended.is_set():
                raise ProtocolError(f"{self._peer.peer} sends bytes back that nobody takes")
            await self._arrived.wait()
            await self._input.give_back(said.data)
            self.summary.bytes_back += len(said.data)
            if not said.data:
                self._back_ended.set()
            await self._peer.send(messages.BackTaken())

    async def _confirm(self) -> None:
        """DELIVERED, of just what was sent; then nothing more can come back either."""
        assert self._out is not None
        (lane,) = self._out.lanes
        delivered = await self._first(self._delivered)
        if (delivered.size, delivered.digest) != (lane.offset, lane.digest):
            raise IntegrityError(
                f"{lane.offset} bytes were sent with digest {lane.digest:08x}, {delivered.size} arrived"
                f" with {delivered.digest:08x}"
            )
        if self._input.two_way:
            await self._first(asyncio.ensure_future(self._nothing_back()))
        await self._peer.send(messages.Goodbye())

    async def _nothing_back(self) -> None:
        """Until the output's other end has no more to say, or nobody is here to hear it."""
        while not self._back_ended.is_set() and not self._input.hung_up():
            ended = asyncio.ensure_future(self._back_ended.wait())
            try:
                await asyncio.wait([ended], timeout=TICK)
            finally:
                ended.cancel()

    async def _close(self) -> None:
        """Close everything; whoever writes into the input finds that out."""
        summary = self.summary
        summary.seconds = time.monotonic() - self._began
        await self._end_tasks()
        if self._redial is not None:
            summary.reconnects = self._redial.reconnects
        if self._out is not None:
            (lane,) = self._out.lanes
            summary.bytes, summary.bytes_wire = lane.offset, lane.wire_bytes
            summary.digest = f"{lane.digest:08x}" if self._policy.digest else ""
            self._out.close(stuck=self._stuck)
        if not self._stuck:
            self._input.close()
        if self._control is not None:
            await self._control.close()

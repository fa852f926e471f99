"""The control connection of a session: typed messages, in order, both ways."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any, TypeVar, overload

import msgspec

from vfioflow.errors import IntegrityError, PeerError, PeerLost, ProtocolError, RemoteError
from vfioflow.wire import messages
from vfioflow.wire.keys import TAG_SIZE, Keys, Side
from vfioflow.wire.opening import peer_of, read_exactly, send_all
from vfioflow.wire.trouble import printable

__all__ = ["Control", "MAX_MESSAGE"]

_HEAD = struct.Struct("<II")
"""Length of the message, and how many messages its sender has heard."""

_SIGN = bytes(_HEAD.size)
"""A sign of life: a head of zeros.  It is no message, has no number and no tag."""

_EVERY = 1.0
"""Seconds between two signs of life."""

MAX_MESSAGE = 1024 * 1024
"""Longest control message in bytes.  An offer of 4096 devices is about half of it."""

_LAST_WORDS = 1.0
"""Seconds to take what a broken connection has still brought."""

_MOST_UNHEARD = 64
"""Messages to keep for a peer that does not say that it heard them."""

M = TypeVar("M", bound=messages.Message)
N = TypeVar("N", bound=messages.Message)
P = TypeVar("P", bound=messages.Message)
Q = TypeVar("Q", bound=messages.Message)


class Control:
    """The control connection of a session: typed messages, in order, both ways.

    One reader task takes what arrives.  :attr:`failure` is done as soon as the peer says Failed,
    breaks the protocol, or is gone; a session watches it while it does other things.

    Once :attr:`resumable` is set, a connection that breaks does not fail: :attr:`lost` is set until
    :meth:`resume` brings another one, on which what the peer has not heard is sent again.

    Every second this side gives a sign of life.  With :attr:`patience`, a peer that gives none for so
    many seconds, and at least three, counts as lost: its process hangs, or its host.

    Args:
        sock: the connection, on which the greetings were exchanged.
        keys: what messages are tagged with, if there is a pre-shared key.
        side: which side this is.
        greeted: messages that each side has sent and heard by then.
    """

    def __init__(
        self, sock: socket.socket, *, keys: Keys | None = None, side: Side, greeted: int = 0
    ) -> None:
        self.peer = peer_of(sock)
        self._sock = sock
        other: Side = "destination" if side == "source" else "source"
        self._mine = keys.seal(side) if keys is not None else None
        self._theirs = keys.seal(other) if keys is not None else None
        self._inbox: asyncio.Queue[messages.Message] = asyncio.Queue(maxsize=16)
        self._sending = asyncio.Lock()
        self._sent = greeted
        self._unheard: deque[bytes] = deque()
        self._closed = False
        self._signs = 0
        self.patience: float | None = None
        self.resumable = False
        self.lost = asyncio.Event()
        self.heard = greeted
        """Messages that have arrived."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._reader = asyncio.create_task(self._read(), name="vfioflow-control")
        self._living = [asyncio.create_task(self._live()), asyncio.create_task(self._watch())]

    async def send(self, message: messages.Message) -> None:
        """Send a message; while the connection is lost, keep it for the next.  Raises PeerLost."""
        data = messages.encode(message)
        async with self._sending:
            self._sent += 1
            self._unheard.append(data)
            if len(self._unheard) > _MOST_UNHEARD:
                self._fail(ProtocolError(f"{self.peer} does not say that it hears anything"))
                self.failure.result()
            if not self.lost.is_set():
                await self._put(self._sent, data)

    async def _put(self, number: int, data: bytes) -> None:
        data = _HEAD.pack(len(data), self.heard) + data
        if self._mine is not None:
            data += self._mine.tag(number, data)
        await self._transmit(data)

    async def _transmit(self, data: bytes) -> None:
        """Put bytes on the wire, for as long as the peer is there.  Raises PeerError."""
        sending = asyncio.create_task(send_all(self._sock, data))
        waited: set[asyncio.Future[None]] = {sending, self.failure}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self.failure.result()
            sending.result()
        except PeerLost as error:
            if self.failure.done():
                raise
            lost = PeerLost(f"the connection to {self.peer} failed: {error}")
            if not self.resumable:
                raise lost from None
            self._lose(lost)
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})

    @overload
    async def expect(self, kind: type[M], /, *, timeout: float | None, what: str) -> M: ...
    @overload
    async def expect(
        self, kind: type[M], other: type[N], /, *, timeout: float | None, what: str
    ) -> M | N: ...
    @overload
    async def expect(
        self, kind: type[M], other: type[N], third: type[P], /, *, timeout: float | None, what: str
    ) -> M | N | P: ...
    @overload
    async def expect(
        self,
        kind: type[M],
        other: type[N],
        third: type[P],
        fourth: type[Q],
        /,
        *,
        timeout: float | None,
        what: str,
    ) -> M | N | P | Q: ...

    async def expect(self, *kinds: type[Any], timeout: float | None, what: str) -> Any:
        """The next message, which must be of one of these kinds.

        Raises:
            ProtocolError: it is of another kind.
            RemoteError: the peer said Failed.
            PeerLost: the peer is gone, or silent for ``timeout`` seconds; ``what`` names what
                was waited for.
        """
        getter = asyncio.create_task(self._inbox.get())
        waited: set[asyncio.Future[Any]] = {getter, self.failure}
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise PeerLost(f"{self.peer} did not send {what} within {timeout:g} s") from None
        finally:
            if not getter.done():
                getter.cancel()
        if not getter.done() or getter.cancelled():
            self.failure.result()
        message = getter.result()
        if not isinstance(message, kinds):
            self._fail(
                ProtocolError(f"{self.peer} sent {type(message).__name__} instead of {what}")
            )
            self.failure.result()
        return message

    async def resume(self, sock: socket.socket, heard: int) -> int:
        """Go on over another connection, whose peer has heard so many messages.  Owns it.

        Returns how many were sent again.

        Raises:
            ProtocolError: it cannot have; or has forgotten some that it had heard.
            PeerLost: closed meanwhile.
        """
        with ExitStack() as owned:
            owned.callback(sock.close)
            async with self._sending:
                if self._closed:
                    raise PeerLost("the session has ended")
                self._acknowledge(heard)
                owned.pop_all()
                self._sock.close()
                self._sock = sock
                self.lost.clear()
                self._reader = asyncio.create_task(self._read(), name="vfioflow-control")
                first = self._sent - len(self._unheard) + 1
                again = list(self._unheard)
                for number, data in enumerate(again, first):
                    await self._put(number, data)
                return len(again)

    async def break_off(self) -> None:
        """Be done with the connection; from then on :attr:`heard` stands still until it is resumed."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait([self._reader], timeout=_LAST_WORDS)
        self._reader.cancel()
        await asyncio.wait([self._reader])

    def give_up(self, error: PeerError) -> None:
        """Nobody brought another connection, or the session ends for a reason that did not come by it."""
        self._fail(error)

    async def _live(self) -> None:
        """Give signs of life."""
        with suppress(PeerError):  # the reader finds that too, and why
            while True:
                await asyncio.sleep(_EVERY)
                if not self.lost.is_set() and not self._sending.locked():
                    async with self._sending:
                        await self._transmit(_SIGN)

    async def _watch(self) -> None:
        # Not by the clock, which goes on while this process is suspended.
        silent = 0
        while True:
            signs = self._signs
            await asyncio.sleep(_EVERY)
            waited = not (self.lost.is_set() or self._inbox.full())
            silent = silent + 1 if waited and self._signs == signs else 0
            if self.patience is not None and silent * _EVERY > max(self.patience, 2 * _EVERY):
                self._fail(PeerLost(f"{self.peer} has given no sign of life for {silent} s"))
                return

    def _acknowledge(self, heard: int) -> None:
        forgotten = self._sent - len(self._unheard)
        if not forgotten <= heard <= self._sent:
            raise ProtocolError(
                f"{self.peer} says that it heard {heard} messages of {self._sent}, and before,"
                f" that it had heard {forgotten}"
            )
        while self._sent - len(self._unheard) < heard:
            self._unheard.popleft()

    async def _read(self) -> None:
        try:
            while True:
                head = await read_exactly(self._sock, _HEAD.size)
                self._signs += 1
                if head == _SIGN:
                    continue
                size, heard = _HEAD.unpack(head)
                if not 0 < size <= MAX_MESSAGE:
                    raise ProtocolError(f"{self.peer} announced a control message of {size} bytes")
                data = await read_exactly(self._sock, size)
                if self._theirs is not None:
                    tag = await read_exactly(self._sock, TAG_SIZE)
                    if not self._theirs.fits(tag, self.heard + 1, head + data):
                        raise IntegrityError(
                            f"a control message from {self.peer} was changed on the way: its tag is"
                            " wrong"
                        )
                message = messages.decode(data)
                self._acknowledge(heard)
                if isinstance(message, messages.Failed):
                    raise RemoteError(f"{self.peer} gave up: {printable(message.reason)}")
                await self._inbox.put(message)
                self.heard += 1
        except msgspec.DecodeError as error:
            said = printable(str(error))
            self._fail(ProtocolError(f"{self.peer} sent a control message that is none: {said}"))
        except PeerLost as error:
            self._lose(PeerLost(f"{self.peer}: {error}"))
        except PeerError as error:
            self._fail(error)

    def _lose(self, error: PeerLost) -> None:
        if not self.resumable:
            self._fail(error)
        elif not self.failure.done():
            self.lost.set()

    def _fail(self, error: Exception) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    async def close(self) -> None:
        """Close the connection and end the reader."""
        self._closed = True
        tasks = [self._reader, *self._living]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if not self.failure.done():
            self.failure.cancel()
        self._sock.close()

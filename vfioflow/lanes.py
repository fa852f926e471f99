"""Running the pumps of a session: threads, progress, stalls and the way they all end together."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import socket
import termios
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import repeat
from typing import TypeVar

from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._crew import Crew
from vfioflow._fdio import Cancel
from vfioflow._inlane import InLane, Receiver
from vfioflow._outlane import OutLane
from vfioflow._waits import Limiter
from vfioflow.errors import ConfigError, PeerLost, RemoteError, ResourceError, StallError
from vfioflow.policy import Policy
from vfioflow.threads import in_thread, settle
from vfioflow.wire.opening import HEARD, send_all

__all__ = ["Inbound", "Outbound", "drive", "last_words"]

T = TypeVar("T")

TICK = 0.1
"""Seconds between two looks at the counters."""

_JOBS_PER_THREAD = 4
"""Chunks under way for each compressor: enough that none waits while a frame goes out."""

_LAST_WORDS = 1.0
"""Seconds to wait, when a data connection breaks, for the peer's reason."""


class _Ends:
    """One side's connections, and the switch that ends its pumps.  Owns the sockets."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        window: int,
        keys: Sequence[bytes],
        sender: bool = False,
    ) -> None:
        self._closed = False
        self._sockets = list(sockets)
        self.cancel = Cancel()
        with ExitStack() as owned:
            self.broken_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            """Readable when a connection broke."""
            owned.callback(os.close, self.broken_fd)
            self.channels = [
                Channel(sock, window, sender=sender, signal_fd=self.broken_fd, key=key)
                for sock, key in zip(sockets, keys or repeat(b""), strict=False)
            ]
            owned.pop_all()

    def stop(self) -> None:
        """Make every pump return soon.  The channels cannot be used afterwards."""
        self.cancel.set()
        for sock in self._sockets:
            _shut_down(sock)

    def close(self, *, stuck: bool) -> None:
        """Close the sockets; where a pump is ``stuck``, as soon as it is done with them."""
        self._closed = True
        for sock, channel in zip(self._sockets, self.channels, strict=True):
            if stuck:
                channel.keep()
            else:
                sock.close()
        os.close(self.broken_fd)

    def _replace(self, number: int, sock: socket.socket) -> socket.socket:
        """Put another connection into the place of one that broke, which is returned, shut down."""
        old = self._sockets[number]
        _shut_down(old)
        self._sockets[number] = sock
        return old


class Outbound(_Ends):
    """The source's lanes and channels.

    ``keys`` are of the channels' frames; empty: they have no tags.
    ``splice``: the destination passes bytes on to its devices by splice (it says so in READY).
    """

    def __init__(
        self,
        names: Sequence[str],
        sockets: Sequence[socket.socket],
        policy: Policy,
        *,
        splice: bool,
        keys: Sequence[bytes] = (),
    ) -> None:
        window = policy.window_size(len(sockets))
        super().__init__(sockets, window=window, keys=keys, sender=True)
        self.limiter = Limiter(policy.max_bandwidth or 0)
        self._frame_size = policy.frame_size
        threads = policy.thread_count
        spare_jobs = _JOBS_PER_THREAD * threads
        # A pump holds one buffer, a compressor one besides its jobs, a probe one per channel.
        pumps = len(names) + threads + spare_jobs
        self._crew = None
        with ExitStack() as undo:
            undo.callback(os.close, self.broken_fd)
            self.pool = Pool(policy.frame_size, max(pumps, len(sockets)))
            if threads:
                self._crew = Crew(threads, self.pool, spare_jobs, level=policy.zstd_level)
                undo.callback(self._crew.close)
                try:
                    self._crew.start()
                except RuntimeError:
                    raise ResourceError(errno.EAGAIN, f"no {threads} threads") from None
            self.lanes = [
                OutLane(
                    name,
                    index,
                    self._share(index, len(names)),
                    self.pool,
                    self.cancel,
                    self.limiter,
                    digests=policy.digest,
                    crew=self._crew,
                    splice=splice,
                    crowded=len(names) > len(os.sched_getaffinity(0)),
                )
                for index, name in enumerate(names)
            ]
            undo.pop_all()

    def _share(self, index: int, lanes: int) -> list[Channel]:
        """The channels of a lane: with enough of them its own, else one that it shares."""
        if len(self.channels) <= lanes:
            return [self.channels[index % len(self.channels)]]
        return self.channels[index::lanes]

    def close(self, *, stuck: bool) -> None:
        """Close the sockets and end the compressors; where a pump is ``stuck``, as soon as it is done."""
        super().close(stuck=stuck)
        if self._crew is not None:
            self._crew.close(wait=not stuck)

    def limit(self, policy: Policy) -> None:
        """Take the bandwidth limit of ``policy`` from now on.  Raises ConfigError: too low for its frames."""
        rate = policy.max_bandwidth
        if rate is not None and rate < (
            least := math.ceil(self._frame_size * 8 / policy.stall_timeout)
        ):
            raise ConfigError(
                f"max_bandwidth={rate}: at least {least} bytes per second, once frames of"
                f" {self._frame_size} bytes are agreed on; a migration that begins with a low one"
                " takes smaller frames"
            )
        self.limiter.rate = rate or 0

    def unsent(self) -> int:
        """Bytes that the peer has not yet acknowledged receiving (``SIOCOUTQ``)."""
        count = array("i", [0])
        total = 0
        for sock in self._sockets:
            fcntl.ioctl(sock, termios.TIOCOUTQ, count)
            total += count[0]
        return total

    def end(self) -> None:
        """Say on every channel that nothing more comes.  Blocking.  Raises PeerLost."""
        for channel in self.channels:
            channel.finish(self.cancel)

    async def resume(self, number: int, sock: socket.socket, heard: int) -> None:
        """Go on over another connection, whose peer has dealt with ``heard`` bytes.  Owns it.

        Raises:
            ProtocolError: it cannot have.
            PeerLost: given up meanwhile.
        """
        old = self._replace(number, sock)
        channel = self.channels[number]
        resumed = in_thread(channel.resume, sock, heard, self.cancel, name=f"resume-{number}")
        try:
            # The thread has the socket: nobody may close it before it has ended.
            await settle([resumed], on_cancel=lambda: _shut_down(sock))
            resumed.result()
        finally:
            old.close()


class Inbound(_Ends):
    """The destination's lanes and channels.  ``keys`` as in :class:`Outbound`."""

    def __init__(
        self,
        lanes: Sequence[InLane],
        sockets: Sequence[socket.socket],
        *,
        chunk_size: int,
        digests: bool,
        signal_fd: int,
        window: int = 0,
        keys: Sequence[bytes] = (),
    ) -> None:
        super().__init__(sockets, window=window, keys=keys)
        self._resuming = [asyncio.Lock() for _ in sockets]
        self.lanes = list(lanes)
        with ExitStack() as undo:
            undo.callback(os.close, self.broken_fd)
            pool = Pool(chunk_size, 2 * len(self.channels))
            self.receiver = Receiver(self.lanes, pool, self.cancel, signal_fd, digests=digests)
            undo.pop_all()

    @property
    def pad_bytes(self) -> int:
        """Pad bytes received on all channels."""
        return sum(channel.pad_bytes for channel in self.channels)

    def receive(self, number: int) -> bool:
        """See :meth:`Receiver.receive`.  Blocking."""
        return self.receiver.receive(self.channels[number])

    async def resume(self, number: int, sock: socket.socket, answer: bytes) -> None:
        """Go on over another connection, once ``answer`` and how far the old one got are sent on it.

        Owns it unless it raises PeerLost: it is gone already, or the session ends.
        """
        channel = self.channels[number]
        async with self._resuming[number]:
            if self._closed:
                raise PeerLost("the session has ended")
            _shut_down(self._sockets[number])
            heard = await in_thread(channel.park, self.cancel, name=f"park-{number}")
            if heard is None:
                raise PeerLost("the session ends")
            await send_all(sock, answer + HEARD.pack(heard))
            if self._closed:
                raise PeerLost("the session has ended")
            old = self._replace(number, sock)
            channel.unpark(sock)
            old.close()


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


async def drive(
    futures: Sequence[asyncio.Future[T]],
    *,
    stop: Callable[[], None],
    failure: asyncio.Future[None],
    busy: Callable[[], Mapping[str, int]],
    stall_timeout: float,
    stalled: Callable[[StallError], Awaitable[None]],
    tick: Callable[[], None],
) -> list[T]:
    """Wait for pumps that run on threads; the one place where they end together.

    When one fails, when the peer does (``failure``), when something is ``busy`` and does not move
    for ``stall_timeout`` seconds, or on cancellation, ``stop`` is called, all are waited for, and
    the reason is raised.  ``busy`` tells how far each that has something to do has come; it and
    ``tick`` are called ten times a second.  A device that hangs may not let go of its pump, so what
    is wrong is told to ``stalled`` before that is waited for.

    Raises:
        StallError: nothing moved.
        VfioflowError: the first failure; what the peer said goes before a connection that broke.
    """
    loop = asyncio.get_running_loop()
    seen: dict[str, tuple[int, float]] = {}
    waiting = set(futures)
    try:
        while waiting:
            watched: set[asyncio.Future[T] | asyncio.Future[None]] = {*waiting, failure}
            await asyncio.wait(watched, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
            done = [future for future in waiting if future.done()]
            waiting.difference_update(done)
            if failure.done() and (waiting or any(future.exception() for future in done)):
                failure.result()
            for future in done:
                future.result()
            tick()
            now, before = loop.time(), seen
            seen = {}
            for name, moved in busy().items():
                old = before.get(name)
                seen[name] = old if old is not None and old[0] == moved else (moved, now)
            still = [name for name, (_, since) in seen.items() if now - since > stall_timeout]
            if waiting and still:
                raise StallError(f"{', '.join(still)}: nothing has moved for {stall_timeout:g} s")
    except StallError as error:
        await stalled(error)
        raise
    except PeerLost:
        await last_words(failure)
        raise
    finally:
        if waiting:
            stop()
            await settle(waiting, timeout=stall_timeout)
            for future in waiting:
                if future.done() and not future.cancelled():
                    future.exception()
    return [future.result() for future in futures]


async def last_words(failure: asyncio.Future[None]) -> None:
    """Raise what the peer says about a broken connection, if it says it soon."""
    await asyncio.wait([failure], timeout=_LAST_WORDS)
    if failure.done() and isinstance(failure.exception(), RemoteError):
        failure.result()

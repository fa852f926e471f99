"""Running the pumps of a session: threads, progress, stalls and the way they all end together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import termios
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from vfioflow._buffers import Pool
from vfioflow._channel import Channel, Limiter
from vfioflow._crew import Crew
from vfioflow._fdio import Cancel
from vfioflow._inlane import InLane, Receiver
from vfioflow._outlane import OutLane
from vfioflow.errors import PeerLost, RemoteError, StallError
from vfioflow.policy import Policy
from vfioflow.threads import settle

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

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = list(sockets)
        self.cancel = Cancel()
        self.channels = [Channel(sock) for sock in sockets]

    def stop(self) -> None:
        """Make every pump return soon.  The channels cannot be used afterwards."""
        self.cancel.set()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self, *, stuck: bool) -> None:
        """Close the sockets; where a pump is ``stuck``, as soon as it is done with them."""
        for sock, channel in zip(self._sockets, self.channels, strict=True):
            if stuck:
                channel.keep()
            else:
                sock.close()


class Outbound(_Ends):
    """The source's lanes and channels.

    ``splice``: the destination passes bytes on to its devices by splice (it says so in READY).
    """

    def __init__(
        self,
        names: Sequence[str],
        sockets: Sequence[socket.socket],
        policy: Policy,
        *,
        splice: bool,
    ) -> None:
        super().__init__(sockets)
        self.limiter = Limiter(policy.max_bandwidth or 0)
        threads = policy.thread_count
        spare_jobs = _JOBS_PER_THREAD * threads
        # A pump holds one buffer, a compressor one besides its jobs, a probe one per channel.
        pumps = len(names) + threads + spare_jobs
        self.pool = Pool(policy.frame_size, max(pumps, len(sockets)))
        self._crew = None
        if threads:
            self._crew = Crew(threads, self.pool, spare_jobs, level=policy.zstd_level)
            self._crew.start()
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

    def unsent(self) -> int:
        """Bytes that the peer has not yet acknowledged receiving (``SIOCOUTQ``)."""
        count = array("i", [0])
        total = 0
        for sock in self._sockets:
            fcntl.ioctl(sock, termios.TIOCOUTQ, count)
            total += count[0]
        return total

    def end(self) -> None:
        """Say on every channel that nothing more comes."""
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)


class Inbound(_Ends):
    """The destination's lanes and channels."""

    def __init__(
        self,
        lanes: Sequence[InLane],
        sockets: Sequence[socket.socket],
        *,
        chunk_size: int,
        digests: bool,
        signal_fd: int,
    ) -> None:
        super().__init__(sockets)
        self.lanes = list(lanes)
        self.receiver = Receiver(
            self.lanes,
            Pool(chunk_size, 2 * len(self.channels)),
            self.cancel,
            signal_fd,
            digests=digests,
        )

    @property
    def pad_bytes(self) -> int:
        """Pad bytes received on all channels."""
        return sum(channel.pad_bytes for channel in self.channels)


async def drive(
    futures: Sequence[asyncio.Future[T]],
    *,
    stop: Callable[[], None],
    failure: asyncio.Future[None],
    moved: Callable[[], int],
    busy: Callable[[], list[str]],
    stall_timeout: float,
    tick: Callable[[], None],
) -> list[T]:
    """Wait for pumps that run on threads; the one place where they end together.

    When one fails, when the peer does (``failure``), when nothing has ``moved`` for
    ``stall_timeout`` seconds although some device is ``busy``, or on cancellation, ``stop`` is
    called, all are waited for, and the reason is raised.  ``tick`` is called ten times a second.

    Raises:
        StallError: nothing moved.
        VfioflowError: the first failure; what the peer said goes before a connection that broke.
    """
    loop = asyncio.get_running_loop()
    last, since = moved(), loop.time()
    waiting = set(futures)
    try:
        while waiting:
            watched: set[asyncio.Future[T] | asyncio.Future[None]] = {*waiting, failure}
            await asyncio.wait(watched, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
            for future in [f for f in waiting if f.done()]:
                waiting.discard(future)
                future.result()
            if failure.done() and waiting:
                failure.result()
            tick()
            now = moved()
            names = busy()
            if now != last or not names:
                last, since = now, loop.time()
            elif waiting and loop.time() - since > stall_timeout:
                raise StallError(f"{', '.join(names)}: nothing has moved for {stall_timeout:g} s")
    except PeerLost:
        await last_words(failure)
        raise
    finally:
        if waiting:
            stop()
            await settle(waiting, timeout=stall_timeout)
            for future in waiting:
                if future.done():
                    future.exception()
    return [future.result() for future in futures]


async def last_words(failure: asyncio.Future[None]) -> None:
    """Raise what the peer says about a broken connection, if it says it soon."""
    await asyncio.wait([failure], timeout=_LAST_WORDS)
    if failure.done() and isinstance(failure.exception(), RemoteError):
        failure.result()

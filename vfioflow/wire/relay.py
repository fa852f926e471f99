"""A thread between a TLS connection and a pair of plain sockets, of which the other end is used.

It moves as much as there is, up to a few hundred KiB, with each call, and holds nothing else.  Only
this thread uses the TLS connection: OpenSSL's may not be shared.
"""

from __future__ import annotations

import atexit
import select
import socket
import ssl
import threading
import time
import weakref
from contextlib import ExitStack, suppress
from typing import Self

from vfioflow.errors import PeerError
from vfioflow.wire.address import Address
from vfioflow.wire.trouble import reason

__all__ = ["Tunnel"]

_BUFFER = 512 * 1024
_RECORD = 16 * 1024
"""Most that one read of TLS gives."""

_LINGER = 10.0
"""Seconds to send what is left once nobody uses the other end any more."""

_LAST_WORDS = 3.0
"""Seconds for that when the process ends."""


class Tunnel(socket.socket):
    """The plain end of a TLS connection.  Closing it, or shutting it down, does so with the connection.

    ``peer`` is who is at the other end of the connection; ``failure`` why it broke, once it has.
    """

    __slots__ = ("failure", "peer")

    peer: Address
    failure: PeerError | None

    @classmethod
    def around(cls, tls: ssl.SSLSocket, peer: Address) -> Self:
        """One on a connection whose handshake is done, which it owns."""
        near, far = socket.socketpair()
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)  # as far as it may be
        tunnel = cls(fileno=far.detach())
        tunnel.peer, tunnel.failure = peer, None
        tunnel.setblocking(False)
        relay = _Relay(tls, near, tunnel)
        thread = threading.Thread(target=relay.run, name="vfioflow-tls", daemon=True)
        _running.add(thread)
        with ExitStack() as undo:
            undo.callback(tunnel.close)
            undo.callback(relay.close)
            thread.start()
            undo.pop_all()
        return tunnel


_running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """What was sent before the end of the process goes out, as the kernel does it for a socket."""
    until = time.monotonic() + _LAST_WORDS
    for thread in list(_running):
        if thread.is_alive():
            thread.join(max(until - time.monotonic(), 0))


class _Way:
    """Bytes on their way in one direction."""

    def __init__(self) -> None:
        self.room = memoryview(bytearray(_BUFFER))
        self.begin = self.end = 0
        self.over = False
        """Nothing more comes."""
        self.told = False
        """The other side knows."""

    @property
    def held(self) -> memoryview:
        return self.room[self.begin : self.end]

    def sent(self, size: int) -> None:
        self.begin += size
        if self.begin == self.end:
            self.begin = self.end = 0


class _Relay:
    """Owns both sockets."""

    def __init__(self, tls: ssl.SSLSocket, near: socket.socket, tunnel: Tunnel) -> None:
        self._tls = tls
        self._near = near
        self._tunnel = weakref.ref(tunnel)
        self._out, self._in = _Way(), _Way()
        self._give_up_at: float | None = None
        near.setblocking(False)

    def run(self) -> None:
        """Until both directions have ended, or one has failed."""
        try:
            while not (self._out.told and self._in.told):
                moved = self._send()
                moved = self._receive() or moved
                if not moved and not self._wait():
                    break
        except OSError as error:
            if (tunnel := self._tunnel()) is not None:
                tunnel.failure = reason(error)
        finally:
            self.close()

    def close(self) -> None:
        """Close both."""
        self._tls.close()
        self._near.close()

    def _send(self) -> bool:
        """From the plain end to TLS; whether anything moved.  Raises OSError."""
        way = self._out
        if not way.end and not way.over:
            with suppress(BlockingIOError):
                try:
                    way.end = self._near.recv_into(way.room)
                except ConnectionError:  # closed, with something unread
                    self._hung_up()
                way.over = not way.end
        if way.end:
            try:
                # The same bytes again, until all of them are taken: what a TLS write must be.
                way.sent(self._tls.send(way.held))
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            return True
        if way.over and not way.told:
            way.told = True
            # Not SSLSocket's own, which forgets the keys.
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
            return True
        return False

    def _receive(self) -> bool:
        """From TLS to the plain end; whether anything moved.  Raises OSError."""
        way = self._in
        while not way.over and len(way.room) - way.end >= _RECORD:
            try:
                size = self._tls.recv_into(way.room[way.end :])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            way.end += size
            way.over = not size
        if way.end and not way.told:
            try:
                way.sent(self._near.send(way.held))
            except BlockingIOError:
                return False
            except ConnectionError:
                self._hung_up()
            return True
        if way.over and not way.told:
            way.told = True
            self._near.shutdown(socket.SHUT_WR)
            return True
        return False

    def _wait(self) -> bool:
        """Until something can move; False: nobody waits for it any more.  Raises OSError."""
        near, tls, left = 0, 0, None
        if not self._out.end and not self._out.over:
            near |= select.POLLIN
        if self._in.end:
            near |= select.POLLOUT
        if self._out.end:
            tls |= select.POLLOUT
        if not self._in.over and len(self._in.room) - self._in.end >= _RECORD:
            tls |= select.POLLIN
        poll = select.poll()
        if tls:
            poll.register(self._tls, tls)
        if self._give_up_at is None:
            poll.register(self._near, near)
        else:
            left = max(self._give_up_at - time.monotonic(), 0) * 1e3
            if not left:
                return False
        for fd, events in poll.poll(left):
            if fd == self._near.fileno() and events & (select.POLLHUP | select.POLLERR):
                self._hung_up()
        return True

    def _hung_up(self) -> None:
        """The plain end is closed: what it sent before goes out, what comes is for nobody."""
        self._in.over = self._in.told = True
        self._in.begin = self._in.end = 0
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + _LINGER

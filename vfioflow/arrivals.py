"""The data connections of a session that a destination waits for."""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import Any

from vfioflow.errors import PeerLost
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble

__all__ = ["Arrivals"]


class Arrivals:
    """Takes each of a session's data connections once.  Owns them until they are collected."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._sockets: list[socket.socket | None] = []
        self._all_here = asyncio.Event()

    def want(self, count: int) -> None:
        """From now on so many are welcome."""
        self._sockets = [None] * count

    def take(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a data connection if it is this session's and still missing; owns it then."""
        if not secrets.compare_digest(
            preamble.token, self._keys.token(preamble.role, preamble.channel, preamble.attempt)
        ):
            return False
        number = preamble.channel
        if preamble.attempt or number >= len(self._sockets) or self._sockets[number] is not None:
            return False
        self._sockets[number] = sock
        if None not in self._sockets:
            self._all_here.set()
        return True

    async def collect(self, failure: asyncio.Future[None], timeout: float) -> list[socket.socket]:
        """All of them, by number.

        Raises:
            PeerLost: some are missing after ``timeout`` seconds.
            PeerError: what ``failure`` says.
        """
        here = asyncio.create_task(self._all_here.wait())
        waited: set[asyncio.Future[Any]] = {here, failure}
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise PeerLost("the source did not open its data connections") from None
        finally:
            here.cancel()
        if failure.done():
            failure.result()
        return [sock for sock in self._sockets if sock is not None]

    def close(self, *, given: bool) -> None:
        """Take none any more; close those that were not ``given`` to somebody who owns them."""
        for sock in self._sockets:
            if sock is not None and not given:
                sock.close()
        self._sockets = []  # one that comes now finds nobody

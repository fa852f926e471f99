"""The agent: takes clients in, and ends with none of their devices left halfway."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import suppress

from vfioflow.agent.client import Client
from vfioflow.agent.connection import Connection, Incoming
from vfioflow.agent.gateway import Credentials, Gate
from vfioflow.agent.methods import ERROR_BASE, Call, dispatcher
from vfioflow.journal import Journal
from vfioflow.threads import finish

__all__ = ["Agent"]

log = logging.getLogger("vfioflow")

_MOST_CLIENTS = 64

_ACCEPT_PAUSE = 0.1
"""Seconds until clients are accepted again after that has failed."""

_FLUSH_SECONDS = 1.0
"""How long a client may take to read what it is told last."""


class Agent:
    """Serves clients on a listening UNIX socket, which stays the caller's.

    A client's migrations are its own: when it goes, those before the commit are cancelled, with every
    device back to RUNNING, and those in the hand-over are finished; then its devices are closed.
    """

    def __init__(self, sock: socket.socket, *, gate: Gate, journal: Journal | None = None) -> None:
        self._sock = sock
        self._gate = gate
        self._journal = journal
        self._dispatcher = dispatcher()
        self._clients: set[asyncio.Task[None]] = set()
        self._ending = False

    async def run(self) -> None:
        """Until it is cancelled; then as when each client goes.  Returns when all has ended."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._sock)
                except OSError as error:  # out of descriptors: those that are here go on
                    log.error("cannot accept a client: %s", error.strerror)
                    await asyncio.sleep(_ACCEPT_PAUSE)
                    continue
                sock.setblocking(False)
                if why := self._refusal(sock):
                    _refuse(sock, why)
                    continue
                task = asyncio.create_task(self._serve(sock), name="vfioflow-client")
                self._clients.add(task)
                task.add_done_callback(self._clients.discard)
        finally:
            self._ending = True
            for task in self._clients:
                task.cancel()
            if self._clients:
                await asyncio.wait(self._clients)

    def _refusal(self, sock: socket.socket) -> str:
        who = Credentials.of(sock)
        if not self._gate.lets_in(who):
            return f"{who} may not use this agent; see vfioflow agent --help, --allow-user"
        if len(self._clients) >= _MOST_CLIENTS:
            return f"there are {_MOST_CLIENTS} clients already"
        return ""

    async def _serve(self, sock: socket.socket) -> None:
        client = Client(self._journal, lambda: self._ending)

        async def handle(incoming: Incoming) -> str | None:
            text = incoming.text.decode("utf-8", "replace")
            answer = await self._dispatcher.dispatch(text, Call(client, incoming))
            return None if answer is None else answer[0]

        client.connection = Connection(sock, handle)
        connected = asyncio.create_task(client.connection.run(), name="vfioflow-connection")
        try:
            await asyncio.wait([connected])
        finally:
            # Where it is the agent that ends, the client still hears what becomes of its migrations.
            await finish(_end(client, connected))


async def _end(client: Client, connected: asyncio.Task[None]) -> None:
    await client.end()
    if not connected.done():
        await client.connection.flush(_FLUSH_SECONDS)
        connected.cancel()
        await asyncio.wait([connected])
    if not connected.cancelled() and (error := connected.exception()):
        log.warning("a client is disconnected: %s", str(error))


def _refuse(sock: socket.socket, why: str) -> None:
    log.warning("a client is refused: %s", why)
    error = {"code": ERROR_BASE, "message": why}
    with sock, suppress(OSError):
        sock.send(json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode() + b"\n")

"""One client's connection: a JSON-RPC message a line, and the descriptors that come with it.

A message that carries descriptors is sent by one sendmsg: the kernel never joins what comes after it, so
they belong to the line that the read ends in.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pjrpc.common import Request, Response
from pjrpc.common.exceptions import BaseError, JsonRpcError

from vfioflow.errors import PeerLost, ProtocolError, RemoteError

__all__ = ["MAX_FDS", "MAX_LINE", "Connection", "Incoming"]

log = logging.getLogger("vfioflow")

MAX_LINE = 8 << 20
"""Bytes of a message."""

MAX_FDS = 16
"""Descriptors of a message."""

_MOST_AT_WORK = 1024
"""Requests of one client that have no answer yet; more end the connection.

They cannot just wait: behind them may come the answer to what the agent asked.
"""

_MOST_BYTES = 64 << 20
"""Bytes of such requests."""

_MOST_QUEUED = 32 << 20
"""Bytes that wait for a client to read them; then it is given up."""

_MOST_EVENTS = 1 << 20
"""Bytes that wait, from which on events are left out."""

_READ = 1 << 16


class Incoming:
    """A message as it came: its text, and its descriptors, which are closed unless somebody takes them."""

    def __init__(self, text: bytes, fds: list[int]) -> None:
        self.text = text
        self._fds: list[int | None] = list(fds)

    def take(self, index: int) -> int:
        """The descriptor of this number, which is now the caller's.  Raises LookupError."""
        fd = self._fds[index] if 0 <= index < len(self._fds) else None
        if fd is None:
            raise LookupError(index)
        self._fds[index] = None
        return fd

    def close(self) -> None:
        """Close what nobody took."""
        for fd in self._fds:
            if fd is not None:
                os.close(fd)
        self._fds.clear()


class Connection:
    """Reads and writes; ``handle`` answers each request, several at a time.

    ``handle`` returns the answer's text, or None for none.
    """

    def __init__(
        self, sock: socket.socket, handle: Callable[[Incoming], Awaitable[str | None]]
    ) -> None:
        self._sock = sock
        self._handle = handle
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._out: deque[bytes] = deque()
        self._waiting = 0
        self._left_out = 0
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        self._at_work = 0
        self._line = bytearray()
        self._taken = 0
        self._fds: list[tuple[int, int]] = []  # each with where the read ended that it came with
        self._lost = False

    async def run(self) -> None:
        """Until the client goes, or says something that ends it.  Raises ProtocolError then."""
        writer = asyncio.create_task(self._write(), name="vfioflow-agent-writer")
        try:
            while incoming := await self._read():
                self._at_work += len(incoming.text)
                if len(self._tasks) >= _MOST_AT_WORK or self._at_work > _MOST_BYTES:
                    incoming.close()
                    raise ProtocolError(
                        f"more than {_MOST_AT_WORK} requests, or too large ones, at once"
                    )
                task = asyncio.create_task(self._answer(incoming))
                self._tasks.add(task)
                task.add_done_callback(partial(self._answered, incoming))
                await asyncio.sleep(0)  # they begin in order, and before the end is seen
        finally:
            self._lose()
            writer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait([writer, *self._tasks])
            for _, fd in self._fds:
                os.close(fd)
            self._sock.close()

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """Ask the client, and wait for its answer, however long.

        Raises RemoteError: it says that it failed.  PeerLost: it has gone.
        """
        if self._lost:
            raise PeerLost("the agent's client has gone")
        number = next(self._numbers)
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        self._put(Request(method=method, params=dict(params), id=number).to_json())
        try:
            return await answer
        finally:
            self._calls.pop(number, None)

    def notify(self, method: str, params: Mapping[str, Any], *, must: bool = False) -> None:
        """Tell the client something; where it does not read it is left out, unless it ``must`` hear it."""
        if self._lost:
            return
        if self._waiting > _MOST_EVENTS and not must:
            self._left_out += 1
            return
        if self._left_out:
            dropped: dict[str, Any] = {"count": self._left_out}
            self._left_out = 0
            self._put(Request(method="events.dropped", params=dropped).to_json())
        self._put(Request(method=method, params=dict(params)).to_json())

    async def flush(self, seconds: float) -> None:
        """Wait until the client has been sent all, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._waiting and not self._lost:
                    self._sent.clear()
                    await self._sent.wait()

    # ------------------------------------------------------------------ reading

    async def _read(self) -> Incoming | None:
        """The next line; None: the client has gone."""
        while True:
            if (end := self._line.find(b"\n")) >= 0:
                text = bytes(self._line[:end])
                del self._line[: end + 1]
                self._taken += end + 1
                fds = [fd for until, fd in self._fds if until <= self._taken]
                del self._fds[: len(fds)]
                return Incoming(text, fds)
            if len(self._line) > MAX_LINE:
                raise ProtocolError(f"a message of more than {MAX_LINE} bytes")
            data, fds = await self._receive()
            self._line += data
            self._fds += [(self._taken + len(self._line), fd) for fd in fds]
            if not data:
                return None
            if len(self._fds) > MAX_FDS:
                raise ProtocolError(f"a message with more than {MAX_FDS} descriptors")

    async def _receive(self) -> tuple[bytes, list[int]]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    _READ, socket.CMSG_SPACE(253 * array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(self._sock, _set, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._sock)
                continue
            except OSError:
                return b"", []
            fds = array("i")
            for level, kind, part in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(part[: len(part) - len(part) % fds.itemsize])
            return data, list(fds)

    async def _answer(self, incoming: Incoming) -> None:
        if (answer := self._answer_of(incoming.text)) is not None:
            self._settle(answer)
            return
        text = await self._handle(incoming)
        incoming.close()  # before the client hears that it is done
        if text is not None:
            self._put_text(text)

    def _answered(self, incoming: Incoming, task: asyncio.Task[None]) -> None:
        """Also when the task was cancelled before it began."""
        incoming.close()
        self._at_work -= len(incoming.text)
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a request of the agent's client ended by a fault", exc_info=error)
            self._lose()

    @staticmethod
    def _answer_of(text: bytes) -> Response | None:
        """What was asked of the client is answered; None: it asks something itself."""
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(said, dict) or "method" in said or not {"result", "error"} & said.keys():
            return None
        try:
            return Response.from_json(said)
        except BaseError as error:  # one that cannot be read is no yes
            number = said.get("id")
            return Response(
                id=number if isinstance(number, int) else None,
                error=JsonRpcError(-32600, f"the client's answer is none: {error}"),
            )

    def _settle(self, answer: Response) -> None:
        call = self._calls.get(answer.id) if isinstance(answer.id, int) else None
        if call is None or call.done():
            log.warning("the agent's client answers what nobody asked: %s", str(answer.id)[:100])
        elif answer.is_error:
            call.set_exception(RemoteError(str(answer.unwrap_error().message)))
        else:
            call.set_result(answer.unwrap_result())

    # ------------------------------------------------------------------ writing

    def _put(self, message: Any) -> None:
        self._put_text(json.dumps(message))

    def _put_text(self, text: str) -> None:
        if self._lost:
            return
        data = text.encode() + b"\n"
        self._out.append(data)
        self._waiting += len(data)
        self._more.set()
        if self._waiting > _MOST_QUEUED:
            log.warning("the agent's client does not read: it is given up")
            self._lose()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            self._more.clear()
            while self._out:
                data = self._out.popleft()
                try:
                    await loop.sock_sendall(self._sock, data)
                except OSError:
                    self._lose()
                    return
                self._waiting -= len(data)
                self._sent.set()

    def _lose(self) -> None:
        """It has gone: nothing is answered any more, and nothing will be."""
        self._lost = True
        self._sent.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(PeerLost("the agent's client has gone"))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

"""A wire between two sides that a test can break, hold, and change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence


class Link:
    """One connection that goes through a proxy."""

    def __init__(self, number: int, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.number = number
        """Its place among all that were made; 0 is the control connection."""
        self.seen = bytearray()
        """What has come for the destination so far, as it was sent."""
        self._writers = near, far

    def abort(self) -> None:
        """Break it at once; what has not been passed on is lost."""
        for writer in self._writers:
            writer.transport.abort()


Forward = Callable[[Link, bytes], Awaitable[bytes]]


class Proxy:
    """A wire; ``async with proxy(address) as another:`` whoever connects to ``another`` gets to ``address``.

    ``forward`` gets each piece on its way to the destination, which is in the link's ``seen`` by then,
    and gives what is passed on for it.  It may wait, and break connections.  What it raises breaks
    the connection, and is raised again on leaving.
    """

    def __init__(self, forward: Forward | None = None) -> None:
        self.links: list[Link] = []
        """All that were made."""
        self.open: list[Link] = []
        """Those that have not ended, in the order in which they were made."""
        self.cuts = 0
        """Connections that were broken."""
        self.deaf = False
        """Whether nobody is let through any more."""
        self.target = "", 0
        self._forward = forward
        self._carrying: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self, links: Sequence[Link] | None = None, *, for_good: bool = False) -> None:
        """Break these connections, else all."""
        self.deaf = self.deaf or for_good
        for link in list(self.open if links is None else links):
            if link in self.open:
                self.open.remove(link)
                self.cuts += 1
                link.abort()

    @contextlib.asynccontextmanager
    async def __call__(self, target: str) -> AsyncIterator[str]:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self.target = host.strip("[]"), int(port)
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            self.deaf = True  # to those who are in the backlog, too
            server.close()
            for task in self._carrying:
                task.cancel()
            ends = await asyncio.gather(*self._carrying, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            for writer in self._writers:
                with contextlib.suppress(OSError):  # how it broke
                    await writer.wait_closed()
            await server.wait_closed()
            for end in ends:
                if isinstance(end, Exception):  # of ``forward``
                    raise end

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.deaf:
            writer.transport.abort()
        else:
            self._carrying.append(asyncio.create_task(self._carry(reader, writer)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:  # nobody is there
            writer.transport.abort()
            return
        self._writers.append(far_writer)
        link = Link(len(self.links), writer, far_writer)
        self.links.append(link)
        self.open.append(link)
        with contextlib.ExitStack() as broken:
            # Where ``forward`` fails, so that both sides end; leaving the wire raises its error.
            broken.callback(link.abort)
            await asyncio.gather(
                self._pass(reader, far_writer, link), self._pass(far_reader, writer, None)
            )
            broken.pop_all()
        if link in self.open:
            self.open.remove(link)
        for each in (writer, far_writer):
            each.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if link is not None:
                    link.seen += data
                    if self._forward is not None:
                        data = await self._forward(link, data)
                    if link not in self.open:  # it was broken meanwhile
                        return
                writer.write(data)
                await writer.drain()
            writer.write_eof()


def flip(data: bytes, at: int) -> bytes:
    """The same with another bit at a place."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)

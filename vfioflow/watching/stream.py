"""Events as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from vfioflow.events import Ended, Event, Progress

__all__ = ["EventStream"]


class EventStream:
    """An observer whose events are read with ``async for``, until the session's last.

    ::

        stream = EventStream()
        task = asyncio.create_task(migrate(devices, to, observer=stream))
        async for event in stream:
            ...

    A reader that is slow loses nothing but looks at the counters: of :class:`Progress` only the
    latest is kept.  The other events are as many as the rounds and the devices' changes, so memory is
    bounded by the policy's ``max_iterations``.  For one session, one reader, and one event loop.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._progress: Progress | None = None
        self._more = asyncio.Event()
        self._ended = False

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if self._ended:
            return
        if isinstance(event, Progress):
            self._progress = event
        else:
            self._keep_progress()
            self._events.append(event)
            self._ended = isinstance(event, Ended)
        self._more.set()

    def _keep_progress(self) -> None:
        """The latest look goes before whatever came after it."""
        if self._progress is not None and not any(isinstance(e, Progress) for e in self._events):
            self._events.append(self._progress)
        self._progress = None

    def close(self) -> None:
        """No more events come: the reader ends when it has read those that are there."""
        self._ended = True
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._progress is not None:
                latest, self._progress = self._progress, None
                yield latest
                continue
            if self._ended:
                return
            self._more.clear()
            await self._more.wait()

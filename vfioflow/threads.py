"""Blocking device calls and pumps, each on a thread of its own, awaited from the event loop.

Daemon threads rather than an executor: a device whose call never returns must not keep the
process from ending.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from vfioflow.errors import ResourceError

__all__ = ["finish", "in_thread", "ready", "settle"]

T = TypeVar("T")

_SLICES = 8
"""Waits that a time limit is made of: a process that was suspended has used up one at most."""

_NO_MEMORY_PAUSE = 0.01
"""Seconds until a thread that had no memory for its result tries again to hand it over."""


class _Worker(threading.Thread):
    """Does one job after the other, until there is None."""

    def __init__(self) -> None:
        super().__init__(name="vfioflow-idle", daemon=True)
        self.jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()
            del job  # what it refers to is not kept until the next
            self.name = "vfioflow-idle"


class _Workers:
    """Those of one session: all, and those that have nothing to do."""

    def __init__(self, count: int) -> None:
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []
        self.closed = False
        """They end: whoever has them by its context only needs others."""
        try:
            for _ in range(count):
                self.give_back(self._new())
        except BaseException:
            self.close()
            raise

    def _new(self) -> _Worker:
        worker = _Worker()
        self._all.append(worker)
        return worker

    def take(self) -> _Worker:
        """One that is idle, else a new one.  Raises RuntimeError or MemoryError."""
        return self._idle.pop() if self._idle else self._new()

    def give_back(self, worker: _Worker) -> None:
        self._idle.append(worker)

    def close(self) -> None:
        """They end; one that is busy, when it has done its job."""
        self.closed = True
        for worker in self._all:
            worker.jobs.put(None)


_WORKERS: ContextVar[_Workers | None] = ContextVar("vfioflow-workers", default=None)


@contextmanager
def ready(count: int) -> Iterator[None]:
    """Start ``count`` threads for the :func:`in_thread` calls in this block, which use them again.

    So what is called while the virtual machine stands still finds its thread there: it waits for
    none to be made, and does not fail where none can be had any more.

    Raises ResourceError: they cannot be had.
    """
    try:
        workers = _Workers(count)
    except (RuntimeError, MemoryError):
        raise ResourceError(errno.EAGAIN, f"no {count} threads") from None
    before = _WORKERS.set(workers)
    try:
        yield
    finally:
        _WORKERS.reset(before)
        workers.close()


def in_thread(
    function: Callable[..., T], *args: Any, name: str, or_here: bool = False
) -> asyncio.Future[T]:
    """Start ``function(*args)`` on a thread; the future has its result or exception.

    Where no thread can be had that is a ResourceError; or, for calls that must be made, they are
    made ``or_here``, before this returns.
    """
    loop = asyncio.get_running_loop()
    workers = _WORKERS.get()
    if workers is not None and workers.closed:  # a task that a hook started outlives the session
        workers = None
    future: asyncio.Future[T] = loop.create_future()
    # Whoever waits sees the exception; one that nobody waits for any more is no news.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def tell(set_outcome: Callable[[], None], worker: _Worker | None) -> None:
        if workers is not None and worker is not None:
            workers.give_back(worker)
        if not future.cancelled():
            set_outcome()

    def body(worker: _Worker | None) -> None:
        outcome: Callable[[], None]
        try:
            if worker is not None:
                worker.name = f"vfioflow-{name}"
            outcome = partial(future.set_result, function(*args))
        except BaseException as error:  # handed to whoever awaits the call, as if it ran there
            outcome = partial(future.set_exception, error)
        while not loop.is_closed():
            try:
                loop.call_soon_threadsafe(tell, outcome, worker)
            except MemoryError:
                time.sleep(_NO_MEMORY_PAUSE)  # the loop may free some; nothing tells when
            else:
                return

    try:
        if workers is not None:
            worker = workers.take()
            worker.jobs.put(partial(body, worker))
        else:
            worker = _Worker()
            worker.jobs.put(partial(body, worker))
            worker.jobs.put(None)
    except (RuntimeError, MemoryError):
        if or_here:
            body(None)
        else:
            future.set_exception(ResourceError(errno.EAGAIN, f"no thread for {name}"))
    return future


async def settle(
    futures: Iterable[asyncio.Future[T]],
    *,
    timeout: float | None = None,
    on_cancel: Callable[[], None] | None = None,
) -> bool:
    """Wait until all futures are done, even through a cancellation, which is raised afterwards.

    ``on_cancel`` is called at the first cancellation, to make them end sooner.  Returns False
    when ``timeout`` seconds passed first; then a cancellation is raised at once.  While the process
    is suspended hardly any time passes.
    """
    waiting = set(futures)
    loop = asyncio.get_running_loop()
    left = timeout
    part = None if timeout is None else timeout / _SLICES
    cancelled: asyncio.CancelledError | None = None
    while waiting:
        if left is not None and left <= 0:
            break
        begin = loop.time()
        try:
            _, waiting = await asyncio.wait(waiting, timeout=part)
        except asyncio.CancelledError as error:
            waiting = {future for future in waiting if not future.done()}
            if cancelled is None and on_cancel is not None:
                on_cancel()
            cancelled = error
        if left is not None and part is not None:
            left -= min(loop.time() - begin, part)
    if cancelled is not None:
        raise cancelled
    return not waiting


async def finish(awaitable: Awaitable[T]) -> T:
    """Await to the end even when cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(awaitable)
    try:
        await settle([task])
    except asyncio.CancelledError:
        if not task.cancelled() and task.exception() is not None:
            raise asyncio.CancelledError from task.exception()
        raise
    return task.result()

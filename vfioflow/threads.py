"""Blocking device calls and pumps, each on a thread of its own, awaited from the event loop.

Daemon threads rather than an executor: a device whose call never returns must not keep the
process from ending.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from vfioflow.errors import ResourceError

__all__ = ["finish", "in_thread", "settle"]

T = TypeVar("T")


def in_thread(
    function: Callable[..., T], *args: Any, name: str, or_here: bool = False
) -> asyncio.Future[T]:
    """Start ``function(*args)`` on a new thread; the future has its result or exception.

    Where no thread can be had that is a ResourceError; or, for calls that must be made, they are
    made ``or_here``, before this returns.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    # Whoever waits sees the exception; one that nobody waits for any more is no news.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def tell(set_outcome: Callable[[], None]) -> None:
        if not future.cancelled():
            set_outcome()

    def body() -> None:
        outcome: Callable[[], None]
        try:
            outcome = partial(future.set_result, function(*args))
        except BaseException as error:  # handed to whoever awaits the call, as if it ran there
            outcome = partial(future.set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, outcome)

    try:
        threading.Thread(target=body, name=f"vfioflow-{name}", daemon=True).start()
    except (RuntimeError, MemoryError):
        if or_here:
            body()
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
    when ``timeout`` seconds passed first; then a cancellation is raised at once.
    """
    waiting = set(futures)
    loop = asyncio.get_running_loop()
    until = None if timeout is None else loop.time() + timeout
    cancelled: asyncio.CancelledError | None = None
    while waiting:
        left = None if until is None else until - loop.time()
        if left is not None and left <= 0:
            break
        try:
            _, waiting = await asyncio.wait(waiting, timeout=left)
        except asyncio.CancelledError as error:
            waiting = {future for future in waiting if not future.done()}
            if cancelled is None and on_cancel is not None:
                on_cancel()
            cancelled = error
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

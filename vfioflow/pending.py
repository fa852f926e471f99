"""What a migration stack moves besides the devices, such as guest RAM, and how it counts."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from vfioflow.errors import HookError
from vfioflow.precopy import Pending
from vfioflow.threads import in_thread, settle

__all__ = ["Part", "PendingSource"]


@runtime_checkable
class PendingSource(Protocol):
    """State of the virtual machine that the stack moves itself, over connections of its own.

    The source counts it in each decision like a device's, gives it a share of each round, and waits
    for its last part before it hands over.  All sizes are bytes.  ``iterate``, ``complete`` and
    ``abort`` are coroutine functions, or plain ones that may block: these run on threads, as do
    ``estimate`` and ``exact``.  One at a time is called, except ``moved`` and ``abort``.  What they
    raise fails the migration, with everything back to RUNNING.
    """

    @property
    def name(self) -> str:
        """Unique among the devices and the others of its kind."""

    @property
    def moved(self) -> int:
        """What it has moved so far.  Read often, also while it moves; that it grows is a sign of life."""

    def estimate(self) -> int:
        """About how much is left now.  Quick: asked before every round."""

    def exact(self) -> int:
        """How much would have to move if the virtual machine stopped now.

        Asked only when the estimates fit the downtime limit; it may take longer.
        """

    def iterate(self, budget: int) -> Awaitable[None] | None:
        """Move about ``budget`` bytes of what is left, or less if there is less, while the machine runs."""

    def complete(self) -> Awaitable[None] | None:
        """Move the rest; returns when the destination has all of it.

        The vCPUs stand still and every device is in STOP_COPY, so nothing writes to memory any more.
        At the same time the devices' own data moves.
        """

    def abort(self) -> Awaitable[None] | None:
        """The migration has failed and the virtual machine goes on here: forget what was moved.

        Called once, never after COMMIT.  An ``iterate`` or ``complete`` that is still at work on
        another thread must then return soon.
        """


class Part:
    """A pending source, and where it stands: what a lane is to a device."""

    def __init__(self, source: PendingSource) -> None:
        self.source = source
        self.name = source.name
        self.pending = Pending(self.name, True)
        self.busy = False
        self.iterations = 0
        self.precopy_bytes = 0
        self._began = source.moved
        self._at_work: asyncio.Future[None] | None = None
        self._aborting: asyncio.Future[None] | None = None
        self._stopped = False

    @property
    def sent(self) -> int:
        """Bytes that it has moved since this migration began."""
        return self.source.moved - self._began

    def ask_estimate(self) -> None:
        """Ask how much is left.  Blocking.  Raises HookError."""
        size = self._ask("estimate", self.source.estimate)
        self.pending = Pending(self.name, True, dirty=size)

    def ask_exact(self) -> None:
        """Ask how much stop-copy would move.  Blocking.  Raises HookError."""
        size = self._ask("exact", self.source.exact)
        self.pending = Pending(self.name, True, dirty=size, stop_copy=size)

    def iterate(self, budget: int) -> asyncio.Future[None]:
        """Start a round's share.  The future raises HookError."""
        return self._start("iterate", self.source.iterate, budget)

    def complete(self) -> asyncio.Future[None]:
        """Start to move the rest.  The future raises HookError."""
        return self._start("complete", self.source.complete)

    def stop(self) -> None:
        """Make what is at work return soon: it is over."""
        if self._at_work is None or self._at_work.done():
            return
        if isinstance(self._at_work, asyncio.Task):
            self._stopped = True
            self._at_work.cancel()
        else:
            self._abort()

    async def abort(self, timeout: float) -> str:
        """Tell the source that the migration has failed.  Returns "", or what went wrong."""
        aborting = self._abort()
        if not await settle([aborting], timeout=timeout):
            self._stopped = True
            aborting.cancel()
            return f"the pending source {self.name}: abort has not returned for {timeout:g} s"
        with suppress(asyncio.CancelledError):
            error = aborting.exception()
            return "" if error is None else str(error)
        return f"the pending source {self.name}: abort was cancelled"

    def _abort(self) -> asyncio.Future[None]:
        if self._aborting is None:
            self._aborting = self._run("abort", self.source.abort)
        return self._aborting

    def _start(
        self, step: str, function: Callable[..., Any], *words: object
    ) -> asyncio.Future[None]:
        self.busy = True
        self._at_work = self._run(step, function, *words)
        self._at_work.add_done_callback(self._rests)
        return self._at_work

    def _rests(self, _: object) -> None:
        self.busy = False

    def _run(self, step: str, function: Callable[..., Any], *words: object) -> asyncio.Future[None]:
        if inspect.iscoroutinefunction(function):
            task = asyncio.ensure_future(self._await(step, function, *words))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            return task
        return in_thread(self._call, step, function, *words, name=f"{self.name}-{step}")

    async def _await(
        self, step: str, function: Callable[..., Awaitable[None]], *words: object
    ) -> None:
        try:
            await function(*words)
        except asyncio.CancelledError as error:
            if self._stopped:
                raise
            # What it awaits was cancelled, and not the migration.
            raise self._failed(step, error) from error
        except Exception as error:  # somebody else's code may raise anything
            raise self._failed(step, error) from error

    def _call(self, step: str, function: Callable[..., Any], *words: object) -> Any:
        try:
            return function(*words)
        except Exception as error:  # likewise
            raise self._failed(step, error) from error

    def _ask(self, step: str, function: Callable[[], int]) -> int:
        self.busy = True
        try:
            size = self._call(step, function)
        finally:
            self.busy = False
        if not isinstance(size, int) or size < 0:
            raise HookError(
                f"the pending source {self.name}: {step} gave {size!r}, no size in bytes"
            )
        return size

    def _failed(self, step: str, error: BaseException) -> HookError:
        what = str(error) or type(error).__name__
        return HookError(f"the pending source {self.name}: {step} failed: {what}")

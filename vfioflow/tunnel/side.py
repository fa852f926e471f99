"""What the two sides of a tunnel have in common: how a failure anywhere ends it, and is told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from vfioflow.errors import DeviceError, EndError, ResourceError, VfioflowError
from vfioflow.lanes import drive
from vfioflow.policy import Policy
from vfioflow.threads import finish
from vfioflow.tunnel.summary import Summary
from vfioflow.wire import messages
from vfioflow.wire.control import Control

__all__ = ["Side", "TITLE"]

log = logging.getLogger("vfioflow")

T = TypeVar("T")

TITLE = "the stream"
"""Of the one lane, in errors."""

_TELL_SECONDS = 1.0
"""How long to try to tell the peer that this side gives up."""


class Side:
    """One side of one tunnel.  ``summary`` is there however it ends."""

    _control: Control | None = None

    def __init__(self, policy: Policy, summary: Summary) -> None:
        self.summary = summary
        self._policy = policy
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once something fails beside the pumps."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stuck = False
        self._told = False
        self._began = time.monotonic()

    @property
    def _peer(self) -> Control:
        assert self._control is not None
        return self._control

    def _watch(self, future: asyncio.Future[None]) -> None:
        """What fails there fails the tunnel."""

        def look(done: asyncio.Future[None]) -> None:
            if done.cancelled() or self._failure.done():
                return
            if error := done.exception():
                self._failure.set_exception(error)
                self._failure.exception()  # seen: nobody may be waiting any more

        future.add_done_callback(look)

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something beside the pumps."""
        task = asyncio.create_task(work, name=f"vfioflow-{name}")
        self._tasks.append(task)
        self._watch(task)

    async def _first(self, work: asyncio.Future[T]) -> T:
        """Wait for it, or raise what fails before."""
        waited: set[asyncio.Future[Any]] = {work, self._failure}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._failure.result()
            return work.result()
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _run_pumps(
        self,
        futures: Sequence[asyncio.Future[T]],
        *,
        stop: Callable[[], None],
        busy: Callable[[], Mapping[str, int]],
        patience: float,
    ) -> None:
        try:
            await drive(
                futures,
                stop=stop,
                failure=self._failure,
                busy=busy,
                stall_timeout=patience,
                stalled=self._tell_early,
                tick=self._tick,
            )
        finally:
            # A pump that does not return keeps its descriptors: closing them would free the numbers.
            self._stuck = not all(future.done() for future in futures)

    def _tick(self) -> None:
        """Ten times a second while the pumps run."""

    async def _tell_early(self, error: VfioflowError) -> None:
        await self._tell(messages.Failed(reason=str(error)))

    async def _tell(self, said: messages.Failed) -> None:
        """Tell the peer that this side gives up."""
        if self._told or self._control is None or self._control.failure.done():
            return
        self._told = True
        try:
            async with asyncio.timeout(_TELL_SECONDS):
                await self._control.send(said)
        except (TimeoutError, VfioflowError) as lost:
            log.debug("%s could not be told: %s", self._control.peer, str(lost))

    def _meant(self, caught: BaseException, end: str, action: str, at: int) -> BaseException:
        """An error of the pumps, which know devices only, in the words of a tunnel."""
        if isinstance(caught, DeviceError):
            return EndError(end, f"{action} at byte {at} of the stream", caught.errno or 0)
        return ResourceError.of(caught)

    async def _give_up(self, caught: BaseException, error: BaseException) -> NoReturn:
        """Put it into the summary, tell the peer, and raise it."""
        cancelled = isinstance(error, asyncio.CancelledError)
        self.summary.outcome = "cancelled" if cancelled else "failed"
        self.summary.error = "interrupted" if cancelled else str(error)
        await finish(self._tell(messages.Failed(reason=self.summary.error, cancelled=cancelled)))
        if error is caught:
            raise error
        raise error from caught

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

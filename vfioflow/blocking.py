"""The engine for programs without an event loop: from plain threads, any number at once.

::

    report = blocking.migrate(devices, "tcp://host:4747")

    migration = blocking.start(devices, "tcp://host:4747")   # goes on by itself
    migration.change(downtime_limit=0.5)
    report = migration.result()

    with blocking.listen("tcp://0.0.0.0:4747", devices) as listener:
        report = listener.receive()

Each migration and each listener has an event loop of its own, on a thread of its own.  Hooks that are
plain functions may block: they run on other threads.  Observers run on the loop's thread, and may not.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

from vfioflow import listener as listening
from vfioflow.access import Trap
from vfioflow.destination import Destination
from vfioflow.devices.base import Device
from vfioflow.errors import ResourceError
from vfioflow.events import Observer, Phase
from vfioflow.hooks import Hooks
from vfioflow.journal import Journal
from vfioflow.pending import PendingSource
from vfioflow.policy import Policy
from vfioflow.report import Report
from vfioflow.resolution import Revival
from vfioflow.source import Limits, Source
from vfioflow.threads import in_thread
from vfioflow.wire.security import Security

__all__ = ["Listener", "Migration", "Reception", "listen", "migrate", "start"]

T = TypeVar("T")
S = TypeVar("S", bound=Source | Destination | Revival)


class _Common(TypedDict, total=False):
    policy: Policy | None
    hooks: Hooks | None
    observer: Observer | None
    journal: Journal | None
    security: Security | None
    trap: Trap | None


class SourceOptions(_Common, total=False):
    """What :func:`vfioflow.migrate` takes besides."""

    pending: Sequence[PendingSource]
    session: str


class ListenOptions(_Common, total=False):
    """What :func:`vfioflow.listen` takes besides."""


def migrate(devices: Sequence[Device], to: str, **options: Unpack[SourceOptions]) -> Report:
    """As :func:`vfioflow.migrate`, which see; returns when it has ended.

    KeyboardInterrupt cancels it, and is raised when the devices are RUNNING again.
    """
    return start(devices, to, **options).result()


def start(devices: Sequence[Device], to: str, **options: Unpack[SourceOptions]) -> Migration:
    """Begin a migration, which goes on by itself: see :class:`Migration`.

    Raises ConfigError for a wrong address or name; ResourceError: there is no thread for it.
    """
    options["hooks"] = _off_the_loop(options.get("hooks"))
    source = Source(devices, to, **options)
    return Migration(_Loop("migration"), source)


def listen(address: str, devices: Sequence[Device], **options: Unpack[ListenOptions]) -> Listener:
    """As :func:`vfioflow.listen`, which see.

    ``with blocking.listen(...) as listener:`` binds the port.
    """
    options["hooks"] = _off_the_loop(options.get("hooks"))
    return Listener(listening.listen(address, devices, **options))


class _Running(Generic[S]):
    """One side of a migration that runs on a thread of its own.  All methods from any thread."""

    def __init__(self, loop: _Loop, session: S, *, own_loop: bool = True) -> None:
        self._loop = loop
        self._session: S = session
        self._future = loop.submit(self._run())
        if own_loop:
            loop.close()  # nothing else runs on it

    async def _run(self) -> Report:
        return await self._session.run()

    @property
    def report(self) -> Report:
        """What is known so far; complete when it has ended, however it did."""
        return self._session.report

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Report:
        """Wait for its end.

        Raises what the migration does; ``concurrent.futures.CancelledError`` where it was cancelled;
        TimeoutError after ``timeout`` seconds, and it goes on.  KeyboardInterrupt cancels it.
        """
        try:
            return self._future.result(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self.wait()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end; whether it has come within ``timeout`` seconds."""
        ended = threading.Event()
        self._future.add_done_callback(lambda _: ended.set())
        return ended.wait(timeout)

    def cancel(self) -> None:
        """End it: see "Cancellation" in docs/embedding.md.  Returns at once; nothing where it has ended."""
        self._loop.call(self._session.cancel)


class Migration(_Running[Source]):
    """A source that runs on a thread of its own."""

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self._session.phase

    def change(self, **limits: Unpack[Limits]) -> None:
        """See :meth:`vfioflow.Source.change`.  Raises ConfigError.  Nothing where it has ended."""
        self._loop.call(lambda: self._session.change(**limits))

    def hold(self) -> None:
        """See :meth:`vfioflow.Source.hold`."""
        self._loop.call(self._session.hold)

    def go_on(self) -> None:
        """See :meth:`vfioflow.Source.go_on`."""
        self._loop.call(self._session.go_on)


class Reception(_Running[Destination | Revival]):
    """A destination's session that runs on its listener's thread."""


class Listener:
    """A bound port, where one migration after the other arrives."""

    def __init__(self, inner: listening.Listener) -> None:
        self._inner = inner
        self._loop: _Loop | None = None

    def __enter__(self) -> Self:
        loop = _Loop("listener")
        try:
            loop.wait_for(self._inner.__aenter__())
        except BaseException:
            loop.close()
            raise
        self._loop = loop
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop, self._loop = self._open, None
        try:
            loop.wait_for(self._inner.__aexit__(kind, error, trace))
        finally:
            loop.close()

    @property
    def _open(self) -> _Loop:
        if self._loop is None:
            raise RuntimeError("the listener is not open: use it with `with`")
        return self._loop

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose."""
        return self._inner.address

    def receive(self, timeout: float | None = None) -> Report:
        """As :meth:`vfioflow.Listener.receive`; ``timeout`` seconds are for a source to come.

        Raises TimeoutError: none came.  KeyboardInterrupt cancels it.
        """
        return self.next_session(timeout).result()

    def next_session(self, timeout: float | None = None) -> Reception:
        """Wait for a source, and begin to take its devices over.  Raises TimeoutError: none came."""
        loop = self._open
        session = loop.wait_for(self._inner.next_session(), timeout)
        return Reception(loop, session, own_loop=False)


class _Ended(Exception):
    """The loop takes no more work."""


class _Loop:
    """An event loop on a thread, until it is closed and all its work is done."""

    def __init__(self, name: str) -> None:
        """Raises ResourceError: no thread is to be had, or no descriptors for the loop."""
        self._lock = threading.Lock()
        self._closing = self._over = False
        self._under_way: set[Future[Any]] = set()
        self._trouble: BaseException | None = None
        begun = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(begun,), name=f"vfioflow-{name}", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            raise ResourceError(errno.EAGAIN, f"no thread for the {name}") from None
        begun.wait()
        if self._trouble is not None:
            raise ResourceError.of(self._trouble) from None

    def _run(self, begun: threading.Event) -> None:
        runner = asyncio.Runner()
        try:
            runner.get_loop()
        except (OSError, MemoryError) as error:
            self._trouble = error
            begun.set()
            return
        with runner:
            runner.run(self._main(begun))

    async def _main(self, begun: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        begun.set()
        while not self._is_over():
            await self._changed.wait()
            self._changed.clear()

    def _is_over(self) -> bool:
        with self._lock:
            self._over = self._closing and not self._under_way
            return self._over

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on it.  Raises _Ended."""
        with self._lock:
            if self._over:
                work.close()
                raise _Ended
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._under_way.add(future)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)
            if self._closing and not self._over:
                self._loop.call_soon_threadsafe(self._changed.set)

    def wait_for(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run ``work`` on it and wait; after ``timeout`` seconds, or an interrupt, it is cancelled."""

        async def within() -> T:
            async with asyncio.timeout(timeout):
                return await work

        future = self.submit(within())
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def call(self, function: Callable[[], None]) -> None:
        """Call ``function`` on it and wait; nothing where it has ended.  Raises what that does."""
        if threading.current_thread() is self._thread:  # an observer, or a hook on the loop
            function()
            return

        async def body() -> None:
            function()

        with suppress(_Ended):
            self.submit(body()).result()

    def close(self) -> None:
        """End it when what runs on it has ended."""
        with self._lock:
            self._closing = True
            if not self._over:
                self._loop.call_soon_threadsafe(self._changed.set)


def _off_the_loop(hooks: Hooks | None) -> Hooks | None:
    """The same hooks, of which the plain functions run on threads."""
    if hooks is None:
        return None
    threaded: dict[str, Any] = {}
    for field in fields(hooks):
        hook = getattr(hooks, field.name)
        if callable(hook) and not inspect.iscoroutinefunction(hook):
            threaded[field.name] = _threaded(field.name, hook)
    return replace(hooks, **threaded)


def _threaded(name: str, hook: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(*words: object) -> object:
        result = await in_thread(hook, *words, name=name)
        return await result if inspect.isawaitable(result) else result

    return call

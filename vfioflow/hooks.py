"""The user's part in a migration: stopping and starting the vCPUs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from vfioflow.errors import HookError

__all__ = ["Hook", "Hooks", "call"]

Hook: TypeAlias = Callable[[], Awaitable[None] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Called at the right moments, each a function or a coroutine function without arguments.

    A plain function runs on the event loop's thread and so should return quickly.  What a hook
    raises fails the migration; see each for what that means.
    """

    stop_vcpus: Hook | None = None
    """Source, after the decision to switch over and before the first barrier.  Failing: the
    migration ends and the devices run on."""

    start_vcpus: Hook | None = None
    """Destination, after every device is RUNNING.  Failing: the devices run, the source is told
    that the hand-over is in doubt.  Source, when the migration fails after ``stop_vcpus`` was
    called: the virtual machine goes on there."""


async def call(hook: Hook | None, name: str) -> None:
    """Run a hook to its end; nothing for None.  Raises HookError for whatever it raises."""
    if hook is None:
        return
    try:
        result = hook()
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        what = str(error) or type(error).__name__
        raise HookError(f"the hook {name} failed: {what}") from error

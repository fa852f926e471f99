"""The user's part in a migration: its vCPUs, its phases, and a say in when to switch over."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from vfioflow.errors import HookError
from vfioflow.events import Phase
from vfioflow.precopy import Decision

__all__ = [
    "Hook",
    "Hooks",
    "LoadConfig",
    "MaySwitchOver",
    "PhaseHook",
    "SaveConfig",
    "allowed",
    "at_phase",
    "call",
    "load_all",
    "save_all",
]

Hook: TypeAlias = Callable[[], Awaitable[None] | None]
SaveConfig: TypeAlias = Callable[[str], Awaitable[bytes] | bytes]
LoadConfig: TypeAlias = Callable[[str, bytes], Awaitable[None] | None]
PhaseHook: TypeAlias = Callable[[Phase], Awaitable[None] | None]
MaySwitchOver: TypeAlias = Callable[[Decision], Awaitable[bool] | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Called at the right moments, each a function or a coroutine function.

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

    save_config: SaveConfig | None = None
    """Source, with a device's name, once all devices are in STOP_COPY: what is to be carried
    besides its data, such as its PCI config space; 1 MB for all devices together.  The destination
    needs ``load_config`` then.  Failing: the devices run on."""

    load_config: LoadConfig | None = None
    """Destination, with a device's name and what the source's ``save_config`` gave for it, while
    the device is RESUMING.  The source needs ``save_config`` then.  Failing: the devices here are
    reset, those of the source run on."""

    before: PhaseHook | None = None
    """Either side, with a phase that is about to begin; ``after`` of the one before it comes first.
    Each phase but DONE, once.  What a phase does waits until the hook has returned, except that data
    goes on arriving at the destination.  Failing: the migration ends and the devices run on at the
    source.  GOING_BACK: before the devices are put back, where there are any to put back; failing is
    a note on the error."""

    after: PhaseHook | None = None
    """Either side, with a phase that has ended well.  Failing: as with ``before``.  HAND_OVER: the
    destination runs; failing is noted in the report's ``error``, the migration is completed."""

    may_switch_over: MaySwitchOver | None = None
    """Source, each time that it could switch over, with the decision and its numbers: False makes
    it copy on and ask again after the next round.  Failing: the migration ends and the devices run on."""

    config_after_data: bool = False
    """Destination: call ``load_config`` when all data is loaded; else before the stop-copy data."""


async def call(hook: Hook | None, name: str) -> None:
    """Run a hook to its end; nothing for None.  Raises HookError for whatever it raises."""
    if hook is not None:
        await _finish(name, hook)


async def at_phase(hook: PhaseHook | None, name: str, phase: Phase) -> None:
    """Run ``before`` or ``after`` of a phase; nothing for None.  Raises HookError."""
    if hook is not None:
        await _finish(name, hook, phase, about=f" of the phase {phase}")


async def allowed(hook: MaySwitchOver | None, decision: Decision) -> bool:
    """What ``may_switch_over`` says; True for None.  Raises HookError."""
    return hook is None or bool(await _finish("may_switch_over", hook, decision))


async def save_all(hook: SaveConfig, names: Iterable[str]) -> dict[str, bytes]:
    """What ``save_config`` gives for each device.  Raises HookError."""
    return {
        name: bytes(await _finish("save_config", hook, name, about=f" for device {name}"))
        for name in names
    }


async def load_all(hook: LoadConfig, saved: Mapping[str, bytes]) -> None:
    """Give each device's to ``load_config``.  Raises HookError."""
    for name, data in saved.items():
        await _finish("load_config", hook, name, data, about=f" for device {name}")


async def _finish(name: str, hook: Callable[..., Any], *words: object, about: str = "") -> Any:
    try:
        result = hook(*words)
        return await result if inspect.isawaitable(result) else result
    except Exception as error:
        what = str(error) or type(error).__name__
        raise HookError(f"the hook {name} failed{about}: {what}") from error

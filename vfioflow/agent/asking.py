"""Hooks and pending sources that live in a client: each call is a question to it."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from vfioflow.agent.connection import Connection
from vfioflow.agent.words import HookName
from vfioflow.errors import RemoteError
from vfioflow.events import Phase
from vfioflow.hooks import Hooks
from vfioflow.precopy import Decision
from vfioflow.watching.jsonlines import plain

__all__ = ["RemotePending", "hooks_of"]


def hooks_of(
    connection: Connection,
    migration: Callable[[], str],
    names: Iterable[HookName],
    *,
    config_after_data: bool = False,
) -> Hooks:
    """The hooks of these names, each of which asks the client ``hook.NAME``.

    What the client answers with an error is raised as RemoteError, and PeerLost when it goes: both fail the
    migration as any hook that raises does.
    """

    async def ask(name: str, **about: object) -> Any:
        return await connection.call(f"hook.{name}", {"migration": migration(), **about})

    async def before(phase: Phase) -> None:
        await ask("before", phase=phase.value)

    async def after(phase: Phase) -> None:
        await ask("after", phase=phase.value)

    async def may_switch_over(decision: Decision) -> bool:
        answer = await ask("may_switch_over", decision=plain(decision))
        if not isinstance(answer, bool):
            raise RemoteError(f"hook.may_switch_over: true or false, not {answer!r:.80}")
        return answer

    async def stop_vcpus() -> None:
        await ask("stop_vcpus")

    async def start_vcpus() -> None:
        await ask("start_vcpus")

    async def save_config(device: str) -> bytes:
        return _bytes(await ask("save_config", device=device))

    async def load_config(device: str, data: bytes) -> None:
        await ask("load_config", device=device, data=base64.b64encode(data).decode())

    every: dict[str, Any] = {
        hook.__name__: hook
        for hook in (
            *(before, after, may_switch_over, stop_vcpus, start_vcpus, save_config, load_config),
        )
    }
    return replace(
        Hooks(config_after_data=config_after_data), **{name: every[name] for name in names}
    )


def _bytes(answer: object) -> bytes:
    try:
        return base64.b64decode(str(answer), validate=True)
    except binascii.Error as error:
        raise RemoteError(f"hook.save_config: base64, and not {answer!r:.80}: {error}") from None


class RemotePending:
    """A :class:`vfioflow.PendingSource` whose bytes a client moves.

    Made on the loop's thread; ``estimate`` and ``exact`` are called on others.
    """

    def __init__(self, connection: Connection, migration: Callable[[], str], name: str) -> None:
        self.name = name
        self.moved = 0
        self._connection = connection
        self._migration = migration
        self._loop = asyncio.get_running_loop()

    def estimate(self) -> int:
        """Bytes that are left, as the client says."""
        return self._size("estimate")

    def exact(self) -> int:
        """Likewise, if everything stopped now."""
        return self._size("exact")

    async def iterate(self, budget: int) -> None:
        """Let it move so many."""
        self._came_to(await self._ask("iterate", budget=budget))

    async def complete(self) -> None:
        """Let it move the rest."""
        self._came_to(await self._ask("complete"))

    async def abort(self) -> None:
        """Tell it that the migration has failed."""
        await self._ask("abort")

    def _came_to(self, moved: object) -> None:
        """It may answer how far it has come in all; else it has said so by ``pending.moved``."""
        if moved is not None:
            self.moved = max(self.moved, self._number("moved", moved))

    def _size(self, step: str) -> int:
        asked = asyncio.run_coroutine_threadsafe(self._ask(step), self._loop)
        return self._number(step, asked.result())

    def _number(self, step: str, answer: object) -> int:
        if not isinstance(answer, int) or isinstance(answer, bool) or answer < 0:
            raise RemoteError(f"pending.{step} of {self.name}: bytes, not {answer!r:.80}")
        return answer

    async def _ask(self, step: str, **about: object) -> Any:
        where = {"migration": self._migration(), "source": self.name}
        return await self._connection.call(f"pending.{step}", {**where, **about})

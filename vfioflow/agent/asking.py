"""Hooks and pending sources that live in a client: each call is a question to it."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vfioflow.access import Access, AccessQueue
from vfioflow.agent.connection import Connection
from vfioflow.agent.words import HookName
from vfioflow.errors import RemoteError
from vfioflow.events import Phase
from vfioflow.hooks import Hooks
from vfioflow.precopy import Decision
from vfioflow.watching.jsonlines import plain

__all__ = ["RemotePending", "RemoteTrap", "decoded", "hooks_of"]

_LOOK_AGAIN = 0.05
"""Seconds after which a queue that has no room is noticed."""


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
        return decoded(await ask("save_config", device=device), "hook.save_config")

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


def decoded(text: object, what: str) -> bytes:
    """Bytes that a client wrote in base64.  Raises RemoteError."""
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteError(f"{what}: base64, and not {text!r:.80}: {error}") from None


class RemoteTrap:
    """A :class:`vfioflow.access.Trap` that a client is: it writes to the queue by ``access.write``.

    Made on the loop's thread, used on others.
    """

    def __init__(self, connection: Connection, migration: Callable[[], str]) -> None:
        self.queue: AccessQueue | None = None
        """Where it is armed: what it traps goes there."""
        self.order = asyncio.Lock()
        """Held by the write that is made: they are made in the order in which they come."""
        self._connection = connection
        self._migration = migration
        self._loop = asyncio.get_running_loop()

    def arm(self, devices: Collection[str], queue: AccessQueue) -> None:
        """See :class:`Trap`."""
        self.queue = queue
        self._ask("arm", devices=list(devices))

    def collect(self, queue: AccessQueue) -> bool:
        """See :class:`Trap`: the client writes what it has trapped, then answers."""
        self._ask("collect")
        asyncio.run_coroutine_threadsafe(self._written(queue), self._loop).result()
        return True

    async def _written(self, queue: AccessQueue) -> None:
        """All writes that came are made, or one waits for room."""
        while not queue.failure:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN), self.order:
                    return

    def deliver(self, access: Access) -> None:
        """See :class:`Trap`."""
        self._ask("deliver", **_place(access), data=base64.b64encode(access.data).decode())

    def read(self, device: str, region: int, offset: int, width: int) -> bytes:
        """See :class:`Trap`."""
        answer = self._ask("read", device=device, region=region, offset=offset, width=width)
        return decoded(answer, "trap.read")

    def interrupt(self, device: str, vector: int) -> None:
        """See :class:`Trap`."""
        self._ask("interrupt", device=device, vector=vector)

    def disarm(self, devices: Collection[str]) -> bool:
        """See :class:`Trap`."""
        self._ask("disarm", devices=list(devices))
        return True

    def _ask(self, step: str, **about: object) -> Any:
        asked = self._connection.call(f"trap.{step}", {"migration": self._migration(), **about})
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()


def _place(access: Access) -> dict[str, object]:
    return {
        "device": access.device,
        "region": access.region,
        "offset": access.offset,
        "origin": access.origin,
    }


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

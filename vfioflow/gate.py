"""Whether a source that could switch over may: who holds it back, and what the hook says."""

from __future__ import annotations

import asyncio

from vfioflow.hooks import MaySwitchOver, allowed
from vfioflow.precopy import Decision

__all__ = ["Gate"]


class Gate:
    """Open, unless it is held; asks ``hook`` each time that somebody wants to pass."""

    def __init__(self, hook: MaySwitchOver | None) -> None:
        self._hook = hook
        self._turned = asyncio.Event()
        self.held = False

    def hold(self) -> None:
        """Let nobody pass until :meth:`go_on`."""
        self.held = True

    def go_on(self) -> None:
        """Let pass again; who waits hears of it at once."""
        self.held = False
        self.turn()

    def turn(self) -> None:
        """Something has changed that decides who may pass: look again."""
        self._turned.set()

    async def until_turned(self) -> None:
        """Wait for the next :meth:`turn`."""
        self._turned.clear()
        await self._turned.wait()

    async def objection(self, decision: Decision) -> str:
        """Why this decision to switch over does not pass; "" if it does.  Raises HookError."""
        if self.held:
            return "held"
        if not await allowed(self._hook, decision):
            return "the hook may_switch_over says no"
        # It may have been held while the hook was at work.
        return "held" if self.held else ""

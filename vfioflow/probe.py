"""How fast the wire is, measured with bytes that the destination throws away."""

from __future__ import annotations

import time

from vfioflow.lanes import Outbound
from vfioflow.policy import Policy
from vfioflow.rounds import Drive
from vfioflow.threads import in_thread
from vfioflow.wire import messages
from vfioflow.wire.control import Control

__all__ = ["Probe"]

_FIRST, _LARGEST = 256 * 1024, 64 * 1024 * 1024
"""Pad bytes of the first and of the largest try."""

_SECONDS = 0.05
"""A try that took so long means something."""


class Probe:
    """Sends pad bytes on all channels of ``out``; while it does, ``running`` is true."""

    def __init__(self, out: Outbound, control: Control, policy: Policy, drive: Drive) -> None:
        self._out = out
        self._control = control
        self._policy = policy
        self._drive = drive
        self.running = False

    async def round_trip(self) -> float:
        """The seconds to the destination and back."""
        return await self._send(1)

    async def measure(self) -> tuple[int, float]:
        """Send more and more until it twice took long enough to mean something.

        Returns the bytes and the seconds of the fastest try: what slows one down is the machine.
        """
        size = _FIRST
        if rate := self._out.limiter.rate:
            size = max(min(size, int(rate * _SECONDS)), 1)
        tries: list[tuple[int, float]] = []
        while size <= _LARGEST and sum(seconds >= _SECONDS for _, seconds in tries) < 2:
            tries.append((size, await self._send(size)))
            size *= 4
        return max(tries, key=lambda a_try: a_try[0] / a_try[1])

    async def _send(self, size: int) -> float:
        """About ``size`` pad bytes there, and the answer back; the seconds that it took."""
        out = self._out
        part = -(-size // len(out.channels))
        begin = time.monotonic()
        await self._control.send(messages.Probe(size=part * len(out.channels)))
        self.running = True
        try:
            await self._drive(
                [
                    in_thread(c.pad, part, out.pool, out.limiter, out.cancel, name="probe")
                    for c in out.channels
                ]
            )
        finally:
            self.running = False
        await self._control.expect(
            messages.ProbeDone, timeout=self._policy.stall_timeout, what="the probe's answer"
        )
        return time.monotonic() - begin

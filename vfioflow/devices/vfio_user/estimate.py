"""What a device that tells no sizes still has to move, judged by what its reads returned.  Pure."""

from __future__ import annotations

from typing import TypeAlias

from vfioflow.devices.base import PrecopyInfo

__all__ = ["Progress", "pending"]

Progress: TypeAlias = tuple[int, int, tuple[int, float], tuple[int, float]]
"""As :meth:`vfioflow._vfio_user_data.DataPort.progress` gives it."""


def pending(progress: Progress, least: int) -> PrecopyInfo:
    """What is taken for left to move in PRE_COPY.

    Until there was once nothing left, everything counts as initial: as much again as has come, and
    ``least`` bytes at least.  After that, what the device makes in the time since there was nothing
    left, at the rate at which it did before.  The first pass tells no rate, so until a second has
    ended as much counts as that moved.
    """
    total, passes, (bytes_since, since), (pass_bytes, pass_seconds) = progress
    if passes == 0:
        return PrecopyInfo(max(total, least), 0)
    if passes == 1:
        return PrecopyInfo(0, pass_bytes)
    rate = pass_bytes / pass_seconds if pass_seconds > 0 else 0.0
    # A pass that has not found the end yet has at least as much again before it.
    return PrecopyInfo(0, max(int(rate * since), bytes_since))

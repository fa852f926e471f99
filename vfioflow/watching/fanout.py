"""One observer for several."""

from __future__ import annotations

from collections.abc import Iterable

from vfioflow.events import Event, Observer, deliver

__all__ = ["fan_out"]


def fan_out(observers: Iterable[Observer | None]) -> Observer:
    """Hands each event to all of them, in their order; one that raises is logged, and the next told."""
    told = [observer for observer in observers if observer is not None]

    def observer(event: Event) -> None:
        for each in told:
            deliver(each, event)

    return observer

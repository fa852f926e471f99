"""Who may migrate, and together with whom.  Pure: facts in, reasons out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vfioflow.states import Flags

__all__ = ["Facts", "check_match", "check_set"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What admission needs to know of a device."""

    name: str
    driver: str
    flags: Flags


def check_set(devices: Sequence[Facts]) -> dict[str, str]:
    """Why this set may not migrate, by device; empty when it may.

    Rules:
        no-devices: there must be something to migrate.
        names: names are unique, they are what pairs source and destination.
        stop-copy: a device without STOP_COPY cannot be migrated at all
            (uAPI: every migratable device has it).
        p2p: in a set of more than one, every device needs the P2P states, since the others may
            be in the middle of DMA to it (or it to them) when it stops
            (QEMU refuses such sets too: "only if all of them support P2P migration").
    """
    if not devices:
        return {"(none)": "there is no device to migrate"}
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    for device in devices:
        if device.name in seen:
            reasons[device.name] = "two devices of the set have this name"
        elif not device.flags & Flags.STOP_COPY:
            reasons[device.name] = f"its driver {device.driver} does not support migration"
        elif len(devices) > 1 and not device.flags & Flags.P2P:
            reasons[device.name] = (
                f"its driver {device.driver} has no P2P states: the other devices could not be "
                "kept from DMA to it while it stops; migrate it alone"
            )
        seen.add(device.name)
    return reasons


def check_match(source: Sequence[Facts], destination: Iterable[Facts]) -> dict[str, str]:
    """Why the destination's devices cannot take the source's, by device; empty when they can.

    Rules: each source device has a destination device of the same name with the same driver, and
    with the same flags for STOP_COPY and P2P (pre-copy data is part of the same stream); the
    destination has none that would stay empty.
    """
    reasons: dict[str, str] = {}
    targets: Mapping[str, Facts] = {device.name: device for device in destination}
    for device in source:
        target = targets.get(device.name)
        needed = device.flags & (Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY)
        if target is None:
            reasons[device.name] = "the destination has no device of this name"
        elif target.driver != device.driver:
            reasons[device.name] = (
                f"its driver is {device.driver}, the destination's is {target.driver}"
            )
        elif needed & ~target.flags:
            reasons[device.name] = f"the destination's lacks {needed & ~target.flags}"
    offered = {device.name for device in source}
    for name in targets:
        if name not in offered:
            reasons[name] = "the source does not offer it, it would stay empty"
    return reasons

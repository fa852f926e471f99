"""What admission needs to know, of devices and of what is around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vfioflow.policy import Policy
from vfioflow.states import Flags

__all__ = ["Circumstances", "Facts", "Feature", "Tracking"]

Tracking: TypeAlias = Literal["device", "iommu", "none", "unknown"]
"""Who tells which pages of guest memory a device writes."""

Feature: TypeAlias = Literal["postcopy", "background-snapshot", "cpr"]
"""What a migration stack may do besides, and devices cannot take part in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One device.  Texts are empty, and numbers None, where nothing is known.

    ``stop_copy_bytes``: what it would hand out if it stopped now.  ``arc_seconds``: times of its
    arcs, keyed ``"RESUMING->STOP"``.  ``late_load``: it loads, and checks, only in RESUMING -> STOP.
    ``version``, ``firmware``, ``model``: of its driver, of itself, and what it is (vendor and device
    id, or type of a mediated device).  ``why_not``: what keeps it from being used at all.
    ``iommufd``: whether it can be opened through one, else by its group; None: it is no device of this host.
    """

    name: str
    driver: str
    flags: Flags
    tracking: Tracking = "unknown"
    stop_copy_bytes: int | None = None
    arc_seconds: Mapping[str, float] = field(default_factory=dict)
    late_load: bool = False
    version: str = ""
    firmware: str = ""
    model: str = ""
    state: str = "RUNNING"
    iommufd: bool | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """The virtual machine, the stack around it, and the wire, as far as they are known.

    ``bandwidth``: device bytes per second; ``guest_memory``: bytes; ``viommu``: whether the guest has
    an IOMMU of its own; ``round_trip``: seconds.
    """

    policy: Policy = field(default_factory=Policy)
    bandwidth: float | None = None
    round_trip: float = 0.0
    guest_memory: int | None = None
    viommu: bool = False
    features: frozenset[Feature] = frozenset()

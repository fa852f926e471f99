"""The shortest downtime that a run could have had, given what was left when it switched over.  Pure.

Three things cannot be had for less, whatever the order of operations:

- the changes of state: each barrier as long as its slowest device, since no device may go on before
  all are there (`vfioflow.barrier` says why);
- the bytes: all of them over the wire, each device's at its own rate;
- the final load of devices that load in ``write``, which begins when their last byte is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfioflow.devices.profile import Profile
from vfioflow.lab.scenario import Outcome, Scenario
from vfioflow.precopy import destination_seconds, source_seconds

__all__ = ["Left", "bound_of", "load_seconds", "lower_bound", "transition_seconds"]

_LOAD_ARC = "RESUMING->STOP"

_READ_AHEAD = 1 << 20
"""Bytes that a simulated device has ready when the drain begins: what its pipe holds."""


@dataclass(frozen=True, slots=True)
class Left:
    """What one device still had to move while it stood still: ``size`` device bytes.

    ``wire`` is how many bytes a device byte took on the wire: less than 1 where it was compressed.
    """

    profile: Profile
    size: int
    wire: float = 1.0

    @property
    def own_seconds(self) -> float:
        """What it takes with a wire that is infinitely fast: its own rates, then its load."""
        rates = [rate for rate in (self.profile.read_rate, self.profile.write_rate) if rate]
        size = max(self.size - _READ_AHEAD, 0)
        return (size / min(rates) if rates else 0.0) + self.load_seconds

    @property
    def load_seconds(self) -> float:
        """Of the final load, where that is in ``write``."""
        return self.profile.load_seconds if self.profile.load_in == "write" else 0.0


def bound_of(scenario: Scenario, outcome: Outcome, rate: float | None) -> float:
    """Seconds that a run's downtime could not have gone below; ``rate`` as in :func:`lower_bound`."""
    compression = outcome.bytes_wire / outcome.bytes_total if outcome.bytes_total else 1.0
    return lower_bound(
        (
            Left(device.profile, outcome.left.get(device.name, 0), min(compression, 1.0))
            for device in scenario.devices
        ),
        rate,
    )


def lower_bound(left: Iterable[Left], rate: float | None) -> float:
    """Seconds.  ``rate``: bytes per second that the wire carries; None: it takes no time."""
    left = list(left)
    bytes_wire = sum(each.size * each.wire for each in left)
    over_wire = bytes_wire / rate if rate else 0.0
    load = max((each.load_seconds for each in left), default=0.0)
    own = max((each.own_seconds for each in left), default=0.0)
    return transition_seconds(each.profile for each in left) + max(over_wire + load, own)


def load_seconds(scenario: Scenario) -> float:
    """Seconds of the longest final load in ``write``."""
    return max((Left(d.profile, 0).load_seconds for d in scenario.devices), default=0.0)


def transition_seconds(profiles: Iterable[Profile]) -> float:
    """Seconds of all barriers in the downtime, with the loads that are in RESUMING->STOP."""
    arcs = [(profile.migration_flags, _arcs(profile)) for profile in profiles]
    return source_seconds(arcs) + destination_seconds(arcs)


def _arcs(profile: Profile) -> Mapping[str, float]:
    arcs = dict(profile.arc_seconds)
    if profile.load_in == "stop":
        arcs[_LOAD_ARC] = arcs.get(_LOAD_ARC, 0.0) + profile.load_seconds
    return arcs

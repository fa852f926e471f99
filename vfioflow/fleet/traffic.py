"""What a machine still has to move: devices that dirty while they run, as on the average.  Pure.

The figures are device bytes, as the devices hand them out; compression is not counted on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from vfioflow.devices.profile import Profile
from vfioflow.fleet.machines import Machine, Memory, Wire
from vfioflow.precopy import Arcs, Pending, destination_seconds, source_seconds
from vfioflow.states import Flags

__all__ = ["SHORTEST_ROUND", "Stream", "Traffic"]

SHORTEST_ROUND = 0.05
"""Seconds from the start of one pre-copy round to the next at least, as in :mod:`vfioflow.rounds`."""

_LOAD_ARC = "RESUMING->STOP"


class Stream:
    """One device's state, or the memory: how much of it is where, in bytes.

    ``initial`` was never sent, ``dirty`` was sent and then written to, ``rest`` moves only in
    stop-copy.  Writes hit each byte of the hot part with the same probability, those that are
    pending already too; so ``d`` bytes of writes leave ``hot * (1 - exp(-d / hot))`` dirty.
    """

    def __init__(
        self,
        name: str,
        *,
        offered: float,
        rest: float,
        hot: float,
        dirty_rate: float,
        own_rate: float = math.inf,
        can_precopy: bool = True,
        acknowledged: bool = True,
    ) -> None:
        self.name = name
        self.acknowledged = acknowledged and can_precopy
        """Whether the destination has to say that it has loaded the initial bytes."""
        self.can_precopy = can_precopy
        self.own_rate = own_rate
        self.offered = self.initial = offered
        self.dirty = 0.0
        self.rest = rest
        self._hot = min(hot, offered)
        self._rate = dirty_rate * self._hot / hot if hot else 0.0

    @classmethod
    def of_device(cls, name: str, profile: Profile) -> Stream:
        """A device's, as far as its profile says."""
        can = Flags.PRE_COPY in profile.migration_flags
        block = profile.block_size
        offered = min(math.ceil(profile.initial_bytes / block) * block, profile.state_size)
        rates = [rate for rate in (profile.read_rate, profile.write_rate) if rate]
        return cls(
            name,
            offered=offered if can else 0,
            rest=profile.state_size - (offered if can else 0),
            hot=profile.dirtied_bytes,
            dirty_rate=profile.dirty_rate,
            own_rate=min(rates, default=math.inf),
            can_precopy=can,
        )

    @classmethod
    def of_memory(cls, memory: Memory) -> Stream:
        """The guest's RAM."""
        hot = memory.dirty_set if memory.dirty_set >= 0 else memory.size
        size = memory.size
        rate = memory.dirty_rate
        return cls("memory", offered=size, rest=0, hot=hot, dirty_rate=rate, acknowledged=False)

    @property
    def left(self) -> float:
        """Bytes that stop-copy would move now."""
        return self.initial + self.dirty + self.rest

    @property
    def precopy(self) -> float:
        """Bytes that pre-copy could move now."""
        return self.initial + self.dirty

    def pending(self) -> Pending:
        """The same for :func:`vfioflow.precopy.decide`."""
        initial = math.ceil(self.initial) if self.acknowledged else 0
        dirty = math.ceil(self.precopy) - initial
        return Pending(self.name, self.can_precopy, initial, dirty, math.ceil(self.left))

    def take(self, budget: float) -> float:
        """So many of the bytes that pre-copy offers leave it, those never sent first."""
        first = min(self.initial, budget)
        then = min(self.dirty, budget - first)
        self.initial -= first
        self.dirty -= then
        return first + then

    def run(self, seconds: float) -> None:
        """It runs on, and dirties."""
        if self._hot and self._rate:
            clean = self._hot * (1 - self.initial / self.offered) - self.dirty
            self.dirty += max(clean, 0.0) * -math.expm1(-self._rate * seconds / self._hot)

    def least_left(self, rate: float) -> float:
        """Bytes that no schedule gets below while the wire carries ``rate`` bytes per second.

        A round takes ``SHORTEST_ROUND`` at least, and what it moves over the rate.  With ``f(T)``, the bytes
        dirtied in ``T`` from clean, a stream with ``f(T*)`` pending or more has so many after any round,
        where ``T* = max(SHORTEST_ROUND, f(T*) / rate)``: a round that moves all takes ``T*`` or more;
        and to leave some unmoved saves no more time than is needed to move it, as long as the
        device dirties no faster than the wire.  If it is faster, only ``f(SHORTEST_ROUND)`` is certain.
        """
        if not self._hot or not self._rate:
            return self.rest
        rate = min(rate, self.own_rate)
        seconds = SHORTEST_ROUND
        if self._rate <= rate:
            # f is concave, so this rises to the smallest fixed point; to stop early is on the safe side.
            for _ in range(200):
                seconds = max(seconds, self._dirtied(seconds) / rate)
        return self.rest + self._dirtied(seconds)

    def _dirtied(self, seconds: float) -> float:
        return self._hot * -math.expm1(-self._rate * seconds / self._hot)


class Traffic:
    """All streams of a machine, and the times of its changes of state."""

    def __init__(self, machine: Machine, wire: Wire) -> None:
        profiles = [device.profile for device in machine.devices]
        self.streams = [Stream.of_device(d.name, d.profile) for d in machine.devices]
        if machine.memory is not None:
            self.streams.append(Stream.of_memory(machine.memory))
        arcs = [(profile.migration_flags, _arcs(profile)) for profile in profiles]
        self.enter_seconds = _slowest_entry(profiles)
        self.stop_seconds = source_seconds(arcs)
        """From the stop of the vCPUs to the first byte of stop-copy."""
        self.land_seconds = _landing(profiles, arcs) + 4 * wire.latency
        """From the last byte to the machine's running: loads, changes of state, two round trips."""

    @property
    def fixed_seconds(self) -> float:
        """The part of the downtime that no pre-copy shortens."""
        return self.stop_seconds + self.land_seconds

    @property
    def left(self) -> float:
        """Bytes that stop-copy would move now."""
        return sum(stream.left for stream in self.streams)

    def pending(self) -> tuple[Pending, ...]:
        """What each stream still has to move."""
        return tuple(stream.pending() for stream in self.streams)

    @property
    def initial_sent(self) -> bool:
        """Whether all initial bytes that are acknowledged have been sent."""
        return all(stream.initial == 0 for stream in self.streams if stream.acknowledged)

    def take(self, most: float, least: float) -> tuple[float, float]:
        """A round's bytes, of each stream at most ``most``; and the rate that its devices allow."""
        moved = [
            (s, s.take(min(max(s.precopy, least), most))) for s in self.streams if s.can_precopy
        ]
        return sum(size for _, size in moved), _own_rate(moved)

    def drain(self) -> tuple[float, float]:
        """The bytes of stop-copy, and the rate that its devices allow."""
        return self.left, _own_rate([(stream, stream.left) for stream in self.streams])

    def run(self, seconds: float) -> None:
        """All devices run on."""
        for stream in self.streams:
            stream.run(seconds)

    def least_downtime(self, rate: float) -> float:
        """Seconds that no schedule gets below over a wire that carries ``rate`` bytes per second."""
        left = [(stream, stream.least_left(rate)) for stream in self.streams]
        size = sum(part for _, part in left)
        return self.fixed_seconds + (size / min(rate, _own_rate(left)) if size else 0.0)


def _own_rate(parts: Sequence[tuple[Stream, float]]) -> float:
    """Bytes per second at which these parts can move side by side if the wire is no limit."""
    seconds = max((size / stream.own_rate for stream, size in parts), default=0.0)
    return sum(size for _, size in parts) / seconds if seconds else math.inf


def _slowest_entry(profiles: Iterable[Profile]) -> float:
    return max((p.arc_seconds.get("RUNNING->PRE_COPY", 0.0) for p in profiles), default=0.0)


def _landing(profiles: Iterable[Profile], arcs: Iterable[Arcs]) -> float:
    in_write = [p.load_seconds for p in profiles if p.load_in == "write"]
    return max(in_write, default=0.0) + destination_seconds(arcs)


def _arcs(profile: Profile) -> Mapping[str, float]:
    """With the load, where that is in the change of state."""
    arcs = dict(profile.arc_seconds)
    if profile.load_in == "stop":
        arcs[_LOAD_ARC] = arcs.get(_LOAD_ARC, 0.0) + profile.load_seconds
    return arcs

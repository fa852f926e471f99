"""What is to leave, over what wire, and what each machine allows.  Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vfioflow.devices.profile import Profile
from vfioflow.errors import ConfigError
from vfioflow.policy import Policy

__all__ = ["Fleet", "FleetDevice", "Machine", "Memory", "Wire"]

_MAX_SIZE = 1 << 46
_MAX_PRIORITY = 1000


@dataclass(frozen=True, slots=True)
class Wire:
    """The one wire that all share.  Raises ConfigError when a field has an impossible value."""

    rate: int
    """Bytes per second that it carries, all machines together."""
    latency: float = 0.0
    """Seconds that a packet takes from one side to the other, besides."""

    def __post_init__(self) -> None:
        _need(self.rate >= 1000, "rate", self.rate, "1000 bytes/s or more")
        _need(0 <= self.latency <= 10, "latency", self.latency, "from 0 to 10 seconds")


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's RAM, where it leaves over the same wire.  Bytes, and bytes per second.

    Raises ConfigError when a field has an impossible value.
    """

    size: int
    dirty_rate: float = 0.0
    dirty_set: int = -1
    """The part that is ever dirtied; -1: all of it."""

    def __post_init__(self) -> None:
        _need(0 < self.size <= _MAX_SIZE, "size", self.size, "1 byte to 64 TiB")
        good = 0 <= self.dirty_rate < 1e18
        _need(good, "dirty_rate", self.dirty_rate, "a rate from 0")
        good = -1 <= self.dirty_set <= self.size
        _need(good, "dirty_set", self.dirty_set, f"from 0 to size ({self.size})")


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """A device of a machine, and what it is like."""

    name: str
    profile: Profile


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine that is to leave.  Raises ConfigError when a field has an impossible value."""

    name: str
    devices: tuple[FleetDevice, ...]
    downtime_limit: float = 0.3
    """Seconds."""
    priority: int = 1
    """How much its waiting weighs, and its being late."""
    deadline: float = math.inf
    """Seconds after the evacuation begins by which it has to run elsewhere."""
    memory: Memory | None = None

    def __post_init__(self) -> None:
        limit = self.downtime_limit
        _need(0 < limit < 1e6, "downtime_limit", limit, "above 0 seconds")
        good = 1 <= self.priority <= _MAX_PRIORITY
        _need(good, "priority", self.priority, f"a whole number from 1 to {_MAX_PRIORITY}")
        _need(self.deadline > 0, "deadline", self.deadline, "above 0 seconds")
        _need(bool(self.devices or self.memory), "devices", "[]", "at least one, or a [memory]")

    @property
    def size(self) -> int:
        """Bytes of state, of all devices and the memory."""
        memory = self.memory.size if self.memory else 0
        return memory + sum(device.profile.state_size for device in self.devices)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All machines that are to leave, in the order in which they were named.

    ``policy``: what holds for each, but for its downtime limit.
    """

    wire: Wire
    machines: tuple[Machine, ...]
    policy: Policy = field(default_factory=Policy)


def _need(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{key} = {value!r}: must be {wanted}")

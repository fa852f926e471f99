"""A fleet as TOML (`docs/evacuate.md`).  Pure: other files that it names are read by whom it asks.

::

    [wire]
    rate = "25Gbit"
    latency = "50us"

    [[machines]]
    name = "db1"
    downtime_limit = "300ms"
    priority = 3
    deadline = "60s"
    devices = "db1.toml"          # as `vfioflow send` takes it, or:

    [[machines.devices]]
    name = "nic"
    profile = "mlx5"
    count = 2

    [machines.memory]
    size = "8GiB"
    dirty_rate = "200MiB"
    dirty_set = "1GiB"
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from vfioflow.devices.profile import profile
from vfioflow.devices.sizes import parse_duration, parse_rate, parse_size
from vfioflow.errors import ConfigError
from vfioflow.fleet.machines import Fleet, FleetDevice, Machine, Memory, Wire
from vfioflow.policy_table import policy_of

__all__ = ["parse_fleet"]

_MAX_MACHINES = 200
_MAX_DEVICES = 64
_POLICY = ("downtime_limit", "max_iterations", "precopy_timeout", "chunk_size")

Read = Callable[[str], str]
"""The text of a devices file, by the name that the plan gives it.  Raises ConfigError."""


def parse_fleet(text: str, where: str, read: Read) -> Fleet:
    """The fleet that ``text`` says; ``where`` is what errors call it, as a file's path.

    Raises ConfigError, which names the file, the table and the key.
    """
    try:
        return _fleet(_toml(text), read)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not TOML: {error}") from None


def _fleet(document: Mapping[str, Any], read: Read) -> Fleet:
    _only(document, ("wire", "policy", "machines"))
    wire = document.get("wire")
    if not isinstance(wire, dict) or "rate" not in wire:
        raise ConfigError('needs the wire that all share: [wire], rate = "25Gbit"')
    policy_table = document.get("policy", {})
    _need(isinstance(policy_table, dict), "policy", policy_table, "a table [policy]")
    tables = document.get("machines")
    if not isinstance(tables, list) or not tables:
        raise ConfigError("lists no machine; write each as a table [[machines]]")
    with _In("policy"):
        _only(policy_table, _POLICY)
        policy = policy_of(policy_table)
    machines: list[Machine] = []
    for number, table in enumerate(tables, 1):
        with _In(_label("machine", table, number)):
            machines += _machines(_table(table), policy.downtime_limit, read)
    _unique("machine", [machine.name for machine in machines])
    if len(machines) > _MAX_MACHINES:
        raise ConfigError(f"{len(machines)} machines: at most {_MAX_MACHINES}")
    with _In("wire"):
        return Fleet(_wire(wire), tuple(machines), policy)


def _wire(table: Mapping[str, Any]) -> Wire:
    _only(table, ("rate", "latency"))
    return Wire(
        int(_number(table, "rate", 0, parse_rate)), _number(table, "latency", 0.0, parse_duration)
    )


def _machines(table: Mapping[str, Any], limit: float, read: Read) -> list[Machine]:
    """The machines of one table: one, or ``count`` of them with numbers at their names."""
    _only(
        table,
        ("name", "count", "downtime_limit", "priority", "deadline", "devices", "memory"),
    )
    name = _name(table)
    count = _whole(table, "count", 0, _MAX_MACHINES)
    memory = table.get("memory")
    like = Machine(
        name,
        _devices(table.get("devices", []), read),
        downtime_limit=_number(table, "downtime_limit", limit, parse_duration),
        priority=_whole(table, "priority", 1, 1000),
        deadline=_number(table, "deadline", math.inf, parse_duration),
        memory=None if memory is None else _memory(_table(memory)),
    )
    return [replace(like, name=each) for each in _names(name, count)]


def _memory(table: Mapping[str, Any]) -> Memory:
    with _In("memory"):
        _only(table, ("size", "dirty_rate", "dirty_set"))
        return Memory(
            int(_number(table, "size", 0, parse_size)),
            _number(table, "dirty_rate", 0.0, parse_rate),
            int(_number(table, "dirty_set", -1, parse_size)),
        )


def _devices(devices: object, read: Read) -> tuple[FleetDevice, ...]:
    if isinstance(devices, str):
        text = read(devices)
        with _In(devices):
            document = _toml(text)
            _only(document, ("device",))
            return _devices(document.get("device"), read)
    _need(isinstance(devices, list), "devices", devices, "a devices file, or tables")
    found: list[FleetDevice] = []
    assert isinstance(devices, list)
    for number, table in enumerate(devices, 1):
        with _In(_label("device", table, number)):
            found += _device(_table(table))
    _unique("device", [device.name for device in found])
    if len(found) > _MAX_DEVICES:
        raise ConfigError(f"{len(found)} devices: at most {_MAX_DEVICES}")
    return tuple(found)


def _device(table: Mapping[str, Any]) -> list[FleetDevice]:
    """A device, or ``count`` of them.  The seed and the faults of a devices file do not matter here."""
    name = _name(table)
    if (kind := table.get("kind", "sim")) != "sim":
        raise ConfigError(
            f"kind = {kind!r}: a plan needs a device's profile, which only kind 'sim' has"
        )
    count = _whole(table, "count", 0, _MAX_DEVICES)
    aside = ("name", "kind", "count", "seed", "fault", "profile")
    profile_name = table.get("profile", "generic")
    _need(isinstance(profile_name, str), "profile", profile_name, "a profile's name")
    like = profile(profile_name).override({k: v for k, v in table.items() if k not in aside})
    return [FleetDevice(each, like) for each in _names(name, count)]


# ----------------------------------------------------------------------- small things


class _In:
    """Errors in here name the part of the file that they are about."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{self._part}: {error}") from None


def _label(what: str, table: object, number: int) -> str:
    name = table.get("name") if isinstance(table, dict) else None
    return f"{what} {name}" if isinstance(name, str) and name else f"{what} number {number}"


def _table(table: object) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError("must be a table")
    return table


def _names(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)] if count else [name]


def _name(table: Mapping[str, Any]) -> str:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError("needs a name, a text")
    return name


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what} {name}: the name is there twice")
        seen.add(name)


def _only(table: Mapping[str, Any], valid: Iterable[str]) -> None:
    for key in table:
        if key not in valid:
            raise ConfigError(f"unknown key {key!r}; valid are {', '.join(valid)}")


def _whole(table: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = table.get(key, default)
    good = type(value) is int and (key not in table or 1 <= value <= most)
    _need(good, key, value, f"a whole number from 1 to {most}")
    return int(value)


def _number(
    table: Mapping[str, Any], key: str, default: float, parse: Callable[[str], float]
) -> float:
    value = table.get(key, default)
    if isinstance(value, str):
        with _In(key):
            return parse(value)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    _need(good or key not in table, key, value, "a number, or one with a unit")
    return float(value)


def _need(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{key} = {value!r}: must be {wanted}")

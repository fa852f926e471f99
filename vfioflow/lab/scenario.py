"""A scenario: devices, a wire and a policy, and what came of one run of it.  Pure.

Written as TOML (`docs/bench.md`)::

    about = "two ConnectX-7 VFs on 10 GbE"
    repetitions = 5

    [wire]
    rate = "10Gbit"

    [policy]
    downtime_limit = "300ms"

    [[device]]
    name = "nic"
    count = 2
    profile = "mlx5"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from vfioflow.devices.profile import Profile, profile
from vfioflow.devices.sizes import parse_duration, parse_rate
from vfioflow.errors import ConfigError
from vfioflow.policy import Policy
from vfioflow.policy_table import policy_of

__all__ = ["Kind", "Outcome", "Scenario", "SimulatedDevice", "Wire", "parse_scenario"]

Kind = Literal["auto", "loopback", "namespaces", "host"]

_MAX_COUNT = 64
_MAX_REPETITIONS = 1000
_KEYS = ("about", "repetitions", "warm_up", "wire", "policy", "device")


@dataclass(frozen=True, slots=True)
class Wire:
    """What lies between the two sides.  Raises ConfigError when a field has an impossible value."""

    kind: Kind = "auto"
    """"loopback"; "namespaces": two network namespaces, shaped, which takes root; "host": the real one
    to ``address``; "auto": namespaces where they can be made and something is to be shaped, else loopback."""

    rate: int | None = None
    """Bytes per second that it carries; None: as many as it can."""

    latency: float = 0.0
    """Seconds that a packet takes from one side to the other, besides."""

    loss: float = 0.0
    """Share of the packets that get lost, from 0 to below 1."""

    address: str = ""
    """Where `vfioflow bench receive` listens, ``"tcp://HOST:PORT"``, for the kind "host"."""

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        _need(self.kind in kinds, "kind", self.kind, f"one of {', '.join(kinds)}")
        _need(self.rate is None or self.rate >= 1000, "rate", self.rate, "1000 bytes/s or more")
        _need(0 <= self.latency <= 10, "latency", self.latency, "from 0 to 10 seconds")
        _need(0 <= self.loss < 1, "loss", self.loss, "from 0 to below 1")
        host = self.kind == "host"
        _need(host == bool(self.address), "address", self.address, "there for the kind 'host' only")
        shaped = bool(self.rate or self.latency or self.loss)
        _need(not shaped or self.kind != "loopback", "kind", self.kind, "another: it has no shape")

    @property
    def shaped(self) -> bool:
        """Whether it is to be slower than it would be by itself."""
        return bool(self.rate or self.latency or self.loss)


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A device of a scenario: its name, its seed, and what it is like."""

    name: str
    seed: int
    profile: Profile
    profile_name: str = "generic"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Devices, a wire, a policy, and how often to run it."""

    name: str
    devices: tuple[SimulatedDevice, ...]
    about: str = ""
    wire: Wire = field(default_factory=Wire)
    policy: Policy = field(default_factory=Policy)
    repetitions: int = 5
    """Runs that count."""
    warm_up: int = 1
    """Runs before those, which do not."""

    @property
    def size(self) -> int:
        """Bytes of state, of all devices together."""
        return sum(device.profile.state_size for device in self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run.  Seconds, bytes, bytes per second.

    A run that failed has an ``error``, and of what is None elsewhere only what was reached.
    """

    error: str = ""
    downtime: float | None = None
    total: float = 0.0
    """From the first connection until all is released."""
    predicted: float | None = None
    """The downtime that the decision to switch over was made on."""
    bytes_total: int = 0
    bytes_wire: int = 0
    bytes_stopcopy: int = 0
    """Device bytes that moved while the virtual machine stood still."""
    iterations: int = 0
    bandwidth: float | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    """The downtime by its steps, as in a report, but in seconds."""
    bound: float | None = None
    """No order of operations is faster with these devices, this wire, and these bytes left."""

    @property
    def over_bound(self) -> float | None:
        """The downtime over its lower bound."""
        return self.downtime / self.bound if self.bound and self.downtime is not None else None


def parse_scenario(text: str, name: str, where: str) -> Scenario:
    """The scenario that ``text`` says, in TOML; ``where`` is what errors call it, as a file's path.

    Raises ConfigError, which names the file, the table and the key.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    try:
        return _scenario(document, name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _scenario(document: Mapping[str, Any], name: str) -> Scenario:
    _only(document, _KEYS)
    about = document.get("about", "")
    _need(isinstance(about, str), "about", about, "a text")
    repetitions = _whole(document, "repetitions", 5, 1, _MAX_REPETITIONS)
    warm_up = _whole(document, "warm_up", 1, 0, _MAX_REPETITIONS)
    with_table = {key: document.get(key, {}) for key in ("wire", "policy")}
    for key, table in with_table.items():
        _need(isinstance(table, dict), key, table, f"a table [{key}]")
    tables = document.get("device")
    if not isinstance(tables, list) or not tables:
        raise ConfigError("lists no device; write each as a table [[device]]")
    return Scenario(
        name,
        _devices(tables),
        about=about,
        wire=_in("wire", _wire, with_table["wire"]),
        policy=_in("policy", policy_of, with_table["policy"]),
        repetitions=repetitions,
        warm_up=warm_up,
    )


def _in(part: str, read: Any, table: Mapping[str, Any]) -> Any:
    """What ``read`` makes of a table; an error names the table."""
    try:
        return read(table)
    except ConfigError as error:
        raise ConfigError(f"{part}: {error}") from None


def _wire(table: Mapping[str, Any]) -> Wire:
    _only(table, [f.name for f in fields(Wire)])
    values = dict(table)
    for key, parse in (("rate", parse_rate), ("latency", parse_duration)):
        if isinstance(text := values.get(key), str):
            try:
                values[key] = parse(text)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from None
    for key in ("kind", "address"):
        _need(isinstance(values.get(key, ""), str), key, values.get(key), "a text")
    for key in ("rate", "latency", "loss"):
        _need(_number(values.get(key, 0)), key, values.get(key), "a number, or one with a unit")
    if "rate" in values:
        values["rate"] = int(values["rate"])
    return Wire(**values)


def _devices(tables: list[Any]) -> tuple[SimulatedDevice, ...]:
    devices: list[SimulatedDevice] = []
    for number, table in enumerate(tables, 1):
        label = f"device {_label(table, number)}"
        devices += _in(label, _device, table if isinstance(table, dict) else {})
        names = [device.name for device in devices]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{label}: the name {twice!r} is there twice")
    if len(devices) > _MAX_COUNT:
        raise ConfigError(f"{len(devices)} devices: at most {_MAX_COUNT}")
    return tuple(devices)


def _label(table: object, number: int) -> str:
    name = table.get("name") if isinstance(table, dict) else None
    return name if isinstance(name, str) and name else f"number {number}"


def _device(table: Mapping[str, Any]) -> list[SimulatedDevice]:
    """The devices of one table: one, or ``count`` of them with numbers at their names."""
    rest = dict(table)
    name = rest.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError("needs a name, a text")
    if (kind := rest.pop("kind", "sim")) != "sim":
        raise ConfigError(f"kind = {kind!r}: a scenario's devices are simulated; leave it out")
    if "fault" in rest:
        raise ConfigError("fault: a scenario measures devices that work")
    count = _whole(rest, "count", 0, 1, _MAX_COUNT)
    seed = _whole(rest, "seed", 0, 0, 2**32)
    rest = {key: value for key, value in rest.items() if key not in ("count", "seed")}
    profile_name = rest.pop("profile", "generic")
    _need(isinstance(profile_name, str), "profile", profile_name, "a profile's name")
    like = profile(profile_name).override(rest)
    if not count:
        return [SimulatedDevice(name, seed, like, profile_name)]
    return [
        SimulatedDevice(f"{name}{number}", seed + number, like, profile_name)
        for number in range(count)
    ]


def _only(table: Mapping[str, Any], valid: Any) -> None:
    for key in table:
        if key not in valid:
            raise ConfigError(f"unknown key {key!r}; valid are {', '.join(valid)}")


def _whole(table: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = table.get(key, default)
    good = type(value) is int and (key not in table or least <= value <= most)
    _need(good, key, value, f"a whole number from {least} to {most}")
    return int(value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _need(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{key} = {value!r}: must be {wanted}")

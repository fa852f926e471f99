"""The devices file: a TOML list of the devices to migrate.

Each ``[[device]]`` has a ``name``, a ``kind`` (default ``"sim"``), and the keys of its kind.
A new kind adds a :class:`Kind` to :data:`KINDS`.
"""

from __future__ import annotations

import tomllib
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfioflow.devices.kernel import KernelDevice
from vfioflow.devices.sim import Fabric, Fault, Profile, SimDevice
from vfioflow.devices.sizes import parse_size
from vfioflow.devices.vfio_user.table import device_of
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vfioflow.devices.base import Device

__all__ = ["KINDS", "Kind", "load_devices", "parse_size"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How devices of one kind are made from their tables.

    ``make`` takes the name and the rest of the table; ``connect`` is called once with all
    devices of the kind that a file lists.  Both raise ConfigError.
    """

    make: Callable[[str, dict[str, Any]], Device]
    connect: Callable[[Sequence[Device]], None]


def _make_sim(name: str, table: dict[str, Any]) -> Device:
    rest = dict(table)
    faults = [_fault(f, number) for number, f in enumerate(_tables(rest.pop("fault", [])), 1)]
    seed = rest.pop("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"seed = {seed!r}: must be a number from 0 to 2**64-1")
    profile = rest.pop("profile", "generic")
    if not isinstance(profile, str):
        raise ConfigError(f"profile = {profile!r}: must be a profile's name")
    valid = [f.name for f in fields(Profile)]
    for key in rest:
        if key not in valid:
            raise ConfigError(
                f"unknown key {key!r}; valid are profile, seed, fault, {', '.join(valid)}"
            )
    return SimDevice(name, profile=profile, seed=seed, faults=faults, **rest)


def _tables(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError("fault: write each as a table [[device.fault]]")
    return value


def _fault(table: dict[str, Any], number: int) -> Fault:
    valid = [f.name for f in fields(Fault)]
    for key in table:
        if key not in valid:
            raise ConfigError(f"fault {number}: unknown key {key!r}; valid are {', '.join(valid)}")
    for key in ("at", "kind"):
        if not isinstance(table.get(key), str):
            raise ConfigError(f"fault {number}: needs {key!r}, a text")
    try:
        return Fault(**table)
    except ConfigError as error:
        raise ConfigError(f"fault {number}: {error}") from None


def _connect_sim(devices: Sequence[Device]) -> None:
    Fabric(device for device in devices if isinstance(device, SimDevice))


def _make_kernel(name: str, table: dict[str, Any]) -> Device:
    for key, value in table.items():
        if key not in ("device", "how"):
            raise ConfigError(f"unknown key {key!r}; valid are device, how")
        if not isinstance(value, str):
            raise ConfigError(f"{key} = {value!r}: must be a text")
    if "device" not in table:
        raise ConfigError(
            "needs a device: a PCI address, a mediated device's UUID, or a path in sysfs"
        )
    return KernelDevice.open(table["device"], name=name, how=table.get("how", "auto"))


def _connect_nothing(devices: Sequence[Device]) -> None:
    del devices  # real ones reach each other without us


KINDS: dict[str, Kind] = {
    "sim": Kind(_make_sim, _connect_sim),
    "kernel": Kind(_make_kernel, _connect_nothing),
    "vfio-user": Kind(device_of, _connect_nothing),
}
"""The kinds that a devices file may name."""


def load_devices(path: str | Path, *, seed: int = 0) -> list[Device]:
    """The devices that the TOML file at ``path`` lists, in its order; the caller closes them.

    Simulated ones share a :class:`vfioflow.devices.sim.Fabric`; ``seed`` is added to theirs.

    Raises:
        ConfigError: the file cannot be read, is not TOML, lists no device, or has something
            wrong; names the file, the device and the key.  No device is left open.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of the TOML, its UTF-8, or a number in it
        raise ConfigError(f"{path}: not TOML: {error}") from error
    tables = document.pop("device", None)
    if document:
        raise ConfigError(f"{path}: unknown key {next(iter(document))!r}; valid is device")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path}: lists no device; write each as a table [[device]]")
    devices: list[Device] = []
    kinds: dict[str, list[Device]] = {}
    with ExitStack() as undo:
        for number, table in enumerate(tables, 1):
            try:
                kind, device = _make(table, {d.name for d in devices}, seed)
            except ConfigError as error:
                name = table.get("name") if isinstance(table, dict) else None
                label = name if isinstance(name, str) and name else f"number {number}"
                raise ConfigError(f"{path}: device {label}: {error}") from None
            undo.callback(device.close)
            devices.append(device)
            kinds.setdefault(kind, []).append(device)
        for kind, members in kinds.items():
            try:
                KINDS[kind].connect(members)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
        undo.pop_all()
    return devices


def _make(table: object, taken: set[str], shift: int) -> tuple[str, Device]:
    if not isinstance(table, dict):
        raise ConfigError("write it as a table [[device]]")
    rest = dict(table)
    name = rest.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError("needs a name, a text")
    if name in taken:
        raise ConfigError("name is there twice")
    kind = rest.pop("kind", "sim")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"kind = {kind!r}: must be one of {', '.join(KINDS)}")
    if kind == "sim" and shift and isinstance(seed := rest.get("seed", 0), int):
        rest["seed"] = (seed + shift) % (1 << 64)
    return kind, KINDS[kind].make(name, rest)

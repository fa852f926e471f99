"""What a client may ask, typed: the parameters of every method.  docs/agent.md says what each does."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from vfioflow.errors import ConfigError
from vfioflow.policy import Policy
from vfioflow.wire.security import Security

__all__ = [
    "AccessInterrupt",
    "AccessRead",
    "AccessWrite",
    "DeviceAdd",
    "DeviceNamed",
    "Devices",
    "DirtyReport",
    "DirtyStart",
    "HookName",
    "Listen",
    "ListenerNamed",
    "LogNamed",
    "MigrationNamed",
    "Moved",
    "Nothing",
    "Plan",
    "SourceChange",
    "SourceStart",
    "Trust",
    "policy_of",
]

HookName: TypeAlias = Literal[
    "before",
    "after",
    "may_switch_over",
    "stop_vcpus",
    "start_vcpus",
    "save_config",
    "load_config",
]


class _Words(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class Trust(_Words):
    """How the two hosts know each other: a key's file or a folder of certificates; neither: not at all."""

    psk: str | None = None
    tls: str | None = None
    hostname: str | None = None
    peer: str | None = None

    def security(self) -> Security:
        """Raises ConfigError."""
        if self.psk is not None and self.tls is not None:
            raise ConfigError("a key and certificates exclude each other: use one of them")
        if self.psk is not None:
            return Security.from_psk_file(self.psk)
        if self.tls is not None:
            return Security.from_tls_dir(self.tls, hostname=self.hostname, peer=self.peer)
        return Security()


class Nothing(_Words):
    """No parameters."""


class DeviceAdd(_Words):
    """A device, in one of four ways; ``fd`` and ``socket_fd`` count the message's descriptors from 0."""

    name: str
    fd: int | None = None
    """A VFIO device's descriptor."""
    socket_fd: int | None = None
    """A connection to a vfio-user server."""
    device: str | None = None
    """A device of this host, which the agent opens: PCI address, mediated device's UUID, or path in sysfs."""
    socket: str | None = None
    """Where a vfio-user server listens."""
    simulated: dict[str, Any] | None = None
    """As in a devices file: ``profile`` and the rest."""
    driver: str = ""
    """Needed with ``fd`` where the kernel does not tell it."""


class DeviceNamed(_Words):
    """One device."""

    name: str


class Devices(_Words):
    """A set; empty: all of this client's."""

    devices: list[str] = msgspec.field(default_factory=list)


class Plan(Devices):
    """Whether these may migrate, and to this destination."""

    to: str = ""
    policy: dict[str, Any] = msgspec.field(default_factory=dict)
    security: Trust = msgspec.field(default_factory=Trust)


class SourceStart(_Words):
    """A migration away from here."""

    to: str
    devices: list[str] = msgspec.field(default_factory=list)
    policy: dict[str, Any] = msgspec.field(default_factory=dict)
    security: Trust = msgspec.field(default_factory=Trust)
    hooks: list[HookName] = msgspec.field(default_factory=list)
    pending: list[str] = msgspec.field(default_factory=list)
    session: str = ""
    trap: bool = False
    hold: bool = False
    events: bool = False


class Listen(Devices):
    """Where migrations arrive; ``fd``: a listening TCP socket among the message's descriptors."""

    address: str = ""
    fd: int | None = None
    policy: dict[str, Any] = msgspec.field(default_factory=dict)
    security: Trust = msgspec.field(default_factory=Trust)
    hooks: list[HookName] = msgspec.field(default_factory=list)
    config_after_data: bool = False
    trap: bool = False
    events: bool = False


class ListenerNamed(_Words):
    """One listener."""

    listener: str


class MigrationNamed(_Words):
    """One migration."""

    migration: str


class SourceChange(MigrationNamed):
    """Other limits; what is left out stays as it is."""

    downtime_limit: float | msgspec.UnsetType = msgspec.UNSET
    max_bandwidth: int | msgspec.UnsetType | None = msgspec.UNSET


class Moved(MigrationNamed):
    """How far a pending source has come, in bytes."""

    source: str
    moved: int


class AccessWrite(_Words):
    """A store to a device that is trapped; ``data`` in base64."""

    migration: str
    device: str
    region: int
    offset: int
    data: str
    origin: str = ""


class AccessRead(_Words):
    """A load from one."""

    migration: str
    device: str
    region: int
    offset: int
    width: int


class AccessInterrupt(_Words):
    """An interrupt of one."""

    migration: str
    device: str
    vector: int


class DirtyStart(_Words):
    """Ranges of (iova, length), in bytes."""

    ranges: list[tuple[int, int]]
    devices: list[str] = msgspec.field(default_factory=list)
    page_size: int = 4096


class LogNamed(_Words):
    """One dirty log."""

    log: str


class DirtyReport(LogNamed):
    """A range of it."""

    iova: int
    length: int


def policy_of(words: dict[str, Any]) -> Policy:
    """A policy from its fields.  Raises ConfigError: a name or a value is wrong."""
    if unknown := words.keys() - Policy.__dataclass_fields__.keys():
        raise ConfigError(f"policy: there is no {', '.join(sorted(unknown))}")
    try:
        return msgspec.convert(words, Policy)
    except msgspec.ValidationError as error:
        raise ConfigError(f"policy: {error}") from None

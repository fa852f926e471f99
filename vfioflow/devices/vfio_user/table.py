"""A vfio-user device by its table in a devices file."""

from __future__ import annotations

from typing import Any

from vfioflow.devices.sizes import parse_size
from vfioflow.devices.vfio_user.device import Settings, VfioUserDevice
from vfioflow.errors import ConfigError

__all__ = ["device_of"]

_TEXTS = ("socket", "driver")
_NUMBERS = ("timeout", "in_flight")
_SIZES = ("read_size", "write_size")
_KEYS = (*_TEXTS, "outlives", *_NUMBERS, *_SIZES)


def device_of(name: str, table: dict[str, Any]) -> VfioUserDevice:
    """Connect to the device that a table describes; ``name`` is left out of the table.

    Raises:
        ConfigError: a key is unknown, missing, or has a wrong value.
        DeviceError: its server does not answer.
    """
    values = {key: _value(key, value) for key, value in table.items()}
    if "socket" not in values:
        raise ConfigError("needs a socket: the path where its server listens")
    settings = {key: values.pop(key) for key in (*_NUMBERS, *_SIZES) if key in values}
    return VfioUserDevice.connect(
        values.pop("socket"), name=name, settings=Settings(**settings), **values
    )


def _value(key: str, value: Any) -> Any:
    """A key's value, of the right type."""
    if key not in _KEYS:
        raise ConfigError(f"unknown key {key!r}; valid are {', '.join(_KEYS)}")
    if key in _TEXTS and not (isinstance(value, str) and value):
        raise ConfigError(f"{key} = {value!r}: must be a text")
    if key == "outlives" and not isinstance(value, bool):
        raise ConfigError(f"{key} = {value!r}: must be true or false")
    if key in _SIZES and isinstance(value, str):
        return parse_size(value)
    if key in (*_NUMBERS, *_SIZES):
        whole = key != "timeout"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ConfigError(f"{key} = {value!r}: must be a number")
    return value

"""A policy as a TOML table: the fields of :class:`vfioflow.Policy`, written as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from vfioflow.devices.sizes import parse_duration, parse_rate, parse_size
from vfioflow.errors import ConfigError
from vfioflow.policy import Policy

__all__ = ["policy_of"]

_TEXTS: dict[str, Callable[[str], float]] = {
    "max_bandwidth": parse_rate,
    "chunk_size": parse_size,
    "window": parse_size,
    "access_bytes": parse_size,
}
"""Fields that are no durations, and yet may be written with a unit."""

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def policy_of(table: Mapping[str, Any], base: Policy | None = None) -> Policy:
    """``base`` (or the default policy) with the values of ``table``.

    Durations may be written ``"300ms"``, sizes ``"1MiB"``, the bandwidth ``"10Gbit"``.
    Raises ConfigError, which names the key.
    """
    base = base or Policy()
    valid = {field.name: field.default for field in fields(Policy)}
    values = {}
    for key, value in table.items():
        if key not in valid:
            raise ConfigError(f"unknown key {key!r}; valid are {', '.join(valid)}")
        values[key] = _value(key, value, valid[key])
    return replace(base, **values)


def _value(key: str, value: Any, default: Any) -> Any:
    kind = int if default is None else type(default)
    parse = parse_duration if kind is float else _TEXTS.get(key)
    if parse is not None and isinstance(value, str):
        try:
            return parse(value)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{key} = {value!r}: must be {_KINDS[kind]}")
    return value

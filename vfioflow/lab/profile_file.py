"""Profiles as a file of TOML, as :func:`vfioflow.devices.profile.profile` reads it.  Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from vfioflow.devices.profile import Profile
from vfioflow.lab.fitting import Fitted

__all__ = ["as_toml"]

_ALWAYS = ("driver", "flags", "state_size")
_RATES_A_LINE = 10


def as_toml(devices: Iterable[Fitted], source: str) -> str:
    """The file: a table for each device.  ``source`` says how it came about, in words."""
    return "\n".join(_table(device, source) for device in devices)


def _table(device: Fitted, source: str) -> str:
    plain = Profile()
    lines = [f"# {note}" for note in device.notes]
    lines += [f"[{_key(device.name)}]", f"source = {_text(source)}"]
    for field in fields(Profile):
        value = getattr(device.profile, field.name)
        rates = device.profile.dirty_rates
        skip = field.name == ("dirty_rate" if rates else "dirty_step")
        known = field.name in _ALWAYS or value != getattr(plain, field.name)
        if field.name == "arc_seconds" or skip or not known:
            continue
        lines.append(f"{field.name} = {_value(value)}{_where(device, field.name)}")
    arcs = device.profile.arc_seconds
    if arcs:
        lines.append(f"[{_key(device.name)}.arc_seconds]")
        lines += [f"{_text(arc)} = {_value(seconds)}" for arc, seconds in arcs.items()]
    return "\n".join(lines) + "\n"


def _where(device: Fitted, field: str) -> str:
    if field in device.measured or field == "dirty_step":
        return ""
    return f"  # not measured: as the profile {device.base}" if device.base else "  # not measured"


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if plain else _text(name)


def _text(text: str) -> str:
    # JSON's strings are TOML's basic ones, but for DEL, which TOML wants escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return _number(value)
        case tuple() if len(value) > _RATES_A_LINE:
            parts = [_value(each) for each in value]
            rows = [parts[at : at + _RATES_A_LINE] for at in range(0, len(parts), _RATES_A_LINE)]
            return "[\n" + "".join(f"  {', '.join(row)},\n" for row in rows) + "]"
        case tuple():
            return f"[{', '.join(_value(each) for each in value)}]"
        case Mapping():
            raise TypeError("a table is no value")
        case _:
            return _text(str(value))


def _number(value: float) -> str:
    """Bytes per second whole; seconds to a tenth of a millisecond."""
    text = f"{value:.0f}" if value >= 1000 else f"{value:.4f}".rstrip("0").rstrip(".")
    return text or "0"

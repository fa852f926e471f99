"""Sizes as people write them."""

from __future__ import annotations

import re

from vfioflow.errors import ConfigError

__all__ = ["parse_size"]

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """The bytes that ``text`` stands for: ``"4096"``, ``"64 KiB"``, ``"1.5GiB"``.

    Units are B, KiB, MiB, GiB and TiB, as written here.

    Raises:
        ConfigError: the text is not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{text!r} is not a size; write bytes, or KiB, MiB, GiB, TiB: '64MiB'")
    number, unit = match[1], _UNITS[match[2]]
    if "." not in number:
        return int(number) * unit
    whole, fraction = number.split(".")
    scaled = int(whole + fraction) * unit
    size, rest = divmod(scaled, int("1" + "0" * len(fraction)))
    if rest:
        raise ConfigError(f"{text!r} is not a whole number of bytes")
    return size

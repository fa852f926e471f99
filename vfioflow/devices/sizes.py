"""Sizes, rates and durations as people write them."""

from __future__ import annotations

import re

from vfioflow.errors import ConfigError

__all__ = ["parse_duration", "parse_rate", "parse_size"]

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", re.ASCII)

_NUMBER = r"(\d{1,30}\.?\d{0,30}|\.\d{1,30})"
_BITS = {"kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0}
_RATE = re.compile(rf"{_NUMBER}\s*(kbit|Mbit|Gbit)", re.ASCII)
_DURATION = re.compile(rf"\s*{_NUMBER}\s*(us|ms|s|min|)\s*", re.ASCII)


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


def parse_rate(text: str) -> int:
    """Bytes per second: ``"1GiB"``, ``"1GiB/s"``; or bits per second: ``"10Gbit"``.

    Raises:
        ConfigError: the text is no rate.
    """
    bare = text.strip().removesuffix("/s").strip()
    match = _RATE.fullmatch(bare)
    if match is not None:
        return int(float(match[1]) * _BITS[match[2]] / 8)
    try:
        return parse_size(bare)
    except ConfigError:
        raise ConfigError(
            f"{text!r} is no bandwidth: write 500MiB or 1GiB (bytes per second),"
            " or 10Gbit (bits per second)"
        ) from None


def parse_duration(text: str) -> float:
    """Seconds: ``"50us"``, ``"300ms"``, ``"0.3s"``, ``"0.3"``, ``"2min"``.

    Raises:
        ConfigError: the text is no duration.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no duration: write 300ms, 0.3s, 2min, or seconds")
    return float(match[1]) * _SECONDS[match[2]]

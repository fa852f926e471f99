"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["UNKNOWN", "duration", "rate", "size"]

UNKNOWN = "\N{EN DASH}"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float, *, space: str = " ") -> str:
    """Bytes in three or four digits: ``12.0 MiB``."""
    unit = _UNITS[0]
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1024
    number = f"{count:.0f}" if unit == "B" else f"{count:.1f}"
    return f"{number}{space}{unit}"


def rate(per_second: float | None, *, space: str = " ") -> str:
    """Bytes per second, or a dash where it is not known."""
    return UNKNOWN if per_second is None else f"{size(per_second, space=space)}/s"


def duration(milliseconds: float | None, *, space: str = " ") -> str:
    """Milliseconds below a second, seconds above: ``3.4 ms``, ``85 ms``, ``1.24 s``."""
    if milliseconds is None:
        return UNKNOWN
    if milliseconds < 9.95:
        return f"{milliseconds:.1f}{space}ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f}{space}ms"
    return f"{milliseconds / 1e3:.2f}{space}s"

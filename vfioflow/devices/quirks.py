"""What real drivers do in their own way, from ``quirks.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from vfioflow.states import State

__all__ = ["Quirks", "engine_answers", "known_drivers", "quirks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """One driver's.  The defaults are what the uAPI's text promises."""

    names: tuple[str, ...] = ()
    source: str = ""
    drained: Literal["0", "ENOMSG"] = "ENOMSG"
    load_in: Literal["write", "stop"] = "stop"
    slow_arcs: tuple[str, ...] = ()
    arc_seconds: Mapping[str, float] = field(default_factory=dict)
    data_size: bool = True
    info_starts_save: bool = False
    reads_block: bool = False
    poll: bool = False
    recovers_by_reset_only: bool = True
    keeps_bad_data: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    engine: dict[str, str]
    driver: list[Quirks]


@cache
def _load() -> _File:
    text = resources.files("vfioflow.devices").joinpath("quirks.toml").read_text(encoding="utf-8")
    known = set(Quirks.__slots__)
    document = tomllib.loads(text)
    for table in document["driver"]:
        if unknown := set(table) - known:
            raise ValueError(f"quirks.toml: {table.get('names')}: unknown {unknown}")
    file = msgspec.convert(document, _File)
    for quirks in file.driver:
        for arc in (*quirks.slow_arcs, *quirks.arc_seconds):
            start, _, end = arc.partition("->")
            State[start], State[end]
    return file


def _plain(driver: str) -> str:
    return driver.replace("-", "_").lower()


def known_drivers() -> tuple[Quirks, ...]:
    """All that the file lists."""
    return tuple(_load().driver)


def quirks_of(driver: str) -> Quirks:
    """Those of a driver, by its name in sysfs; the defaults for one that is not listed."""
    for quirks in _load().driver:
        if _plain(driver) in map(_plain, quirks.names):
            return quirks
    return Quirks()


def engine_answers() -> Mapping[str, str]:
    """What the engine does about each quirk."""
    return dict(_load().engine)

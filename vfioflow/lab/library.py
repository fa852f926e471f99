"""The scenarios that come with vfioflow, and those in files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from vfioflow.errors import ConfigError
from vfioflow.lab.scenario import Scenario, parse_scenario

__all__ = ["find", "library", "text_of"]

_FOLDER = files("vfioflow.lab").joinpath("scenarios")


def library() -> list[str]:
    """The names of the library's scenarios."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _FOLDER.iterdir()
        if entry.name.endswith(".toml")
    )


def find(name: str) -> Scenario:
    """The scenario in the file ``name`` (which ends in .toml), or the library's of that name.

    Raises ConfigError.
    """
    return parse_scenario(text_of(name), Path(name).stem, _where(name))


def text_of(name: str) -> str:
    """How a scenario is written.  Raises ConfigError."""
    try:
        if name.endswith(".toml"):
            return Path(name).read_text(encoding="utf-8")
        if name in library():
            return _FOLDER.joinpath(f"{name}.toml").read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: not UTF-8: {error}") from None
    raise ConfigError(
        f"there is no scenario {name!r}: `vfioflow bench list` lists those of the library;"
        " a file of your own ends in .toml"
    )


def _where(name: str) -> str:
    return name if name.endswith(".toml") else f"scenario {name}"

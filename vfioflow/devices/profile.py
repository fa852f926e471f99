"""What a simulated device is like: profiles of real drivers as data, and faults."""

from __future__ import annotations

import errno as _errno
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeGuard

from vfioflow.devices.sizes import parse_size
from vfioflow.errors import ConfigError
from vfioflow.states import ARCS, Flags, State

__all__ = ["Fault", "Profile", "parse_arc", "profile", "profile_names"]

_MAX_STEPS = 100_000
_SIZES = frozenset(
    {"state_size", "initial_bytes", "dirty_rate", "dirty_set", "read_rate", "write_rate"}
)
_CONTENTS = ("zeros", "structured", "fp16", "random", "mix")
_TRACKING = ("device", "iommu", "none", "unknown")
_MAX_BLOCK = 65536
_MAX_SIZE = 1 << 46
_SHORT_BLOCKS = 1024
_STATES = {state.name: state for state in State}


def parse_arc(text: str) -> tuple[State, State]:
    """The two ends of an arc written ``"RUNNING->STOP"``.  Raises ConfigError."""
    ends = [part.strip() for part in text.split("->")]
    if len(ends) != 2 or any(end not in _STATES for end in ends):
        raise ConfigError(f"{text!r} is not an arc; write two states: 'RUNNING->PRE_COPY'")
    return _STATES[ends[0]], _STATES[ends[1]]


def _need(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{key} = {value!r}: must be {wanted}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def _integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Profile:
    """How a simulated device behaves.  Sizes are bytes, rates bytes/s, times seconds.

    Raises ConfigError when a field has a value that no device could have.
    """

    driver: str = "generic"
    """Decides whose state a device accepts."""
    flags: tuple[str, ...] = ("STOP_COPY", "P2P", "PRE_COPY")
    """Names of :class:`vfioflow.states.Flags`."""
    state_size: int = 64 << 20
    """The device's state, without the headers of its stream."""
    initial_bytes: int = 0
    """The part of the state that PRE_COPY offers, rounded up to whole blocks of 64 KiB, or less
    for a small state; 0 without PRE_COPY."""
    dirty_rate: float = 0.0
    """How fast the running device dirties its state, in bytes/s."""
    dirty_rates: tuple[float, ...] = ()
    """How fast it does so in pre-copy, in bytes/s: for ``dirty_step`` seconds each, from the moment that it
    enters PRE_COPY, and then from the first again.  Empty: at ``dirty_rate``, which else is their mean."""
    dirty_step: float = 0.1
    """Seconds that each of ``dirty_rates`` lasts."""
    dirty_set: int = -1
    """The part of the state that is ever dirtied, from its start; -1: the initial part, or
    everything where there is none."""
    content: str = "mix"
    """``zeros``, ``structured`` (about 2:1), ``fp16`` (weights), ``random``, ``mix``, ``mix:Z,S`` (a share Z
    of zeros and S of structured, the rest random) or ``file:PATH``."""
    arc_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time that a direct arc takes, by its name ``"RUNNING->PRE_COPY"``; others take none."""
    read_rate: float = 0.0
    """The most that the device hands out, in bytes/s; 0: unlimited."""
    write_rate: float = 0.0
    """The most that the device takes, in bytes/s; 0: unlimited."""
    drained: str = "ENOMSG"
    """What read gives in PRE_COPY when there is nothing: ``ENOMSG`` or ``0``."""
    info_starts_save: bool = False
    """Whether dirty data becomes readable only after a PRECOPY_INFO; else it does by itself."""
    load_in: str = "stop"
    """Where a load is checked: inside ``write``, or in RESUMING->STOP (``stop``)."""
    load_seconds: float = 0.0
    """How long the final load takes there."""
    has_data_size: bool = True
    """Whether the device answers MIG_DATA_SIZE."""
    p2p_rate: float = 0.0
    """Peer-to-peer messages/s while it streams; besides those at each arc and PRECOPY_INFO."""
    version: str = ""
    """Of the driver; with ``firmware``, ``model`` and ``tracking`` only admission looks at it."""
    firmware: str = ""
    model: str = ""
    tracking: Literal["device", "iommu", "none", "unknown"] = "unknown"
    """Who tells which pages of guest memory it writes."""

    def __post_init__(self) -> None:
        for key in ("driver", "content"):
            value = getattr(self, key)
            _need(isinstance(value, str) and bool(value), key, value, "a text")
        for key in ("version", "firmware", "model"):
            _need(isinstance(getattr(self, key), str), key, getattr(self, key), "a text")
        _need(self.tracking in _TRACKING, "tracking", self.tracking, f"one of {_TRACKING}")
        flags = self._flags()
        for key in ("state_size", "initial_bytes", "dirty_set"):
            _need(_integer(getattr(self, key)), key, getattr(self, key), "a number of bytes")
        _need(0 < self.state_size <= _MAX_SIZE, "state_size", self.state_size, "1 byte to 64 TiB")
        for key in ("dirty_rate", "read_rate", "write_rate", "load_seconds", "p2p_rate"):
            _need(_number(getattr(self, key)), key, getattr(self, key), "a number from 0")
        for key in ("info_starts_save", "has_data_size"):
            _need(isinstance(getattr(self, key), bool), key, getattr(self, key), "true or false")
        _need(
            0 <= self.initial_bytes <= self.state_size,
            "initial_bytes",
            self.initial_bytes,
            f"from 0 to state_size ({self.state_size})",
        )
        if Flags.PRE_COPY not in flags:
            _need(self.initial_bytes == 0, "initial_bytes", self.initial_bytes, "0: no PRE_COPY")
        _need(
            -1 <= self.dirty_set <= self.state_size,
            "dirty_set",
            self.dirty_set,
            f"from 0 to state_size ({self.state_size}), or -1",
        )
        _need(
            self.content in _CONTENTS or self.content.startswith("file:") or self._blended(),
            "content",
            self.content,
            f"one of {', '.join(_CONTENTS)}, mix:ZEROS,STRUCTURED (shares of 1), file:PATH",
        )
        self._check_rates()
        _need(self.drained in ("ENOMSG", "0"), "drained", self.drained, "'ENOMSG' or '0'")
        _need(self.load_in in ("write", "stop"), "load_in", self.load_in, "'write' or 'stop'")
        self._check_arcs(flags)

    def _flags(self) -> Flags:
        names = self.flags
        _need(
            isinstance(names, list | tuple)
            and all(isinstance(n, str) and n in Flags.__members__ for n in names),
            "flags",
            names,
            "a list of STOP_COPY, P2P, PRE_COPY",
        )
        flags = Flags.NONE
        for name in names:
            flags |= Flags[name]
        _need(flags in ARCS, "flags", names, "a set with STOP_COPY")
        return flags

    def _blended(self) -> bool:
        kind, _, shares = self.content.partition(":")
        try:
            zeros, structured = (float(share) for share in shares.split(","))
        except ValueError:
            return False
        return kind == "mix" and zeros >= 0 and structured >= 0 and zeros + structured <= 1

    def _check_rates(self) -> None:
        rates, step = self.dirty_rates, self.dirty_step
        _need(
            isinstance(rates, tuple) and len(rates) <= _MAX_STEPS and all(map(_number, rates)),
            "dirty_rates",
            rates if len(str(rates)) < 80 else "...",
            f"a list of at most {_MAX_STEPS} rates",
        )
        _need(_number(step) and step >= 1e-3, "dirty_step", step, "0.001 seconds or more")
        if rates:
            object.__setattr__(self, "dirty_rate", sum(rates) / len(rates))

    def _check_arcs(self, flags: Flags) -> None:
        _need(isinstance(self.arc_seconds, Mapping), "arc_seconds", self.arc_seconds, "a table")
        for arc, seconds in self.arc_seconds.items():
            try:
                ends = parse_arc(arc)
            except ConfigError as error:
                raise ConfigError(f"arc_seconds: {error}") from None
            if ends not in ARCS[flags]:
                raise ConfigError(f"arc_seconds: a device with the flags {flags} has no arc {arc}")
            _need(_number(seconds), f"arc_seconds.{arc}", seconds, "a number from 0")

    @property
    def migration_flags(self) -> Flags:
        """``flags`` as the uAPI has them."""
        return self._flags()

    @property
    def block_size(self) -> int:
        """Bytes in a full block.

        64 KiB; the whole state where that is smaller; the initial part where it is smaller
        still and the state then has few blocks.
        """
        block = min(_MAX_BLOCK, self.state_size)
        if 0 < self.initial_bytes < block:
            blocks = -(-self.state_size // self.initial_bytes)
            if blocks <= _SHORT_BLOCKS:
                return self.initial_bytes
        return block

    @property
    def dirtied_bytes(self) -> int:
        """``dirty_set`` with its default worked out."""
        return self.dirty_set if self.dirty_set >= 0 else self.initial_bytes or self.state_size

    def dirtied(self, begin: float, seconds: float) -> float:
        """Bytes that it dirties, again or anew, in so many seconds from ``begin`` of pre-copy on."""
        if not self.dirty_rates:
            return self.dirty_rate * seconds
        return self._dirtied_until(begin + seconds) - self._dirtied_until(begin)

    def _dirtied_until(self, end: float) -> float:
        rounds, steps = divmod(end / self.dirty_step, len(self.dirty_rates))
        whole = min(int(steps), len(self.dirty_rates) - 1)
        total = rounds * sum(self.dirty_rates) + sum(self.dirty_rates[:whole])
        return self.dirty_step * (total + (steps - whole) * self.dirty_rates[whole])

    def override(self, overrides: Mapping[str, Any]) -> Profile:
        """This profile with other values; sizes may be written ``"64MiB"``.

        A new ``state_size`` alone scales ``initial_bytes`` and ``dirty_set`` along, so that a
        small device keeps its profile's proportions.  Raises ConfigError.
        """
        names = [f.name for f in fields(self)]
        values: dict[str, Any] = {}
        for key, value in overrides.items():
            if key not in names:
                raise ConfigError(f"unknown key {key!r}; valid are {', '.join(names)}")
            values[key] = value
            if key in _SIZES and isinstance(value, str):
                try:
                    values[key] = parse_size(value)
                except ConfigError as error:
                    raise ConfigError(f"{key}: {error}") from None
        for key in ("flags", "dirty_rates"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        if "dirty_rate" in values:  # one rate is meant, not a recorded course of rates
            values.setdefault("dirty_rates", ())
        # A device that lost its PRE_COPY offers nothing there.
        flags = values.get("flags")
        if isinstance(flags, tuple) and "PRE_COPY" not in flags:
            values.setdefault("initial_bytes", 0)
        size = values.get("state_size")
        if isinstance(size, int) and _integer(size) and size > 0:
            for key in ("initial_bytes", "dirty_set"):
                share = getattr(self, key)
                if key not in values and share > 0:
                    values[key] = max(1, share * size // self.state_size)
        return replace(self, **values)


@cache
def _profiles() -> dict[str, Profile]:
    text = files("vfioflow.devices").joinpath("profiles.toml").read_text(encoding="utf-8")
    found = {}
    for name, table in tomllib.loads(text).items():
        source = table.pop("source", None)
        if not isinstance(source, str):
            raise ConfigError(f"profiles.toml: {name} does not say its source")
        found[name] = Profile().override({"initial_bytes": 0, "dirty_set": -1, **table})
    return found


def profile_names() -> list[str]:
    """The names of all profiles."""
    return sorted(_profiles())


def profile(name: str) -> Profile:
    """The profile of that name, or in the file of that name, which ends in ``.toml``.

    ``"FILE.toml:TABLE"`` is one of several in a file.  Raises ConfigError, which lists those that exist.
    """
    file, found_suffix, table = name.partition(".toml")
    if found_suffix and table[:1] in ("", ":"):
        return _in_file(f"{file}.toml", table[1:])
    found = _profiles().get(name)
    if found is None:
        raise ConfigError(f"unknown profile {name!r}; there are {', '.join(profile_names())}")
    return found


def _in_file(path: str, wanted: str) -> Profile:
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    names = [name for name, table in document.items() if isinstance(table, dict)]
    if not names or len(names) < len(document):
        raise ConfigError(f"{path}: write each profile as a table [NAME]")
    if not wanted and len(names) > 1:
        raise ConfigError(
            f"{path} has several profiles: write {path}:{names[0]}, or another of them"
        )
    name = wanted or names[0]
    if name not in document:
        raise ConfigError(f"{path} has no profile {name!r}; there are {', '.join(names)}")
    table = {key: value for key, value in document[name].items() if key != "source"}
    try:
        return Profile().override({"initial_bytes": 0, "dirty_set": -1, **table})
    except ConfigError as error:
        raise ConfigError(f"{path}: {name}: {error}") from None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with a device, at an exact place.

    ``at`` is a direct arc (``"RUNNING->STOP"``; kinds ``errno`` and ``hang``), or a stream:
    ``"read"`` while saving, ``"write"`` while loading, where ``offset`` is the stream position
    in bytes.  Kinds there: ``errno`` (the port gives it), ``short`` (the port moves only part),
    ``hang`` (nothing moves until a reset or close), ``corrupt`` (a bit flips).  ``errno`` and
    ``short`` need the device's port; a bare fd cannot show them.  ``once``: strikes a single
    time, else again in each session or attempt.  ``state`` is where a failed arc leaves the
    device; None: in the state before it.  Raises ConfigError.
    """

    at: str
    kind: str
    errno: int | str = _errno.EIO
    offset: int | str = 0
    once: bool = True
    state: State | str | None = None

    def __post_init__(self) -> None:
        kinds: tuple[str, ...] = ("errno", "short", "hang", "corrupt")
        if self.at not in ("read", "write"):
            parse_arc(self.at)
            kinds = ("errno", "hang")
        _need(self.kind in kinds, f"fault at {self.at}: kind", self.kind, f"one of {kinds}")
        _need(isinstance(self.once, bool), "once", self.once, "true or false")
        code = getattr(_errno, self.errno, None) if isinstance(self.errno, str) else self.errno
        _need(_integer(code) and code in _errno.errorcode, "errno", self.errno, "like 'EIO'")
        offset = parse_size(self.offset) if isinstance(self.offset, str) else self.offset
        _need(_integer(offset) and 0 <= offset < 1 << 63, "offset", self.offset, "bytes from 0")
        state = self.state
        if isinstance(state, str):
            state = _STATES.get(state, state)
        allowed = (None, State.ERROR, State.STOP, State.RUNNING, State.RUNNING_P2P)
        _need(state in allowed, "state", self.state, "ERROR, STOP, RUNNING or RUNNING_P2P")
        for key, value in (("errno", code), ("offset", offset), ("state", state)):
            object.__setattr__(self, key, value)

    @property
    def code(self) -> int:
        """The errno as a number."""
        return int(self.errno)

    @property
    def position(self) -> int:
        """The offset in bytes."""
        return int(self.offset)

    @property
    def left_in(self) -> State | None:
        """Where a failed arc leaves the device; None: before it."""
        return State(self.state) if isinstance(self.state, int) else None

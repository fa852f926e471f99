"""Profiles and faults as data."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow.devices.profile import Fault, Profile, parse_arc, profile, profile_names
from vfioflow.devices.sim import SimDevice
from vfioflow.devices.sizes import parse_size
from vfioflow.errors import ConfigError
from vfioflow.states import Flags, State

ALL = Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY


@pytest.mark.parametrize(
    ("name", "flags", "size", "drained", "asks", "load_in"),
    [
        ("mlx5", ALL, 100 << 20, "ENOMSG", True, "write"),
        ("virtio", ALL, 2 << 20, "ENOMSG", True, "write"),
        ("qat", ALL, 4096, "0", False, "stop"),
        ("hisi_acc", Flags.STOP_COPY | Flags.PRE_COPY, 1024, "0", False, "stop"),
        ("pds", Flags.STOP_COPY | Flags.P2P, 65536, "0", False, "stop"),
        ("xe", Flags.STOP_COPY | Flags.P2P, 1 << 30, "0", False, "write"),
        ("mtty", ALL, 96, "0", False, "stop"),
        ("vgpu", ALL, 8 << 30, "ENOMSG", False, "stop"),
        ("generic", ALL, 64 << 20, "ENOMSG", False, "stop"),
    ],
)
def test_what_is_known_of_each_driver(
    name: str, flags: Flags, size: int, drained: str, asks: bool, load_in: str
) -> None:
    p = profile(name)
    assert p.migration_flags == flags
    assert (p.state_size, p.drained, p.info_starts_save, p.load_in) == (
        size,
        drained,
        asks,
        load_in,
    )


def test_all_profiles_are_listed() -> None:
    names = "generic hisi_acc mlx5 mtty pds qat vgpu virtio xe"
    assert " ".join(profile_names()) == names
    with pytest.raises(ConfigError, match="'mlx6'; there are generic, hisi_acc"):
        profile("mlx6")


def test_mtty_offers_24_of_its_96_bytes() -> None:
    p = profile("mtty")
    assert (p.block_size, p.initial_bytes, p.state_size) == (24, 24, 96)


@pytest.mark.parametrize(
    ("values", "block"),
    [
        ({"state_size": 1 << 30, "initial_bytes": 4096}, 65536),
        ({"state_size": 1 << 20, "initial_bytes": 4096}, 4096),
        ({"state_size": 100}, 100),
        ({"state_size": 1 << 30, "initial_bytes": 1 << 29}, 65536),
    ],
)
def test_block_size(values: dict[str, int], block: int) -> None:
    assert Profile(**values).block_size == block


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("driver", ""),
        ("flags", ["P2P"]),
        ("flags", ["STOP_COPY", "MAGIC"]),
        ("flags", "STOP_COPY"),
        ("state_size", 0),
        ("state_size", "12 parsecs"),
        ("state_size", 1.5),
        ("state_size", True),
        ("initial_bytes", 1 << 40),
        ("initial_bytes", -1),
        ("dirty_rate", -1),
        ("dirty_rate", float("nan")),
        ("dirty_set", -2),
        ("content", "noise"),
        ("arc_seconds", {"RUNNING->MARS": 1}),
        ("arc_seconds", {"RUNNING->STOP": 1}),
        ("arc_seconds", {"RUNNING->RUNNING_P2P": -1}),
        ("arc_seconds", 5),
        ("read_rate", "fast"),
        ("write_rate", None),
        ("drained", "EIO"),
        ("info_starts_save", 1),
        ("load_in", "read"),
        ("load_seconds", float("inf")),
        ("has_data_size", "yes"),
        ("p2p_rate", -0.5),
    ],
)
def test_a_wrong_value_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        SimDevice("d", **{key: value})


def test_an_unknown_key_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'speed'; valid are driver, flags, state_"):
        SimDevice("d", speed=1)


def test_precopy_data_needs_precopy() -> None:
    with pytest.raises(ConfigError, match="initial_bytes"):
        SimDevice("d", profile="pds", initial_bytes=5)


@pytest.mark.parametrize("bad", [{"name": ""}, {"seed": -1}, {"seed": 1 << 64}])
def test_a_wrong_device(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SimDevice(**{"name": "d", **bad})


def test_a_missing_content_file(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"device d: .*No such file"):
        SimDevice("d", content=f"file:{tmp_path / 'none'}")


def test_a_smaller_state_keeps_its_proportions() -> None:
    small = profile("mlx5").override({"state_size": "10MiB"})
    assert (small.initial_bytes, small.dirty_set) == (8 << 20, (16 << 20) // 10)
    given_too = profile("mlx5").override({"state_size": "10MiB", "initial_bytes": "1MiB"})
    assert given_too.initial_bytes == 1 << 20
    assert profile("mlx5").override({"flags": ["STOP_COPY"], "arc_seconds": {}}).initial_bytes == 0


RATES = st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=5)


@given(RATES, st.floats(0, 100), st.floats(0, 100))
def test_a_course_of_rates_adds_up(rates: list[float], begin: float, seconds: float) -> None:
    p = Profile(dirty_rates=tuple(rates), dirty_step=0.5)
    whole = p.dirtied(0.0, begin + seconds)
    assert p.dirtied(0.0, begin) + p.dirtied(begin, seconds) == pytest.approx(whole, abs=1e-6)
    assert 0 <= whole <= max(rates) * (begin + seconds) * (1 + 1e-9)
    assert p.dirtied(begin, 0.5 * len(rates)) == pytest.approx(sum(rates) / 2, abs=1e-6)
    assert Profile(dirty_rate=rates[0]).dirtied(begin, seconds) == rates[0] * seconds


def test_steps_of_a_course() -> None:
    p = Profile(dirty_rates=(10.0, 0.0, 40.0), dirty_step=0.5)
    assert [p.dirtied(at, 0.5) for at in (0.0, 0.25, 0.5, 1.0, 1.5)] == [5.0, 2.5, 0.0, 20.0, 5.0]


def test_faults_read_names_and_sizes() -> None:
    fault = Fault("RUNNING -> STOP", "errno", errno="EBUSY", state="ERROR")
    assert (fault.code, fault.left_in) == (errno.EBUSY, State.ERROR)
    assert Fault("read", "short", offset="1MiB").position == 1 << 20


@pytest.mark.parametrize(
    "values",
    [
        {"at": "boot", "kind": "errno"},
        {"at": "RUNNING->STOP", "kind": "short"},
        {"at": "read", "kind": "explode"},
        {"at": "read", "kind": "errno", "errno": "EWHAT"},
        {"at": "read", "kind": "errno", "errno": 0},
        {"at": "read", "kind": "errno", "errno": "open"},
        {"at": "read", "kind": "errno", "offset": -1},
        {"at": "read", "kind": "errno", "offset": "x"},
        {"at": "read", "kind": "errno", "once": 1},
        {"at": "RUNNING->STOP", "kind": "errno", "state": "PRE_COPY"},
        {"at": "RUNNING->STOP", "kind": "errno", "state": "BROKEN"},
    ],
)
def test_a_wrong_fault(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Fault(**values)


def test_a_fault_on_an_arc_that_the_device_lacks() -> None:
    with pytest.raises(ConfigError, match="has no RUNNING->STOP"):
        SimDevice("d", profile="mtty", faults=[Fault("RUNNING->STOP", "errno")])


def test_too_many_stream_faults() -> None:
    with pytest.raises(ConfigError, match="at most 16"):
        SimDevice("d", profile="mtty", faults=[Fault("read", "short", offset=i) for i in range(17)])


def test_arcs() -> None:
    assert parse_arc("PRE_COPY->STOP_COPY") == (State.PRE_COPY, State.STOP_COPY)
    for text in ("", "RUNNING", "A->B", "RUNNING->STOP->STOP_COPY"):
        with pytest.raises(ConfigError, match="is not an arc"):
            parse_arc(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64 KiB", 65536), ("1.5GiB", 3 << 29), (" 2TiB ", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1MB", "1kib", "0.3KiB", "1 2", "MiB", "1e3", "٣"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.integers(0, 2**40), st.sampled_from(["", "B", "KiB", "MiB", "GiB", "TiB"]))
def test_every_whole_size(number: int, unit: str) -> None:
    scale = {"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}[unit]
    assert parse_size(f"{number}{unit}") == number << scale


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    try:
        size = parse_size(text)
    except ConfigError:
        size = 0
    assert size >= 0

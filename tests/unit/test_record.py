"""From what was seen of a device to a profile, by numbers made up or worked out by hand."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vfioflow.devices.base import DeviceInfo
from vfioflow.devices.profile import Profile, profile
from vfioflow.devices.sim import SimDevice
from vfioflow.errors import ConfigError
from vfioflow.lab.fitting import Fitted, content, dirty_set, fit, rates, sizes
from vfioflow.lab.observed import Growth, Observed, Packing, Stopped, Watched
from vfioflow.lab.profile_file import as_toml
from vfioflow.states import Flags, State

MIB = 1 << 20
ALL = Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY
INFO = DeviceInfo("nic0", "mlx5_vfio_pci", ALL)


def told_and_offered(state_size: int, initial_bytes: int) -> tuple[int, int]:
    """What a simulated device says of its stream."""
    with SimDevice("d", state_size=state_size, initial_bytes=initial_bytes) as device:
        data_fd = device.set_state(State.PRE_COPY)
        try:
            told = device.stop_copy_size()
            assert told is not None
            return told, device.precopy_info(data_fd).initial_bytes
        finally:
            device.set_state(State.RUNNING)
            os.close(data_fd)


@settings(max_examples=60, deadline=None)
@example(65537, 16)
@given(st.integers(1, 20 * MIB), st.integers(0, 16))
def test_a_simulated_device_is_replayed_to_the_byte(state_size: int, sixteenths: int) -> None:
    said = told_and_offered(state_size, state_size * sixteenths // 16)
    assert told_and_offered(*sizes(*said)) == said


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_any_sizes_make_a_profile(total: int, offered: int) -> None:
    state, initial = sizes(max(total, offered, 1), offered)
    p = Profile(state_size=state, initial_bytes=initial)
    assert abs(p.state_size - max(total, offered)) <= max(total, offered) // 100 + 65536


def grown(rate: float, bound: float, seconds: float, before: float = 0.0) -> int:
    """What is dirty after so many seconds at a rate, within a set of ``bound`` bytes."""
    return round(bound - (bound - before) * math.exp(-rate * seconds / bound))


@given(
    st.floats(1e6, 1e9),
    st.floats(1.2, 20),
    st.floats(0.02, 0.2),
)
def test_rate_and_bound_are_found_again(rate: float, seconds: float, step: float) -> None:
    bound = rate  # so that it is full after some seconds, and a step shows a part of it
    growths = [Growth(n * step, step, step, 0, grown(rate, bound, step)) for n in range(20)]
    unread = Growth(2.0, seconds, seconds, 0, grown(rate, bound, seconds))
    found = dirty_set(growths, unread)
    assert found == pytest.approx(bound, rel=0.02)
    assert rates(growths, found) == pytest.approx([rate] * 20, rel=0.02)


def test_growth_without_a_sign_of_a_bound() -> None:
    growths = [Growth(0.1 * n, 0.1, 0.1, 0, 1_000_000) for n in range(10)]
    assert dirty_set(growths, Growth(1.0, 1.0, 1.0, 0, 9_900_000)) is None
    assert dirty_set(growths, None) is None
    assert rates(growths, None) == pytest.approx([1e7] * 10)


def test_what_was_read_beyond_the_last_look_counts() -> None:
    assert rates([Growth(0.0, 0.5, 0.5, -1000, 4000)], None) == [10_000.0]


def watched(**changes: object) -> Watched:
    growths = tuple(Growth(0.1 * n, 0.1, 0.1, 0, MIB) for n in range(20))
    seen = Watched(80 * MIB, 80 * MIB, 0.1, growths, Growth(2.0, 1.0, 1.0, 0, 10 * MIB), "0")
    return replace(seen, **changes)


def test_a_steady_device_has_one_rate() -> None:
    p = fit(Observed(INFO, 100 * MIB, watched())).profile
    assert p.dirty_rates == ()
    assert p.dirty_rate == pytest.approx(10 * MIB, rel=0.001)
    assert (p.dirty_set, p.drained) == (-1, "0")
    assert p.read_rate == pytest.approx(800 * MIB)


def test_a_course_of_rates_starts_at_the_begin_of_precopy() -> None:
    sizes_seen = [4 * MIB] * 10 + [0] * 10
    growths = tuple(Growth(0.5 + 0.1 * n, 0.1, 0.1, 0, s) for n, s in enumerate(sizes_seen))
    p = fit(Observed(INFO, 100 * MIB, watched(growths=growths, unread=None))).profile
    assert p.dirty_step == pytest.approx(0.1)
    lead, course = p.dirty_rates[:5], p.dirty_rates[5:]
    assert lead == pytest.approx([20 * MIB] * 5, rel=0.001)  # not seen: the mean of what was
    assert course == pytest.approx([40 * MIB] * 10 + [0.0] * 10, rel=0.001)
    assert p.dirty_rate == pytest.approx(20 * MIB, rel=0.001)


def test_what_is_not_measured_comes_from_the_driver_s_profile() -> None:
    arcs = {"RUNNING->PRE_COPY": 0.123, "PRE_COPY->RUNNING": 0.0001}
    fitted = fit(Observed(INFO, 100 * MIB, watched(), arcs=arcs))
    p, known = fitted.profile, profile("mlx5")
    assert (fitted.base, p.load_in, p.load_seconds) == ("mlx5", "write", known.load_seconds)
    assert p.arc_seconds == {**known.arc_seconds, "RUNNING->PRE_COPY": 0.123}
    assert any("not timed: PRE_COPY->PRE_COPY_P2P" in note for note in fitted.notes)
    assert any("takes --stop-copy" in note for note in fitted.notes)


def test_a_driver_that_nobody_knows() -> None:
    info = replace(INFO, driver="new_vfio_pci", arc_seconds={"STOP->STOP_COPY": 0.2})
    fitted = fit(Observed(info, None, None, Stopped(5000, 0.1)))
    assert (fitted.base, fitted.profile.driver) == ("", "new_vfio_pci")
    assert fitted.profile.arc_seconds == {"STOP->STOP_COPY": 0.2}
    assert not fitted.profile.has_data_size
    assert fitted.profile.state_size == 5000 - 112 - 32


@pytest.mark.parametrize(
    ("packing", "found"),
    [
        (Packing(6400, 10, 6400), "zeros"),
        (Packing(6400, 6400, 0), "mix:0,0"),
        (Packing(6400, 3136, 0), "mix:0,1"),
        (Packing(6400, 3200, 3200), "mix:0.5,0"),
        (Packing(6400, 1568, 0), "mix:0.5,0.5"),  # packs better than structured: zeros make up
    ],
)
def test_content_that_compresses_alike(packing: Packing, found: str) -> None:
    assert content(packing) == found


ARCS = st.sampled_from(["RUNNING->PRE_COPY", "STOP->STOP_COPY", "RESUMING->STOP"])


@given(
    st.text(min_size=1, max_size=20),
    st.builds(
        Profile,
        driver=st.text(min_size=1, max_size=20),
        state_size=st.integers(1 << 20, 1 << 46),
        initial_bytes=st.integers(0, 1 << 20),
        dirty_rates=st.lists(st.integers(1000, 10**12).map(float), max_size=40).map(tuple),
        dirty_set=st.integers(-1, 1 << 20),
        content=st.sampled_from(["zeros", "mix", "mix:0.25,0.5"]),
        read_rate=st.integers(1000, 10**12).map(float),
        drained=st.sampled_from(["0", "ENOMSG"]),
        arc_seconds=st.dictionaries(ARCS, st.integers(1, 10**6).map(lambda n: n / 10000)),
        firmware=st.text(max_size=20),
    ),
)
def test_the_file_says_the_profile(name: str, like: Profile) -> None:
    import tomllib

    fitted = Fitted(name, like, frozenset({"state_size"}), "mlx5", ("a note",))
    tables = tomllib.loads(as_toml([fitted], f"recorded from {name}"))
    assert list(tables) == [name]
    table = {key: value for key, value in tables[name].items() if key != "source"}
    assert Profile().override({"initial_bytes": 0, "dirty_set": -1, **table}) == like


def test_profiles_in_files(tmp_path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('[nic]\nsource = "seen"\nstate_size = "5MiB"\ndirty_rates = [1, 3]\n')
    two.write_text("[nic]\nstate_size = 7\n[gpu]\nstate_size = 8\n")
    assert (profile(str(one)).state_size, profile(str(one)).dirty_rate) == (5 * MIB, 2)
    assert profile(f"{two}:gpu").state_size == 8
    with SimDevice("d", profile=f"{two}:gpu") as device:
        assert device.profile.state_size == 8


@pytest.mark.parametrize(
    ("text", "which", "said"),
    [
        ("[nic]\n[gpu]\n", "", r"has several profiles: write .*p\.toml:nic"),
        ("[nic]\n", ":gpu", r"has no profile 'gpu'; there are nic"),
        ("state_size = 5\n", "", r"as a table \[NAME\]"),
        ("", "", r"as a table \[NAME\]"),
        ("[nic]\nspeed = 5\n", "", r"p\.toml: nic: unknown key 'speed'"),
        ("[nic\n", "", "not TOML"),
        ("[nic]\ndirty_rates = 5\n", "", "dirty_rates"),
        ("[nic]\ndirty_rates = [-1]\n", "", "dirty_rates"),
        ("[nic]\ndirty_step = 0\n", "", "dirty_step"),
        ('[nic]\ncontent = "mix:0.7,0.7"\n', "", "content"),
        ('[nic]\ncontent = "mix:nan,0"\n', "", "content"),
    ],
)
def test_a_wrong_file_of_profiles(tmp_path, text: str, which: str, said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        profile(f"{path}{which}")


def test_a_missing_file_of_profiles() -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        profile("none.toml")


def test_another_rate_takes_the_place_of_a_course() -> None:
    like = Profile(dirty_rates=(1.0, 3.0))
    assert like.dirty_rate == 2.0
    assert like.override({"dirty_rate": 5}).dirty_rates == ()
    assert like.override({"dirty_set": 0}).dirty_rates == (1.0, 3.0)

"""Scenarios: what is read, and what is said about what cannot be."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow.devices.profile import profile_names
from vfioflow.errors import ConfigError
from vfioflow.lab.scenario import Outcome, Scenario, Wire, parse_scenario
from vfioflow.policy import Policy
from vfioflow.policy_table import policy_of

MIB = 1 << 20

WHOLE = """
about = "two NICs and a GPU"
repetitions = 3
warm_up = 0

[wire]
kind = "namespaces"
rate = "10Gbit"
latency = "5ms"

[policy]
downtime_limit = "250ms"
max_bandwidth = "1GiB"
channels = 2

[[device]]
name = "nic"
count = 2
profile = "mlx5"
seed = 7
dirty_rate = "32MiB"

[[device]]
name = "gpu"
profile = "xe"
state_size = "96MiB"
[device.arc_seconds]
"STOP->STOP_COPY" = 0.5
"""

LEAST = '[[device]]\nname = "nic"\n'


def read(text):
    return parse_scenario(text, "some", "some.toml")


def test_a_whole_scenario():
    found = read(WHOLE)
    assert (found.name, found.about) == ("some", "two NICs and a GPU")
    assert (found.repetitions, found.warm_up) == (3, 0)
    assert found.wire == Wire("namespaces", 1_250_000_000, 0.005)
    assert found.policy == Policy(downtime_limit=0.25, max_bandwidth=1 << 30, channels=2)
    assert [(d.name, d.seed, d.profile_name) for d in found.devices] == [
        ("nic0", 7, "mlx5"),
        ("nic1", 8, "mlx5"),
        ("gpu", 0, "xe"),
    ]
    assert found.devices[0].profile.dirty_rate == 32 * MIB
    assert found.devices[2].profile.arc_seconds == {"STOP->STOP_COPY": 0.5}
    assert found.size == 296 * MIB


def test_the_least_scenario_has_the_defaults():
    found = read(LEAST)
    assert found == Scenario("some", found.devices)
    assert found.wire == Wire("auto")
    assert not found.wire.shaped
    assert [d.name for d in found.devices] == ["nic"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "some.toml: lists no device"),
        ("device = 3", "some.toml: lists no device"),
        ("x = [", "some.toml: not TOML"),
        ("seeds = 1\n" + LEAST, "some.toml: unknown key 'seeds'; valid are about, repetitions"),
        ("repetitions = 0\n" + LEAST, "some.toml: repetitions = 0: must be a whole number from 1"),
        ("warm_up = true\n" + LEAST, "some.toml: warm_up = True: must be a whole number"),
        ("about = 1\n" + LEAST, "some.toml: about = 1: must be a text"),
        ("wire = 1\n" + LEAST, "some.toml: wire = 1: must be a table [wire]"),
        ('[wire]\nrate = "fast"\n' + LEAST, "some.toml: wire: rate: 'fast' is no bandwidth"),
        ("[wire]\nrate = 1\n" + LEAST, "some.toml: wire: rate = 1: must be 1000 bytes/s or more"),
        ("[wire]\nloss = 1\n" + LEAST, "some.toml: wire: loss = 1: must be from 0 to below 1"),
        ("[wire]\nloss = nan\n" + LEAST, "some.toml: wire: loss = nan: must be a number"),
        ("[wire]\nspeed = 1\n" + LEAST, "some.toml: wire: unknown key 'speed'"),
        ('[wire]\nkind = "usb"\n' + LEAST, "some.toml: wire: kind = 'usb': must be one of"),
        ('[wire]\nkind = "host"\n' + LEAST, "some.toml: wire: address = ''"),
        (
            '[wire]\nkind = "loopback"\nrate = "1Gbit"\n' + LEAST,
            "some.toml: wire: kind = 'loopback': must be another",
        ),
        ("[policy]\nspeed = 1\n" + LEAST, "some.toml: policy: unknown key 'speed'"),
        ("[policy]\nchannels = 99\n" + LEAST, "some.toml: policy: channels=99: must be"),
        (
            '[policy]\ndowntime_limit = "soon"\n' + LEAST,
            "some.toml: policy: downtime_limit: 'soon' is no duration",
        ),
        ("[policy]\nwindow = inf\n" + LEAST, "some.toml: policy: window = inf: must be a whole"),
        ("[policy]\ndigest = 1\n" + LEAST, "some.toml: policy: digest = 1: must be true or false"),
        ("[[device]]\nseed = 1", "some.toml: device number 1: needs a name"),
        (LEAST + LEAST, "some.toml: device nic: the name 'nic' is there twice"),
        (LEAST + "count = 65", "some.toml: device nic: count = 65: must be a whole number"),
        (LEAST + 'profile = "none"', "some.toml: device nic: unknown profile 'none'"),
        (LEAST + "sise = 1", "some.toml: device nic: unknown key 'sise'"),
        (LEAST + 'state_size = "1 MB"', "some.toml: device nic: state_size: '1 MB' is not a size"),
        (LEAST + 'kind = "kernel"', "some.toml: device nic: kind = 'kernel': a scenario's"),
        (LEAST + "[[device.fault]]\nat = 1", "some.toml: device nic: fault: a scenario measures"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(text, said):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(said)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return "0" if value is None else str(value)


KEYS = {
    "": ["about", "repetitions", "warm_up", "wire", "policy", "device"],
    "wire": [f.name for f in fields(Wire)],
    "policy": [f.name for f in fields(Policy)],
    "device": ["name", "count", "seed", "profile", "state_size", "dirty_rate", "arc_seconds"],
}


def outcome(text):
    try:
        read(text)
    except ConfigError as error:
        return "a clear error" if str(error).startswith("some.toml: ") else str(error)
    return "a scenario"


@given(st.data())
def test_whatever_stands_there_is_a_scenario_or_a_config_error(data):
    text = ""
    for table in ("", "wire", "policy", "device"):
        found = data.draw(st.dictionaries(st.sampled_from(KEYS[table]), VALUES, max_size=2))
        text += {"": "", "device": "[[device]]\n"}.get(table, f"[{table}]\n")
        text += "".join(f"{key} = {toml(value)}\n" for key, value in found.items())
    assert outcome(text) in ("a scenario", "a clear error")


@given(
    st.integers(1, 20),
    st.sampled_from(profile_names()),
    st.floats(0.001, 100),
    st.integers(1000, 10**12),
)
def test_what_is_written_is_what_is_read(count, profile, limit, rate):
    found = read(
        f"[wire]\nrate = {rate}\n[policy]\ndowntime_limit = {limit!r}\n"
        f'[[device]]\nname = "x"\ncount = {count}\nprofile = "{profile}"\n'
    )
    assert found.wire.rate == rate
    assert found.policy.downtime_limit == limit
    assert [d.name for d in found.devices] == [f"x{n}" for n in range(count)]
    assert {d.profile_name for d in found.devices} == {profile}


def test_a_table_changes_only_what_it_names():
    base = Policy(channels=3, compression="auto")
    found = policy_of({"chunk_size": "64KiB", "precopy_timeout": 2}, base)
    assert found == Policy(channels=3, compression="auto", chunk_size=65536, precopy_timeout=2.0)


def test_how_far_an_outcome_is_from_its_bound():
    assert Outcome(downtime=0.3, bound=0.2).over_bound == pytest.approx(1.5)
    assert Outcome(error="lost").over_bound is None

"""Each parser of outside bytes on valid input, on mutations of it, and on garbage.

Always the same inputs: `make fuzz` looks for new ones.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import destinations
import pytest
import sessions
import sources
import streams
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS

from vfioflow import RemoteError
from vfioflow.wire.control import MAX_MESSAGE

SLOW = {"destination": 30, "source": 20, "channels": 100}
"""Inputs for those that take milliseconds each; the others get `MANY`."""
MANY = 300

INTERESTING = [0, 1, 2, 3, 4, 7, 8, 32, 0x7F, 0x80, 0xFF]
WIDE = [
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFFFFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    4096,
    4097,
    65536,
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid input with one to four pieces changed, put in, taken out, doubled, or out of another."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 40))
        how = draw(st.sampled_from(["byte", "wide", "insert", "delete", "double", "other", "cut"]))
        if how == "byte" and at < len(data):
            data[at] = draw(st.sampled_from(INTERESTING) | st.integers(0, 255))
        elif how == "wide":
            wide = struct.pack("<Q", draw(st.sampled_from(WIDE)))[
                : draw(st.sampled_from([2, 4, 8]))
            ]
            data[at : at + len(wide)] = wide
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        elif how == "delete":
            del data[at : at + size]
        elif how == "double":
            data[at:at] = data[at : at + size]
        elif how == "other":
            data[at:] = draw(st.sampled_from(seeds))[at:]
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_input(name):
    for seed in TARGETS[name].seeds():
        TARGETS[name].entry(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_valid_input(name):
    seeds = list(TARGETS[name].seeds())

    @settings(
        max_examples=SLOW.get(name, MANY),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seeds))
    def body(data: bytes) -> None:
        TARGETS[name].entry(data)

    body()


@pytest.mark.parametrize("name", TARGETS)
def test_garbage(name):
    @settings(max_examples=SLOW.get(name, MANY) // 2, derandomize=True, database=None)
    @given(st.binary(max_size=300))
    def body(data: bytes) -> None:
        TARGETS[name].entry(data)

    body()


FOUND = Path(__file__).with_name("found.json")
"""Inputs that were findings once, as Latin-1 text: target -> what it was -> input."""


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, what) for name, inputs in json.loads(FOUND.read_text()).items() for what in inputs],
)
def test_what_was_found_once(name, what):
    TARGETS[name].entry(json.loads(FOUND.read_text())[name][what].encode("latin-1"))


def test_the_scripts_go_all_the_way(monkeypatch):
    """Else mutations of them would try nothing but beginnings.  Those that wait in vain are left out."""
    monkeypatch.setattr(sessions, "PATIENCE", 20.0)
    first = list(sources.scripts())
    ends = [type(sources.outcome(first[number])) for number in (0, 1, 2, 4, 5)]
    assert ends == [type(None)] * 4 + [RemoteError]
    first = list(destinations.scripts())
    ends = [type(destinations.outcome(first[number])) for number in (0, 1, 2, 4, 5, 6, 7)]
    assert ends == [type(None)] * 6 + [RemoteError]


def test_resealing_changes_nothing_that_is_right():
    assert streams.resealed(sessions.stream()) == sessions.stream()


HUGE = {
    "message, list": ("message", b"\x82\xa4type\xa5offer\xa7devices\xdd\xff\xff\xff\xff"),
    "message, map": ("message", b"\x82\xa4type\xa6refuse\xa7reasons\xdf\xff\xff\xff\xff"),
    "message, text": ("message", b"\x82\xa4type\xa6failed\xa6reason\xdb\xff\xff\xff\xff"),
    "message, bytes": ("message", b"\x82\xa4type\xa5hello\xa5nonce\xc6\xff\xff\xff\xff"),
    "control, above the limit": ("control", b"\0" + struct.pack("<II", MAX_MESSAGE + 1, 0)),
    "control, most": ("control", b"\0" + struct.pack("<II", 2**32 - 1, 0)),
    "frame, raw": ("channel", b"\0" + streams.sealed(1, 0, 0, 2**32 - 1, 0, 2**32 - 1, 0)),
    "frame, zstd": ("channel", b"\0" + streams.sealed(2, 0, 0, 9, 0, 2**32 - 1, 0) + bytes(9)),
    "frame, zeros": ("channel", b"\0" + streams.sealed(3, 0, 0, 0, 0, 2**32 - 1, 0)),
    "frame, pad": ("channel", b"\0" + streams.sealed(6, 0, 0, 2**32 - 1, 0, 0, 0)),
    "size": ("text", b"\0" + b"9" * 30_000),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_huge_number_is_refused_before_anything_is_allocated(what):
    name, data = HUGE[what]
    TARGETS[name].entry(data)  # what is made once is there
    tracemalloc.start()
    try:
        TARGETS[name].entry(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 512 * 1024

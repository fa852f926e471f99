"""Messages: what is packed is what the specification says, what is wrong is refused with a reason."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow.devices.base import PrecopyInfo
from vfioflow.devices.vfio_user import protocol
from vfioflow.devices.vfio_user.estimate import pending
from vfioflow.devices.vfio_user.protocol import BadReply, Capabilities, Feature, Method
from vfioflow.states import Flags, State


def version(major: int = 0, minor: int = 2, text: str | None = "{}", end: bytes = b"\0") -> bytes:
    return struct.pack("=HH", major, minor) + (b"" if text is None else text.encode() + end)


def test_the_version_is_json_with_its_nul():
    packed = protocol.pack_version(2, Capabilities(max_data_xfer_size=4096))
    assert packed[:4] == struct.pack("=HH", 0, 2)
    assert packed.count(b"\0", 4) == 1
    assert packed.endswith(b"\0")
    said = json.loads(packed[4:-1])
    assert said == {"capabilities": {"max_msg_fds": 1, "max_data_xfer_size": 4096}}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        '{"capabilities": {}}',
        '{"more": [1]}',
        '{"capabilities": {"pgsizes": 4096}}',
    ],
)
def test_what_may_be_left_out_has_its_default(text):
    assert protocol.parse_version(version(text=text)) == (2, Capabilities(1, 1 << 20))


def test_capabilities_of_a_known_server():
    text = (
        '{ "capabilities": { "max_msg_fds": 8, "max_data_xfer_size": 1048576,'
        ' "migration": { "pgsize": 4096 } } }'
    )
    assert protocol.parse_version(version(0, 1, text)) == (1, Capabilities(8, 1048576))
    assert protocol.parse_version(version(0, 1, text, b"")) == (1, Capabilities(8, 1048576))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\0\0", "2 bytes, where there must be at least 4"),
        (version(1, 0), "speaks version 1.0, not 0.x"),
        (version(0, 3), "0.2 is the newest"),
        (version(text="{"), "capabilities are wrong"),
        (version(text="[" * 100_000), "capabilities are wrong"),
        (version(text='{"capabilities": 1}'), "capabilities are wrong"),
        (version(text='{"capabilities": {"max_data_xfer_size": "8"}}'), "max_data_xfer_size"),
        (version(text='{"capabilities": {"max_data_xfer_size": -1}}'), "is -1"),
    ],
)
def test_versions_that_cannot_be(payload, reason):
    with pytest.raises(BadReply, match=reason):
        protocol.parse_version(payload)


@given(
    st.sampled_from(Feature),
    st.sampled_from([Method.GET, Method.SET, Method.GET | Method.PROBE]),
    st.binary(max_size=64),
)
def test_a_feature_that_comes_back_as_it_was_sent(feature, method, data):
    packed = protocol.pack_feature(feature, method, data)
    argsz, flags = struct.unpack_from("=II", packed)
    assert argsz == len(packed)
    assert flags == feature | method
    assert protocol.parse_feature(packed, feature, len(data)) == data


def test_argsz_has_room_for_the_reply():
    packed = protocol.pack_feature(Feature.MIG_DEVICE_STATE, Method.GET, room=8)
    assert struct.unpack("=II", packed) == (16, 2 | 1 << 16)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "0 bytes"),
        (struct.pack("=II", 8, 3), "about feature 3, where 2"),
        (struct.pack("=II", 16, 2) + b"\1\0\0", "3 bytes of data"),
    ],
)
def test_features_that_cannot_be(payload, reason):
    with pytest.raises(BadReply, match=reason):
        protocol.parse_feature(payload, Feature.MIG_DEVICE_STATE, 4)


@pytest.mark.parametrize(
    ("bits", "flags"),
    [
        (0, Flags.NONE),
        (1, Flags.STOP_COPY),
        (5, Flags.STOP_COPY | Flags.PRE_COPY),
        (7, Flags.STOP_COPY | Flags.PRE_COPY),
        (4, Flags.NONE),
        ((1 << 63) + 1, Flags.STOP_COPY),
    ],
)
def test_flags_never_have_p2p(bits, flags):
    assert protocol.parse_flags(struct.pack("=Q", bits)) == flags


@given(st.sampled_from(State))
def test_states(state):
    assert protocol.parse_state(protocol.pack_state(state)) is state


def test_no_such_state():
    with pytest.raises(BadReply, match="9 is no state"):
        protocol.parse_state(struct.pack("=I", 9))


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 24), st.sampled_from([4096, 1 << 16, 1 << 21]))
def test_reports(iova, length, page):
    asked = protocol.pack_report(iova, length, page)
    size = protocol.bitmap_size(length, page)
    assert size % 8 == 0
    assert 8 * size >= -(-length // page) > 8 * (size - 8)
    assert protocol.parse_report(asked + bytes(size + 3), iova, length, page) == bytes(size)
    with pytest.raises(BadReply, match="a bitmap of"):
        protocol.parse_report(asked + bytes(size - 1), iova, length, page)
    with pytest.raises(BadReply, match="not of what was asked"):
        protocol.parse_report(asked + bytes(size), iova + 1, length, page)


def test_the_start_of_a_log():
    packed = protocol.pack_logging([(4096, 8192), (1 << 32, 4096)], 4096)
    assert struct.unpack("=QIIQQQQ", packed) == (4096, 2, 0, 4096, 8192, 1 << 32, 4096)
    assert protocol.parse_logging(packed) == 4096
    with pytest.raises(BadReply, match="0 bytes"):
        protocol.parse_logging(bytes(8))


def test_memory():
    assert struct.unpack("=IIQQQ", protocol.pack_dma_map(1, 2, 3)) == (32, 3, 3, 1, 2)
    assert struct.unpack("=IIQQ", protocol.pack_dma_unmap(1, 2)) == (24, 0, 1, 2)


def test_regions():
    assert struct.unpack("=QII", protocol.pack_region_read(7, 4, 2)) == (4, 7, 2)
    assert protocol.parse_region(bytes(16) + b"ab", 2) == b"ab"
    with pytest.raises(BadReply, match="17 bytes"):
        protocol.parse_region(bytes(17), 2)


# ------------------------------------------------------------------- estimates


def test_until_nothing_was_left_once_all_is_initial():
    assert pending((0, 0, (0, 1.0), (0, 0.0)), 4096) == PrecopyInfo(4096, 0)
    assert pending((9000, 0, (9000, 1.0), (0, 0.0)), 4096) == PrecopyInfo(9000, 0)


def test_the_first_pass_tells_no_rate():
    assert pending((9000, 1, (0, 0.001), (9000, 1.0)), 4096) == PrecopyInfo(0, 9000)


def test_then_the_rate_of_the_last_pass_counts():
    assert pending((9000, 2, (0, 0.5), (1000, 2.0)), 4096) == PrecopyInfo(0, 250)
    assert pending((9000, 3, (0, 0.5), (0, 2.0)), 4096) == PrecopyInfo(0, 0)
    assert pending((9000, 3, (0, 0.5), (7, 0.0)), 4096) == PrecopyInfo(0, 0)


def test_a_pass_without_an_end_has_more_before_it():
    assert pending((9000, 2, (4000, 0.5), (1000, 2.0)), 4096) == PrecopyInfo(0, 4000)

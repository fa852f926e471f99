"""The header of a data frame, and the digest."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow import _frame

RAW, ZSTD, ZERO, MARK, END, PAD = range(1, 7)
CHUNK = 1 << 20

# Reference: a bit-at-a-time CRC32C, from the definition of the polynomial.


def reference_crc(data: bytes, start: int = 0) -> int:
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_digest_check_value():
    assert _frame.crc(b"123456789") == 0xE3069283
    assert _frame.crc(b"") == 0


@given(st.binary(max_size=300), st.integers(0, 0xFFFFFFFF))
def test_digest_is_crc32c(data, start):
    expected = reference_crc(data, start)
    assert _frame.crc(data, start) == expected
    assert [_frame.crc(data, start, way=way) for way in (0, 1, 2)] == [expected] * 3


@given(st.integers(0, 60_000), st.integers(0, 60_000), st.integers(0, 255))
def test_digest_of_long_data_in_pieces(size, cut, seed):
    """Folding and the interleaved way (12 KiB strides) agree with the tables, wherever the data is cut."""
    data = bytes((seed + i * i) & 0xFF for i in range(size))
    cut = min(cut, size)
    whole = _frame.crc(data)
    assert whole == _frame.crc(data, way=1) == _frame.crc(data, way=0)
    assert whole == _frame.crc(data[cut:], _frame.crc(data[:cut]))


@given(
    st.sampled_from([RAW, ZSTD, ZERO]),
    st.integers(0, 0xFFFF),
    st.integers(1, CHUNK),
    st.integers(0, 2**64 - 1),
    st.integers(0, 0xFFFFFFFF),
)
def test_header_round_trip(kind, lane, raw, offset, digest):
    length = {RAW: raw, ZSTD: max(raw // 2, 1), ZERO: 0}[kind]
    wire = _frame.pack(kind, lane, length, offset, raw, digest)
    assert len(wire) == 32
    assert wire[0] == kind
    assert _frame.unpack(wire, CHUNK, CHUNK) == (kind, lane, length, offset, raw, digest)


def test_header_layout_is_the_documented_one():
    wire = _frame.pack(ZSTD, 0x0102, 0x11, 0x0102030405060708, 0x22, 0xAABBCCDD)
    assert wire[:28] == bytes.fromhex(
        "02 00 0201 11000000 0807060504030201 22000000 ddccbbaa 00000000"
    )
    assert int.from_bytes(wire[28:], "little") == reference_crc(wire[:28])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ((0, 0, 0, 0, 0, 0), "kind 0 is never valid"),
        ((8, 0, 0, 0, 0, 0), "unknown kind"),
        ((7, 0, 1, 0, 0, 0), "close has no payload"),
        ((255, 0, 1, 0, 1, 0), "unknown kind"),
        ((RAW, 0, CHUNK + 1, 0, CHUNK + 1, 0), "longer than the chunk size"),
        ((RAW, 0, 4, 0, 5, 0), "raw must be as long as what it stands for"),
        ((RAW, 0, 0, 0, 0, 0), "empty data"),
        ((ZSTD, 0, 0, 0, 5, 0), "compressed nothing"),
        ((ZSTD, 0, 5, 0, 0, 0), "stands for nothing"),
        ((ZSTD, 0, 5, 0, CHUNK + 1, 0), "unpacks to more than the chunk size"),
        ((ZSTD, 0, 0xFFFFFFFF, 0, 5, 0), "huge payload"),
        ((ZERO, 0, 1, 0, 1, 0), "zeros have no payload"),
        ((ZERO, 0, 0, 0, 0xFFFFFFFF, 0), "huge run of zeros"),
        ((MARK, 0, 1, 0, 0, 0), "a mark has no payload"),
        ((END, 0, 0, 0, 1, 0), "an end stands for no bytes"),
        ((PAD, 0, CHUNK + 1, 0, 0, 0), "huge pad"),
        ((PAD, 0, 4, 0, 4, 0), "pad bytes stand for nothing"),
    ],
)
def test_impossible_headers_are_refused(fields, why):
    with pytest.raises(ValueError, match="impossible"):
        _frame.unpack(_frame.pack(*fields), CHUNK, CHUNK)


@given(st.integers(0, 31), st.integers(1, 255))
def test_any_damaged_byte_is_noticed(position, flip):
    wire = bytearray(_frame.pack(RAW, 3, 100, 4096, 100, 12345))
    wire[position] ^= flip
    with pytest.raises(ValueError, match=r"check does not agree|impossible"):
        _frame.unpack(bytes(wire), CHUNK, CHUNK)


@given(st.binary(min_size=32, max_size=32))
def test_random_bytes_are_no_header(wire):
    if int.from_bytes(wire[28:], "little") != reference_crc(wire[:28]):
        with pytest.raises(ValueError, match="check does not agree"):
            _frame.unpack(wire, CHUNK, CHUNK)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_header_has_32_bytes(size):
    with pytest.raises(ValueError, match="32 bytes"):
        _frame.unpack(bytes(size), CHUNK, CHUNK)


def test_zlib_is_another_polynomial():
    """So that nobody takes CRC32 for CRC32C."""
    assert _frame.crc(b"vfioflow") != zlib.crc32(b"vfioflow")

"""Block contents and their digests."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vfioflow._simstate import CONTENTS, block_bytes, block_digest, content_name, get_tile

SIZE = 64 << 20
BLOCK = 65536


@pytest.mark.parametrize("content", ["structured", "fp16", "random", "mix"])
def test_content_follows_from_seed_index_and_version(content: str) -> None:
    tile = get_tile(content, 7, SIZE, BLOCK)
    same = get_tile(content, 7, SIZE, BLOCK)
    other = get_tile(content, 8, SIZE, BLOCK)
    assert same is tile
    blocks = [block_bytes(tile, SIZE, i, v) for i in range(8) for v in range(3)]
    assert blocks == [block_bytes(same, SIZE, i, v) for i in range(8) for v in range(3)]
    assert blocks != [block_bytes(other, SIZE, i, v) for i in range(8) for v in range(3)]


@pytest.mark.parametrize("content", ["structured", "fp16", "random"])
def test_no_two_blocks_are_alike(content: str) -> None:
    tile = get_tile(content, 1, SIZE, BLOCK)
    blocks = {block_bytes(tile, SIZE, i, v) for i in range(100) for v in range(4)}
    assert len(blocks) == 400


def test_zeros_stay_zero() -> None:
    tile = get_tile("zeros", 1, SIZE, BLOCK)
    assert block_bytes(tile, SIZE, 5, 3) == bytes(BLOCK)


def test_a_mix_holds_all_three_kinds() -> None:
    tile = get_tile("mix", 1, SIZE, BLOCK)
    zero = sum(block_bytes(tile, SIZE, i, 0) == bytes(BLOCK) for i in range(64))
    assert zero == 24


@pytest.mark.parametrize(
    ("content", "least", "most"),
    [
        ("structured", 2.0, 2.6),
        ("fp16", 1.05, 1.25),
        ("random", 0.99, 1.01),
        ("mix", 1.5, 2.5),
        ("zeros", 1000, 1e6),
    ],
)
def test_how_far_zstd_compresses_each_content(content: str, least: float, most: float) -> None:
    tile = get_tile(content, 1, SIZE, BLOCK)
    data = b"".join(block_bytes(tile, SIZE, i, 0) for i in range(64))
    packed = zstandard.ZstdCompressor(level=1).compress(data)
    assert least <= len(data) / len(packed) <= most


def test_the_last_block_is_short() -> None:
    tile = get_tile("random", 1, BLOCK + 10, BLOCK)
    assert len(block_bytes(tile, BLOCK + 10, 1, 0)) == 10
    with pytest.raises(IndexError):
        block_bytes(tile, BLOCK + 10, 2, 0)


def test_a_file_is_the_content(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1024
    path = tmp_path / "content"
    path.write_bytes(data)
    tile = get_tile("file", 0, SIZE, BLOCK, str(path))
    assert tile.blocks == 4
    for i in range(6):
        start = i % 4 * BLOCK
        assert block_bytes(tile, SIZE, i, 0)[16:] == data[start + 16 : start + BLOCK]


def test_a_small_file_repeats_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"abc" * 10)
    tile = get_tile("file", 0, SIZE, BLOCK, str(path))
    assert block_bytes(tile, SIZE, 0, 0)[30:] == (b"abc" * BLOCK)[30:BLOCK]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        get_tile("file", 1, SIZE, BLOCK, str(path))


def test_content_names() -> None:
    assert {content_name(kind): kind for kind in range(6)} == CONTENTS
    with pytest.raises(KeyError):
        content_name(7)


@pytest.mark.parametrize("zeros", [0.0, 0.25, 1.0])
def test_a_blend_has_its_shares(zeros: float) -> None:
    structured = (1 - zeros) / 2
    tile = get_tile(f"mix:{zeros:g},{structured:g}", 1, 64 * BLOCK, BLOCK)
    assert content_name(tile.content) == f"mix:{zeros:g},{structured:g}"
    blocks = [block_bytes(tile, 64 * BLOCK, index, 1)[16:] for index in range(64)]
    assert sum(not any(block) for block in blocks) == 64 * zeros
    packed = [len(zlib.compress(block, 1)) for block in blocks]
    assert sum(0.1 * BLOCK < size < 0.9 * BLOCK for size in packed) == 64 * structured


@given(st.binary(min_size=1, max_size=300), st.data())
def test_the_digest_sees_every_bit(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    assert block_digest(bytes(flipped), 0, 0) != block_digest(data, 0, 0)


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 2))
def test_the_digest_sees_length_index_and_version(data: bytes, index: int, version: int) -> None:
    digests = {
        block_digest(data, index, version),
        block_digest(data + b"\0", index, version),
        block_digest(data, index ^ 1, version),
        block_digest(data, index, version + 1),
    }
    assert len(digests) == 4


@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_the_digest_sees_the_order_of_words(count: int, rng: object) -> None:
    words = [bytes([i]) * 8 for i in range(count)]
    seen = {block_digest(b"".join(words[i:] + words[:i]), 0, 0) for i in range(count)}
    assert len(seen) == count

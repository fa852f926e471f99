"""Payloads that arrive in any way: in dribbles, late, cut off, damaged."""

import contextlib
import functools
import socket
import struct
from functools import partial

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from wire import (
    CHUNK,
    MIB,
    ZSTD,
    Wire,
    close,
    content,
    data_frame,
    drain,
    fails,
    finish,
    summary,
    tcp_pair,
    until,
)

from vfioflow import _frame
from vfioflow.errors import IntegrityError, PeerLost

KIB = 1024


def arrived(far, end):
    """Whether so many bytes came in on a TCP connection, read or not."""
    info = far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    (received,) = struct.unpack_from("Q", info, 128)
    return received >= end


def dribble(wire, data, *, behind=0):
    """Send in small pieces, each when the one before is there; ``behind``: bytes sent already."""
    for at in range(0, len(data), 10_000):
        piece = data[at : at + 10_000]
        wire.near[0].sendall(piece)
        until(functools.partial(arrived, wire.far[0], behind + at + len(piece)))


@pytest.fixture(params=[None, 64 * KIB], ids=["sockets", "small sockets"])
def pair(request):
    return functools.partial(tcp_pair, buffers=request.param)


LARGE = [256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 300_000, 512 * KIB, MIB]


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("digests", [True, False], ids=["copied", "spliced"])
def test_a_large_frame_is_loaded_though_nothing_follows(stack, pair, size, digests):
    """Whoever waits for more than the frame itself waits for ever."""
    wire = Wire(stack, chunk=MIB, pair=pair, digests=digests)
    data = content(size, "random")
    receivers, sink = wire.receive(), drain(wire.sinks[0])
    wire.near[0].sendall(data_frame(data))
    until(partial(loaded, wire, size))
    finish(wire, [], receivers)
    assert sink.result() == summary(data)


def loaded(wire, size):
    return wire.into[0].offset == size


@pytest.mark.parametrize("digests", [True, False], ids=["copied", "spliced"])
def test_large_frames_in_dribbles_and_a_small_one_at_the_end(stack, digests):
    wire = Wire(stack, chunk=MIB, pair=tcp_pair, digests=digests)
    parts = [content(size, "random", size) for size in (300_000, MIB, 256 * KIB, 5)]
    receivers, sink = wire.receive(), drain(wire.sinks[0])
    before = b""
    for number, part in enumerate(parts):
        dribble(wire, data_frame(part, before=before), behind=len(before) + 32 * number)
        before += part
        until(partial(loaded, wire, len(before)))
    finish(wire, [], receivers)
    assert sink.result() == summary(before)


def test_frames_that_arrive_glued_together(stack, pair):
    wire = Wire(stack, chunk=MIB, pair=pair)
    parts = [content(size, "random", size) for size in (5, 300_000, 1, MIB, 256 * KIB, 70_000)]
    before, frames = b"", b""
    for part in parts:
        frames += data_frame(part, before=before)
        before += part
    receivers, sink = wire.receive(), drain(wire.sinks[0])
    wire.near[0].sendall(frames)
    finish(wire, [], receivers)
    assert sink.result() == summary(before)


@pytest.mark.parametrize("missing", [1, 10_000, 299_999, 300_000])
def test_a_large_frame_that_is_cut_off(stack, pair, missing):
    wire = Wire(stack, chunk=MIB, pair=pair)
    frame = data_frame(content(300_000, "random"))
    fails(wire, frame[:-missing], kind=PeerLost, match="middle of a stream")
    assert wire.into[0].offset == 0


def test_a_connection_that_is_reset_within_a_large_frame(stack):
    wire = Wire(stack, chunk=MIB, pair=tcp_pair)
    receivers = wire.receive()
    dribble(wire, data_frame(content(MIB, "random"))[:100_000])
    wire.near[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.near[0].close()
    with pytest.raises(PeerLost):
        receivers[0].result()
    assert wire.in_pool.in_use == 0


def test_cancel_within_a_large_frame(stack):
    wire = Wire(stack, chunk=MIB, pair=tcp_pair)
    receivers = wire.receive()
    dribble(wire, data_frame(content(MIB, "random"))[:500_000])
    wire.stop_receiving()
    assert receivers[0].result() is False
    assert wire.in_pool.in_use == 0


# ---------------------------------------------------------------------- damage

GOOD = b"good data"


def packed_frame(payload, raw, size=None):
    """A zstd frame behind GOOD, with the digest of ``raw``."""
    size = len(raw) if size is None else size
    digest = _frame.crc(raw, _frame.crc(GOOD))
    return _frame.pack(ZSTD, 0, len(payload), len(GOOD), size, digest) + payload


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_zstd_payload_that_is_cut_or_too_long(stack, size):
    raw = content(size, "text")
    payload = zstandard.compress(raw)
    for damaged in (payload[:-1], payload[: len(payload) // 2], payload[:1], payload + b"\0"):
        fails(
            Wire(stack),
            data_frame(GOOD),
            packed_frame(damaged, raw),
            kind=IntegrityError,
            match="device dev0 at byte 9 of its stream: a compressed frame does not unpack",
        )


@pytest.mark.parametrize("said", [1, 9_999, 10_001, CHUNK])
def test_a_zstd_payload_of_another_size_than_it_says(stack, said):
    raw = content(10_000, "text")
    fails(
        Wire(stack),
        data_frame(GOOD),
        packed_frame(zstandard.compress(raw), raw, said),
        kind=IntegrityError,
        match="device dev0 at byte 9 of its stream: a compressed frame does not unpack",
    )


@given(st.data())
def test_no_damage_to_a_zstd_payload_reaches_the_device(data):
    """It does not unpack, its digest is wrong, or (bits that mean nothing) it is the same."""
    raw = content(5000, "text") + content(100, "random")
    payload = bytearray(zstandard.compress(raw))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.ExitStack() as stack:
        wire = Wire(stack)
        receivers = wire.receive()
        wire.near[0].sendall(data_frame(GOOD) + packed_frame(bytes(payload), raw))
        close(wire)
        error = None
        try:
            receivers[0].result()
        except IntegrityError as caught:
            error, raw = str(caught), b""
        assert error is None or "device dev0 at byte 9 of its stream" in error
        wire.in_ports[0].close()
        assert drain(wire.sinks[0]).result() == summary(GOOD + raw)

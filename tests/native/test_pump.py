"""Lanes and channels over real pipes and sockets."""

import contextlib
import errno
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import (
    CHUNK,
    END_FRAME,
    RAW,
    ZSTD,
    Thread,
    Wire,
    close,
    content,
    drain,
    fails,
    feed,
    move,
    summary,
    until,
)

from vfioflow import _frame
from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._fdio import Cancel, Port
from vfioflow._outlane import BUDGET, CANCELLED, DRAINED, END, OutLane
from vfioflow._waits import Limiter
from vfioflow.errors import DeviceError, IntegrityError, PeerLost, ProtocolError


@pytest.mark.parametrize("kind", ["zeros", "random", "text"])
@pytest.mark.parametrize(
    "compression", [None, "auto", 1, 3], ids=["raw", "auto", "zstd:1", "zstd:3"]
)
@pytest.mark.parametrize(("lanes", "channels"), [(1, 1), (1, 3), (3, 2), (2, 4)])
def test_streams_arrive_byte_for_byte(stack, kind, compression, lanes, channels):
    wire = Wire(stack, lanes=lanes, channels=channels, compression=compression)
    streams = [content(700_001 + 1000 * i, kind, i) for i in range(lanes)]
    arrived = move(wire, streams)
    assert arrived == [summary(s) for s in streams]
    for out, into, stream in zip(wire.out, wire.into, streams, strict=True):
        assert into.ended
        assert out.offset == into.offset == len(stream)
        assert out.digest == into.digest == _frame.crc(stream)
        assert out.frames == into.frames
        assert out.wire_bytes == into.wire_bytes
        if kind == "zeros" and compression:
            assert out.wire_bytes == 32 * out.frames
        elif kind == "text" and compression in (1, 3):
            assert out.wire_bytes < len(stream) / 3
        else:
            assert out.wire_bytes == len(stream) + 32 * out.frames
    if wire.crew is not None:
        wire.crew.close()
    assert wire.pool.in_use == wire.in_pool.in_use == 0


def test_without_digests_nothing_is_computed(stack):
    wire = Wire(stack, digests=False)
    stream = content(300_000, "random", 1)
    assert move(wire, [stream]) == [summary(stream)]
    assert wire.out[0].digest == wire.into[0].digest == 0


def test_an_empty_stream_still_ends(stack):
    wire = Wire(stack)
    assert move(wire, [b""]) == [summary(b"")]
    assert wire.into[0].ended


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=20),
    chunk=st.sampled_from([4096, 5000, 65536]),
    channels=st.integers(1, 3),
)
def test_any_segmentation_arrives(sizes, chunk, channels):
    """However the device cuts its stream into reads, the bytes and their order are the same."""
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=chunk, channels=channels)
        pieces = [content(size, "random", i) for i, size in enumerate(sizes)]
        receivers = [Thread(wire.receiver.receive, Channel(far)) for far in wire.far]
        sink = drain(wire.sinks[0])
        lane, port = wire.out[0], wire.out_ports[0]
        for piece in pieces:
            wire.feeds[0].write(piece)
            assert lane.pump(port, len(piece), precopy=True) == BUDGET
        wire.feeds[0].close()
        assert lane.pump(port, 1, precopy=False) == END
        lane.end()
        close(wire)
        for thread in receivers:
            thread.result()
        wire.in_ports[0].close()
        whole = b"".join(pieces)
        assert sink.result() == summary(whole)


def test_zero_in_precopy_is_not_the_end(stack):
    """Several drivers return 0 when drained in PRE_COPY; the same fd goes on later."""
    wire = Wire(stack)
    wire.feeds[0].close()
    assert wire.out[0].pump(wire.out_ports[0], 2**63, precopy=True) == DRAINED
    assert wire.out[0].pump(wire.out_ports[0], 2**63, precopy=False) == END


def test_budget_is_kept(stack):
    wire = Wire(stack)
    wire.feeds[0].write(bytes(10_000))
    assert wire.out[0].pump(wire.out_ports[0], 9_999, precopy=True) == BUDGET
    assert wire.out[0].offset == 9_999


def test_marks_come_through_and_are_signalled(stack):
    wire = Wire(stack, channels=2)
    receivers = [Thread(wire.receiver.receive, Channel(far)) for far in wire.far]
    wire.feeds[0].write(b"initial")
    wire.out[0].pump(wire.out_ports[0], 7, precopy=True)
    wire.out[0].mark()
    wire.feeds[0].write(b"dirty")
    wire.out[0].pump(wire.out_ports[0], 5, precopy=True)
    wire.out[0].end()
    close(wire)
    for thread in receivers:
        assert thread.result() is True
    assert wire.into[0].marks == 1
    assert os.eventfd_read(wire.signal) == 2
    assert wire.sinks[0].read(100) == b"initialdirty"


def test_pad_is_counted_and_thrown_away(stack):
    wire = Wire(stack)
    channel = Channel(wire.far[0])
    receiver = Thread(wire.receiver.receive, channel)
    wire.channels[0].pad(3 * CHUNK + 5, wire.pool, wire.limiter, wire.cancel)
    wire.out[0].end()
    close(wire)
    assert receiver.result() is True
    assert channel.pad_bytes == 3 * CHUNK + 5
    assert wire.into[0].offset == 0


def test_limiter_holds_back_and_can_be_cancelled(stack):
    """At a byte a second the first chunk uses up years; the pump waits before it sends it."""
    wire = Wire(stack)
    wire.limiter.rate = 1
    wire.feeds[0].write(bytes(100))
    pump = Thread(wire.out[0].pump, wire.out_ports[0], 100, precopy=True)
    wire.cancel.set()
    assert pump.result() == CANCELLED
    assert wire.channels[0].wire_bytes == 0
    assert wire.out[0].offset == 0


def test_limiter_can_be_lifted(stack):
    wire = Wire(stack)
    wire.limiter.rate = 10**12
    wire.limiter.rate = 0
    assert wire.limiter.rate == 0
    stream = content(500_000, "random", 3)
    assert move(wire, [stream])[0][0] == len(stream)


# ---------------------------------------------------------------- cancelling


def test_cancel_ends_a_pump_that_waits_for_the_device(stack):
    wire = Wire(stack)
    pump = Thread(wire.out[0].pump, wire.out_ports[0], 100, precopy=False)
    wire.cancel.set()
    assert pump.result() == CANCELLED
    assert wire.pool.in_use == 0


def test_shutdown_ends_a_pump_that_waits_for_the_wire(stack):
    wire = Wire(stack)
    feeder = feed(wire.feeds[0], bytes(8 << 20))
    pump = Thread(wire.out[0].pump, wire.out_ports[0], 2**63, precopy=False)
    wire.cancel.set()
    wire.near[0].shutdown(socket.SHUT_RDWR)
    assert pump.result() == CANCELLED
    wire.out_ports[0].close()
    with pytest.raises(BrokenPipeError):
        feeder.result()


def test_cancel_ends_a_receiver_that_waits_for_its_turn(stack):
    wire = Wire(stack, channels=2)
    wire.near[0].sendall(_frame.pack(RAW, 0, 4, 100, 4, 0) + b"late")
    receiver = Thread(wire.receiver.receive, Channel(wire.far[0]))
    wire.stop_receiving()
    assert receiver.result() is False
    assert wire.in_pool.in_use == 0


def test_cancel_ends_a_receiver_whose_device_takes_nothing(stack):
    wire = Wire(stack)
    feeder = feed(wire.feeds[0], bytes(4 << 20))
    sender = Thread(wire.out[0].pump, wire.out_ports[0], 2**63, precopy=False)
    receiver = Thread(wire.receiver.receive, Channel(wire.far[0]))
    while wire.into[0].offset < 512 * 1024:  # until the sink's pipe is about full
        assert receiver.is_alive()
    wire.cancel.set()
    wire.stop_receiving()
    wire.near[0].shutdown(socket.SHUT_RDWR)
    assert receiver.result() is False
    assert sender.result() == CANCELLED
    wire.out_ports[0].close()
    with contextlib.suppress(BrokenPipeError):
        feeder.result()


# ------------------------------------------------------- what goes wrong


def test_a_wrong_digest_never_reaches_the_device(stack):
    wire = Wire(stack)
    good = b"good data"
    frames = [
        _frame.pack(RAW, 0, len(good), 0, len(good), _frame.crc(good)) + good,
        _frame.pack(RAW, 0, 4, len(good), 4, 1) + b"evil",
    ]
    fails(wire, *frames, kind=IntegrityError, match="device dev0 at byte 9 .*digest")
    wire.in_ports[0].close()
    assert wire.sinks[0].read(100) == good


def test_the_end_checks_length_and_digest(stack):
    data = b"all of it"
    body = _frame.pack(RAW, 0, 9, 0, 9, _frame.crc(data)) + data
    fails(
        Wire(stack),
        body,
        _frame.pack(END_FRAME, 0, 0, 9, 0, 7),
        kind=IntegrityError,
        match="dev0 at byte 9",
    )
    fails(
        Wire(stack),
        body,
        _frame.pack(END_FRAME, 0, 0, 8, 0, _frame.crc(data)),
        kind=ProtocolError,
        match="dev0 at byte 8",
    )


@pytest.mark.parametrize(
    ("frames", "kind", "match"),
    [
        ([b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"], IntegrityError, "header"),
        ([bytes(32)], IntegrityError, "header"),
        ([_frame.pack(0, 0, 0, 0, 0, 0)], ProtocolError, "does not allow"),
        ([_frame.pack(RAW, 9, 4, 0, 4, 0) + b"lost"], ProtocolError, "does not allow"),
        ([_frame.pack(RAW, 0, CHUNK + 1, 0, CHUNK + 1, 0)], ProtocolError, "does not allow"),
        ([_frame.pack(ZSTD, 0, 8, 0, 8, 0) + b"not zstd"], IntegrityError, "unpack"),
        ([_frame.pack(RAW, 0, 4, 0, 4, 0) + b"ab"], PeerLost, "middle of a stream"),
        ([_frame.pack(RAW, 0, 4, 0, 4, 0)[:20]], PeerLost, "middle of a stream"),
        ([_frame.pack(RAW, 0, 4, 0, 4, 0)], PeerLost, "middle of a stream"),
    ],
    ids=[
        "http",
        "zeros",
        "kind 0",
        "unknown lane",
        "too long",
        "not zstd",
        "cut payload",
        "cut header",
        "no payload",
    ],
)
def test_garbage_is_a_typed_error(stack, frames, kind, match):
    fails(Wire(stack), *frames, kind=kind, match=match)


def test_data_after_the_end_is_refused(stack):
    fails(
        Wire(stack, digests=False),
        _frame.pack(END_FRAME, 0, 0, 0, 0, 0),
        _frame.pack(RAW, 0, 4, 0, 4, 0) + b"more",
        kind=ProtocolError,
        match="dev0 at byte 0",
    )


def test_a_repeated_frame_is_refused(stack):
    frame = _frame.pack(RAW, 0, 4, 0, 4, 0) + b"data"
    fails(Wire(stack, digests=False), frame, frame, kind=ProtocolError, match="dev0 at byte 0")


def test_a_bomb_is_refused_without_memory(stack):
    """A zstd frame that claims one length and unpacks to another."""
    import zstandard

    bomb = zstandard.compress(bytes(CHUNK))
    frame = _frame.pack(ZSTD, 0, len(bomb), 0, 100, 0) + bomb
    fails(Wire(stack, digests=False), frame, kind=IntegrityError, match="dev0 .*unpack")


def test_a_channel_that_is_closed_before_the_end_is_no_end(stack):
    wire = Wire(stack)
    receiver = Thread(wire.receiver.receive, Channel(wire.far[0]))
    close(wire)
    assert receiver.result() is True
    assert not wire.into[0].ended


def test_a_connection_that_ends_without_a_word_is_lost(stack):
    wire = Wire(stack)
    receiver = Thread(wire.receiver.receive, Channel(wire.far[0]))
    wire.near[0].close()
    with pytest.raises(PeerLost, match="the peer closed a data connection"):
        receiver.result()


def test_a_device_that_fails_to_read_is_named(stack):
    wire = Wire(stack)
    directory = os.open("/", os.O_RDONLY)
    port = Port(directory)
    stack.callback(port.close)
    with pytest.raises(DeviceError, match="dev0: reading its state at byte 0") as caught:
        wire.out[0].pump(port, 100, precopy=True)
    assert caught.value.errno == errno.EISDIR
    assert isinstance(caught.value, OSError)
    assert wire.pool.in_use == 0


def test_a_device_that_fails_to_write_is_named(stack):
    wire = Wire(stack, digests=False)
    wire.sinks[0].close()
    fails(
        wire,
        _frame.pack(RAW, 0, 4, 0, 4, 0) + b"data",
        kind=DeviceError,
        match="dev0: loading its state at byte 0 .*EPIPE",
    )


def test_a_peer_that_went_away_is_lost(stack):
    wire = Wire(stack)
    wire.far[0].close()
    wire.feeds[0].write(b"data")
    with pytest.raises(PeerLost, match="data connection failed: Broken pipe"):
        wire.out[0].pump(wire.out_ports[0], 4, precopy=True)


def test_a_pool_without_buffers_is_a_memory_error(stack):
    wire = Wire(stack, lanes=2)
    pool = Pool(CHUNK, 1)
    holder, other = (
        OutLane(f"dev{i}", i, wire.channels, pool, wire.cancel, wire.limiter, digests=False)
        for i in range(2)
    )
    holding = Thread(holder.pump, wire.out_ports[0], 10, precopy=True)
    until(lambda: pool.in_use)
    with pytest.raises(MemoryError, match="dev1"):
        other.pump(wire.out_ports[1], 10, precopy=True)
    wire.cancel.set()
    assert holding.result() == CANCELLED


def test_misuse_is_an_error():
    with pytest.raises(ValueError, match="capacity"):
        Pool(4096, 0)
    with pytest.raises(ValueError, match="needs a channel"):
        OutLane("dev", 0, [], Pool(4096, 1), Cancel(), Limiter(), digests=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Port(-1)

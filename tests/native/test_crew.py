"""Compressor threads between the devices and the wire."""

import functools
import itertools

import pytest
from wire import (
    CHUNK,
    END_FRAME,
    MIB,
    RAW,
    ZERO,
    ZSTD,
    Wire,
    asleep,
    content,
    drain,
    finish,
    memfd,
    move,
    pump,
    send,
    summary,
    tcp_pair,
    until,
)

from vfioflow import _frame
from vfioflow._buffers import Pool
from vfioflow._crew import Crew
from vfioflow._outlane import CANCELLED
from vfioflow.errors import PeerLost


def mixed(chunks, seed=0):
    """Chunks of each kind in turn, so that neighbours take different times."""
    kinds = itertools.cycle(["text", "random", "zeros"])
    return b"".join(
        content(CHUNK, kind, seed + i) for i, kind in zip(range(chunks), kinds, strict=False)
    )


def frames(far):
    """The headers that arrive up to the end, without digests; their payloads are passed over."""
    headers = []
    with far.makefile("rb") as stream:
        while not headers or headers[-1][0] != END_FRAME:
            headers.append(_frame.unpack(stream.read(32), CHUNK, CHUNK)[:-1])
            stream.read(headers[-1][2])
    return headers


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("lanes", "channels"), [(1, 1), (3, 1), (3, 4)])
def test_bytes_and_their_order_are_kept(stack, threads, lanes, channels):
    wire = Wire(stack, lanes=lanes, channels=channels, compression=1, threads=threads)
    streams = [mixed(50 + i, seed=100 * i) for i in range(lanes)]
    assert move(wire, streams) == [summary(stream) for stream in streams]
    assert [lane.digest for lane in wire.into] == [_frame.crc(stream) for stream in streams]
    assert wire.crew.packed_out < wire.crew.packed_in < sum(map(len, streams))
    assert wire.pool.allocated <= wire.pool.capacity


def test_a_chunk_goes_as_what_is_smallest(stack):
    stream = mixed(6)
    wire = Wire(stack, compression=3, digests=False, sources=[memfd(stream)])
    sending = send(wire)
    *data, end = frames(wire.far[0])
    sending[0].result()
    assert [(kind, offset, size) for kind, _, _, offset, size in data] == [
        (kind, i * CHUNK, CHUNK) for i, kind in enumerate([ZSTD, RAW, ZERO] * 2)
    ]
    assert all(length <= CHUNK for _, _, length, *_ in data)
    assert end == (END_FRAME, 0, 0, len(stream), 0)


@pytest.mark.parametrize("compression", ["auto", 1])
def test_cancel_gives_all_jobs_back(stack, compression):
    """Nobody receives, so the socket is full and jobs wait behind it."""
    streams = [content(8 * MIB, "random", i) for i in range(3)]
    wire = Wire(
        stack, lanes=3, compression=compression, sources=[memfd(stream) for stream in streams]
    )
    pack(wire)
    pumps = pump(wire)
    until(lambda: wire.channels[0].wire_bytes > 0 and asleep(pumps))
    wire.stop()
    assert [thread.result() for thread in pumps] == [CANCELLED] * 3
    assert wire.pool.in_use <= wire.crew.threads  # each thread's spare
    wire.crew.close()
    assert wire.pool.in_use == 0


@pytest.mark.parametrize("compression", ["auto", 1])
def test_a_connection_that_fails_in_the_middle_leaves_no_buffer_out(stack, compression):
    wire = Wire(stack, compression=compression, sources=[memfd(mixed(300))], pair=tcp_pair)
    pack(wire)
    sending = send(wire)
    wire.far[0].recv(2 * CHUNK)
    wire.far[0].close()
    with pytest.raises(PeerLost):
        sending[0].result()
    assert wire.pool.in_use <= wire.crew.threads
    wire.crew.close()
    assert wire.pool.in_use == 0


def test_a_crew_can_be_closed_twice_and_before_it_works():
    pool = Pool(CHUNK, 4)
    crew = Crew(2, pool, 2, level=1)
    crew.close()
    crew = Crew(2, pool, 2)
    crew.start()
    crew.close()
    crew.close()
    assert pool.in_use == 0


@pytest.mark.parametrize(("threads", "spare_jobs"), [(0, 1), (1, -1)])
def test_a_crew_needs_threads(threads, spare_jobs):
    with pytest.raises(ValueError, match="needs a thread"):
        Crew(threads, Pool(CHUNK, 4), spare_jobs)


# -------------------------------------------------------- the level left to the lane


def pack(wire):
    """Let lanes that may choose have seen a very slow wire and data that shrinks, so that they compress."""
    for lane in wire.out:
        if balance := lane.balance:
            balance.sampled(0, MIB, MIB // 8, MIB)
            balance.sent(MIB, 1000 * MIB)
            balance.decide(1000 * MIB, 0, 0, 2.0)
            assert balance.packing


def test_what_waits_for_a_wire_that_stands_still_is_compressed(stack):
    stream = content(32 * MIB, "text")
    wire = Wire(
        stack,
        compression="auto",
        chunk=4 * CHUNK,
        sources=[memfd(stream)],
        pair=functools.partial(tcp_pair, buffers=CHUNK),
    )
    pack(wire)
    sink = drain(wire.sinks[0])
    sending = send(wire)
    until(lambda: wire.crew.packed_in)
    finish(wire, sending, wire.receive())
    assert sink.result() == summary(stream)
    assert wire.crew.packed_out < wire.crew.packed_in
    assert wire.out[0].wire_bytes < len(stream)
    assert wire.pool.allocated <= wire.pool.capacity


@pytest.mark.parametrize("kind", ["text", "random", "mixed"])
@pytest.mark.parametrize("begins", ["raw", "packing"])
def test_bytes_are_exact_whatever_is_chosen_on_the_way(stack, kind, begins):
    """On a fast wire, chunks overtake the compressors: they go as they are, in their place."""
    stream = mixed(256) if kind == "mixed" else content(16 * MIB, kind)
    wire = Wire(
        stack,
        channels=2,
        compression="auto",
        sources=[memfd(stream)],
        pair=tcp_pair,
    )
    if begins == "packing":
        pack(wire)
    sink = drain(wire.sinks[0])
    finish(wire, send(wire), wire.receive())
    assert sink.result() == summary(stream)
    assert wire.out[0].digest == wire.into[0].digest == _frame.crc(stream)
    assert wire.out[0].wire_bytes <= len(stream) + 32 * wire.out[0].frames
    assert wire.pool.allocated <= wire.pool.capacity
    wire.crew.close()
    assert wire.pool.in_use == 0

"""Lanes that share a channel."""

import functools

import pytest
from wire import CHUNK, MIB, Wire, asleep, content, memfd, pump, tcp_pair, until

from vfioflow._outlane import CANCELLED

# A lane may keep the channel for a turn, so that its data stays in the caches.
AHEAD = 20 * MIB


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("compression", [None, 1], ids=["raw", "zstd"])
def test_lanes_take_turns_on_a_channel(stack, lanes, compression):
    """The receiver takes a little whenever all lanes wait for it or for each other."""
    plenty = 120 * content(MIB, "random")
    wire = Wire(
        stack,
        lanes=lanes,
        chunk=4 * CHUNK,
        digests=False,
        compression=compression,
        sources=[memfd(plenty) for _ in range(lanes)],
        pair=functools.partial(tcp_pair, buffers=CHUNK),
    )
    pumps = pump(wire)
    ahead = taken = 0
    begin = []  # where each was when the last of them had its first turn
    while taken < (lanes + 3) * 16 * MIB:
        until(lambda: asleep(pumps))
        at = [lane.offset for lane in wire.out]
        if not begin and all(at):
            begin = at
        if begin:
            gone = [now - then for now, then in zip(at, begin, strict=True)]
            ahead = max(ahead, max(gone) - min(gone))
        taken += len(wire.far[0].recv(MIB))
    assert begin
    wire.stop()
    assert [thread.result() for thread in pumps] == [CANCELLED] * lanes
    assert ahead <= AHEAD
    assert wire.crew is not None or wire.pool.in_use == 0

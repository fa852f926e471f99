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
    plenty = 40 * content(MIB, "random")
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
    while taken < 48 * MIB:
        until(lambda: asleep(pumps))
        at = [lane.offset for lane in wire.out]
        ahead = max(ahead, max(at) - min(at))
        taken += len(wire.far[0].recv(MIB))
    wire.stop()
    assert [thread.result() for thread in pumps] == [CANCELLED] * lanes
    assert ahead <= AHEAD
    assert wire.crew is not None or wire.pool.in_use == 0

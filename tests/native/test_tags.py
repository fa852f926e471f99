"""The tags of frames: what they are, and that nothing is loaded without the right one."""

import contextlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from wire import Thread, Wire, content

from vfioflow import _frame, _mac
from vfioflow._channel import Channel
from vfioflow.errors import IntegrityError

KEY = bytes(range(32))
HEADER, TAG = 32, 16


@pytest.mark.parametrize("number", [0, 1, 2**40 + 3])
def test_a_tag_is_gmac(number):
    """That of AES-GCM without a text, as another program computes it."""
    mac = _mac.Mac(KEY)
    nonce = bytes(4) + number.to_bytes(8, "little")
    said = AESGCM(KEY).encrypt(nonce, b"", b"h" * 32 + b"payload")
    assert _mac.tag_of(mac, number, b"h" * 32, b"payload") == said
    assert _mac.tag_of(mac, number, b"h" * 32, b"") != said


def test_a_key_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        _mac.Mac(KEY[:16])


def sent(stream, key):
    """What a channel with such a key carries."""
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=4096)
        channel = Channel(wire.near[0], key=key)
        wire.feeds[0].write(stream)
        wire.feeds[0].close()
        lane = type(wire.out[0])(
            "dev0", 0, [channel], wire.pool, wire.cancel, wire.limiter, digests=True
        )
        lane.pump(wire.out_ports[0], 2**63, precopy=False)
        lane.end()
        channel.finish(wire.cancel)
        wire.near[0].close()
        data = bytearray()
        while piece := wire.far[0].recv(65536):
            data += piece
        assert lane.wire_bytes == len(data) - HEADER - (TAG if key else 0)
        return bytes(data)


def frames(data):
    """The frames in it, each with its tag."""
    found = []
    while data:
        size = HEADER + _frame.unpack(data[:HEADER], 4096, 4096)[2] + TAG
        found.append(data[:size])
        data = data[size:]
    return found


def received(data, key):
    """What is loaded of it; raises what the receiver raises, with what was loaded until then."""
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=4096)
        receiver = Thread(wire.receiver.receive, Channel(wire.far[0], key=key))
        wire.near[0].sendall(data)
        wire.near[0].close()
        try:
            assert receiver.result() is True
        finally:
            wire.in_ports[0].close()
            loaded.append(wire.sinks[0].read())
        return loaded[-1]


loaded = []


def test_a_stream_with_tags_arrives():
    stream = content(10_000, "random")
    data = sent(stream, KEY)
    assert len(data) == len(sent(stream, b"")) + TAG * len(frames(data))
    assert received(data, KEY) == stream


@pytest.mark.parametrize("where", [40, HEADER + 4096, HEADER + 4096 + TAG - 1])
def test_a_changed_frame_is_not_loaded(where):
    data = bytearray(sent(content(10_000, "random"), KEY))
    data[where] ^= 1
    with pytest.raises(IntegrityError, match="its tag is wrong"):
        received(bytes(data), KEY)
    assert loaded[-1] == b""


def test_a_frame_that_was_made_without_the_key_is_not_loaded():
    first, *rest = frames(sent(content(10_000, "random"), KEY))
    forged = _frame.pack(1, 0, 6, 0, 6, _frame.crc(b"forged")) + b"forged" + bytes(TAG)
    with pytest.raises(IntegrityError, match="its tag is wrong"):
        received(b"".join((forged, first, *rest)), KEY)
    assert loaded[-1] == b""


@pytest.mark.parametrize("order", [(0, 0), (1, 0), (0, 2, 1), (0, 1, 2, 1)], ids=str)
def test_frames_cannot_be_repeated_left_out_or_put_in_another_order(order):
    stream = content(10_000, "random")
    found = frames(sent(stream, KEY))
    with pytest.raises(IntegrityError, match="its tag is wrong"):
        received(b"".join(found[i] for i in order), KEY)
    good = next((i for i, number in enumerate(order) if i != number), len(order))
    assert loaded[-1] == stream[: 4096 * good]


def test_another_channels_key_does_not_fit():
    with pytest.raises(IntegrityError, match="its tag is wrong"):
        received(sent(content(5000, "random"), KEY), KEY[::-1])

"""The window of a channel: what is kept, for how long, and what comes again."""

import contextlib
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import Thread, Wire, asleep, content, until

from vfioflow._channel import Channel
from vfioflow._fdio import Cancel
from vfioflow.errors import PeerLost, ProtocolError

CHUNK = 4096
HEADER = 32
WINDOW = 2 * (CHUNK + HEADER)
ACK = struct.Struct("<Q")


class Sender:
    """A lane that sends a stream over one channel with a window; the far end is the test's."""

    def __init__(self, stack, stream):
        self.wire = Wire(stack, chunk=CHUNK, window=WINDOW)
        self.channel = self.wire.channels[0]
        self.far = self.wire.far[0]
        self.size = 0
        feeding = Thread(self._feed, stream)
        stack.callback(feeding.result)
        self.thread = Thread(self._send)

    def _feed(self, stream):
        self.wire.feeds[0].write(stream)
        self.wire.feeds[0].close()

    def _send(self):
        lane, port = self.wire.out[0], self.wire.out_ports[0]
        lane.pump(port, 2**63, precopy=False)
        lane.end()
        self.channel.finish(self.wire.cancel)

    def break_off(self):
        for sock in (self.wire.near[0], self.far):
            sock.shutdown(socket.SHUT_RDWR)

    def resume(self, heard):
        old = self.wire.near[0], self.far
        self.wire.near[0], self.far = socket.socketpair()
        self.channel.resume(self.wire.near[0], heard, self.wire.cancel)
        for sock in old:
            sock.close()

    def close(self):
        self.wire.cancel.set()
        for sock in (self.wire.near[0], self.far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.result()
        self.wire.near[0].close()
        self.far.close()


@contextlib.contextmanager
def sender(stream):
    with contextlib.ExitStack() as stack:
        made = Sender(stack, stream)
        stack.callback(made.close)
        yield made


def read(sock, size):
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def plain(stream):
    """What a channel that never breaks carries."""
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=CHUNK)
        feeding = Thread(lambda: (wire.feeds[0].write(stream), wire.feeds[0].close()))
        wire.out[0].pump(wire.out_ports[0], 2**63, precopy=False)
        wire.out[0].end()
        wire.channels[0].finish(wire.cancel)
        feeding.result()
        wire.near[0].shutdown(socket.SHUT_WR)
        return read(wire.far[0], 2**30)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 9 * CHUNK),
    cuts=st.lists(st.tuples(st.integers(1, 3 * CHUNK), st.integers(0, 100)), max_size=6),
)
def test_whatever_was_lost_comes_again(size, cuts):
    """The far end breaks off at any byte and goes on from any place that it had not acknowledged."""
    stream = content(size, "random", size)
    whole = plain(stream)
    with sender(stream) as out:
        have, told = b"", 0
        for more, back in cuts:
            # So much comes without an acknowledgement: the window, less a frame that does not fit in whole.
            there = min(told + WINDOW - CHUNK, len(whole))
            have += read(out.far, min(more, there - len(have)))
            out.break_off()
            told = max(told, len(have) * (100 - back) // 100)
            have = have[:told]
            out.resume(told)
        while len(have) < len(whole):
            piece = out.far.recv(CHUNK)
            have += piece
            out.far.sendall(ACK.pack(len(have)))
        out.thread.result()
        assert have == whole


def test_no_more_than_a_window_is_under_way():
    stream = content(8 * CHUNK, "random")
    with sender(stream) as out:
        first = read(out.far, WINDOW)
        until(lambda: asleep([out.thread]))
        assert out.channel.wire_bytes == WINDOW
        out.far.sendall(ACK.pack(CHUNK + HEADER))
        assert read(out.far, CHUNK + HEADER) == plain(stream)[WINDOW : WINDOW + CHUNK + HEADER]
        assert first == plain(stream)[:WINDOW]


@pytest.mark.parametrize("heard", [WINDOW + 1, 2**63, 2**64 - 1])
def test_a_peer_cannot_have_heard_what_was_not_said(heard):
    with sender(content(8 * CHUNK, "random")) as out:
        read(out.far, WINDOW)
        out.break_off()
        with pytest.raises(ProtocolError, match=f"took {heard} bytes"):
            out.resume(heard)


def test_a_peer_cannot_take_back_an_acknowledgement():
    with sender(content(8 * CHUNK, "random")) as out:
        read(out.far, WINDOW)
        out.far.sendall(ACK.pack(WINDOW))
        read(out.far, 1)
        out.break_off()
        with pytest.raises(ProtocolError, match="which cannot be"):
            out.resume(WINDOW - 1)


@pytest.mark.parametrize("value", [WINDOW + 1, 2**64 - 1])
def test_an_acknowledgement_of_what_was_not_sent_breaks_the_connection(value):
    with sender(content(8 * CHUNK, "random")) as out:
        read(out.far, WINDOW)
        out.far.sendall(ACK.pack(value))
        until(lambda: out.channel.broken)


def test_an_idle_sender_notices_the_break_when_it_looks():
    near, far = socket.socketpair()
    with near, far:
        channel = Channel(near, WINDOW, sender=True)
        assert not channel.look()
        far.close()
        assert channel.look()
        assert channel.broken


def test_giving_up_ends_the_pump_with_an_error():
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=CHUNK, window=WINDOW)
        wire.far[0].close()
        signal = Thread(wire.channels[0].finish, wire.cancel)
        until(lambda: wire.channels[0].broken)
        wire.channels[0].give_up()
        with pytest.raises(PeerLost, match="closed a data connection"):
            signal.result()


def test_a_break_is_signalled():
    near, far = socket.socketpair()
    signal = os.eventfd(0, os.EFD_NONBLOCK)
    with near:
        channel = Channel(near, WINDOW, sender=True, signal_fd=signal)
        far.close()
        channel.look()
        assert os.eventfd_read(signal) == 1
    os.close(signal)


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "could splice"])
def test_a_receiver_tells_how_far_it_got_and_goes_on(digests):
    stream = content(3 * CHUNK, "random")
    whole = plain(stream)
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=CHUNK, digests=digests)
        channel = Channel(wire.far[0], WINDOW)
        receiver = Thread(wire.receiver.receive, channel)
        # One frame whole, and half of the second.
        wire.near[0].sendall(whole[: (CHUNK + HEADER) * 3 // 2])
        wire.near[0].shutdown(socket.SHUT_RDWR)
        heard = channel.park(wire.in_cancel)
        assert heard == CHUNK + HEADER
        again, far = socket.socketpair()
        with again, far:
            channel.unpark(far)
            again.sendall(whole[heard:])
            assert receiver.result() is True
            assert wire.into[0].ended
            assert wire.sinks[0].read(len(stream)) == stream
            # It is through with everything, and says so.
            told = read(again, 8)
            while ACK.unpack(told)[0] < len(whole):
                told = read(again, 8)
            assert ACK.unpack(told) == (len(whole),)


def test_a_receiver_that_is_done_can_still_be_asked():
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, chunk=CHUNK)
        channel = Channel(wire.far[0], WINDOW)
        receiver = Thread(wire.receiver.receive, channel)
        whole = plain(b"")
        wire.near[0].sendall(whole)
        assert receiver.result() is True
        assert channel.park(Cancel()) == len(whole)

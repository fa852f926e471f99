"""Files that go out, and pipes, sockets and /dev/null that take in, without a copy."""

import contextlib
import fcntl
import functools
import os
import re
import socket
import struct
import termios

import pytest
from wire import (
    CHUNK,
    MIB,
    Wire,
    asleep,
    content,
    data_frame,
    drain,
    finish,
    memfd,
    send,
    summary,
    tcp_pair,
    until,
)

from vfioflow import _frame
from vfioflow._fdio import Port
from vfioflow._outlane import BUDGET, DRAINED, END
from vfioflow.errors import DeviceError, PeerLost

ODD = 5 * CHUNK + 777


def waiting(fd):
    """How many bytes wait in a pipe or a socket to be read."""
    (size,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return size


@pytest.fixture(params=["pipe", "socket"])
def target(request, stack):
    """A small sink: the file to read from, and the descriptor of the device that writes to it."""
    if request.param == "pipe":
        read, write = os.pipe()
    else:
        read, write = (end.detach() for end in socket.socketpair())
    file = os.fdopen(read, "rb", buffering=0)
    stack.callback(file.close)
    return file, write


def spliced(stack, **options):
    return Wire(stack, splice=True, pair=tcp_pair, **{"digests": False, **options})


def test_which_ends_take_pages(stack):
    read, write = os.pipe()
    near, far = socket.socketpair()
    pages = [read, write, near.detach(), far.detach(), os.open(os.devnull, os.O_WRONLY)]
    pages.append(memfd(bytes(5000)))
    copies = [memfd(), memfd(at=50_000)]  # what has yet to grow
    ports = [Port(fd) for fd in pages + copies]
    assert [port.takes_pages for port in ports] == [True] * len(pages) + [False] * len(copies)
    for port in ports:
        port.close()


@pytest.mark.parametrize(
    ("size", "at"),
    [(0, 0), (1, 0), (CHUNK, 0), (ODD, 0), (ODD, 1), (ODD, 4097), (4 * MIB + 1, 4095)],
)
def test_a_file_arrives_byte_for_byte(stack, target, size, at):
    stream = content(size, "random")
    file, write = target
    wire = spliced(stack, sources=[memfd(stream, at=at)], targets=[write])
    sink = drain(file)
    finish(wire, send(wire), wire.receive())
    assert sink.result() == summary(stream)
    assert wire.into[0].ended
    assert wire.out[0].offset == wire.into[0].offset == size
    assert wire.out[0].wire_bytes == wire.into[0].wire_bytes == size + 32 * wire.out[0].frames


def test_a_file_into_nothing(stack):
    stream = content(ODD, "random")
    null = os.open(os.devnull, os.O_WRONLY)
    wire = spliced(stack, sources=[memfd(stream)], targets=[null])
    finish(wire, send(wire), wire.receive())
    assert wire.into[0].offset == ODD
    assert wire.into[0].ended


@pytest.mark.parametrize("at", [0, 1, 4097])
def test_a_file_into_one_that_is_allocated(stack, at):
    stream = content(ODD, "random")
    file = memfd(content(2 * MIB, "random", 1))
    os.lseek(file, at, os.SEEK_SET)
    wire = spliced(stack, sources=[memfd(stream, at=at)], targets=[os.dup(file)])
    finish(wire, send(wire), wire.receive())
    assert summary(os.pread(file, ODD, at)) == summary(stream)
    assert wire.into[0].offset == ODD
    os.close(file)


@pytest.mark.parametrize("chunk", [16 * 1024, CHUNK, MIB])
def test_several_files_over_several_channels(stack, chunk):
    streams = [content(ODD + 5000 * i, "random", i) for i in range(3)]
    sources = [memfd(stream, at=i) for i, stream in enumerate(streams)]
    wire = spliced(stack, lanes=3, channels=4, chunk=chunk, sources=sources)
    sinks = [drain(file) for file in wire.sinks]
    finish(wire, send(wire), wire.receive())
    assert [sink.result() for sink in sinks] == [summary(stream) for stream in streams]
    assert wire.pool.in_use == wire.in_pool.in_use == 0


@pytest.mark.parametrize("cut", [1, 4096, CHUNK + 1, ODD])
def test_a_budget_cuts_a_file_in_two(stack, cut):
    stream = content(ODD, "random")
    wire = spliced(stack, sources=[memfd(stream)])
    receivers, sink = wire.receive(), drain(wire.sinks[0])
    (lane,), (port,) = wire.out, wire.out_ports
    assert lane.pump(port, cut, precopy=True) == BUDGET
    assert lane.offset == cut
    assert lane.pump(port, 2**63, precopy=True) == DRAINED
    lane.mark()
    assert lane.pump(port, 2**63, precopy=False) == END
    lane.end()
    finish(wire, [], receivers)
    assert sink.result() == summary(stream)
    assert wire.into[0].marks == 1
    assert wire.into[0].ended


def test_a_file_that_grows_between_two_pumps(stack):
    fd = memfd(b"initial")
    wire = spliced(stack, sources=[fd])
    receivers, sink = wire.receive(), drain(wire.sinks[0])
    assert wire.out[0].pump(wire.out_ports[0], 2**63, precopy=True) == DRAINED
    os.pwrite(fd, b" and dirty", 7)
    finish(wire, send(wire), receivers)
    assert sink.result() == summary(b"initial and dirty")


@pytest.mark.parametrize("digests", [False, True])
def test_digests_are_of_the_bytes_that_were_sent(stack, digests):
    """Pages that are passed on are the file's own, until they are on the wire: no digest holds."""
    old, new = content(CHUNK, "random", 1), content(CHUNK, "random", 2)
    fd = memfd(old)
    wire = spliced(stack, sources=[fd], digests=digests)
    assert wire.out[0].pump(wire.out_ports[0], CHUNK, precopy=True) == BUDGET
    os.pwrite(fd, new, 0)
    receivers, sink = wire.receive(), drain(wire.sinks[0])
    finish(wire, [], receivers)
    assert sink.result() == summary(old if digests else new)
    assert wire.into[0].digest == (_frame.crc(old) if digests else 0)


def test_a_slow_sink_gets_everything(stack, target):
    stream = content(2 * MIB, "random")
    file, write = target
    wire = spliced(stack, sources=[memfd(stream)], targets=[write])
    sending, receivers = send(wire), wire.receive()
    until(lambda: waiting(file) >= CHUNK // 2)  # about full
    sink = drain(file)
    finish(wire, sending, receivers)
    assert sink.result() == summary(stream)


def test_cancel_ends_the_wait_for_a_full_sink(stack, target):
    file, write = target
    wire = spliced(stack, sources=[memfd(content(2 * MIB, "random"))], targets=[write])
    sending, receivers = send(wire), wire.receive()
    until(lambda: waiting(file) >= CHUNK // 2)
    wire.in_cancel.set()  # and no shutdown of the sockets
    assert receivers[0].result() is False
    wire.stop_receiving()
    with contextlib.suppress(PeerLost):
        sending[0].result()
    assert wire.in_pool.in_use == 0


def test_a_sink_whose_reader_goes_away_is_named_with_the_offset(stack, target):
    file, write = target
    wire = spliced(stack, sources=[memfd(content(4 * MIB, "random"))], targets=[write])
    sending, receivers = send(wire), wire.receive()
    until(lambda: waiting(file) >= CHUNK // 2)
    file.close()
    with pytest.raises(DeviceError, match="dev0: loading its state at byte ") as caught:
        receivers[0].result()
    assert isinstance(caught.value, OSError)
    at = int(re.search(r"at byte (\d+)", str(caught.value)).group(1))
    assert at == wire.into[0].offset >= CHUNK // 2
    wire.stop_receiving()
    with contextlib.suppress(PeerLost):  # unless all of it was with the sockets already
        sending[0].result()


def test_a_connection_cut_in_the_middle_of_a_payload(stack):
    wire = spliced(stack)
    good = b"good data"
    wire.near[0].sendall(data_frame(good))
    wire.near[0].sendall(data_frame(bytes(CHUNK), before=good)[: 32 + 5])
    wire.near[0].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerLost, match="middle of a stream"):
        wire.receive()[0].result()
    assert wire.into[0].offset == len(good) + 5
    assert wire.in_pool.in_use == 0


def test_a_file_that_shrinks_while_it_is_sent_is_a_device_error(stack):
    fd = memfd(bytes(8 * MIB))
    pair = functools.partial(tcp_pair, buffers=CHUNK)
    wire = Wire(stack, splice=True, digests=False, chunk=MIB, sources=[fd], pair=pair)
    sending = send(wire)
    until(lambda: asleep(sending))
    os.ftruncate(fd, 0)
    with wire.far[0].makefile("rb", buffering=0) as arrived:
        drained = drain(arrived)
        with pytest.raises(DeviceError, match="dev0: reading its state at byte") as caught:
            sending[0].result()
        assert f"at byte {wire.out[0].offset} of" in str(caught.value)
        wire.stop()
        drained.result()


def test_a_peer_that_goes_away_while_a_file_is_sent(stack):
    wire = spliced(stack, sources=[memfd(bytes(64 * MIB))])
    sending = send(wire)
    wire.far[0].recv(CHUNK)
    wire.far[0].close()
    with pytest.raises(PeerLost):
        sending[0].result()
    assert wire.pool.in_use == 0

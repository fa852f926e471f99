"""Both ends of a wire, and what moves streams over it."""

import contextlib
import fcntl
import hashlib
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from vfioflow import _frame
from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._crew import Crew
from vfioflow._fdio import Cancel, Port
from vfioflow._inlane import InLane, Receiver
from vfioflow._outlane import END, OutLane
from vfioflow._waits import Limiter

CHUNK = 64 * 1024
MIB = 1 << 20
RAW, ZSTD, ZERO, MARK, END_FRAME, PAD = range(1, 7)


class Wire:
    """Both ends of some channels, and lanes over them.

    Lanes go from pipes (`feeds`) to pipes (`sinks`), unless there are `sources` or `targets`: the
    descriptors to read from or to write to instead, which belong to the wire then.
    """

    def __init__(
        self,
        stack,
        *,
        lanes=1,
        channels=1,
        chunk=CHUNK,
        digests=True,
        compression=None,
        threads=2,
        splice=False,
        sources=None,
        targets=None,
        pair=socket.socketpair,
        window=0,
    ):
        self.cancel = Cancel()
        self.in_cancel = Cancel()
        pairs = [pair() for _ in range(channels)]
        for near, far in pairs:
            stack.callback(near.close)
            stack.callback(far.close)
        self.near = [near for near, _ in pairs]
        self.far = [far for _, far in pairs]
        spare_jobs = 6
        self.pool = Pool(chunk, lanes + threads + spare_jobs)
        self.crew = None
        if compression is not None:
            level = None if compression == "auto" else compression
            self.crew = Crew(threads, self.pool, spare_jobs, level=level)
            self.crew.start()
            stack.callback(self.crew.close)
        self.in_pool = Pool(chunk, 2 * channels)
        self.channels = [Channel(near, window, sender=True) for near in self.near]
        self.limiter = Limiter()
        self.out, self.feeds, self.out_ports = [], [], []
        self.into, self.sinks, self.in_ports = [], [], []
        self.signal = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, self.signal)
        for index in range(lanes):
            self.out_ports.append(Port(sources[index] if sources else self._feed()))
            self.in_ports.append(Port(targets[index] if targets else self._sink()))
            share = self.channels[index::lanes] or [self.channels[index % channels]]
            self.out.append(
                OutLane(
                    f"dev{index}",
                    index,
                    share,
                    self.pool,
                    self.cancel,
                    self.limiter,
                    digests=digests,
                    crew=self.crew,
                    splice=splice,
                )
            )
            self.into.append(InLane(f"dev{index}", self.in_ports[-1]))
        self.receiver = Receiver(
            self.into, self.in_pool, self.in_cancel, self.signal, digests=digests
        )
        for closable in (*self.feeds, *self.sinks, *self.out_ports, *self.in_ports):
            stack.callback(closable.close)

    def _feed(self):
        read, feed = os.pipe()
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, MIB)
        self.feeds.append(os.fdopen(feed, "wb", buffering=0))
        return read

    def _sink(self):
        sink, write = os.pipe()
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, MIB)
        self.sinks.append(os.fdopen(sink, "rb", buffering=0))
        return write

    def receive(self):
        """Start the receivers, a thread for each channel."""
        return [Thread(self.receiver.receive, Channel(far)) for far in self.far]

    def stop_receiving(self):
        self.in_cancel.set()
        for far in self.far:
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

    def stop(self):
        """Cancel the senders, and end their waits for the wire."""
        self.cancel.set()
        for near in self.near:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)


def tcp_pair(*, buffers=None):
    """Two ends of a TCP connection; ``buffers``: the bytes that each end's socket holds, about."""
    with socket.socket() as listener:
        near = socket.socket()
        for end in (listener, near) if buffers else ():
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def memfd(stream=b"", *, at=0):
    """A file in memory that holds the stream from ``at`` on, opened there."""
    fd = os.memfd_create("stream")
    os.ftruncate(fd, at + len(stream))
    if stream:
        assert os.pwrite(fd, stream, at) == len(stream)
    os.lseek(fd, at, os.SEEK_SET)
    return fd


class Thread(threading.Thread):
    """A thread whose result or exception `result` gives."""

    def __init__(self, function, *args, **kwargs):
        super().__init__(daemon=True)
        self._call = (function, args, kwargs)
        self.start()

    def run(self):
        function, args, kwargs = self._call
        try:
            self._value, self._error = function(*args, **kwargs), None
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    def result(self):
        self.join(30)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def until(condition):
    """Wait until another thread made ``condition`` true, which is certain to happen.

    What it looks at are counters of pumps that run without the GIL: nothing says when they change.
    """
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never comes"
        time.sleep(0.001)


def asleep(threads):
    """Whether all of them wait for something."""
    stats = [Path(f"/proc/self/task/{thread.native_id}/stat").read_text() for thread in threads]
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


def feed(file, data):
    def body():
        file.write(data) if len(data) <= CHUNK else [
            file.write(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK)
        ]
        file.close()

    return Thread(body)


def summary(stream):
    """What `drain` and `move` give for a stream."""
    return len(stream), hashlib.sha256(stream).hexdigest()


def drain(file):
    def body():
        hashed, size = hashlib.sha256(), 0
        while data := file.read(MIB):
            hashed.update(data)
            size += len(data)
        return size, hashed.hexdigest()

    return Thread(body)


def content(size, kind, seed=0):
    rng = random.Random(seed)
    if kind == "zeros":
        return bytes(size)
    if kind == "random":
        return rng.randbytes(size)
    text = b"".join(b"%08d device register block\0" % i for i in range(size // 31 + 1))
    return text[:size]


def pump(wire):
    """Start the pumps of all lanes, each in a thread."""
    return [
        Thread(lane.pump, port, 2**63, precopy=False)
        for lane, port in zip(wire.out, wire.out_ports, strict=True)
    ]


def send(wire):
    """Send the whole streams of all lanes at once, each in a thread."""

    def whole(lane, port):
        assert lane.pump(port, 2**63, precopy=False) == END
        lane.end()

    return [Thread(whole, lane, port) for lane, port in zip(wire.out, wire.out_ports, strict=True)]


def close(wire):
    """Say on every channel that nothing more comes."""
    for channel in wire.channels:
        channel.finish(wire.cancel)


def finish(wire, senders, receivers):
    """Wait for both sides, and close the devices that the streams went to."""
    for sender in senders:
        sender.result()
    close(wire)
    assert [thread.result() for thread in receivers] == [True] * len(receivers)
    for port in wire.in_ports:
        port.close()


def move(wire, streams=()):
    """Move whole streams over all lanes at once; what arrived in the sinks, as (size, sha256) by lane."""
    feeders = [feed(file, data) for file, data in zip(wire.feeds, streams, strict=True)]
    drains = [drain(file) for file in wire.sinks]
    finish(wire, send(wire), wire.receive())
    for thread in feeders:
        thread.result()
    return [thread.result() for thread in drains]


def fails(wire, *frames, kind, match):
    """Let these frames arrive, which is an error."""
    receiver = Thread(wire.receiver.receive, Channel(wire.far[0]))
    for frame in frames:
        wire.near[0].sendall(frame)
    wire.near[0].shutdown(socket.SHUT_WR)
    with pytest.raises(kind, match=match):
        receiver.result()
    assert wire.in_pool.in_use == 0


def data_frame(data, *, before=b"", lane=0):
    """A raw frame of ``data``, behind the bytes ``before`` of the same stream."""
    header = _frame.pack(
        RAW, lane, len(data), len(before), len(data), _frame.crc(data, _frame.crc(before))
    )
    return header + data

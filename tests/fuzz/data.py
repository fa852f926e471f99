"""The targets that take data: frames, channels, acknowledgements, the stream of a device."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import model
import streams
from inputs import MOST, fed, reason

from vfioflow import _frame
from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._fdio import Cancel, Port
from vfioflow._inlane import InLane, Receiver
from vfioflow._waits import Limiter
from vfioflow.devices.sim import SimDevice
from vfioflow.errors import (
    IntegrityError,
    PeerLost,
    ProtocolError,
)
from vfioflow.states import State
from vfioflow.wire.keys import TAG_SIZE

CHUNK = 4096
LANES = 2
KEY = bytes(range(32))


def eventually(condition: Callable[[], bool], pump: threading.Thread) -> None:
    """Wait for what a pump that runs without the GIL is certain to do."""
    while not condition():
        assert pump.is_alive(), "the pump returned early"
        time.sleep(0.0002)  # its counters tell nobody when they change


def frame_header(data: bytes) -> None:
    """One header: refused with a reason, or what packing the same fields gives."""
    wire, limit = data[:32], int.from_bytes(data[32:35], "little")
    try:
        fields = _frame.unpack(wire, limit, limit)
    except ValueError as error:
        reason(error)
        return
    kind, pages, number, length, offset, raw, digest, rest, _ = model.HEADER.unpack(wire)
    assert model.possible(kind, pages, length, raw, rest, limit)
    assert fields == (kind, number, length, offset, raw, digest)
    assert pages or _frame.pack(*fields) == wire


class _Sinks:
    """Files that lanes load into."""

    def __init__(self, stack: contextlib.ExitStack, count: int, *, pages: bool) -> None:
        self.fds = [os.memfd_create("sink") for _ in range(count)]
        self.ports = []
        for fd in self.fds:
            if pages:  # a file that is allocated takes pages
                os.pwrite(fd, bytes(2 * MOST), 0)
            self.ports.append(Port(os.dup(fd)))
            stack.callback(os.close, fd)
            stack.callback(self.ports[-1].close)

    def content(self, number: int, size: int) -> bytes:
        return os.pread(self.fds[number], size, 0)


def channel(data: bytes) -> None:
    """One channel does exactly what the model of it says, to the last byte of every device."""
    if not data:
        return
    digests, repair, window, pages, patient, keyed = (bool(data[0] & 1 << bit) for bit in range(6))
    stream = data[1:MOST]
    if repair:
        stream = streams.repaired(stream, chunk=CHUNK)
    splice = pages and not digests and not window and not keyed
    wanted = model.run(stream, lanes=LANES, chunk=CHUNK, digests=digests, splice=splice)
    if (
        wanted.how == "waits" and not patient
    ):  # until it is cancelled, which takes a while to be seen
        stream, wanted.how = stream[: wanted.dealt_with], "cut"
    if wanted.how == "maybe":
        return  # what zstd makes of it is not ours to foretell; `channels` lets it through
    with contextlib.ExitStack() as stack:
        sinks = _Sinks(stack, LANES, pages=pages)
        into = [InLane(f"dev{number}", port) for number, port in enumerate(sinks.ports)]
        near, far = map(stack.enter_context, fed(streams.tagged(stream, KEY) if keyed else stream))
        cancel = Cancel()
        pool = Pool(CHUNK, 2)
        signal = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, signal)
        receiver = Receiver(into, pool, cancel, signal, digests=digests)
        taken = Channel(near, 8 * CHUNK if window else 0, key=KEY if keyed else b"")
        how = _receive(receiver, taken, cancel, wanted, into, window=window)
        assert how == wanted.how, f"{how} instead of {wanted.how}"
        assert pool.in_use == 0
        assert taken.pad_bytes == wanted.pads
        for number, (lane, expected) in enumerate(zip(into, wanted.lanes, strict=True)):
            assert (lane.offset, lane.marks) == (len(expected.content), expected.marks)
            assert lane.ended == expected.ended
            assert not digests or lane.digest == expected.digest
            assert sinks.content(number, lane.offset) == expected.content
        near.close()
        if window and how == "close":
            whole = wanted.dealt_with + (wanted.read * TAG_SIZE if keyed else 0)
            assert far.recv(MOST)[-8:] == struct.pack("<Q", whole)


def _receive(
    receiver: Receiver,
    taken: Channel,
    cancel: Cancel,
    wanted: model.Outcome,
    into: list[InLane],
    *,
    window: bool,
) -> str:
    """How the channel ended, in the model's words."""
    kinds = {PeerLost: "cut", IntegrityError: "damaged", ProtocolError: "forbidden"}
    found: list[str] = []

    def run() -> None:
        try:
            found.append("close" if receiver.receive(taken) else "waits")
        except (PeerLost, IntegrityError, ProtocolError) as error:
            reason(error)
            found.append(kinds[type(error)])

    if window and wanted.how == "cut":  # another connection would do; there is none
        pump = threading.Thread(target=run)
        pump.start()
        eventually(lambda: taken.broken, pump)
        taken.give_up()
        pump.join()
    elif (
        wanted.how == "waits"
    ):  # until somebody ends it; before that it has dealt with all that it can
        pump = threading.Thread(target=run)
        pump.start()
        frames = sum(lane.frames for lane in wanted.lanes)
        eventually(
            lambda: sum(lane.frames for lane in into) == frames and taken.pad_bytes == wanted.pads,
            pump,
        )
        cancel.set()
        pump.join()
    else:
        run()
    return found[0]


def tags(data: bytes) -> None:
    """A channel with a key, and bytes whose tags nobody made right: no device gets anything."""
    stream = data[:MOST]
    with contextlib.ExitStack() as stack:
        sinks = _Sinks(stack, LANES, pages=False)
        into = [InLane(f"dev{number}", port) for number, port in enumerate(sinks.ports)]
        near, _ = map(stack.enter_context, fed(stream))
        signal = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, signal)
        receiver = Receiver(into, Pool(CHUNK, 2), Cancel(), signal, digests=True)
        key = hashlib.sha256(stream).digest()  # that nobody can foretell
        try:
            receiver.receive(Channel(near, key=key))
        except (PeerLost, IntegrityError, ProtocolError) as error:
            reason(error)
        else:
            raise AssertionError("a tag was forged")
        assert [lane.frames for lane in into] == [0] * LANES


def channels(data: bytes) -> None:
    """Frames over several channels at once: every device gets a prefix of what was sent, in order."""
    if not data:
        return
    digests, window, patient = (bool(data[0] & 2 << bit) for bit in range(3))
    count = 2 + (data[0] & 1)
    frames = []
    for frame in streams.split(data[1:MOST], chunk=CHUNK):
        # The byte that has to be zero says which channel; then it is made zero.
        which = frame[24] % count if len(frame) > 24 else 0
        zeroed = frame[:24] + bytes(4)[: len(frame) - 24] + frame[28:]
        frames.append((which, streams.repaired(zeroed, chunk=CHUNK)))
    if not patient:  # up to the first that is wrong: nobody waits then for what never comes
        whole = b"".join(frame for _, frame in frames)
        wanted = model.run(whole, lanes=LANES, chunk=CHUNK, digests=digests)
        frames = frames[: wanted.read]
    parts = [bytearray() for _ in range(count)]
    for which, frame in frames:
        parts[which] += frame
    with contextlib.ExitStack() as stack:
        sinks = _Sinks(stack, LANES, pages=False)
        into = [InLane(f"dev{number}", port) for number, port in enumerate(sinks.ports)]
        cancel, pool = Cancel(), Pool(CHUNK, 2 * count)
        signal = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, signal)
        receiver = Receiver(into, pool, cancel, signal, digests=digests)
        size = 8 * CHUNK if window else 0
        taken = [Channel(stack.enter_context(_keep(stack, part)), size) for part in parts]
        pumps = [threading.Thread(target=_quietly, args=(receiver, each)) for each in taken]
        for pump in pumps:
            pump.start()
        _until_still(pumps, into)
        cancel.set()
        for pump in pumps:
            pump.join()
        assert pool.in_use == 0
        for number, lane in enumerate(into):
            content = sinks.content(number, 2 * lane.offset + 1)
            assert len(content) == lane.offset
            assert not digests or _frame.crc(content) == lane.digest


def _keep(stack: contextlib.ExitStack, part: bytearray) -> socket.socket:
    near, far = fed(bytes(part))
    stack.enter_context(far)
    return near


def _quietly(receiver: Receiver, taken: Channel) -> None:
    taken.give_up()  # where there is a window: no other connection comes
    with contextlib.suppress(PeerLost, IntegrityError, ProtocolError):
        receiver.receive(taken)


def _until_still(pumps: list[threading.Thread], into: list[InLane]) -> None:
    """Until each pump has returned, or sleeps, waiting for what another one does not bring."""
    before = None
    while any(pump.is_alive() for pump in pumps):
        now = [lane.frames for lane in into], [_sleeps(pump) for pump in pumps]
        if now == before and all(now[1]):
            return
        before = now
        time.sleep(0.0005)  # /proc tells nobody when it changes


def _sleeps(pump: threading.Thread) -> bool:
    try:
        stat = Path(f"/proc/self/task/{pump.native_id}/stat").read_text()
    except OSError:
        return True  # it has returned
    return stat.rpartition(")")[2].split()[0] == "S"


def acks(data: bytes) -> None:
    """What the receiver of a channel says about how far it is; then where it goes on after a break."""
    heard, said = int.from_bytes(data[:8], "little"), data[8:MOST]
    with contextlib.ExitStack() as stack:
        near, far = map(stack.enter_context, fed(said))
        again, behind = map(stack.enter_context, socket.socketpair())
        cancel, limiter, pool = Cancel(), Limiter(), Pool(256, 1)
        sender = Channel(near, 8 * 1024, sender=True)
        sender.pad(1024, pool, limiter, cancel)  # 4 frames of 288 bytes
        sent = 4 * (256 + model.HEADER.size)
        values = struct.unpack(f"<{len(said) // 8}Q", said[: len(said) // 8 * 8])
        last = 0
        for value in values:
            if not last <= value <= sent:
                break
            last = value
        assert sender.look(), "the other end is closed"
        try:
            sender.resume(again, heard, cancel)
        except ProtocolError as error:
            said = reason(error)
            assert str(heard) in said
            assert not last <= heard <= sent
        else:
            assert last <= heard <= sent
            behind.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert len(behind.recv(MOST)) == sent - heard
        assert len(far.recv(MOST)) == sent


def sim_stream(data: bytes) -> None:
    """The stream of a simulated device, which checks it as drivers do: loaded, or EINVAL."""
    stream = streams.resealed(data[1:MOST]) if data[:1] == b"\1" else data[1:MOST]
    with SimDevice("tty0", profile="mtty") as device:
        port = device.port(device.set_state(State.RESUMING))
        try:
            for at in range(0, len(stream), 4096):
                port.write(stream[at : at + 4096])
            device.set_state(State.STOP)
        except OSError as error:  # DeviceError, too
            reason(error)
        finally:
            port.close()
        device.reset()
        assert device.state is State.RUNNING

"""Every parser of outside bytes, each as a function of bytes that returns or is a finding.

`TARGETS` is shared by the tests here (a few hundred inputs each) and by `make fuzz` (as many as the
time allows).  A target lets through only what the documentation promises for wrong input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from unittest import mock

import click
import model
import msgspec
import sessions
import streams

from vfioflow import _frame
from vfioflow._buffers import Pool
from vfioflow._channel import Channel, Limiter
from vfioflow._fdio import Cancel, Port
from vfioflow._inlane import InLane, Receiver
from vfioflow.cli.options import BANDWIDTH, DURATION, SIZE
from vfioflow.devices import config, host
from vfioflow.devices.profile import parse_arc
from vfioflow.devices.sim import SimDevice
from vfioflow.devices.sizes import parse_size
from vfioflow.errors import (
    ConfigError,
    IntegrityError,
    JournalError,
    PeerLost,
    ProtocolError,
    RemoteError,
)
from vfioflow.journal import Journal, Role, Step, check_session
from vfioflow.policy import Policy
from vfioflow.states import State
from vfioflow.wire import messages
from vfioflow.wire.address import Address, bind
from vfioflow.wire.control import MAX_MESSAGE, Control
from vfioflow.wire.opening import Preamble, read_preamble

CHUNK = 4096
LANES = 2
MOST = 32 * 1024
"""Bytes of an input: they fit into a socket's buffer, so that nobody needs to send them meanwhile."""


class Named(socket.socket):
    """One end of a socket pair that passes for TCP: a million inputs would use all ports up."""

    def getpeername(self) -> tuple[str, int]:
        return "peer", 1

    def setsockopt(self, *args: object) -> None:
        pass


def fed(data: bytes) -> tuple[Named, socket.socket]:
    """A socket on which ``data`` and then the end has arrived, and its other end."""
    near, far = socket.socketpair()
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)
    return Named(fileno=near.detach()), far


def eventually(condition: Callable[[], bool], pump: threading.Thread) -> None:
    """Wait for what a pump that runs without the GIL is certain to do."""
    while not condition():
        assert pump.is_alive(), "the pump returned early"
        time.sleep(0.0002)


# ------------------------------------------------------------------------ data


def frame_header(data: bytes) -> None:
    """One header: refused with a reason, or what packing the same fields gives."""
    wire, limit = data[:32], int.from_bytes(data[32:35], "little")
    try:
        fields = _frame.unpack(wire, limit, limit)
    except ValueError as error:
        assert str(error)
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
    digests, repair, window, pages, patient = (bool(data[0] & 1 << bit) for bit in range(5))
    stream = data[1:MOST]
    if repair:
        stream = streams.repaired(stream, chunk=CHUNK)
    splice = pages and not digests
    wanted = model.run(stream, lanes=LANES, chunk=CHUNK, digests=digests, splice=splice)
    if wanted.how == "waits" and not patient:  # until it is cancelled, which takes a while to be seen
        stream, wanted.how = stream[: wanted.dealt_with], "cut"
    if wanted.how == "maybe":
        return  # what zstd makes of it is not ours to foretell; `channels` lets it through
    with contextlib.ExitStack() as stack:
        sinks = _Sinks(stack, LANES, pages=pages)
        into = [InLane(f"dev{number}", port) for number, port in enumerate(sinks.ports)]
        near, far = map(stack.enter_context, fed(stream))
        cancel = Cancel()
        pool = Pool(CHUNK, 2)
        signal = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, signal)
        receiver = Receiver(into, pool, cancel, signal, digests=digests)
        taken = Channel(near, 8 * CHUNK if window else 0)
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
            assert far.recv(MOST)[-8:] == struct.pack("<Q", wanted.dealt_with)


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
            assert str(error)
            found.append(kinds[type(error)])

    if window and wanted.how == "cut":  # another connection would do; there is none
        pump = threading.Thread(target=run)
        pump.start()
        eventually(lambda: taken.broken, pump)
        taken.give_up()
        pump.join()
    elif wanted.how == "waits":  # until somebody ends it; before that it has dealt with all that it can
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
        time.sleep(0.0005)


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
            assert str(heard) in str(error)
            assert not last <= heard <= sent
        else:
            assert last <= heard <= sent
            behind.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert len(behind.recv(MOST)) == sent - heard
        assert len(far.recv(MOST)) == sent


# --------------------------------------------------------------------- control


def message(data: bytes) -> None:
    """One control message: a message, which comes back the same, or a DecodeError."""
    try:
        found = messages.decode(data)
    except msgspec.DecodeError as error:
        assert str(error)
        return
    again = messages.decode(messages.encode(found))
    assert messages.encode(again) == messages.encode(found)


def control(data: bytes) -> None:
    """A whole control connection: all messages up to the first that is wrong, then a reason."""
    stream = data[:MOST]
    heard, ends = _control_model(stream)
    sessions.run(_control(stream, heard, ends))


def _control_model(stream: bytes) -> tuple[list[messages.Message], type[Exception]]:
    found: list[messages.Message] = []
    at = acknowledged = 0
    while len(stream) - at >= 8:
        size, heard = struct.unpack_from("<II", stream, at)
        if not 0 < size <= MAX_MESSAGE:
            return found, ProtocolError
        body = stream[at + 8 : at + 8 + size]
        if len(body) < size:
            break
        at += 8 + size
        try:
            one = messages.decode(body)
        except msgspec.DecodeError:
            return found, ProtocolError
        if not acknowledged <= heard <= 2:
            return found, ProtocolError
        acknowledged = heard
        if isinstance(one, messages.Failed):
            return found, RemoteError
        found.append(one)
    return found, PeerLost


async def _control(stream: bytes, heard: list[messages.Message], ends: type[Exception]) -> None:
    near, far = fed(stream)
    with near, far:
        near.setblocking(False)
        connection = Control(near)
        try:
            for _ in range(2):
                await connection.send(messages.ProbeDone())
            for wanted in heard:
                got = await connection.expect(
                    *get_args(messages.Message), timeout=None, what="anything"
                )
                assert messages.encode(got) == messages.encode(wanted)
            await asyncio.wait([connection.failure])
            error = connection.failure.exception()
            assert type(error) is ends, f"{error!r} instead of {ends.__name__}"
            assert str(error)
            assert connection.heard == len(heard)
        finally:
            await connection.close()


def preamble(data: bytes) -> None:
    """How a connection begins: a preamble that packs to the same bytes, or what is wrong with it."""
    sessions.run(_preamble(data[:MOST]))


async def _preamble(data: bytes) -> None:
    near, far = fed(data)
    with near, far:
        try:
            found = await read_preamble(near, 60)
        except (ProtocolError, PeerLost) as error:
            assert str(error)
            assert isinstance(error, ProtocolError) or len(data) < 32
        else:
            assert found.pack() == data[:32]
            assert Preamble.unpack(data[:32]) == found


# ---------------------------------------------------------------------- people


def devices_file(data: bytes) -> None:
    """A devices file: devices, or a ConfigError that names the file."""

    def open_kernel(device: str, *, name: str, how: str) -> object:
        host.find(device, sys="/nowhere", dev="/nowhere")  # never this host's own
        raise AssertionError("there are no devices in an empty sysfs")

    fd = os.memfd_create("devices")
    path = f"/proc/self/fd/{fd}"
    try:
        os.write(fd, data)
        with mock.patch.object(config.KernelDevice, "open", open_kernel):
            devices = config.load_devices(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")
        return
    finally:
        os.close(fd)
    for device in devices:
        device.close()


def journal(data: bytes) -> None:
    """A journal's file: the steps that it records, in an order that can be, or a JournalError."""
    if not data:
        return
    role: Role = "source" if data[0] & 1 else "destination"
    text = data[1:]
    if data[0] & 2:
        lines = [line.partition(b" ")[2] for line in text.split(b"\n")]
        text = b"".join(map(streams.sealed_line, filter(None, lines)))
    with tempfile.TemporaryDirectory() as folder:
        kept = Journal(folder)
        file = Path(folder, f"s.{role}.journal")
        file.write_bytes(text)
        try:
            story = kept.find("s", role)
            assert len(kept.stories()) == (story is not None)
            entry = kept.open("s", role)
        except JournalError as error:
            assert str(file) in str(error)
            return
        if entry is None:
            assert story is None
            return
        with entry:
            assert story is not None
            assert entry.records == story.records
            for step in filter(entry.allows, Step):
                entry.record(step, reason="fuzz")
                break
            again = kept.find("s", role)
            assert again is not None
            assert (again.records, again.torn) == (entry.records, entry.torn)
            assert len(kept.pending()) == again.pending


def _convert(kind: click.ParamType) -> Callable[[str], object]:
    return lambda text: kind.convert(text, None, None)


TEXTS: tuple[Callable[[str], object], ...] = (
    parse_size,
    parse_arc,
    Address.parse,
    _convert(SIZE),
    _convert(DURATION),
    _convert(BANDWIDTH),
    lambda text: Policy(compression=text),
    check_session,
    lambda text: bind(f"fd://{text}"),
)


def text(data: bytes) -> None:
    """What people write as a size, an arc, an address, a duration, a rate: a value, or what is wrong."""
    if not data:
        return
    parse = TEXTS[data[0] % len(TEXTS)]
    written = data[1:].decode(errors="surrogateescape")  # as Python reads arguments
    if parse is TEXTS[-1] and written.strip().isdigit() and len(written.strip()) < 5:
        return  # a descriptor that may exist here
    try:
        value = parse(written)
    except (ConfigError, click.UsageError) as error:
        assert str(error)
        return
    if isinstance(value, int | float):
        assert 0 <= value < float("inf")
    if parse is check_session:
        assert Path("/journal", str(value)).parent == Path("/journal")
    if isinstance(value, Address) and "%" not in value.host:
        assert Address.parse(str(value)) == value


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
            assert error.errno
        finally:
            port.close()
        device.reset()
        assert device.state is State.RUNNING


@dataclass(frozen=True)
class Target:
    """A parser and the valid inputs that mutations start from."""

    entry: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _with_options(options: Iterable[int], seeds: Callable[[], Iterable[bytes]]) -> Callable[[], Iterable[bytes]]:
    chosen = tuple(options)
    return lambda: [bytes([option]) + seed for seed in seeds() for option in chosen]


def _texts() -> Iterable[bytes]:
    some = ("64MiB", "1.5 GiB", "RUNNING->STOP", "tcp://127.0.0.1:4747", "tcp://[::1]:0", "300ms")
    some += ("2min", "0123-abc.d", ".5s", "10Gbit", "1GiB/s", "zstd:-5", "auto", "99999")
    return [bytes([which]) + one.encode() for which in range(len(TEXTS)) for one in some]


def _files() -> Iterable[bytes]:
    demo = Path(config.__file__).parents[1] / "cli" / "demo.toml"
    return [
        demo.read_bytes(),
        b'[[device]]\nname = "a"\nkind = "kernel"\ndevice = "0000:01:00.0"\nhow = "cdev"\n',
        b'[[device]]\nname = "a"\nprofile = "mtty"\nseed = 1\nstate_size = "1MiB"\n'
        b'flags = ["STOP_COPY", "P2P"]\n[device.arc_seconds]\n"RUNNING->RUNNING_P2P" = 0.1\n'
        b'[[device.fault]]\nat = "read"\nkind = "errno"\nerrno = "EIO"\noffset = "4KiB"\n',
    ]


TARGETS: dict[str, Target] = {
    "frame-header": Target(
        frame_header, lambda: [s[:32] + b"\0\0\1" for s in streams.channels()]
    ),
    "channel": Target(channel, _with_options(range(0, 32), streams.channels)),
    "channels": Target(channels, _with_options(range(0, 16), streams.channels)),
    "acks": Target(
        acks,
        lambda: [struct.pack("<QQQ", *three) for three in ((288, 0, 288), (0, 0, 0), (999, 576, 1))],
    ),
    "message": Target(message, streams.encoded),
    "control": Target(control, streams.controls),
    "preamble": Target(preamble, streams.preambles),
    "destination": Target(sessions.destination, sessions.destination_scripts),
    "source": Target(sessions.source, sessions.source_scripts),
    "devices-file": Target(devices_file, _files),
    "journal": Target(
        journal,
        lambda: [
            bytes([number | repair]) + seed
            for number, role in enumerate(("destination", "source"))
            for repair in (0, 2)
            for seed in streams.journals(role)
        ],
    ),
    "text": Target(text, _texts),
    "sim-stream": Target(sim_stream, _with_options((0, 1), sessions.sim_streams)),
}

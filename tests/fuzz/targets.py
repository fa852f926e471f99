"""Every parser of outside bytes, each as a function of bytes that returns or is a finding.

`TARGETS` is shared by the tests here (a few hundred inputs each) and by `make fuzz` (as many as the
time allows).  A target lets through only what the documentation promises for wrong input.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from unittest import mock

import click
import data
import destinations
import msgspec
import qemu_streams
import sessions
import sources
import streams
import vfio_user
from inputs import MOST, fed, reason, shown

from vfioflow.cli.options import BANDWIDTH, DURATION, SIZE
from vfioflow.devices import config, host
from vfioflow.devices.profile import parse_arc
from vfioflow.devices.sizes import parse_size
from vfioflow.devices.vfio_user import VfioUserDevice
from vfioflow.errors import (
    AuthenticationError,
    ConfigError,
    IntegrityError,
    JournalError,
    PeerError,
    PeerLost,
    ProtocolError,
    RemoteError,
    StreamError,
)
from vfioflow.journal import Journal
from vfioflow.policy import Policy
from vfioflow.qemu_stream import Stream, read_stream
from vfioflow.story import Role, Step, check_session
from vfioflow.wire import messages
from vfioflow.wire.address import Address, bind
from vfioflow.wire.control import MAX_MESSAGE, Control
from vfioflow.wire.greeting import answer
from vfioflow.wire.keys import TAG_SIZE, Keys
from vfioflow.wire.opening import Preamble, read_preamble
from vfioflow.wire.security import Guard, Security


def message(data: bytes) -> None:
    """One control message: a message, which comes back the same, or a DecodeError."""
    try:
        found = messages.decode(data)
    except msgspec.DecodeError as error:
        reason(error)
        return
    again = messages.decode(messages.encode(found))
    assert messages.encode(again) == messages.encode(found)


def qemu_stream(data: bytes) -> None:
    """A QEMU migration stream: what is in it, or where it is wrong and what came before."""
    whole = _read_stream(data, len(data))
    by_pieces = _read_stream(data, 7)
    assert msgspec.json.encode(whole) == msgspec.json.encode(by_pieces)
    assert 0 <= whole.around <= whole.bytes <= len(data)


def _read_stream(data: bytes, piece: int) -> Stream:
    file = io.BytesIO(data)
    try:
        return read_stream(lambda size: file.read(min(size, piece)))
    except StreamError as error:
        shown(error)
        return error.found


def control(data: bytes) -> None:
    """A whole control connection: all messages up to the first that is wrong, then a reason."""
    if not data:
        return
    keys = Keys(b"transcript", b"key") if data[0] & 1 else None
    stream, heard, ends = _control_model(data[1:MOST], keys, sealed=bool(data[0] & 2))
    sessions.run(_control(stream, heard, ends, keys))


def _control_model(
    data: bytes, keys: Keys | None, *, sealed: bool
) -> tuple[bytes, list[messages.Message], type[Exception]]:
    """What is sent (with right tags, if ``sealed``), what is heard of it, and how it ends."""
    seal = keys.seal("destination") if keys is not None else None
    stream, at, acknowledged = b"", 0, 0
    found: list[messages.Message] = []
    while len(data) - at >= 8:
        size, heard = struct.unpack_from("<II", data, at)
        if size == heard == 0:  # a sign of life
            stream += data[at : at + 8]
            at += 8
            continue
        if not 0 < size <= MAX_MESSAGE:
            return stream + data[at:], found, ProtocolError
        whole = data[at : at + 8 + size]
        if len(whole) < 8 + size:
            break
        at += 8 + size
        stream += whole
        if seal is not None:
            right = seal.tag(len(found) + 1, whole)
            tag = right if sealed else data[at : at + TAG_SIZE]
            at += 0 if sealed else TAG_SIZE
            stream += tag
            if len(tag) < TAG_SIZE:
                break
            if tag != right:
                return stream, found, IntegrityError
        try:
            one = messages.decode(whole[8:])
        except msgspec.DecodeError:
            return stream, found, ProtocolError
        if not acknowledged <= heard <= 2:
            return stream, found, ProtocolError
        acknowledged = heard
        if isinstance(one, messages.Failed):
            return stream, found, RemoteError
        found.append(one)
    return stream + data[at:] if seal is None or sealed else stream, found, PeerLost


async def _control(
    stream: bytes, heard: list[messages.Message], ends: type[Exception], keys: Keys | None
) -> None:
    near, far = fed(stream)
    with near, far:
        near.setblocking(False)
        connection = Control(near, side="source", keys=keys)
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
            shown(error)
            assert connection.heard == len(heard)
        finally:
            await connection.close()


def greeting(data: bytes) -> None:
    """What a source says first, to a destination with a key or without."""
    if data:
        sessions.run(
            _greeting(data[1:MOST], Guard(psk=b"0123456789abcdef" if data[0] & 1 else b""))
        )


async def _greeting(data: bytes, guard: Guard) -> None:
    near, far = fed(data)
    with near, far:
        near.setblocking(False)
        try:
            made, session, keys = await answer(near, guard)
        except PeerError as error:  # of several kinds
            shown(error)
        else:
            assert not guard.psk, "a proof was forged"
            assert check_session(session) == session
            assert not keys.keyed
            await made.close()


def preamble(data: bytes) -> None:
    """How a connection begins: a preamble that packs to the same bytes, or what is wrong with it."""
    sessions.run(_preamble(data[:MOST]))


async def _preamble(data: bytes) -> None:
    near, far = fed(data)
    with near, far:
        near.setblocking(False)
        try:
            found = await read_preamble(near, 60)
        except (ProtocolError, AuthenticationError) as error:
            shown(error)
        except PeerLost as error:
            shown(error)
            assert len(data) < 32
        else:
            assert found.pack() == data[:32]
            assert Preamble.unpack(data[:32]) == found


# ---------------------------------------------------------------------- people


def devices_file(data: bytes) -> None:
    """A devices file: devices, or a ConfigError that names the file."""

    def open_kernel(device: str, *, name: str, how: str) -> object:
        host.find(device, sys="/nowhere", dev="/nowhere")  # never this host's own
        raise AssertionError("there are no devices in an empty sysfs")

    def connect(path: str, **options: object) -> object:
        raise ConfigError(f"{path}: nobody is asked")

    fd = os.memfd_create("devices")
    path = f"/proc/self/fd/{fd}"
    try:
        os.write(fd, data)
        with (
            mock.patch.object(config.KernelDevice, "open", open_kernel),
            mock.patch.object(VfioUserDevice, "connect", connect),
        ):
            devices = config.load_devices(path)
    except ConfigError as error:
        said = reason(error)
        assert said.startswith(f"{path}: ")
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
            said = reason(error)
            assert str(file) in said
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


def key_file(data: bytes) -> None:
    """A file with a key: at least 16 bytes, or a ConfigError that names the file and tells no key."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "key")
        file.touch(0o600)
        file.write_bytes(data)
        try:
            key = Security.from_psk_file(file).psk
        except ConfigError as error:
            said = reason(error)
            assert str(file) in said
            return
        assert key is not None
        assert len(key) >= 16


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
        reason(error)
        return
    if isinstance(value, int | float):
        assert 0 <= value < float("inf")
    if parse is check_session:
        assert Path("/journal", str(value)).parent == Path("/journal")
    if isinstance(value, Address) and "%" not in value.host:
        assert Address.parse(str(value)) == value


@dataclass(frozen=True)
class Target:
    """A parser and the valid inputs that mutations start from."""

    entry: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _with_options(
    options: Iterable[int], seeds: Callable[[], Iterable[bytes]]
) -> Callable[[], Iterable[bytes]]:
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
        b'[[device]]\nname = "a"\nkind = "vfio-user"\nsocket = "/run/a.sock"\ntimeout = 0.5\n'
        b'driver = "spdk"\noutlives = false\nin_flight = 2\nread_size = "1MiB"\nwrite_size = 9\n',
        b'[[device]]\nname = "a"\nprofile = "mtty"\nseed = 1\nstate_size = "1MiB"\n'
        b'flags = ["STOP_COPY", "P2P"]\n[device.arc_seconds]\n"RUNNING->RUNNING_P2P" = 0.1\n'
        b'[[device.fault]]\nat = "read"\nkind = "errno"\nerrno = "EIO"\noffset = "4KiB"\n',
    ]


TARGETS: dict[str, Target] = {
    "frame-header": Target(
        data.frame_header, lambda: [s[:32] + b"\0\0\1" for s in streams.channels()]
    ),
    "channel": Target(data.channel, _with_options(range(64), streams.channels)),
    "channels": Target(data.channels, _with_options(range(16), streams.channels)),
    "acks": Target(
        data.acks,
        lambda: [
            struct.pack("<QQQ", *three) for three in ((288, 0, 288), (0, 0, 0), (999, 576, 1))
        ],
    ),
    "tags": Target(data.tags, streams.channels),
    "message": Target(message, streams.encoded),
    "control": Target(control, _with_options(range(4), streams.controls)),
    "greeting": Target(greeting, _with_options((0, 1), streams.controls)),
    "key-file": Target(
        key_file, lambda: [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"]
    ),
    "preamble": Target(preamble, streams.preambles),
    "destination": Target(sources.play, sources.scripts),
    "source": Target(destinations.play, destinations.scripts),
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
    "vfio-user-reply": Target(vfio_user.reply, vfio_user.replies),
    "vfio-user-data": Target(vfio_user.stream, vfio_user.sent),
    "qemu-stream": Target(qemu_stream, lambda: [qemu_streams.whole(), qemu_streams.header()]),
    "sim-stream": Target(data.sim_stream, _with_options((0, 1), sessions.sim_streams)),
}

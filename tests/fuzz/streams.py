"""Valid bytes of every kind, made by the same code as the real ones: what mutations start from."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import zstandard
from model import CLOSE, END, HEADER, MARK, PAD, RAW, ZERO, ZSTD

from vfioflow import _frame
from vfioflow._mac import Mac, tag_of
from vfioflow._simstate import block_digest
from vfioflow.wire import messages
from vfioflow.wire.keys import TAG_SIZE
from vfioflow.wire.opening import HEARD, Preamble, Role

TEXT = b"".join(b"%06d register\0" % i for i in range(64))


class Stream:
    """The frames of some lanes, in order, with running digests."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._at: dict[int, tuple[int, int]] = {}

    def add(self, kind: int, lane: int, data: bytes = b"", *, pages: int = 0) -> Stream:
        offset, crc = self._at.get(lane, (0, 0))
        crc = _frame.crc(data, crc)
        payload = {RAW: data, ZSTD: zstandard.compress(data)}.get(kind, b"")
        self._at[lane] = (offset + len(data), crc)
        self.frames.append(
            sealed(kind, pages, lane, len(payload), offset, len(data), crc) + payload
        )
        return self

    def other(self, kind: int, length: int = 0) -> Stream:
        """A frame of no lane."""
        self.frames.append(sealed(kind, 0, 0, length, 0, 0, 0) + bytes(length))
        return self

    def bytes(self) -> bytes:
        return b"".join(self.frames)


def sealed(*fields: int) -> bytes:
    """A header of these fields (kind, pages, lane, length, offset, raw_length, digest) and a right check."""
    head = HEADER.pack(*fields, 0, 0)[:-4]
    return head + struct.pack("<I", _frame.crc(head))


def split(data: bytes, *, chunk: int) -> list[bytes]:
    """``data`` taken for frames: headers, and as much behind each as it says and can be."""
    parts, at = [], 0
    while at < len(data):
        length = min(int.from_bytes(data[at + 4 : at + 8], "little"), chunk)
        parts.append(data[at : at + HEADER.size + length])
        at += HEADER.size + length
    return parts


def repaired(data: bytes, *, chunk: int) -> bytes:
    """The same frames with right checks: else no mutation gets past them."""
    return b"".join(
        frame[:28] + struct.pack("<I", _frame.crc(frame[:28])) + frame[32:]
        if len(frame) >= HEADER.size
        else frame
        for frame in split(data, chunk=chunk)
    )


RECORD = struct.Struct("<IIIIIIQ")
"""A simulated device's: magic, kind, index, version, length, sequence, check."""
BLOCK = 2


def tagged(data: bytes, key: bytes, *, first: int = 0) -> bytes:
    """The same frames with right tags, of which the first has this number."""
    mac = Mac(key)
    return b"".join(
        frame + tag_of(mac, number, frame[: HEADER.size], frame[HEADER.size :])
        if len(frame) >= HEADER.size
        else frame
        for number, frame in enumerate(split(data, chunk=1 << 20), first)
    )


def untagged(data: bytes) -> bytes:
    """Frames without their tags, which are not looked at."""
    parts, at = [], 0
    while at < len(data):
        end = at + HEADER.size + int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at:end])
        at = end + TAG_SIZE
    return b"".join(parts)


def resealed(stream: bytes) -> bytes:
    """A simulated device's stream with right checks in all records that are whole."""
    parts, at = [], 0
    while len(stream) - at >= RECORD.size:
        magic, kind, index, version, length, sequence, _ = RECORD.unpack_from(stream, at)
        payload = stream[at + RECORD.size : at + RECORD.size + length]
        body = 0 if kind == BLOCK else block_digest(payload, 0, 0)
        head = RECORD.pack(magic, kind, index, version, length, sequence, 0)
        check = block_digest(head, body, magic)
        parts += [head[:-8], struct.pack("<Q", check), payload]
        at += RECORD.size + length
    return b"".join(parts) + stream[at:]


def channels() -> Iterable[bytes]:
    """What goes over a channel."""
    yield Stream().other(CLOSE).bytes()
    yield Stream().other(PAD, 300).other(PAD).other(CLOSE).bytes()
    yield Stream().add(RAW, 0, b"device").add(ZERO, 0, bytes(100)).add(END, 0).other(CLOSE).bytes()
    yield (
        Stream().add(ZSTD, 0, TEXT).add(MARK, 0).add(RAW, 0, TEXT).add(END, 0).other(CLOSE).bytes()
    )
    both = Stream().add(RAW, 1, b"one", pages=1).add(ZSTD, 0, TEXT).add(MARK, 1).add(END, 1)
    yield both.add(END, 0).other(CLOSE).bytes()
    yield Stream().add(RAW, 0, TEXT).add(END, 0).add(MARK, 0).bytes()


def control_messages() -> list[messages.Message]:
    """One of each, and of the large ones two."""
    device = offered()
    loaded = messages.LoadedDevice(name="tty0", size=4, digest=0x12345678)
    return [
        messages.Hello(
            version=messages.VERSION,
            software="vfioflow 1",
            session="s",
            nonce=bytes(messages.NONCE_SIZE),
            key=False,
        ),
        messages.Proof(proof=bytes(32)),
        offer(device),
        offer(device, window=1 << 20, reconnect_seconds=0.1),
        messages.Accept(load_seconds=0.1),
        messages.Refuse(reasons={"tty0": "it is not here"}),
        messages.Ready(splice=True),
        messages.Probe(size=262144),
        messages.ProbeDone(),
        messages.SwitchoverAck(),
        messages.Switchover(),
        messages.Config(devices={"tty0": b"config"}),
        messages.ConfigTaken(),
        messages.Loaded(devices=[loaded], validate_seconds=0.1, ready_seconds=0.1),
        messages.Commit(),
        messages.Running(resume_seconds=0.1, start_vcpus_seconds=0.0),
        messages.Resolve(session="s", decision="run"),
        messages.Resolve(session="s", decision="discard", journal="j"),
        messages.Discarded(reason="it never came"),
        messages.Goodbye(),
        messages.Failed(reason="it broke", cancelled=True),
    ]


def offered() -> messages.OfferedDevice:
    return messages.OfferedDevice(name="tty0", driver="mtty", profile="mtty", flags=7, size=96)


def offer(*devices: messages.OfferedDevice, **other: object) -> messages.Offer:
    values = {"channels": 1, "chunk_size": 65536, "digests": True, "window": 0}
    values |= {"reconnect_seconds": 0.0, **other}
    return messages.Offer(devices=list(devices), **values)


def encoded() -> Iterable[bytes]:
    """Control messages without their heads."""
    return map(messages.encode, control_messages())


def framed(message: bytes, heard: int = 0) -> bytes:
    """A control message with its head."""
    return struct.pack("<II", len(message), heard) + message


def controls() -> Iterable[bytes]:
    """What goes over a control connection."""
    whole = [framed(message) for message in encoded()]
    yield from whole
    yield b"".join(whole[:-1])


def preambles() -> Iterable[bytes]:
    """How connections begin."""
    yield Preamble(Role.CONTROL).pack()
    yield Preamble(Role.CONTROL, attempt=1, token=b"t" * 16).pack() + HEARD.pack(3)
    yield Preamble(Role.DATA, 3, bytes(range(16))).pack()
    yield Preamble(Role.DATA, 3, bytes(range(16)), 255).pack() + Stream().other(CLOSE).bytes()
    yield Preamble(Role.CONTROL).pack() + b"".join(framed(message) for message in encoded())


def sealed_line(body: bytes) -> bytes:
    """A line of a journal with a right check."""
    return f"{_frame.crc(body):08x} ".encode() + body + b"\n"


def journals(role: str) -> Iterable[bytes]:
    """Files as a journal writes them."""
    roads = {
        "source": (("BEGUN", "COMMITTED", "RELEASED"), ("BEGUN", "BACK"), ("BEGUN", "BY_HAND")),
        "destination": (("BEGUN", "LOADED", "COMMITTED", "RUNNING", "TOLD"), ("DISCARDED",)),
    }
    about = {
        "BEGUN": ',"peer":"tcp://a:1","devices":{"tty0":true}',
        "LOADED": ',"states":{"tty0":"STOP"}',
        "COMMITTED": ',"identity":"0123"',
        "BY_HAND": ',"choice":"run"',
    }
    for road in roads[role]:
        lines = [f'{{"step":"{step}","time":1.5{about.get(step, "")}}}' for step in road]
        yield b"".join(sealed_line(line.encode()) for line in lines)

"""What a channel has to do with a stream of bytes, after docs/wire-protocol.md and in plain Python."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import zstandard

from vfioflow import _frame

HEADER = struct.Struct("<BBHIQIIII")
RAW, ZSTD, ZERO, MARK, END, PAD, CLOSE = range(1, 8)


@dataclass
class Lane:
    content: bytearray = field(default_factory=bytearray)
    digest: int = 0
    marks: int = 0
    frames: int = 0
    ended: bool = False


@dataclass
class Outcome:
    """How it ends, and what the devices hold then.

    ``how``: "close" (the peer said so), "cut", "damaged" (IntegrityError), "forbidden"
    (ProtocolError), "waits" (for what never comes), "maybe" (zstd's own judgement: damaged or not).
    """

    lanes: list[Lane]
    how: str = "cut"
    pads: int = 0
    dealt_with: int = 0
    """Bytes of the frames that it is through with."""
    read: int = 0
    """Frames that need to be there for this outcome; those behind change nothing."""


def possible(kind: int, pages: int, length: int, raw: int, rest: int, chunk: int) -> bool:
    """Whether a header's fields can be."""
    if rest != 0 or pages not in ((0, 1) if kind == RAW else (0,)) or max(length, raw) > chunk:
        return False
    return {
        RAW: length == raw > 0,
        ZSTD: length > 0 and raw > 0,
        ZERO: length == 0 and raw > 0,
        MARK: length == raw == 0,
        END: length == raw == 0,
        PAD: raw == 0,
        CLOSE: length == raw == 0,
    }.get(kind, False)


def unpacked(payload: bytes, size: int) -> bytes | None:
    """Exactly ``size`` bytes; None: plain zstd says no (the library may take skippable frames, or two)."""
    try:
        out = zstandard.ZstdDecompressor().decompressobj()
        data = out.decompress(payload)
    except (zstandard.ZstdError, MemoryError):
        return None
    return data if out.eof and not out.unused_data and len(data) == size else None


def run(stream: bytes, *, lanes: int, chunk: int, digests: bool, splice: bool = False) -> Outcome:
    """What one channel alone does with ``stream``.

    ``splice``: raw frames that say so go to the device as they arrive, judged by their headers alone.
    """
    outcome = Outcome([Lane() for _ in range(lanes)])
    at = 0
    while len(stream) - at >= HEADER.size:
        header = stream[at : at + HEADER.size]
        outcome.read += 1
        kind, pages, number, length, offset, raw, digest, rest, check = HEADER.unpack(header)
        if check != _frame.crc(header[:-4]):
            outcome.how = "damaged"
            return outcome
        if not possible(kind, pages, length, raw, rest, chunk):
            outcome.how = "forbidden"
            return outcome
        payload = stream[at + HEADER.size : at + HEADER.size + length]
        if splice and pages and number < lanes and len(payload) < length:
            lane = outcome.lanes[number]
            outcome.how = _judge(lane, kind, offset)
            if outcome.how == "cut":
                lane.content += payload
                lane.frames += 1
            return outcome
        if len(payload) < length:
            return outcome
        at += HEADER.size + length
        if kind == PAD:
            outcome.pads += length
        elif kind != CLOSE:
            data = {RAW: payload, ZERO: bytes(raw), ZSTD: None}.get(kind, b"")
            if number >= lanes:
                outcome.how = "forbidden"
            elif kind == ZSTD and (data := unpacked(payload, raw)) is None:
                outcome.how = "maybe"
            else:
                assert data is not None
                outcome.how = _deliver(outcome.lanes[number], kind, offset, data, digest, digests)
            if outcome.how != "cut":
                outcome.read -= outcome.how == "waits"
                return outcome
        outcome.dealt_with = at
        if kind == CLOSE:
            outcome.how = "close"
            return outcome
    return outcome


def _deliver(lane: Lane, kind: int, offset: int, data: bytes, digest: int, digests: bool) -> str:
    """Load a frame; "cut" means on to the next."""
    if (how := _judge(lane, kind, offset)) != "cut":
        return how
    if digests and not _late(lane, kind, offset):
        if _frame.crc(data, lane.digest) != digest:
            return "damaged"
        lane.digest = digest
    lane.content += data
    lane.frames += 1
    lane.marks += kind == MARK
    lane.ended = lane.ended or kind == END
    return "cut"


def _late(lane: Lane, kind: int, offset: int) -> bool:
    """Whether it is a mark that others were faster than."""
    position = len(lane.content)
    return kind == MARK and (offset < position or (lane.ended and offset == position))


def _judge(lane: Lane, kind: int, offset: int) -> str:
    position = len(lane.content)
    if position < offset and not lane.ended:
        return "waits"
    if not _late(lane, kind, offset) and (lane.ended or offset != position):
        return "forbidden"
    return "cut"

"""What a vfio-user server may say: replies to single requests, and a whole stream of migration data."""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable

from inputs import fed, reason

from vfioflow._vfio_user import Line
from vfioflow._vfio_user_data import DataPort
from vfioflow.devices.vfio_user import protocol
from vfioflow.devices.vfio_user.protocol import BadReply, Feature

HEADER = struct.Struct("=HHIII")
DATA = struct.Struct("=II")
PIECE = 64
LARGEST = (1 << 20) + 4096
MOST = 3000
"""Bytes of an input: what is asked for besides fits into a socket's buffer, which nobody reads."""

PARSERS: tuple[Callable[[bytes], object], ...] = (
    protocol.parse_version,
    lambda data: protocol.parse_flags(protocol.parse_feature(data, Feature.MIGRATION, 8)),
    lambda data: protocol.parse_state(protocol.parse_feature(data, Feature.MIG_DEVICE_STATE, 4)),
    lambda data: protocol.parse_data_size(protocol.parse_feature(data, Feature.MIG_DATA_SIZE, 8)),
    lambda data: protocol.parse_logging(protocol.parse_feature(data, Feature.DMA_LOGGING_START, 8)),
    lambda data: protocol.parse_report(
        protocol.parse_feature(data, Feature.DMA_LOGGING_REPORT, 24), 4096, 1 << 20, 4096
    ),
    protocol.parse_is_pci,
    lambda data: protocol.parse_region(data, 4),
)


def reply(data: bytes) -> None:
    """One reply: what it says, or what is wrong with it."""
    if not data:
        return
    try:
        PARSERS[data[0] % len(PARSERS)](data[1:])
    except BadReply as error:
        reason(error)


def replies() -> Iterable[bytes]:
    """A valid one for each parser."""
    text = b'{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576}}\0'
    report = struct.pack("=QQQ", 4096, 1 << 20, 4096)
    return [
        bytes([number]) + payload
        for number, payload in enumerate(
            [
                struct.pack("=HH", 0, 1) + text,
                struct.pack("=IIQ", 16, 1, 5),
                struct.pack("=IIIi", 16, 2, 3, -1),
                struct.pack("=IIQ", 16, 9, 1 << 30),
                struct.pack("=IIQII", 24, 6, 4096, 0, 0),
                struct.pack("=II", 64, 8) + report + bytes(32),
                struct.pack("=IIII", 16, 3, 9, 5),
                struct.pack("=QII", 0, 7, 4) + b"\xf4\x1a\x41\x10",
            ]
        )
    ]


# ------------------------------------------------------------------ a stream


def stream(data: bytes) -> None:
    """All that a server sends while its data is read: the right bytes, then the end or the right errno.

    It is all there when the first reads are asked for, and so must be the replies to these.
    """
    if not data:
        return
    most, said = 1 + data[0] % 16, data[1 : 1 + MOST]
    due, ends = _model(said, most)
    near, far = fed(said)
    with near, far:
        line = Line(near.detach(), 30.0)
        port = DataPort(os.dup(line.fileno()), line, PIECE, most, False)
        try:
            assert _read(port) == (due, ends), line.reason
            assert bool(line.reason) == bool(line.broken)
        finally:
            port.close()
            line.shut(errno.ENODEV, "the input ends")


def _read(port: DataPort) -> tuple[bytes, int]:
    got, buffer = bytearray(), bytearray(1 << 12)
    try:
        while size := port.readinto(buffer):
            got += buffer[:size]
    except OSError as error:
        reason(error)
        return bytes(got), error.errno or 0
    return bytes(got), 0


def _model(said: bytes, most: int) -> tuple[bytes, int]:
    """The data in what was said, and how it ends: 0, or an errno."""
    got, asked, short, empty, failed = b"", deque(range(most)), False, False, 0
    ends = errno.ECONNRESET
    while len(said) >= HEADER.size:
        which, command, size, flags, code = HEADER.unpack_from(said)
        left, kind = size - HEADER.size, flags & 0xF
        error = kind == 1 and flags & 0x20
        if (
            left < 0
            or kind > 1
            or (kind == 1 and (not asked or (which, command) != (asked[0], 17)))
        ):
            ends = errno.EPROTO
            break
        if left > (8 + PIECE if kind == 1 and not error else LARGEST):
            ends = errno.EPROTO
            break
        body, said = said[HEADER.size : HEADER.size + left], said[HEADER.size + left :]
        n = 0
        if kind == 1 and not error:
            if left < 8 or (len(body) >= 8 and DATA.unpack_from(body)[1] > min(PIECE, left - 8)):
                ends = errno.EPROTO
                break
            n = DATA.unpack_from(body)[1] if len(body) >= 8 else 0
            got += b"" if failed else body[8 : 8 + n]
        if len(body) < left:
            break
        if kind == 1:
            asked.popleft()
            short = short or n < PIECE
            if error:
                failed = failed or (code if 0 < code <= 4095 else errno.EINVAL)
            empty = not asked and short and n == 0
    if empty and not failed:
        return got, 0
    return got, failed or ends


def _data(number: int, data: bytes, pad: int = 0) -> bytes:
    payload = DATA.pack(8 + len(data), len(data)) + data + bytes(pad)
    return HEADER.pack(number, 17, HEADER.size + len(payload), 1, 0) + payload


def sent() -> Iterable[bytes]:
    """Streams of a server, to as many reads as there are replies, and to fewer."""
    full = [_data(number, bytes([number]) * PIECE) for number in range(5)]
    end = [_data(number, b"", PIECE) for number in (5, 6)]
    failed = HEADER.pack(5, 17, 24, 0x21, errno.EIO) + bytes(8)
    asks = HEADER.pack(5, 11, 32, 0, 0) + bytes(16)
    for options in (6, 5, 7, 0):
        yield bytes([options]) + b"".join(full + end)
        yield bytes([options]) + b"".join([*full, _data(5, b"short", PIECE - 5), end[1]])
        yield bytes([options]) + b"".join([*full, failed, end[1]])
        yield bytes([options]) + b"".join([*full[:3], asks, *full[3:], *end])

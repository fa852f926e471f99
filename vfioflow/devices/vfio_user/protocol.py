"""Messages of the vfio-user protocol: requests packed, replies checked and parsed.  Pure.

Source: the protocol's specification (docs/interop/vfio-user.rst in QEMU).  All numbers are in the host's
byte order, all sizes in bytes.  What is packed and parsed is the payload, without its header of 16 bytes;
migration data is moved by the extensions and not seen here.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from vfioflow.states import FLAG_SETS, Flags, State

__all__ = [
    "DEFAULT_TRANSFER",
    "LARGEST_REPLY",
    "VERSION",
    "CONFIG_REGION",
    "BadReply",
    "Capabilities",
    "Command",
    "Feature",
    "Method",
    "bitmap_size",
    "parse_data_size",
    "parse_feature",
    "parse_flags",
    "parse_is_pci",
    "parse_logging",
    "parse_region",
    "parse_report",
    "parse_state",
    "parse_version",
    "pack_dma_map",
    "pack_dma_unmap",
    "pack_feature",
    "pack_info",
    "pack_logging",
    "pack_region_read",
    "pack_report",
    "pack_state",
    "pack_version",
]

VERSION = (0, 2)
"""Major and minor: the newest that is spoken here."""

DEFAULT_TRANSFER = 1 << 20
"""``max_data_xfer_size`` of a peer that does not name one."""

LARGEST_REPLY = 1 << 16
"""Bytes of the largest reply that is taken, but for migration data and bitmaps."""

_VERSION = struct.Struct("=HH")
_FEATURE = struct.Struct("=II")
_STATE = struct.Struct("=Ii")
_STATE_ALONE = struct.Struct("=I")
_NUMBER = struct.Struct("=Q")
_LOGGING = struct.Struct("=QII")
_RANGE = struct.Struct("=QQ")
_REPORT = struct.Struct("=QQQ")
_DMA_MAP = struct.Struct("=IIQQQ")
_DMA_UNMAP = struct.Struct("=IIQQ")
_INFO = struct.Struct("=IIII")
_REGION = struct.Struct("=QII")


class Command(enum.IntEnum):
    """Commands that a client sends."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    REGION_READ = 9
    DEVICE_RESET = 13
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class Feature(enum.IntEnum):
    """Device features, numbered as in the kernel's uAPI."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9


class Method(enum.IntFlag):
    """What is done with a feature; with PROBE only whether it can be."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


class BadReply(ValueError):
    """A reply that cannot be; says what is wrong with it."""


# --------------------------------------------------------------------- version


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=False):
    """What one side can take: descriptors with a message, bytes of data in one."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = DEFAULT_TRANSFER


class _VersionData(msgspec.Struct, frozen=True):
    capabilities: Capabilities = Capabilities()


def pack_version(minor: int, capabilities: Capabilities) -> bytes:
    """The first message: the newest version that is spoken here, and what this side can take."""
    text = msgspec.json.encode(_VersionData(capabilities))
    return _VERSION.pack(VERSION[0], minor) + text + b"\0"


def parse_version(payload: bytes) -> tuple[int, Capabilities]:
    """The minor version that the two sides speak, and what the server can take.

    Raises BadReply: another major version, a minor one that is newer than was proposed, or a text
    that is not right.  Capabilities may be left out, and unknown ones are passed over.
    """
    _at_least(payload, _VERSION.size)
    major, minor = _VERSION.unpack_from(payload)
    if major != VERSION[0]:
        raise BadReply(f"the server speaks version {major}.{minor}, not {VERSION[0]}.x")
    if minor > VERSION[1]:
        raise BadReply(
            f"the server answers version {major}.{minor}; {_dotted(VERSION)} is the newest known here"
        )
    text = payload[_VERSION.size :].partition(b"\0")[0]
    if not text:
        return minor, Capabilities()
    try:
        said = msgspec.json.decode(text, type=_VersionData).capabilities
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadReply(f"the server's capabilities are wrong: {error}") from None
    for name in ("max_msg_fds", "max_data_xfer_size"):
        if getattr(said, name) < 0:
            raise BadReply(f"the server's capabilities are wrong: {name} is {getattr(said, name)}")
    return minor, said


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# -------------------------------------------------------------- device features


def pack_feature(
    feature: Feature, method: Method, data: bytes = b"", *, room: int | None = None
) -> bytes:
    """Get, set or probe a feature; ``room``: bytes of data that the reply may have."""
    size = len(data) if room is None else max(room, len(data))
    return _FEATURE.pack(_FEATURE.size + size, feature | method) + data


def parse_feature(payload: bytes, feature: Feature, size: int) -> bytes:
    """The data of a reply, of which there must be at least ``size`` bytes.  Raises BadReply."""
    _at_least(payload, _FEATURE.size)
    argsz, flags = _FEATURE.unpack_from(payload)
    if flags & 0xFFFF != feature:
        raise BadReply(
            f"a reply about feature {flags & 0xFFFF}, where {int(feature)} was asked for"
        )
    data = payload[_FEATURE.size :]
    if len(data) < size:
        raise BadReply(f"{len(data)} bytes of data (argsz {argsz}), where there must be {size}")
    return data


def parse_flags(data: bytes) -> Flags:
    """What MIGRATION says.  P2P states are not used in vfio-user: that flag counts for nothing."""
    (bits,) = _NUMBER.unpack_from(data)
    flags = Flags(bits & (Flags.STOP_COPY | Flags.PRE_COPY))
    return flags if flags in FLAG_SETS else Flags.NONE


def pack_state(state: State) -> bytes:
    """MIG_DEVICE_STATE, to set it; without a data fd, which there is none of."""
    return _STATE.pack(state, -1)


def parse_state(data: bytes) -> State:
    """What MIG_DEVICE_STATE says.  Raises BadReply: no such state."""
    (number,) = _STATE_ALONE.unpack_from(data)
    try:
        return State(number)
    except ValueError:
        raise BadReply(f"{number} is no state of a device") from None


def parse_data_size(data: bytes) -> int:
    """What MIG_DATA_SIZE says: bytes that STOP_COPY would hand out."""
    return _one(_NUMBER.unpack_from(data))


def _one(values: tuple[Any, ...]) -> int:
    return int(values[0])


# ----------------------------------------------------------------- DMA and its log


def pack_logging(ranges: Sequence[tuple[int, int]], page_size: int) -> bytes:
    """DMA_LOGGING_START for ranges of (iova, length); none: all writes."""
    head = _LOGGING.pack(page_size, len(ranges), 0)
    return head + b"".join(_RANGE.pack(*each) for each in ranges)


def parse_logging(data: bytes) -> int:
    """The page size that the device chose, in bytes.  Raises BadReply: none that can be."""
    size = _one(_NUMBER.unpack_from(data))
    if size <= 0:
        raise BadReply("the device logs pages of 0 bytes")
    return size


def pack_report(iova: int, length: int, page_size: int) -> bytes:
    """DMA_LOGGING_REPORT of one range."""
    return _REPORT.pack(iova, length, page_size)


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of the bitmap of a range: whole words of 64 bits."""
    pages = (length + page_size - 1) // page_size
    return (pages + 63) // 64 * 8


def parse_report(data: bytes, iova: int, length: int, page_size: int) -> bytes:
    """The bitmap of what was asked for.  Raises BadReply: another range, or too short."""
    found = _REPORT.unpack_from(data)
    if found != (iova, length, page_size):
        raise BadReply(f"a report of (iova, length, page size) {found}, not of what was asked for")
    bitmap = data[_REPORT.size :]
    due = bitmap_size(length, page_size)
    if len(bitmap) < due:
        raise BadReply(f"a bitmap of {len(bitmap)} bytes, where there must be {due}")
    return bitmap[:due]


def pack_dma_map(iova: int, size: int, offset: int) -> bytes:
    """Memory, readable and writable, from ``offset`` of the descriptor that goes with the message."""
    return _DMA_MAP.pack(_DMA_MAP.size, 3, offset, iova, size)


def pack_dma_unmap(iova: int, size: int) -> bytes:
    """What was mapped so, and no part of it."""
    return _DMA_UNMAP.pack(_DMA_UNMAP.size, 0, iova, size)


# --------------------------------------------------------------------- regions

CONFIG_REGION = 7
"""Of a PCI device."""


def pack_info() -> bytes:
    """DEVICE_GET_INFO."""
    return _INFO.pack(_INFO.size, 0, 0, 0)


def parse_is_pci(payload: bytes) -> bool:
    """Whether DEVICE_GET_INFO says that it is a PCI device.  Raises BadReply."""
    _at_least(payload, _INFO.size)
    return bool(_INFO.unpack_from(payload)[1] & 2)


def pack_region_read(index: int, offset: int, size: int) -> bytes:
    """Read from a region of the device's."""
    return _REGION.pack(offset, index, size)


def parse_region(payload: bytes, size: int) -> bytes:
    """What was read.  Raises BadReply: less than was asked for."""
    _at_least(payload, _REGION.size + size)
    return payload[_REGION.size : _REGION.size + size]


def _at_least(payload: bytes, size: int) -> None:
    if len(payload) < size:
        raise BadReply(f"{len(payload)} bytes, where there must be at least {size}")

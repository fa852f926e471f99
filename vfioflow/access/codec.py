"""What a queue held, as bytes for the wire and the journal, in parts that fit a control message."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated

import msgspec

from vfioflow._frame import crc
from vfioflow.access.queue import MAX_VECTORS, MAX_WIDTH, MAX_WRITES, Access, Held
from vfioflow.errors import ProtocolError

__all__ = ["MAX_BYTES", "PART", "VERSION", "decode", "digest", "encode", "parts"]

VERSION = 1

MAX_BYTES = 64 << 20
"""Bytes that are taken of a peer, all parts together."""

PART = 512 << 10
"""Bytes of a part."""

_MAX_TIMES = 1 << 32


class _Form(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    writes: Annotated[list[Access], msgspec.Meta(max_length=MAX_WRITES)]
    interrupts: dict[str, dict[int, int]]


def encode(held: Held) -> bytes:
    """All of it; see :func:`parts`."""
    interrupts = {device: dict(vectors) for device, vectors in held.interrupts.items()}
    return msgspec.msgpack.encode(_Form(VERSION, list(held.writes), interrupts))


def digest(data: bytes) -> int:
    """The CRC32C by which both sides see that they have the same."""
    return crc(data)


def parts(data: bytes) -> Iterator[bytes]:
    """Pieces of at most PART bytes; at least one, which may be empty."""
    for start in range(0, max(len(data), 1), PART):
        yield data[start : start + PART]


def decode(data: bytes, devices: Collection[str]) -> Held:
    """The other way round.  ``devices``: those of the set.  Raises ProtocolError: it cannot be."""
    try:
        form = msgspec.msgpack.decode(data, type=_Form)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ProtocolError(f"the queued accesses are no such thing: {error}") from None
    if form.version != VERSION:
        raise ProtocolError(
            f"the queued accesses are of version {form.version}, and {VERSION} is known here:"
            " install the same vfioflow on both"
        )
    before = 0
    for access in form.writes:
        if access.device not in devices:
            raise ProtocolError("an access was queued for a device that is not of the set")
        if not 0 < len(access.data) <= MAX_WIDTH or min(access.region, access.offset) < 0:
            raise ProtocolError(f"a queued write to {access.device} cannot be")
        if access.order <= before:
            raise ProtocolError("the queued writes are not in order")
        before = access.order
    for device, vectors in form.interrupts.items():
        if device not in devices:
            raise ProtocolError("an interrupt was counted for a device that is not of the set")
        for vector, times in vectors.items():
            if not (0 <= vector < MAX_VECTORS and 0 < times < _MAX_TIMES):
                raise ProtocolError(f"{times} interrupts of vector {vector} cannot be")
    return Held(tuple(form.writes), form.interrupts)

from typing_extensions import Buffer

def pack(kind: int, lane: int, length: int, offset: int, raw_length: int, crc: int) -> bytes:
    """The 32 bytes of a header with these fields, valid or not.  For tests and tools."""

def unpack(wire: Buffer, chunk_size: int, max_length: int) -> tuple[int, int, int, int, int, int]:
    """The fields of a header: (kind, lane, length, offset, raw_length, digest).

    Raises:
        ValueError: not 32 bytes, the check does not agree, or the fields are impossible under
            the limits ``chunk_size`` (device bytes) and ``max_length`` (payload bytes).
    """

def crc(data: Buffer, start: int = 0, *, way: int = 2) -> int:
    """CRC32C of ``data``, going on from ``start``, by the fastest way up to ``way`` that there is.

    0 is the table, 1 the CRC instruction, 2 folding with carry-less multiplication.
    """

def crc_way() -> int:
    """The way that digests take on this processor, as in :func:`crc`."""

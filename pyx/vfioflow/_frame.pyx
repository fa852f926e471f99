"""Data frames: the fixed header in front of each piece of a device's stream."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from crc32c cimport crc32c, crc32c_hardware, crc32c_setup
from endians cimport htole16, htole32, htole64, le16toh, le32toh, le64toh
from errnos cimport EBADMSG, EPROTO

crc32c_setup(2)


cdef uint32_t digest(uint32_t crc, const void *data, size_t size) noexcept nogil:
    return crc32c(crc, data, size)


cdef void encode(const frame_t *frame, uint8_t *wire) noexcept nogil:
    cdef uint16_t half
    cdef uint32_t word
    cdef uint64_t long_word
    wire[0] = frame.kind
    wire[1] = frame.pages
    half = htole16(frame.lane)
    memcpy(wire + 2, &half, 2)
    word = htole32(frame.length)
    memcpy(wire + 4, &word, 4)
    long_word = htole64(frame.offset)
    memcpy(wire + 8, &long_word, 8)
    word = htole32(frame.raw_length)
    memcpy(wire + 16, &word, 4)
    word = htole32(frame.digest)
    memcpy(wire + 20, &word, 4)
    word = 0
    memcpy(wire + 24, &word, 4)
    word = htole32(crc32c(0, wire, HEADER_SIZE - 4))
    memcpy(wire + 28, &word, 4)


cdef int decode(const uint8_t *wire, frame_t *frame, uint32_t chunk_size, uint32_t max_length) noexcept nogil:
    cdef uint16_t half
    cdef uint32_t word
    cdef uint64_t long_word
    memcpy(&word, wire + 28, 4)
    if le32toh(word) != crc32c(0, wire, HEADER_SIZE - 4):
        return -EBADMSG
    frame.kind = wire[0]
    frame.pages = wire[1]
    memcpy(&half, wire + 2, 2)
    frame.lane = le16toh(half)
    memcpy(&word, wire + 4, 4)
    frame.length = le32toh(word)
    memcpy(&long_word, wire + 8, 8)
    frame.offset = le64toh(long_word)
    memcpy(&word, wire + 16, 4)
    frame.raw_length = le32toh(word)
    memcpy(&word, wire + 20, 4)
    frame.digest = le32toh(word)
    memcpy(&word, wire + 24, 4)
    if frame.pages > (frame.kind == KIND_RAW) or word != 0:
        return -EPROTO
    if frame.raw_length > chunk_size or frame.length > max_length:
        return -EPROTO
    if frame.kind == KIND_RAW:
        return 0 if frame.length == frame.raw_length > 0 else -EPROTO
    if frame.kind == KIND_ZSTD:
        return 0 if frame.length > 0 and frame.raw_length > 0 else -EPROTO
    if frame.kind == KIND_ZERO:
        return 0 if frame.length == 0 and frame.raw_length > 0 else -EPROTO
    if frame.kind == KIND_MARK or frame.kind == KIND_END or frame.kind == KIND_CLOSE:
        return 0 if frame.length == 0 and frame.raw_length == 0 else -EPROTO
    if frame.kind == KIND_PAD:
        return 0 if frame.raw_length == 0 else -EPROTO
    return -EPROTO


def pack(int kind, uint16_t lane, uint32_t length, uint64_t offset, uint32_t raw_length, uint32_t crc):
    """The 32 bytes of a header with these fields, valid or not.  For tests and tools."""
    cdef frame_t frame
    cdef uint8_t wire[HEADER_SIZE]
    frame.kind = kind
    frame.pages = 0
    frame.lane = lane
    frame.length = length
    frame.offset = offset
    frame.raw_length = raw_length
    frame.digest = crc
    encode(&frame, wire)
    return (<char *>wire)[:HEADER_SIZE]


def unpack(const uint8_t[::1] wire, uint32_t chunk_size, uint32_t max_length):
    """The fields of a header: (kind, lane, length, offset, raw_length, digest).

    Raises:
        ValueError: not 32 bytes, the check does not agree, or the fields are impossible under
            the limits ``chunk_size`` (device bytes) and ``max_length`` (payload bytes).
    """
    cdef frame_t frame
    cdef int status
    if wire.shape[0] != HEADER_SIZE:
        raise ValueError(f"a header has {HEADER_SIZE} bytes, not {wire.shape[0]}")
    status = decode(&wire[0], &frame, chunk_size, max_length)
    if status == -EBADMSG:
        raise ValueError("the header's check does not agree")
    if status < 0:
        raise ValueError("the header's fields are impossible")
    return frame.kind, frame.lane, frame.length, frame.offset, frame.raw_length, frame.digest


def crc(const uint8_t[::1] data, uint32_t start=0, *, int way=2):
    """CRC32C of ``data``, going on from ``start``, by the fastest way up to ``way`` that the processor has.

    0 is the table, 1 the CRC instruction, 2 folding with carry-less multiplication.  For tests and tools.
    """
    cdef uint32_t result
    if way < 2:
        crc32c_setup(way)
    result = crc32c(start, &data[0] if data.shape[0] else NULL, data.shape[0])
    if way < 2:
        crc32c_setup(2)
    return result


def crc_way():
    """The way that digests take on this processor, as in :func:`crc`."""
    return crc32c_hardware

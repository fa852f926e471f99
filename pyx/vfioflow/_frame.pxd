# The header of a data frame on the wire (docs/wire-protocol.md): 32 bytes, little endian.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    HEADER_SIZE = 32
    MAX_CHUNK = 64 * 1024 * 1024    # no frame stands for more bytes of device state than this

cdef enum kind_t:
    KIND_INVALID = 0
    KIND_RAW = 1                # payload: device bytes as they are
    KIND_ZSTD = 2               # payload: one zstd frame of raw_length device bytes
    KIND_ZERO = 3               # no payload: raw_length zero bytes
    KIND_MARK = 4               # no payload: the initial bytes end at this offset
    KIND_END = 5                # no payload: the stream ends at this offset
    KIND_PAD = 6                # payload to be thrown away (measures the wire)
    KIND_CLOSE = 7              # no payload: nothing more comes on this channel
    KIND_LAST = 7

ctypedef struct frame_t:
    uint8_t kind
    uint8_t pages               # 1: the payload came from a file by sendfile, in whole pages
    uint16_t lane
    uint32_t length             # payload bytes behind the header
    uint64_t offset             # where in the device's stream the frame begins
    uint32_t raw_length         # device bytes that it stands for
    uint32_t digest             # CRC32C of the device's stream up to the frame's end; 0 without digests

cdef void encode(const frame_t *frame, uint8_t *wire) noexcept nogil
# 0, -EBADMSG (the header's own check fails: no frame, or damaged), -EPROTO (impossible fields)
cdef int decode(const uint8_t *wire, frame_t *frame, uint32_t chunk_size, uint32_t max_length) noexcept nogil
cdef uint32_t digest(uint32_t crc, const void *data, size_t size) noexcept nogil

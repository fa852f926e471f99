# The source's end of one device's stream.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from vfioflow._buffers cimport Pool
from vfioflow._channel cimport Channel, Limiter, channel_t, fault_t
from vfioflow._fdio cimport Cancel, Port, port_t
from vfioflow._frame cimport frame_t
from vfioflow._zstd cimport Compressor


cdef class OutLane:
    cdef readonly str name
    cdef readonly uint16_t index
    cdef readonly uint64_t offset
    cdef readonly uint64_t wire_bytes
    cdef readonly uint64_t frames
    cdef readonly uint64_t read_ns
    cdef readonly uint64_t send_ns
    cdef readonly uint32_t digest
    cdef bint digests
    cdef bint elide
    cdef channel_t **channels
    cdef int channel_count
    cdef int next_channel
    cdef list owners            # keeps the channels alive
    cdef Pool pool
    cdef Cancel cancel
    cdef Limiter limiter
    cdef Compressor compressor
    cdef int run(self, port_t *port, uint64_t budget, bint precopy, fault_t *fault) noexcept nogil
    cdef ssize_t fill(
        self, port_t *port, uint8_t *buffer, size_t want, bint precopy, int *status
    ) noexcept nogil
    cdef int send_data(self, const uint8_t *data, size_t size, uint8_t *packed, fault_t *fault) noexcept nogil
    cdef int send(self, frame_t *frame, const void *payload) noexcept nogil

# The destination's ends of the devices' streams.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._buffers cimport Pool
from vfioflow._channel cimport Channel, channel_t
from vfioflow._fault cimport fault_t
from vfioflow._fdio cimport Cancel, Port, port_t
from vfioflow._frame cimport frame_t
from vfioflow._zstd cimport Decompressor

ctypedef struct in_lane_t:
    port_t *port
    pthread_mutex_t lock
    pthread_cond_t turn         # signalled whenever offset moves
    uint64_t offset
    uint64_t wire_bytes
    uint64_t frames
    uint64_t write_ns
    uint32_t digest
    int marks
    int ended
    int busy                    # a frame is going to the device

# What one receiving thread reads from
ctypedef struct wire_t:
    int fd
    int pipe[2]                 # its own, for splice; -1: none yet
    size_t size                 # what the frame takes on the wire
    int broken                  # -errno: it failed or ended before a frame was whole


cdef class InLane:
    cdef in_lane_t c
    cdef readonly str name
    cdef public str title       # of a stream that is no device's, for errors
    cdef Port port


cdef class Receiver:
    cdef in_lane_t **lanes
    cdef int lane_count
    cdef list owners            # keeps the lanes alive
    cdef Pool pool
    cdef Cancel cancel
    cdef int signal_fd
    cdef bint digests
    cdef int run(self, channel_t *channel, Decompressor decompressor, fault_t *fault) noexcept nogil
    cdef int take(self, channel_t *channel, frame_t *frame, uint8_t *arrived, uint8_t *unpacked, wire_t *wire,
                  Decompressor decompressor, fault_t *fault) noexcept nogil
    cdef bint may_splice(self, const frame_t *frame, wire_t *wire) noexcept nogil
    cdef int deliver(self, const frame_t *frame, const void *data, const wire_t *wire,
                     fault_t *fault) noexcept nogil
    cdef int pour(self, in_lane_t *lane, const frame_t *frame, const wire_t *wire, size_t *done,
                  fault_t *fault) noexcept nogil
    cdef int check_digest(self, in_lane_t *lane, const frame_t *frame, const void *data,
                          fault_t *fault) noexcept nogil
    cdef int load(self, port_t *port, const frame_t *frame, const void *data, size_t *done,
                  fault_t *fault) noexcept nogil

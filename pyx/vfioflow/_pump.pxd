# Lanes and channels: the loops between a data fd and the wire.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._buffers cimport Pool
from vfioflow._fdio cimport Cancel, Port, port_t
from vfioflow._frame cimport frame_t
from vfioflow._zstd cimport Compressor, Decompressor

# Where a pump failed; with a negative errno this is all that it reports.
cdef enum where_t:
    AT_DEVICE = 1
    AT_WIRE
    AT_FRAME
    AT_DIGEST
    AT_ZSTD
    AT_MEMORY

ctypedef struct fault_t:
    where_t where
    int status
    int lane                    # -1: none
    uint64_t offset


ctypedef struct channel_t:
    int fd
    pthread_mutex_t lock        # held while a frame goes out
    uint64_t wire_bytes         # sent
    uint64_t pad_bytes          # received; one receiver per channel writes it

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


cdef class Limiter:
    cdef pthread_mutex_t lock
    cdef uint64_t _rate
    cdef int64_t free_at
    cdef int take(self, size_t size, int cancel_fd) noexcept nogil


cdef class Channel:
    cdef channel_t c
    cdef object socket


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
    cdef volatile bint held
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


cdef class InLane:
    cdef in_lane_t c
    cdef readonly str name
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
    cdef int deliver(self, const frame_t *frame, const void *data, fault_t *fault) noexcept nogil
    cdef int check_digest(self, in_lane_t *lane, const frame_t *frame, const void *data,
                          fault_t *fault) noexcept nogil
    cdef int load(self, port_t *port, const frame_t *frame, const void *data, size_t *done,
                  fault_t *fault) noexcept nogil

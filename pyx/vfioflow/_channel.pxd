# Channels, and what every pump shares: faults, waits, the clock.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._buffers cimport Pool
from vfioflow._fdio cimport Cancel, port_t
from vfioflow._frame cimport frame_t
from vfioflow._mac cimport Mac, mac_t
from vfioflow._window cimport window_t

cdef enum:
    A_MOMENT = 100 * 1000 * 1000    # nanoseconds

# Where a pump failed; with a negative errno this is all that it reports.
cdef enum where_t:
    AT_DEVICE = 1
    AT_WIRE
    AT_FRAME
    AT_DIGEST
    AT_ZSTD
    AT_MEMORY
    AT_TAG

ctypedef struct fault_t:
    where_t where
    int status
    int lane                    # -1: none
    uint64_t offset

ctypedef struct channel_t:
    int fd
    pthread_mutex_t lock        # of the next two
    uint64_t tickets, serving   # who is next: first come, first served
    pthread_cond_t turn
    uint64_t wire_bytes         # sent
    uint64_t pad_bytes          # received; one receiver per channel writes it
    window_t window
    mac_t *mac                  # of the frames; NULL: they have no tags


cdef class Limiter:
    cdef pthread_mutex_t lock
    cdef uint64_t _rate
    cdef int64_t free_at
    cdef int take(self, size_t size, int cancel_fd) noexcept nogil


cdef class Channel:
    cdef channel_t c
    cdef object socket
    cdef bint owned
    cdef bint opened            # the window
    cdef Mac mac
    cdef int signal_fd          # its own; -1: none


cdef int64_t now_ns() noexcept nogil
cdef int64_t thread_ns() noexcept nogil         # of processor time
# Fill in `fault` and return its status
cdef int fail(fault_t *fault, where_t where, int status, int lane, uint64_t offset) noexcept nogil
cdef object raise_fault(fault_t *fault, object name, object action)
cdef int wait_port(port_t *port, short events, int *rounds, int cancel_fd) noexcept nogil
# Wait for a signal, or for so long; A_MOMENT is to look at the cancel switch again
cdef void wait_a_little(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t ns) noexcept nogil
cdef int recv_all(int fd, void *buffer, size_t size) noexcept nogil
cdef bint await_bytes(int fd, size_t size) noexcept nogil
cdef int recv_payload(int fd, void *buffer, size_t size) noexcept nogil
# A frame goes out whole: take the channel, send, leave it
cdef int enter(channel_t *channel, Cancel cancel) noexcept nogil
cdef bint try_enter(channel_t *channel) noexcept nogil
cdef void leave(channel_t *channel) noexcept nogil
cdef size_t unsent(const channel_t *channel) noexcept nogil
cdef bint writable(const channel_t *channel) noexcept nogil
# What a frame takes there: header, payload, and tag if there is one
cdef size_t frame_size(const channel_t *channel, const frame_t *frame) noexcept nogil
cdef int send_frame(channel_t *channel, const frame_t *frame, const void *payload,
                    Cancel cancel) noexcept nogil
cdef int send_pages_frame(channel_t *channel, const frame_t *frame, int fd, bint is_pipe) noexcept nogil

# Channels: the connections that data frames take.
from libc.stdint cimport uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._fdio cimport Cancel
from vfioflow._frame cimport frame_t
from vfioflow._mac cimport Mac, mac_t
from vfioflow._window cimport window_t

ctypedef struct channel_t:
    int fd
    pthread_mutex_t lock        # of the next two
    uint64_t tickets, serving   # who is next: first come, first served
    pthread_cond_t turn
    uint64_t wire_bytes         # sent
    uint64_t pad_bytes          # received; one receiver per channel writes it
    window_t window
    mac_t *mac                  # of the frames; NULL: they have no tags


cdef class Channel:
    cdef channel_t c
    cdef object socket
    cdef bint owned
    cdef bint opened            # the window
    cdef Mac mac
    cdef int signal_fd          # its own; -1: none


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

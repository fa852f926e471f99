# What a channel has sent and the peer has not acknowledged: kept, to be sent again after a break.
from libc.stdint cimport uint8_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t
from sockets cimport iovec

from vfioflow._fdio cimport Cancel

cdef enum:
    ACK_SIZE = 8                # how many bytes of the channel's stream the receiver has dealt with

ctypedef struct window_t:
    size_t size                 # 0: no window; what is sent is forgotten, a break is the end
    uint8_t *ring               # sender: the stream from `heard` to `head`
    uint64_t head               # sender: bytes of the stream so far
    uint64_t sent               # sender: of them given to the present connection, or acknowledged
    uint64_t heard              # acknowledged; at the receiver: dealt with
    uint64_t told               # receiver: the last acknowledgement that it sent
    uint8_t ack[ACK_SIZE]       # sender: an acknowledgement that has come in part
    int ack_have
    pthread_mutex_t lock        # of all of this
    pthread_cond_t changed      # broken, parked, lost or running have
    int broken                  # the connection; another may come
    int lost                    # nobody will bring another
    int running                 # receiver: a thread is or will be at work
    int parked                  # receiver: it waits for another connection
    int signal_fd               # an eventfd, written when the connection breaks; -1: none


cdef int window_open(window_t *window, size_t size, bint sender, int signal_fd) noexcept nogil
cdef void window_close(window_t *window) noexcept nogil
# The sender's
cdef int window_send(window_t *window, int *fd, const iovec *parts, int count, Cancel cancel) noexcept nogil
cdef bint window_look(window_t *window, const int *fd) noexcept nogil
cdef int window_resume(window_t *window, int *fd, int new_fd, uint64_t heard) noexcept nogil
cdef int window_flush(window_t *window, int *fd, Cancel cancel) noexcept nogil
# The receiver's
cdef void window_dealt_with(window_t *window, int fd, size_t size, bint last) noexcept nogil
cdef int window_await(window_t *window, Cancel cancel) noexcept nogil
cdef void window_done(window_t *window) noexcept nogil
cdef int window_park(window_t *window, Cancel cancel, uint64_t *heard) noexcept nogil
cdef void window_unpark(window_t *window, int *fd, int new_fd) noexcept nogil
# Both sides'
cdef void window_give_up(window_t *window) noexcept nogil

# Extern declarations only: poll(2).
cdef extern from "<poll.h>" nogil:
    ctypedef unsigned long nfds_t
    cdef struct pollfd:
        int fd
        short events
        short revents
    const short POLLIN
    const short POLLOUT
    const short POLLERR
    const short POLLHUP
    int poll(pollfd *fds, nfds_t count, int timeout_ms)

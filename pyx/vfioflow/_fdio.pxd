# How a pump touches file descriptors: ports (a device's data fd) and cancellable waits.

# What moves pages to and from a port without a copy; the answer for each kind is in docs/data-path.md.
cdef enum pages_t:
    PAGES_NEVER = 0             # a driver's data fd has read and write only
    PAGES_OUT = 1               # sendfile is good for taking from it, if the other end passes pages on
    PIPE_OUT = 8                # so is splice, if there are many such lanes
    PAGES_IN = 2                # splice is good for giving to it
    ONLY_PAGES_IN = 4           # but only for what came from a file by sendfile

ctypedef struct port_t:
    int fd                      # what to poll while the port is not ready; -1: nothing to poll
    int closed
    int pages                   # of pages_t, a set
    void *context               # whatever the implementation needs
    # Both return bytes moved, 0, or -errno (EAGAIN: poll fd and try again), and never block for
    # longer than the device itself takes.
    ssize_t (*read)(port_t *port, void *buffer, size_t size) noexcept nogil
    ssize_t (*write)(port_t *port, const void *buffer, size_t size) noexcept nogil


cdef class Port:
    cdef port_t c


cdef class Cancel:
    cdef int fd                 # an eventfd, readable once cancelled
    cdef int flag


cdef ssize_t fd_read(port_t *port, void *buffer, size_t size) noexcept nogil
cdef ssize_t fd_splice(int source, int target, size_t size) noexcept nogil
cdef ssize_t fd_write(port_t *port, const void *buffer, size_t size) noexcept nogil
# 0 when fd has one of events, -ECANCELED once cancel_fd is readable, -ETIMEDOUT after timeout_ms (-1: never)
cdef int wait_fd(int fd, short events, int cancel_fd, int timeout_ms) noexcept nogil

# cython: language_level=3
"""Ports and cancellable waits: how the pumps touch file descriptors."""

from posix.fcntl cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from posix.stat cimport S_ISCHR, S_ISFIFO, S_ISREG, S_ISSOCK, fstat, struct_stat
from posix.unistd cimport close, read, write

from errnos cimport ECANCELED, EINTR, EINVAL, ETIMEDOUT, errno
from eventfd cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_write
from pipes cimport SPLICE_F_MOVE, major, minor, splice
from poll cimport POLLIN, poll, pollfd

from vfioflow._status cimport check, raise_status


cdef ssize_t fd_read(port_t *port, void *buffer, size_t size) noexcept nogil:
    cdef ssize_t n
    while True:
        n = read(port.fd, buffer, size)
        if n >= 0:
            return n
        if errno != EINTR:
            return -errno


cdef ssize_t fd_write(port_t *port, const void *buffer, size_t size) noexcept nogil:
    cdef ssize_t n
    while True:
        n = write(port.fd, buffer, size)
        if n >= 0:
            return n
        if errno != EINTR:
            return -errno


cdef ssize_t fd_splice(int source, int target, size_t size) noexcept nogil:
    cdef ssize_t n
    while True:
        n = splice(source, NULL, target, NULL, size, SPLICE_F_MOVE)
        if n >= 0:
            return n
        if errno != EINTR:
            return -errno


cdef int pages(int fd) noexcept nogil:
    """Where moving pages is faster than a copy, of pages_t; measured, see docs/data-path.md.

    Out of a pipe it pays only with so many lanes that what was just written is not in the cache any more.
    Into a file that has yet to grow it takes up to ten times as long as recv and write.
    """
    cdef struct_stat about
    if fstat(fd, &about) != 0:
        return PAGES_NEVER
    if S_ISFIFO(about.st_mode):
        return PAGES_IN | PIPE_OUT
    if S_ISSOCK(about.st_mode):
        return PAGES_IN
    if S_ISREG(about.st_mode) and about.st_size > 0:    # whatever a data fd may be called, it has no size
        if 512 * about.st_blocks >= about.st_size:
            return PAGES_OUT | PAGES_IN | ONLY_PAGES_IN
        return PAGES_OUT
    if S_ISCHR(about.st_mode) and major(about.st_rdev) == 1 and minor(about.st_rdev) == 3:
        return PAGES_IN         # /dev/null
    return PAGES_NEVER


cdef int wait_fd(int fd, short events, int cancel_fd, int timeout_ms) noexcept nogil:
    cdef pollfd fds[2]
    cdef int n
    fds[0].fd = cancel_fd
    fds[0].events = POLLIN
    fds[1].fd = fd
    fds[1].events = events
    while True:
        fds[0].revents = fds[1].revents = 0
        n = poll(fds, 2, timeout_ms)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        if fds[0].revents:
            return -ECANCELED
        if fds[1].revents:
            return 0
        if n == 0:
            return -ETIMEDOUT


cdef class Port:
    """A device's data fd, as a pump reads or writes it.

    Owns ``fd``, makes it non-blocking (drivers without ``.poll`` ignore that), and closes it
    in :meth:`close`.  Subclasses give other ways to read and write the same stream.
    """

    def __cinit__(self, int fd, *args):
        cdef int flags
        self.c.fd = fd
        self.c.closed = 1
        self.c.read = fd_read
        self.c.write = fd_write
        flags = check(fcntl(fd, F_GETFL))
        check(fcntl(fd, F_SETFL, flags | O_NONBLOCK))
        self.c.closed = 0
        self.c.pages = pages(fd)

    def fileno(self):
        """The data fd."""
        if self.c.closed:
            raise ValueError("the port is closed")
        return self.c.fd

    @property
    def takes_pages(self):
        """Whether splice may be the fastest way into it."""
        return self.c.pages & PAGES_IN != 0

    @property
    def advice(self):
        """What to say besides the errno when a read or write failed; "" where that says it all."""
        return ""

    def readinto(self, unsigned char[::1] buffer not None):
        """One read as a pump does it, for callers in Python: the bytes read.  Raises OSError."""
        cdef ssize_t n
        if self.c.closed or buffer.shape[0] == 0:
            raise_status(-EINVAL)
        with nogil:
            n = self.c.read(&self.c, &buffer[0], buffer.shape[0])
        if n < 0:
            raise_status(<int> n)
        return n

    def close(self):
        """Close the data fd.  Safe to call twice; never call it while a pump runs on the port."""
        if not self.c.closed:
            self.c.closed = 1
            close(self.c.fd)

    def __dealloc__(self):
        if not self.c.closed:
            self.c.closed = 1
            close(self.c.fd)


cdef class Cancel:
    """A switch that ends every wait of the pumps it was given to.  Once set, it stays set."""

    def __cinit__(self):
        self.fd = -1
        self.fd = check(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))

    def set(self):
        """End the waits.  Safe from any thread, and to call twice."""
        self.flag = 1
        eventfd_write(self.fd, 1)

    @property
    def is_set(self):
        """Whether :meth:`set` was called."""
        return self.flag != 0

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

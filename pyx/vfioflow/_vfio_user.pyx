"""A connection to a vfio-user server: one socket, and any number of threads that ask.

Whoever waits for a reply takes in what arrives, also for the others.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t
from libc.string cimport memset
from posix.unistd cimport close

from errnos cimport EAGAIN, ENODEV, ETIMEDOUT
from poll cimport POLLIN, POLLOUT
from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from sockets cimport iovec

import os

from vfioflow._fdio cimport wait_fd
from vfioflow._vfio_user_wire cimport (
    call_t,
    enter,
    forget_call,
    leave,
    line_t,
    lose,
    post,
    slot_t,
    take_in,
)
from vfioflow._waits cimport A_MOMENT, now_ns, wait_a_little

cdef enum:
    MOST_FDS = 8


cdef void pass_time(line_t *line, short events, int64_t until) noexcept nogil:
    cdef int64_t ns = min(until - now_ns(), <int64_t> A_MOMENT)
    cdef bint first = not line.polling
    if ns <= 0 or line.broken:
        return
    if not first and not events:
        wait_a_little(&line.changed, &line.lock, ns)
        return
    line.polling = True
    pthread_mutex_unlock(&line.lock)
    wait_fd(line.fd, events | POLLIN, -1, <int> (ns // 1000000) + 1)
    pthread_mutex_lock(&line.lock)
    if first:
        line.polling = False
        pthread_cond_broadcast(&line.changed)   # whoever waits for more than this thread does takes its place


cdef int exchange(line_t *line, call_t *call, slot_t *slot, const iovec *payload, const int *fds,
                  int fd_count, int64_t until) noexcept nogil:
    """Ask once, and wait for the reply.  0: it is there; -EAGAIN: not yet, call again; -errno."""
    cdef iovec parts[2]
    cdef int status = 0
    enter(line)
    while True:
        if not call.asked:
            parts[1] = payload[0]
            status = post(line, slot, parts, 2, fds, fd_count)
            call.asked = status == 0
        take_in(line, NULL)
        if call.done:
            status = 0
            break
        if line.broken:
            status = -line.broken
            break
        if now_ns() >= until:
            status = -EAGAIN
            break
        pass_time(line, POLLOUT if status == -EAGAIN else 0, until)
    leave(line)
    return status


cdef class Line:
    """A connection to a vfio-user server, by its socket, which it owns.

    Args:
        fd: of a connected stream socket.
        patience: seconds for a server that has taken a part of a message to take the rest.
    """

    def __cinit__(self, int fd, double patience):
        pthread_mutex_init(&self.c.lock, NULL)
        pthread_cond_init(&self.c.changed, NULL)
        self.c.fd = fd
        self.c.patience = <int64_t> (patience * 1e9)

    def __dealloc__(self):
        if self.c.fd >= 0:
            close(self.c.fd)
        pthread_cond_destroy(&self.c.changed)
        pthread_mutex_destroy(&self.c.lock)

    def fileno(self):
        """The socket's descriptor.  Raises OSError once closed."""
        if self.c.fd < 0:
            raise OSError(ENODEV, "the connection is closed")
        return self.c.fd

    @property
    def broken(self):
        """The errno for which it is of no use any more; 0: it is whole."""
        return self.c.broken

    @property
    def reason(self):
        """Why it is broken, in words; "" while it is whole."""
        if not self.c.broken:
            return ""
        return (<bytes> self.c.why).decode().format(was=self.c.was, expected=self.c.expected)

    @property
    def waiting(self):
        """Requests whose replies are due."""
        return self.c.count

    def request(self, uint16_t command, bytes payload not None, size_t most, double timeout, fds=()):
        """Ask, and wait for the reply; other threads may ask meanwhile.

        Args:
            command: its number.
            payload: what follows the header.
            most: bytes of the largest payload that a reply may have.
            timeout: seconds to wait; below 0: as long as the connection lives.
            fds: descriptors that go with it, at most 8.

        Returns:
            The server's errno (0: it was done), and the reply's payload.

        Raises:
            OSError: with the errno and the reason for which the connection is broken;
            TimeoutError: the reply is not there; it will be thrown away when it comes.
        """
        cdef bytearray into = bytearray(most + 1)
        cdef call_t call
        cdef slot_t slot
        cdef iovec part
        cdef int numbers[MOST_FDS]
        cdef int count = 0, status
        cdef int64_t until = INT64_MAX if timeout < 0 else now_ns() + <int64_t> (timeout * 1e9)
        if len(fds) > MOST_FDS:
            raise ValueError(f"at most {MOST_FDS} descriptors go with a message")
        for fd in fds:
            numbers[count] = fd
            count += 1
        memset(&call, 0, sizeof(call))
        memset(&slot, 0, sizeof(slot))
        call.into = <uint8_t *> <char *> into
        slot.call = &call
        slot.command = command
        slot.size = most
        part.iov_base = <char *> payload
        part.iov_len = len(payload)
        try:
            while True:
                with nogil:
                    status = exchange(&self.c, &call, &slot, &part, numbers, count,
                                      min(until, now_ns() + A_MOMENT))
                if status != -EAGAIN:
                    break
                if now_ns() >= until:
                    raise TimeoutError(ETIMEDOUT, os.strerror(ETIMEDOUT))
                PyErr_CheckSignals()
        finally:
            enter(&self.c)
            forget_call(&self.c, &call)
            leave(&self.c)
        if status < 0:
            self.fail()
        return call.error, bytes(into[:call.length])

    cdef object fail(self):
        raise OSError(self.c.broken, self.reason)

    def shut(self, int code, str reason not None):
        """Break it, if it is whole, end every wait, and close the socket when nobody is at work on it.

        Safe from any thread, and to call twice.
        """
        if self.kept is None:
            self.kept = reason.encode()
        enter(&self.c)
        lose(&self.c, code, <const char *> self.kept, 0, 0)
        self.c.closing = True
        leave(&self.c)

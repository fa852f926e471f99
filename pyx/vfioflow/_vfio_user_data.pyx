"""Migration data of a vfio-user device, as a pump reads or writes it: MIG_DATA_READ and MIG_DATA_WRITE.

There is no data fd that could be read; the pump's buffer is filled from the connection, or sent on it, with
several requests under way.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from errnos cimport EAGAIN, EINVAL, ENODEV, ETIMEDOUT
from poll cimport POLLOUT
from sockets cimport iovec

from vfioflow._fdio cimport PAGES_NEVER, port_t
from vfioflow._status cimport raise_status
from vfioflow._vfio_user cimport Line, pass_time
from vfioflow._vfio_user_wire cimport (
    DATA_HEAD,
    MIG_DATA_READ,
    MIG_DATA_WRITE,
    SLOTS,
    enter,
    forget_stream,
    leave,
    line_t,
    post,
    slot_t,
    stream_t,
    take_in,
)
from vfioflow._waits cimport A_MOMENT, now_ns

cdef enum:
    # How long a read that has something waits for more, so that small replies do not become small reads.
    SOON = 1000 * 1000          # nanoseconds
    MOST = SLOTS // 2           # requests under way: room for those that are no data


cdef int ask(stream_t *stream, uint16_t command, size_t size, const void *data, size_t length) noexcept nogil:
    """Send one request of the stream's.  0 or -errno."""
    cdef uint32_t head[2]
    cdef iovec parts[3]
    cdef slot_t slot
    cdef int status
    memset(&slot, 0, sizeof(slot))
    slot.command = command
    slot.size = size
    slot.stream = stream
    head[0] = <uint32_t> (DATA_HEAD + size)     # argsz: of the reply, or, having none, of the request
    head[1] = <uint32_t> size
    parts[1].iov_base = head
    parts[1].iov_len = DATA_HEAD
    parts[2].iov_base = <void *> data
    parts[2].iov_len = length
    status = post(stream.line, &slot, parts, 3 if length else 2, NULL, 0)
    if status == 0:
        stream.in_flight += 1
    return status


cdef int ask_for_more(stream_t *stream) noexcept nogil:
    """Keep as many reads under way as may be.  0, or -errno that kept one from being sent.

    In PRE_COPY never more than there is room for now: a server that cannot get rid of its replies does not
    serve its device either, and that one runs.
    """
    cdef size_t size
    cdef int status = 0
    while status == 0 and not (stream.tail or stream.at_end or stream.error or stream.dead):
        size = stream.piece
        if stream.precopy:
            size = min(size, stream.room - min(stream.due, stream.room))
        if size == 0 or stream.in_flight >= stream.most:
            break
        status = ask(stream, MIG_DATA_READ, size, NULL, 0)
        if status == 0:
            stream.due += size
    return status


cdef size_t from_stash(stream_t *stream, void *buffer, size_t size) noexcept nogil:
    cdef size_t n = min(size, stream.stash_to - stream.stash_from)
    if n > 0:
        memcpy(buffer, stream.stash + stream.stash_from, n)
        stream.stash_from += n
        if stream.stash_from == stream.stash_to:
            stream.stash_from = stream.stash_to = 0
    return n


cdef ssize_t over(const stream_t *stream) noexcept nogil:
    """Why a stream goes on no more: -errno, or 0."""
    if stream.error:
        return -stream.error
    if stream.line.broken:
        return -stream.line.broken
    return -ENODEV if stream.dead else 0


cdef ssize_t data_read(port_t *port, void *buffer, size_t size) noexcept nogil:
    cdef stream_t *stream = <stream_t *> port.context
    cdef ssize_t n
    enter(stream.line)
    n = from_stash(stream, buffer, size)
    if n == 0 and size > 0:
        stream.into, stream.room, stream.got = <uint8_t *> buffer, size, 0
        await_data(stream)
        n = stream.got
        stream.into, stream.room, stream.got = NULL, 0, 0
        if n == 0 and stream.at_end:
            nothing_left(stream)
        elif n == 0:
            n = over(stream)
            if n == 0:
                n = -EAGAIN
    if n > 0:
        stream.total += n
    leave(stream.line)
    return n


cdef void nothing_left(stream_t *stream) noexcept nogil:
    """Take note of how much came since the last time, and of how long that took."""
    cdef int64_t now = now_ns()
    stream.at_end = False
    stream.passes += 1
    stream.pass_bytes = stream.total - stream.pass_total
    stream.pass_took = now - stream.pass_ns
    stream.pass_total = stream.total
    stream.pass_ns = now


cdef void await_data(stream_t *stream) noexcept nogil:
    """Receive into the reader's buffer, until it is full, the stream says something else, or time is up."""
    cdef int64_t now = now_ns()
    cdef int64_t soon = now + SOON, late = now + A_MOMENT
    cdef line_t *line = stream.line
    cdef int status
    while True:
        status = ask_for_more(stream)
        take_in(line, stream)
        if stream.room == 0:
            ask_for_more(stream)        # the server goes on while the caller does something with it
            return
        if stream.at_end or line.broken or stream.dead:
            return
        if stream.error and stream.in_flight == 0:
            return
        now = now_ns()
        if now >= late or (stream.got > 0 and now >= soon):
            return
        if stream.in_flight > 0:
            pass_time(line, 0, soon if stream.got > 0 else late)
        elif status < 0:
            pass_time(line, POLLOUT if status == -EAGAIN else 0, late)


cdef ssize_t data_write(port_t *port, const void *buffer, size_t size) noexcept nogil:
    """Bytes that the server has taken; what was sent already is not sent again when the rest is offered."""
    cdef stream_t *stream = <stream_t *> port.context
    cdef ssize_t n
    enter(stream.line)
    await_taken(stream, <const uint8_t *> buffer, size)
    n = stream.acked
    stream.acked = 0
    stream.ahead -= n
    if n == 0:
        n = over(stream)
        if n == 0:
            n = -EAGAIN if stream.ahead <= size else -EINVAL
    leave(stream.line)
    return n


cdef void await_taken(stream_t *stream, const uint8_t *buffer, size_t size) noexcept nogil:
    cdef int64_t late = now_ns() + A_MOMENT
    cdef line_t *line = stream.line
    cdef size_t piece
    cdef int status
    while True:
        status = 0
        while (status == 0 and stream.ahead < size and stream.in_flight < stream.most
               and not (stream.error or stream.dead)):
            piece = min(stream.piece, size - stream.ahead)
            status = ask(stream, MIG_DATA_WRITE, piece, buffer + stream.ahead, piece)
            if status == 0:
                stream.ahead += piece
        take_in(line, NULL)
        if stream.acked >= size or line.broken or stream.dead or now_ns() >= late:
            return
        if stream.error and stream.in_flight == 0:
            return
        if stream.in_flight < stream.most and stream.ahead < size and status == 0 and not stream.error:
            continue
        pass_time(line, POLLOUT if status == -EAGAIN else 0, late)


@cython.no_gc   # it refers to nothing that could refer to it
cdef class DataPort(Port):
    """The data of a session, in one direction.

    Reading gives 0 when nothing is left: for now in PRE_COPY, for good in STOP_COPY.  Writing gives what the
    server has taken.  ENODEV once the session is over.

    Args:
        fd: to poll for news; a duplicate of the connection's.
        line: the connection.
        piece: most bytes of data in one request.
        most: requests under way at most.
        precopy: whether the session begins in PRE_COPY.
    """

    def __cinit__(self, int fd, Line line not None, size_t piece, int most, bint precopy):
        if piece == 0 or not 0 < most <= MOST:
            raise_status(-EINVAL)
        self.owner = line
        self.stream.line = &line.c
        self.stream.piece = piece
        self.stream.most = most
        self.stream.precopy = precopy
        self.stream.pass_ns = now_ns()
        self.c.context = &self.stream
        self.c.pages = PAGES_NEVER
        self.c.read = data_read
        self.c.write = data_write

    def __dealloc__(self):
        if self.stream.line != NULL:
            enter(self.stream.line)
            forget_stream(self.stream.line, &self.stream)
            leave(self.stream.line)
        free(self.stream.stash)

    @property
    def advice(self):
        """What is wrong with the connection; "" while it is whole."""
        return self.owner.reason

    def progress(self):
        """How far reading is.

        Bytes so far; how many times nothing was left; of the time since the last of these, and of the time
        before it back to the last but one: bytes and seconds.
        """
        cdef stream_t *s = &self.stream
        return (s.total, s.passes, (s.total - s.pass_total, (now_ns() - s.pass_ns) / 1e9),
                (s.pass_bytes, s.pass_took / 1e9))

    def stop_copy(self, double timeout):
        """Before PRE_COPY -> STOP_COPY: wait for what was asked for; from then on 0 is the end.

        Raises OSError: the connection is broken; TimeoutError: not within ``timeout`` seconds.
        """
        cdef int64_t until = now_ns() + <int64_t> (timeout * 1e9)
        cdef int status
        with nogil:
            status = settle(&self.stream, until)
        if status < 0:
            if self.stream.line.broken:
                self.owner.fail()
            raise_status(status)

    def end(self):
        """The session is over: what was asked for is thrown away when it comes."""
        enter(self.stream.line)
        forget_stream(self.stream.line, &self.stream)
        leave(self.stream.line)

    def write(self, const unsigned char[::1] data not None):
        """One write as a pump does it, for callers in Python: the bytes taken.  Raises OSError."""
        cdef ssize_t n
        if self.c.closed or data.shape[0] == 0:
            raise_status(-EINVAL)
        with nogil:
            n = data_write(&self.c, &data[0], data.shape[0])
        if n < 0:
            raise_status(<int> n)
        return n


cdef int settle(stream_t *stream, int64_t until) noexcept nogil:
    cdef line_t *line = stream.line
    cdef int status = 0
    enter(line)
    while stream.in_flight > 0 and status == 0:
        take_in(line, NULL)
        if line.broken:
            status = -line.broken
        elif now_ns() >= until:
            status = -ETIMEDOUT
        elif stream.in_flight > 0:
            pass_time(line, 0, until)
    stream.precopy = False
    stream.at_end = False
    leave(line)
    return status

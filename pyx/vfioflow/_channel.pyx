"""Channels: the connections that data frames take."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close, dup

from errnos cimport EAGAIN, ECANCELED, ECONNRESET, EINTR, ENODATA, errno
from pipes cimport SIOCOUTQNSD, ioctl, sendfile
from poll cimport POLLIN, POLLOUT, poll, pollfd
from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from sockets cimport (
    MSG_DONTWAIT,
    MSG_MORE,
    MSG_NOSIGNAL,
    MSG_WAITALL,
    SO_RCVLOWAT,
    SOL_SOCKET,
    iovec,
    msghdr,
    recv,
    send,
    sendmsg,
    setsockopt,
)

from vfioflow._fault cimport AT_WIRE, fail, fault_t, raise_fault
from vfioflow._buffers cimport Pool
from vfioflow._fdio cimport fd_splice
from vfioflow._frame cimport HEADER_SIZE, KIND_CLOSE, KIND_PAD, encode
from vfioflow._mac cimport TAG_SIZE, mac_tag
from vfioflow._status cimport check
from vfioflow._waits cimport A_MOMENT, Limiter, wait_a_little
from vfioflow._window cimport (
    window_close,
    window_flush,
    window_give_up,
    window_look,
    window_open,
    window_park,
    window_resume,
    window_send,
    window_unpark,
)

from vfioflow.errors import ProtocolError

cdef enum:
    # From this size, saving wake-ups is worth the three calls that it takes.
    ONE_WAKE_UP = 256 * 1024


cdef int recv_all(int fd, void *buffer, size_t size) noexcept nogil:
    """0 when filled, or -errno; the end of the connection is one."""
    cdef size_t have = 0
    cdef ssize_t n
    while have < size:
        n = recv(fd, <char *> buffer + have, size - have, MSG_WAITALL)
        if n > 0:
            have += n
        elif n == 0:
            return -ECONNRESET
        elif errno != EINTR:
            return -errno
    return 0


cdef bint await_bytes(int fd, size_t size) noexcept nogil:
    """Sleep until so many bytes are there, the socket is full, or the peer has ended; not at each segment.

    Worth it, about a tenth for a MiB, from ONE_WAKE_UP bytes; else returns False and does nothing.
    """
    cdef pollfd about
    cdef int lowest = <int> size
    if size < ONE_WAKE_UP:
        return False
    about.fd = fd
    about.events = POLLIN
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &lowest, sizeof(lowest))
    # Not recv itself: it would take what comes first, and then sleep until as much again is there.
    poll(&about, 1, -1)
    lowest = 1
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &lowest, sizeof(lowest))
    return True


cdef int recv_payload(int fd, void *buffer, size_t size) noexcept nogil:
    """As recv_all, with as few wake-ups as possible."""
    cdef ssize_t n
    while size >= ONE_WAKE_UP:
        n = recv(fd, buffer, size, MSG_DONTWAIT)
        if n > 0:
            buffer = <char *> buffer + n
            size -= n
        elif n == 0:
            return -ECONNRESET
        elif errno == EAGAIN:
            await_bytes(fd, size)
        elif errno != EINTR:
            return -errno
    return recv_all(fd, buffer, size)


cdef int enter(channel_t *channel, Cancel cancel) noexcept nogil:
    """Wait for the channel; in the order of asking, so that no lane starves another.  0 or -ECANCELED."""
    cdef uint64_t ticket
    cdef int status = 0
    pthread_mutex_lock(&channel.lock)
    ticket = channel.tickets
    channel.tickets += 1
    while channel.serving != ticket and status == 0:
        wait_a_little(&channel.turn, &channel.lock, A_MOMENT)
        if cancel.flag:     # a ticket that is never used: nobody needs the channel any more
            status = -ECANCELED
    pthread_mutex_unlock(&channel.lock)
    return status


cdef bint try_enter(channel_t *channel) noexcept nogil:
    cdef bint free
    pthread_mutex_lock(&channel.lock)
    free = channel.serving == channel.tickets
    channel.tickets += free
    pthread_mutex_unlock(&channel.lock)
    return free


cdef void leave(channel_t *channel) noexcept nogil:
    pthread_mutex_lock(&channel.lock)
    channel.serving += 1
    pthread_cond_broadcast(&channel.turn)
    pthread_mutex_unlock(&channel.lock)


cdef size_t unsent(const channel_t *channel) noexcept nogil:
    """Bytes that the socket holds and has not put on the wire yet; 0 where it cannot tell."""
    cdef int waiting = 0
    return waiting if ioctl(channel.fd, SIOCOUTQNSD, &waiting) == 0 else 0


cdef bint writable(const channel_t *channel) noexcept nogil:
    cdef pollfd about
    about.fd = channel.fd
    about.events = POLLOUT
    return poll(&about, 1, 0) == 1


cdef size_t frame_size(const channel_t *channel, const frame_t *frame) noexcept nogil:
    return HEADER_SIZE + <size_t> frame.length + (TAG_SIZE if channel.mac != NULL else 0)


cdef int send_frame(channel_t *channel, const frame_t *frame, const void *payload,
                    Cancel cancel) noexcept nogil:
    """Send a frame whole; the caller has entered the channel.  0 or -errno."""
    cdef uint8_t header[HEADER_SIZE]
    cdef uint8_t tag[TAG_SIZE]
    cdef iovec parts[3]
    cdef size_t tag_size = 0
    cdef int status = 0
    encode(frame, header)
    if channel.mac != NULL:
        tag_size = TAG_SIZE
        status = mac_tag(channel.mac, header, HEADER_SIZE, payload, frame.length, tag)
        channel.mac.number += 1
    parts[0].iov_base = header
    parts[0].iov_len = HEADER_SIZE
    parts[1].iov_base = <void *> payload
    parts[1].iov_len = frame.length
    parts[2].iov_base = tag
    parts[2].iov_len = tag_size
    if status == 0 and channel.window.size > 0:
        status = window_send(&channel.window, &channel.fd, parts, 3, cancel)
    elif status == 0:
        status = send_parts(channel.fd, parts, 3)
    if status == 0:
        channel.wire_bytes += frame_size(channel, frame)
    return status


cdef int send_parts(int fd, iovec *parts, int count) noexcept nogil:
    """Send all of them, which are used up.  0 or -errno."""
    cdef msghdr message
    cdef size_t part
    cdef ssize_t n
    memset(&message, 0, sizeof(message))
    while count > 0:
        message.msg_iov = parts
        message.msg_iovlen = count
        n = sendmsg(fd, &message, MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        while count > 0 and (n > 0 or parts.iov_len == 0):
            part = min(<size_t> n, parts.iov_len)
            parts.iov_base = <char *> parts.iov_base + part
            parts.iov_len -= part
            n -= part
            if parts.iov_len == 0:
                parts += 1
                count -= 1
    return 0


cdef int send_pages_frame(channel_t *channel, const frame_t *frame, int fd, bint is_pipe) noexcept nogil:
    """As send_frame; the payload is what comes next in a file or pipe.  -ENODATA: it ended in the middle."""
    cdef uint8_t header[HEADER_SIZE]
    cdef size_t left = HEADER_SIZE
    cdef ssize_t n
    encode(frame, header)
    while left > 0:
        n = send(channel.fd, header + HEADER_SIZE - left, left, MSG_NOSIGNAL | MSG_MORE)
        if n >= 0:
            left -= n
        elif errno != EINTR:
            return -errno
    left = frame.length
    while left > 0:
        n = fd_splice(fd, channel.fd, left) if is_pipe else sendfile(channel.fd, fd, NULL, left)
        if n > 0:
            left -= n
        elif n == 0:
            return -ENODATA
        elif is_pipe:
            return <int> n
        elif errno != EINTR:
            return -errno
    channel.wire_bytes += frame_size(channel, frame)
    return 0


cdef class Channel:
    """One connection for data frames.  Takes a connected stream socket and keeps it blocking.

    A frame goes out whole: lanes that share a channel wait for each other.  Shutting the socket
    down ends every pump that uses it, unless there is a window: then they wait for another connection.

    Args:
        socket: the connection.
        window: bytes to keep until the receiver has dealt with them, at least two frames; 0: none.
        sender: whether this end sends.
        signal_fd: an eventfd, written when the connection breaks; -1: none.
        key: of the tags of its frames, 32 bytes; empty: none.
    """

    def __cinit__(self, socket, size_t window=0, *, bint sender=False, int signal_fd=-1, bytes key=b""):
        self.signal_fd = -1
        if key:
            self.mac = Mac(key)
            self.c.mac = &self.mac.c
        if signal_fd >= 0:
            self.signal_fd = check(dup(signal_fd))      # a pump that is stuck may outlive the session
        if window_open(&self.c.window, window, sender, self.signal_fd) < 0:
            raise MemoryError(f"no memory for a window of {window} bytes")
        self.opened = 1
        pthread_mutex_init(&self.c.lock, NULL)
        pthread_cond_init(&self.c.turn, NULL)
        socket.setblocking(True)
        self.socket = socket
        self.c.fd = socket.fileno()

    def __dealloc__(self):
        if self.signal_fd >= 0:
            close(self.signal_fd)
        if self.owned:
            close(self.c.fd)
        if self.opened:
            window_close(&self.c.window)
            pthread_cond_destroy(&self.c.turn)
            pthread_mutex_destroy(&self.c.lock)

    def keep(self):
        """Take the descriptor from the socket: it is closed when the last pump is done with it."""
        if not self.owned:
            self.socket.detach()
            self.owned = 1

    @property
    def wire_bytes(self):
        """Bytes sent on this connection, headers included."""
        return self.c.wire_bytes

    @property
    def pad_bytes(self):
        """Pad bytes received on this connection."""
        return self.c.pad_bytes

    @property
    def broken(self):
        """Whether the connection is broken, and the pumps wait for another."""
        return self.c.window.broken != 0

    def look(self):
        """Notice a connection that broke while no pump used it; whether it is broken.  For a sender."""
        return window_look(&self.c.window, &self.c.fd)

    def unheard(self, uint64_t heard):
        """Bytes that were sent, and have to be again, to a receiver that has dealt with ``heard``."""
        cdef uint64_t sent
        pthread_mutex_lock(&self.c.window.lock)
        sent = self.c.window.sent
        pthread_mutex_unlock(&self.c.window.lock)
        return sent - heard if sent > heard else 0

    def resume(self, socket, uint64_t heard, Cancel cancel not None):
        """Go on sending over ``socket``, whose receiver has dealt with ``heard`` bytes.

        Blocking: what was lost is sent again.  The old socket, which must be shut down, is not used any more.

        Raises:
            ProtocolError: the receiver cannot have come that far.
            PeerLost: given up meanwhile.
        """
        cdef int status
        cdef int fd = socket.fileno()
        cdef fault_t fault
        socket.setblocking(True)
        with nogil:
            status = window_resume(&self.c.window, &self.c.fd, fd, heard)
        if status < 0:
            raise ProtocolError(f"the peer says that it took {heard} bytes of a channel, which cannot be")
        self.socket = socket
        with nogil:
            status = window_flush(&self.c.window, &self.c.fd, cancel)
        if status < 0 and not cancel.flag:
            fail(&fault, AT_WIRE, status, -1, 0)
            raise_fault(&fault, "", "")

    def park(self, Cancel cancel not None):
        """Wait until the receiving pump is done with the old socket, which must be shut down.

        Blocking.  Returns how many bytes it has dealt with, or None when there is nothing to wait for.
        """
        cdef uint64_t heard
        cdef int status
        with nogil:
            status = window_park(&self.c.window, cancel, &heard)
        return heard if status == 0 else None

    def unpark(self, socket):
        """Let the receiving pump go on over ``socket``."""
        socket.setblocking(True)
        window_unpark(&self.c.window, &self.c.fd, socket.fileno())
        self.socket = socket

    def give_up(self):
        """Let the pumps fail that wait for another connection."""
        window_give_up(&self.c.window)

    def finish(self, Cancel cancel not None):
        """Say that nothing more comes on this channel.  Raises PeerLost."""
        cdef frame_t frame
        cdef fault_t fault
        cdef int status
        memset(&frame, 0, sizeof(frame))
        frame.kind = KIND_CLOSE
        with nogil:
            status = enter(&self.c, cancel)
            if status == 0:
                status = send_frame(&self.c, &frame, NULL, cancel)
                leave(&self.c)
        if status < 0 and not cancel.flag:
            fail(&fault, AT_WIRE, status, -1, 0)
            raise_fault(&fault, "", "")

    def pad(self, size_t size, Pool pool not None, Limiter limiter not None, Cancel cancel not None):
        """Send ``size`` bytes that the receiver throws away, to measure the wire.

        Raises:
            PeerLost: the connection failed.
            MemoryError: no buffer.
        """
        cdef frame_t frame
        cdef fault_t fault
        cdef int status = 0
        cdef void *buffer = pool.take()
        if buffer == NULL:
            raise MemoryError("no buffer to measure the wire with")
        memset(&frame, 0, sizeof(frame))
        frame.kind = KIND_PAD
        with nogil:
            status = enter(&self.c, cancel)
            while size > 0 and status == 0:
                frame.length = <uint32_t> min(size, pool.size)
                status = limiter.take(frame.length, cancel.fd)
                if status == 0:
                    status = send_frame(&self.c, &frame, buffer, cancel)
                size -= frame.length
            if status != -ECANCELED:
                leave(&self.c)
        pool.give(buffer)
        if status < 0 and not cancel.flag:
            fail(&fault, AT_WIRE, status, -1, 0)
            raise_fault(&fault, "", "")

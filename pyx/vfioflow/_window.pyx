"""The window of a channel: what makes a connection that breaks no loss.

The sender keeps a copy of what it sent until the receiver has dealt with it.  The receiver says now
and then how many bytes of the channel's stream that is, always a whole number of frames.  When the
connection breaks, both wait; on the next one the sender goes on from there.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from endians cimport htole64, le64toh
from errnos cimport EAGAIN, ECANCELED, ECONNRESET, EINTR, EMSGSIZE, ENOMEM, EPROTO, errno
from eventfd cimport eventfd_write
from poll cimport POLLIN, POLLOUT, poll, pollfd
from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, recv, send

from vfioflow._waits cimport A_MOMENT, wait_a_little

cdef enum:
    ACKS = 8                    # acknowledgements in a window's worth of bytes
    MOMENT_MS = 100             # to look at the cancel switch again


cdef int window_open(window_t *window, size_t size, bint sender, int signal_fd) noexcept nogil:
    """0 or -ENOMEM.  ``size`` 0: no window."""
    window.signal_fd = signal_fd
    if sender and size > 0:
        window.ring = <uint8_t *> mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if window.ring == MAP_FAILED:
            window.ring = NULL
            return -ENOMEM
    window.size = size
    window.running = not sender     # or will be, soon
    pthread_mutex_init(&window.lock, NULL)
    pthread_cond_init(&window.changed, NULL)
    return 0


cdef void window_close(window_t *window) noexcept nogil:
    pthread_cond_destroy(&window.changed)
    pthread_mutex_destroy(&window.lock)
    if window.ring != NULL:
        munmap(window.ring, window.size)
        window.ring = NULL


cdef void signal(window_t *window) noexcept nogil:
    pthread_cond_broadcast(&window.changed)
    if window.signal_fd >= 0:
        eventfd_write(window.signal_fd, 1)


cdef int await_another(window_t *window, Cancel cancel) noexcept nogil:
    """Called with the lock.  0, -ECONNRESET (there will be none) or -ECANCELED."""
    while window.broken and not window.lost and not cancel.flag:
        wait_a_little(&window.changed, &window.lock, A_MOMENT)
    if cancel.flag:
        return -ECANCELED
    return -ECONNRESET if window.lost else 0


cdef void mark_broken(window_t *window) noexcept nogil:
    if not window.broken:
        window.broken = 1
        signal(window)


cdef void read_acks(window_t *window, int fd) noexcept nogil:
    """Take the acknowledgements that have come.  Called with the lock."""
    cdef uint64_t value
    cdef ssize_t n
    while not window.broken:
        n = recv(fd, window.ack + window.ack_have, ACK_SIZE - window.ack_have, MSG_DONTWAIT)
        if n > 0:
            window.ack_have += <int> n
            if window.ack_have < ACK_SIZE:
                continue
            window.ack_have = 0
            memcpy(&value, window.ack, ACK_SIZE)
            value = le64toh(value)
            if value < window.heard or value > window.sent:     # not of our peer's making
                mark_broken(window)
                return
            window.heard = value
        elif n < 0 and errno == EAGAIN:
            return
        elif n == 0 or errno != EINTR:
            mark_broken(window)


cdef int make_room(window_t *window, int *fd, size_t size, Cancel cancel) noexcept nogil:
    """Wait until so much may be sent unacknowledged.  Called with the lock.  0 or -errno.

    The lock is free while it waits: a peer that says nothing must not hold up who brings another
    connection.
    """
    cdef pollfd about
    cdef int status = 0
    if size > window.size:
        return -EMSGSIZE
    while window.size - <size_t> (window.head - window.heard) < size:
        read_acks(window, fd[0])
        if window.broken:
            status = await_another(window, cancel)
            if status < 0:
                return status
            status = flush(window, fd, cancel, True)
            if status < 0:
                return status
        elif window.size - <size_t> (window.head - window.heard) < size:
            about.fd = fd[0]
            about.events = POLLIN
            pthread_mutex_unlock(&window.lock)      # another connection may take this one's place meanwhile
            poll(&about, 1, MOMENT_MS)
            pthread_mutex_lock(&window.lock)
            if cancel.flag:
                return -ECANCELED
    return 0


cdef int flush(window_t *window, int *fd, Cancel cancel, bint patient) noexcept nogil:
    """Send what the present connection has not had yet; if ``patient``, over as many as it takes.

    Called with the lock.  0 or -errno.
    """
    cdef size_t at, size
    cdef ssize_t n
    cdef int status
    while window.sent < window.head:
        if window.broken:
            if not patient:
                return 0
            status = await_another(window, cancel)
            if status < 0:
                return status
            continue
        at = window.sent % window.size
        size = min(<size_t> (window.head - window.sent), window.size - at)
        n = send(fd[0], window.ring + at, size, MSG_NOSIGNAL)
        if n >= 0:
            window.sent += n
        elif cancel.flag:
            return -ECANCELED
        elif errno != EINTR:
            mark_broken(window)
    return 0


cdef void put(window_t *window, const void *data, size_t size) noexcept nogil:
    cdef size_t at = window.head % window.size
    cdef size_t part = min(size, window.size - at)
    if size > 0:
        memcpy(window.ring + at, data, part)
        memcpy(window.ring, <const char *> data + part, size - part)
        window.head += size


cdef int window_send(window_t *window, int *fd, const iovec *parts, int count, Cancel cancel) noexcept nogil:
    """Send the parts of a frame, waiting for room and over as many connections as it takes.  0 or -errno.

    ``fd`` is where the channel keeps its connection: another may take its place meanwhile.
    """
    cdef size_t size = 0
    cdef int status, i
    for i in range(count):
        size += parts[i].iov_len
    pthread_mutex_lock(&window.lock)
    status = make_room(window, fd, size, cancel)
    if status == 0:
        for i in range(count):
            put(window, parts[i].iov_base, parts[i].iov_len)
        status = flush(window, fd, cancel, True)
    pthread_mutex_unlock(&window.lock)
    return status


cdef int window_flush(window_t *window, int *fd, Cancel cancel) noexcept nogil:
    """Send what the present connection has not had yet, unless it breaks too.  0 or -errno."""
    cdef int status
    pthread_mutex_lock(&window.lock)
    status = flush(window, fd, cancel, False)
    pthread_mutex_unlock(&window.lock)
    return status


cdef bint window_look(window_t *window, const int *fd) noexcept nogil:
    """Whether the connection is broken, without waiting; for a sender that may be idle."""
    if pthread_mutex_trylock(&window.lock) == 0:
        if window.ring != NULL:
            read_acks(window, fd[0])
        pthread_mutex_unlock(&window.lock)
    return window.broken != 0


cdef int window_resume(window_t *window, int *fd, int new_fd, uint64_t heard) noexcept nogil:
    """The sender goes on over another connection.  0, or -EPROTO: the peer cannot be where it says."""
    cdef int status = 0
    pthread_mutex_lock(&window.lock)
    if heard < window.heard or heard > window.head:
        status = -EPROTO
    else:
        window.heard = window.sent = heard
        window.ack_have = 0
        window.broken = 0
        fd[0] = new_fd
        signal(window)
    pthread_mutex_unlock(&window.lock)
    return status


cdef void window_dealt_with(window_t *window, int fd, size_t size, bint last) noexcept nogil:
    """The receiver is through with a frame of so many bytes; say so from time to time."""
    cdef uint64_t value
    cdef uint8_t ack[ACK_SIZE]
    cdef pollfd about
    cdef int have = 0
    cdef ssize_t n
    window.heard += size
    if window.size == 0 or (window.heard - window.told < window.size / ACKS and not last):
        return
    value = htole64(window.heard)
    memcpy(ack, &value, ACK_SIZE)
    while have < ACK_SIZE:
        n = send(fd, ack + have, ACK_SIZE - have, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n > 0:
            have += <int> n
        elif errno == EAGAIN and have > 0:
            about.fd = fd
            about.events = POLLOUT
            poll(&about, 1, MOMENT_MS)
        elif errno != EINTR:    # broken, as the next recv will find; or full: the next one will do
            return
    window.told = window.heard


cdef int window_await(window_t *window, Cancel cancel) noexcept nogil:
    """The receiver found the connection broken: wait for another.  0 or -errno."""
    cdef int status
    if window.size == 0:
        return -ECONNRESET
    pthread_mutex_lock(&window.lock)
    window.parked = 1
    mark_broken(window)
    signal(window)
    status = await_another(window, cancel)
    window.parked = 0
    pthread_mutex_unlock(&window.lock)
    return status


cdef void window_done(window_t *window) noexcept nogil:
    """The receiver will take nothing more."""
    pthread_mutex_lock(&window.lock)
    window.running = 0
    signal(window)
    pthread_mutex_unlock(&window.lock)


cdef int window_park(window_t *window, Cancel cancel, uint64_t *heard) noexcept nogil:
    """Wait until the receiving thread is done with the old connection; how far it got.  0 or -errno."""
    cdef int status = 0
    pthread_mutex_lock(&window.lock)
    while window.running and not window.parked and not window.lost and not cancel.flag:
        wait_a_little(&window.changed, &window.lock, A_MOMENT)
    if cancel.flag or window.lost:
        status = -ECANCELED
    heard[0] = window.heard
    pthread_mutex_unlock(&window.lock)
    return status


cdef void window_unpark(window_t *window, int *fd, int new_fd) noexcept nogil:
    """The receiver goes on over another connection."""
    pthread_mutex_lock(&window.lock)
    window.told = window.heard
    window.broken = 0
    fd[0] = new_fd
    signal(window)
    pthread_mutex_unlock(&window.lock)


cdef void window_give_up(window_t *window) noexcept nogil:
    """There will be no other connection.

    Without the lock, which a sender holds while its peer reads nothing; who waits looks again in a moment.
    """
    window.lost = 1
    signal(window)

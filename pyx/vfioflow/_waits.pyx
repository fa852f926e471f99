"""The clock, and how pumps wait: for a device, for each other, for their share of the wire."""

from libc.stdint cimport int64_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from errnos cimport ETIMEDOUT
from pthread cimport (
    pthread_cond_t,
    pthread_cond_timedwait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)

from vfioflow._fdio cimport port_t, wait_fd

cdef enum:
    # Longest that a limited lane may fall behind its rate and still catch up: 10 ms.
    BURST_NS = 10 * 1000 * 1000
    # How long a wait may go on at a rate that was changed.
    LOOK_MS = 100


cdef int64_t now_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t> time.tv_sec * 1000000000 + time.tv_nsec


cdef int64_t thread_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return <int64_t> time.tv_sec * 1000000000 + time.tv_nsec


cdef int wait_port(port_t *port, short events, int *rounds, int cancel_fd) noexcept nogil:
    """Wait until a port that said EAGAIN is worth another try.

    A driver without .poll is always "ready": then only a pause of a millisecond keeps the loop
    from spinning.
    """
    cdef int status
    if rounds[0] > 1:
        status = wait_fd(-1, 0, cancel_fd, 1)
    else:
        status = wait_fd(port.fd, events, cancel_fd, 100)
    if status == -ETIMEDOUT:
        return 0        # it has a .poll, which said no
    rounds[0] += 1
    return status


cdef void wait_a_little(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t ns) noexcept nogil:
    cdef timespec until
    clock_gettime(CLOCK_REALTIME, &until)
    until.tv_nsec += ns     # less than a second
    if until.tv_nsec >= 1000000000:
        until.tv_nsec -= 1000000000
        until.tv_sec += 1
    pthread_cond_timedwait(cond, lock, &until)


cdef class Limiter:
    """A rate that several lanes share, in bytes a second; 0 is no limit.  May be changed at any time."""

    def __cinit__(self, rate=0):
        pthread_mutex_init(&self.lock, NULL)
        self.rate = rate

    def __dealloc__(self):
        pthread_mutex_destroy(&self.lock)

    @property
    def rate(self):
        """Bytes a second; 0 is no limit."""
        return self._rate

    @rate.setter
    def rate(self, uint64_t rate):
        pthread_mutex_lock(&self.lock)
        self._rate = rate
        self.free_at = 0        # what was owed at another rate is forgiven
        self.changes += 1
        pthread_mutex_unlock(&self.lock)

    cdef int take(self, size_t size, int cancel_fd) noexcept nogil:
        cdef int64_t now, due
        cdef uint64_t changes
        cdef int status
        if self._rate == 0:
            return 0
        pthread_mutex_lock(&self.lock)
        if self._rate == 0:     # since just now
            pthread_mutex_unlock(&self.lock)
            return 0
        now = now_ns()
        if self.free_at < now - BURST_NS:
            self.free_at = now - BURST_NS
        self.free_at += <int64_t> (<double> size * 1e9 / self._rate)
        due = self.free_at
        changes = self.changes
        pthread_mutex_unlock(&self.lock)
        while due - now >= 1000000 and changes == self.changes:
            status = wait_fd(-1, 0, cancel_fd, <int> min((due - now) // 1000000, LOOK_MS))
            if status != -ETIMEDOUT:
                return status
            now = now_ns()
        return 0

# The clock, and how pumps wait.
from libc.stdint cimport int64_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._fdio cimport port_t

cdef enum:
    A_MOMENT = 100 * 1000 * 1000    # nanoseconds


cdef class Limiter:
    cdef pthread_mutex_t lock
    cdef uint64_t _rate
    cdef int64_t free_at
    cdef uint64_t changes
    cdef int take(self, size_t size, int cancel_fd) noexcept nogil


cdef int64_t now_ns() noexcept nogil
cdef int64_t thread_ns() noexcept nogil         # of processor time
cdef int wait_port(port_t *port, short events, int *rounds, int cancel_fd) noexcept nogil
# Wait for a signal, or for so long; A_MOMENT is to look at the cancel switch again
cdef void wait_a_little(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t ns) noexcept nogil

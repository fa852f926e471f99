# Whether to compress now, and at which level.
cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    LEVELS = 3

cdef int level_of(int which) noexcept nogil

ctypedef struct sample_t:       # sums in which older samples fade
    double size
    double packed
    double ns


@cython.final
cdef class Balance:
    cdef readonly bint packing
    cdef readonly int level
    cdef readonly double raw_rate   # bytes a nanosecond
    cdef sample_t samples[LEVELS]
    cdef int choice
    cdef uint64_t size              # of this period
    cdef int64_t ns
    cdef uint64_t backlog
    cdef int64_t began
    cdef int64_t cpu_began
    cdef int64_t period_ns
    cdef int64_t hold_ns
    cdef int64_t held_until
    cdef int periods                # with compression, since it began
    cdef int slow_periods           # of them, in a row
    cpdef void sent(self, uint64_t size, int64_t ns) noexcept nogil
    cpdef void sampled(self, int which, uint64_t size, uint64_t packed, int64_t ns) noexcept nogil
    cpdef bint due(self) noexcept nogil
    cpdef void decide(self, int64_t now, int64_t cpu, uint64_t backlog, double threads) noexcept nogil
    cdef bint too_slow(self, double rate) noexcept nogil
    cdef double goodput(self, int which, double threads) noexcept nogil
    cdef double speed(self, int which, double threads) noexcept nogil

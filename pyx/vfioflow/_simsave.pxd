# The saving side: the thread that turns the state into a stream.

from libc.stdint cimport uint64_t

from vfioflow._simcore cimport core_t

cdef uint64_t trailer_length(core_t *core) noexcept nogil
cdef int start_pass(core_t *core) noexcept nogil
cdef void feed(core_t *core) noexcept nogil

# The loading side: the thread that takes a stream and checks it.

from vfioflow._simcore cimport core_t

cdef int load_check(core_t *core) noexcept nogil
cdef void consume(core_t *core) noexcept nogil

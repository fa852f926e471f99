# A simulated device's core object.

from vfioflow._simcore cimport core_t
from vfioflow._simfabric cimport FabricCore


cdef class SimCore:
    cdef core_t c
    cdef int ready
    cdef object tile            # of the present content
    cdef object home            # of the content it was made with
    cdef object thread
    cdef FabricCore fabric
    cdef int open_session(self, int kind, int fds[2], int mine) except -1
    cdef int peek(self) noexcept nogil

# How a pump fails.
from libc.stdint cimport uint64_t

# Where a pump failed; with a negative errno this is all that it reports.
cdef enum where_t:
    AT_DEVICE = 1
    AT_WIRE
    AT_FRAME
    AT_DIGEST
    AT_ZSTD
    AT_MEMORY
    AT_TAG

ctypedef struct fault_t:
    where_t where
    int status
    int lane                    # -1: none
    uint64_t offset


# Fill in `fault` and return its status
cdef int fail(fault_t *fault, where_t where, int status, int lane, uint64_t offset) noexcept nogil
cdef object raise_fault(fault_t *fault, object name, object action, object port=*, str title=*)

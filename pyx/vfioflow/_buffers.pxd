# Page-aligned buffers of one size, taken and given back without the GIL.
from pthread cimport pthread_mutex_t

cdef class Pool:
    cdef pthread_mutex_t lock
    cdef readonly size_t size       # bytes of each buffer
    cdef readonly int capacity      # at most so many exist
    cdef readonly int allocated
    cdef int idle
    cdef void **free
    cdef void *take(self) noexcept nogil                # NULL: none left, or no memory
    cdef void give(self, void *buffer) noexcept nogil   # NULL is ignored

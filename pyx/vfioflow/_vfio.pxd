# The VFIO uAPI's calls, without the GIL: each returns 0 or more, or -errno.
from libc.stdint cimport uint32_t

from vfio cimport vf_feature


cdef int call(int fd, unsigned long request, void *argument) noexcept nogil
# One VFIO_DEVICE_FEATURE; size: of the data behind the header
cdef int feature(int fd, uint32_t flags, vf_feature *argument, uint32_t size) noexcept nogil

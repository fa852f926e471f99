# The port onto a simulated device's data fd.

from libc.stdint cimport uint64_t

from vfioflow._fdio cimport Port
from vfioflow._sim cimport SimCore
from vfioflow._simcore cimport core_t

ctypedef struct shim_t:
    core_t *core
    uint64_t serial             # of the session that the port belongs to


cdef class SimPort(Port):
    cdef shim_t shim
    cdef SimCore owner

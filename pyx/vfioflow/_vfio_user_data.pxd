# The port onto the migration data of a device behind a vfio-user server.
from vfioflow._fdio cimport Port
from vfioflow._vfio_user cimport Line
from vfioflow._vfio_user_wire cimport stream_t


cdef class DataPort(Port):
    cdef stream_t stream
    cdef Line owner

# A connection to a vfio-user server: one owner of the socket, for any number of threads that ask.
from libc.stdint cimport int64_t

from vfioflow._vfio_user_wire cimport line_t


cdef class Line:
    cdef line_t c
    cdef bytes kept             # the reason that shut was given
    cdef object fail(self)


# With the line entered: let time pass until there may be news; `events`: POLLOUT to be able to send
cdef void pass_time(line_t *line, short events, int64_t until) noexcept nogil

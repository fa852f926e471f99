# The one place where a C status becomes an exception.
cdef int check(int result) except? -1
cdef object raise_status(int status)

# cython: language_level=3
"""The one place where a C status becomes an exception."""

import os

from errnos cimport errno


cdef int check(int result) except? -1:
    """``result`` of a system call, or OSError for the errno it left behind."""
    if result < 0:
        raise_status(-errno)
    return result


cdef object raise_status(int status):
    """Raise OSError for ``status``, a negative errno; OSError picks the subclass."""
    raise OSError(-status, os.strerror(-status))

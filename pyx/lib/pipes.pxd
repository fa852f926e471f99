# Extern declarations only: the Linux side of pipes that Cython's posix package lacks.
cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    """

cdef extern from "<fcntl.h>" nogil:
    const int F_SETPIPE_SZ
    const int O_CLOEXEC
    const int O_PATH

cdef extern from "<unistd.h>" nogil:
    int pipe2(int fds[2], int flags)

cdef extern from "<sys/ioctl.h>" nogil:
    const unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, ...)

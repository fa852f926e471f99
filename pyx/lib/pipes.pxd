# Extern declarations only: the Linux side of pipes and files that Cython's posix package lacks.
cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    """

cdef extern from "<fcntl.h>" nogil:
    const int F_GETPIPE_SZ
    const int F_SETPIPE_SZ
    const int O_CLOEXEC
    const int O_PATH
    const unsigned SPLICE_F_MOVE
    ssize_t splice(int source, void *source_at, int target, void *target_at, size_t size, unsigned flags)

cdef extern from "<sys/sendfile.h>" nogil:
    ssize_t sendfile(int target, int source, void *offset, size_t size)

cdef extern from "<unistd.h>" nogil:
    int pipe2(int fds[2], int flags)

cdef extern from "<sys/ioctl.h>" nogil:
    const unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/sockios.h>" nogil:
    const unsigned long SIOCOUTQNSD

cdef extern from "<sys/sysmacros.h>" nogil:
    unsigned major(unsigned long device)
    unsigned minor(unsigned long device)

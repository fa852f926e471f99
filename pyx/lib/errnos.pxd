# Extern declarations only: errno values, with the Linux ones that Cython's libc.errno lacks.
cdef extern from "<errno.h>" nogil:
    int errno
    const int EAGAIN
    const int EBADMSG
    const int EBUSY
    const int ECANCELED
    const int ECONNRESET
    const int EFAULT
    const int EINTR
    const int EINVAL
    const int EIO
    const int EMSGSIZE
    const int ENODATA
    const int ENODEV
    const int ENOMEM
    const int ENOMSG
    const int ENOTTY
    const int EOPNOTSUPP
    const int EPIPE
    const int EPROTO
    const int ETIMEDOUT

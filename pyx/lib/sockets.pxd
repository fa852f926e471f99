# Extern declarations only: the part of socket(7) that the pumps use.
cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    const int MSG_MORE
    const int MSG_NOSIGNAL
    const int MSG_WAITALL
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    const int SOL_SOCKET
    const int SO_RCVLOWAT
    int setsockopt(int fd, int level, int name, const void *value, unsigned length)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)

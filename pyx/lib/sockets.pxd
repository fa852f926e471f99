# Extern declarations only: the part of socket(7) that the extensions use.
cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    const int MSG_DONTWAIT
    const int MSG_MORE
    const int MSG_NOSIGNAL
    const int MSG_WAITALL
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    unsigned char *CMSG_DATA(cmsghdr *control)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    const int SCM_RIGHTS
    const int SHUT_RDWR
    int shutdown(int fd, int how)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    const int SOL_SOCKET
    const int SO_RCVLOWAT
    int setsockopt(int fd, int level, int name, const void *value, unsigned length)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)

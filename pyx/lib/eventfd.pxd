# Extern declarations only: eventfd(2).
cdef extern from "<sys/eventfd.h>" nogil:
    ctypedef unsigned long long eventfd_t
    const int EFD_CLOEXEC
    const int EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)
    int eventfd_read(int fd, eventfd_t *value)
    int eventfd_write(int fd, eventfd_t value)

# cython: language_level=3
"""What a driver's read and write would return where a pipe alone cannot say it."""

from errnos cimport EAGAIN, EINVAL, ENODEV, EPIPE
from pthread cimport pthread_mutex_lock, pthread_mutex_unlock

from vfioflow._fdio cimport PAGES_NEVER, fd_read, fd_write, port_t
from vfioflow._simcore cimport (
    FAULT_ERRNO,
    FAULT_SHORT,
    SESSION_LOAD,
    SESSION_SAVE,
    STATE_PRE_COPY,
    STATE_PRE_COPY_P2P,
    core_wait,
    fault_t,
    next_fault,
    until_fault,
)
from vfioflow._status cimport raise_status


cdef bint alive(const shim_t *shim, int kind) noexcept nogil:
    return shim.core.session == kind and shim.core.serial == shim.serial


cdef ssize_t admit(core_t *core, int writing, size_t size) noexcept nogil:
    """With the lock held: how much of a transfer may go on, or the -errno of a fault that strikes."""
    cdef fault_t *fault = next_fault(core, writing, FAULT_ERRNO, core.moved)
    if fault != NULL and fault.offset == core.moved:
        fault.spent = fault.once
        return -fault.code
    size = until_fault(core, writing, FAULT_ERRNO, core.moved, size)
    fault = next_fault(core, writing, FAULT_SHORT, core.moved)
    if fault != NULL and fault.offset == core.moved:
        fault.spent = fault.once
        return <ssize_t>(size // 3 if size >= 3 else 1)  # 0 would be the stream's end
    return <ssize_t>until_fault(core, writing, FAULT_SHORT, core.moved, size)


cdef ssize_t sim_read(port_t *port, void *buffer, size_t size) noexcept nogil:
    cdef shim_t *shim = <shim_t *>port.context
    cdef core_t *core = shim.core
    cdef ssize_t n
    cdef int finished
    pthread_mutex_lock(&core.lock)
    n = admit(core, 0, size) if alive(shim, SESSION_SAVE) else -ENODEV
    # Taken before the read: only an end seen after the feeder closed for good is the end.
    finished = core.finished
    pthread_mutex_unlock(&core.lock)
    if n <= 0:
        return n
    n = fd_read(port, buffer, n)
    if n < 0 or (n == 0 and finished):
        return n
    pthread_mutex_lock(&core.lock)
    if n > 0:
        core.moved += n
    elif not alive(shim, SESSION_SAVE):
        n = -ENODEV
    elif core.member.state != STATE_PRE_COPY and core.member.state != STATE_PRE_COPY_P2P:
        # The end belonged to PRE_COPY, and the state has moved on meanwhile.
        n = -EAGAIN
    else:
        n = -core.drained_errno
    pthread_mutex_unlock(&core.lock)
    return n


cdef ssize_t sim_write(port_t *port, const void *buffer, size_t size) noexcept nogil:
    cdef shim_t *shim = <shim_t *>port.context
    cdef core_t *core = shim.core
    cdef ssize_t n
    pthread_mutex_lock(&core.lock)
    if not alive(shim, SESSION_LOAD):
        n = -ENODEV
    elif core.bad:
        n = -core.bad
    else:
        n = admit(core, 1, size)
    pthread_mutex_unlock(&core.lock)
    if n <= 0:
        return n
    n = fd_write(port, buffer, n)
    if n < 0:
        return -ENODEV if n == -EPIPE else n
    pthread_mutex_lock(&core.lock)
    core.moved += n
    if core.load_in_write:
        core.waiting += 1
        while core.taken < core.moved and not core.bad and alive(shim, SESSION_LOAD):
            core_wait(core, 0)
        core.waiting -= 1
        if not alive(shim, SESSION_LOAD):
            n = -ENODEV
        elif core.bad:
            n = -core.bad
    pthread_mutex_unlock(&core.lock)
    return n


cdef class SimPort(Port):
    """A data fd of a simulated device, with the driver's own errnos, short transfers and waits.

    Reading: ENOMSG or 0 while drained in PRE_COPY, 0 at the end of STOP_COPY, ENODEV once the
    session is over.  Writing: EFAULT for a stream that is not this device's, ENOMEM past the end.
    A device that loads inside write returns from it once the data is loaded.  Raises OSError
    (EINVAL) when the device has no session.
    """

    def __cinit__(self, int fd, SimCore core not None):
        if core.c.session == 0:
            raise_status(-EINVAL)
        self.owner = core
        self.shim.core = &core.c
        self.shim.serial = core.c.serial
        self.c.context = &self.shim
        self.c.pages = PAGES_NEVER
        self.c.read = sim_read
        self.c.write = sim_write

    def read(self, int size):
        """One read as a pump does it, for callers in Python: bytes.  Raises OSError."""
        out = bytearray(size)
        cdef unsigned char[::1] view = out
        cdef ssize_t n = -EINVAL
        if self.c.closed or size <= 0:
            raise_status(-EINVAL)
        with nogil:
            n = sim_read(&self.c, &view[0], size)
        if n < 0:
            raise_status(<int>n)
        return bytes(out[:n])

    def write(self, const unsigned char[::1] data not None):
        """One write as a pump does it, for callers in Python: the bytes taken.  Raises OSError."""
        cdef ssize_t n = -EINVAL
        if self.c.closed or data.shape[0] == 0:
            raise_status(-EINVAL)
        with nogil:
            n = sim_write(&self.c, &data[0], data.shape[0])
        if n < 0:
            raise_status(<int>n)
        return n

# cython: language_level=3
"""Waits, pacing, faults and the pipe of a simulated device; all without the GIL."""

from libc.stdio cimport snprintf
from posix.fcntl cimport O_NONBLOCK, O_WRONLY, open
from posix.time cimport timespec
from posix.unistd cimport close

from errnos cimport ECANCELED, errno
from pipes cimport O_CLOEXEC
from pthread cimport (
    pthread_cond_timedwait,
    pthread_cond_wait,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from vfioflow._simfabric cimport can_send
from vfioflow._simstate cimport now_ns, state_advance

cdef enum:
    BURST_NS = 10000000         # a paced thread may catch up with this much of lost time


cdef int core_wait(core_t *core, uint64_t until_ns) noexcept nogil:
    """Wait, with the lock held, for a change or until ``until_ns`` (0: for ever)."""
    cdef timespec until
    if until_ns == 0:
        return -pthread_cond_wait(&core.changed, &core.lock)
    until.tv_sec = until_ns // 1000000000
    until.tv_nsec = until_ns % 1000000000
    return -pthread_cond_timedwait(&core.changed, &core.lock, &until)


cdef int core_pause(core_t *core, uint64_t ns) noexcept nogil:
    """Spend ``ns`` in the session's thread, without the lock; -ECANCELED when it must end."""
    cdef uint64_t until = now_ns() + ns
    cdef int stop
    pthread_mutex_lock(&core.lock)
    while not core.stop and now_ns() < until:
        core_wait(core, until)
    stop = core.stop
    pthread_mutex_unlock(&core.lock)
    return -ECANCELED if stop else 0


cdef int core_pace(core_t *core, double rate, size_t size, uint64_t *due_ns) noexcept nogil:
    """Wait until a stream of ``rate`` bytes/s may have moved ``size`` bytes more."""
    cdef uint64_t now
    if rate <= 0:
        return 0
    now = now_ns()
    if due_ns[0] + BURST_NS < now:
        due_ns[0] = now - BURST_NS
    due_ns[0] += <uint64_t>(<double>size / rate * 1e9)
    return core_pause(core, due_ns[0] - now) if due_ns[0] > now else 0


cdef void core_advance(core_t *core) noexcept nogil:
    state_advance(
        &core.state, now_ns(), can_send(core.member.state), core.session == SESSION_SAVE
    )


cdef int open_writer(core_t *core) noexcept nogil:
    """Reopen the write end that was closed to show that the device is drained."""
    cdef char path[40]
    if core.pipe >= 0:
        return 0
    snprintf(path, sizeof(path), b"/proc/self/fd/%d", core.handle)
    core.pipe = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC)
    return 0 if core.pipe >= 0 else -errno


cdef void close_pipe(core_t *core) noexcept nogil:
    if core.pipe >= 0:
        close(core.pipe)
        core.pipe = -1


cdef fault_t *next_fault(core_t *core, int writing, int kind, uint64_t at) noexcept nogil:
    """The nearest fault of that kind that has yet to strike at or after ``at``; NULL: none."""
    cdef fault_t *found = NULL
    cdef fault_t *fault
    cdef int i
    for i in range(core.faults):
        fault = &core.fault[i]
        if fault.writing == writing and fault.kind == kind and not fault.spent and fault.offset >= at:
            if found == NULL or fault.offset < found.offset:
                found = fault
    return found


cdef uint64_t until_fault(core_t *core, int writing, int kind, uint64_t at, uint64_t size) noexcept nogil:
    """How many of ``size`` bytes from ``at`` may move before a fault of that kind strikes."""
    cdef fault_t *fault = next_fault(core, writing, kind, at)
    if fault == NULL or fault.offset - at >= size:
        return size
    return fault.offset - at


cdef uint64_t hang_at(core_t *core, int writing, uint64_t at, uint64_t size) noexcept nogil:
    """With the lock held: how many bytes may move before a hang; 0 after one, which the stop ended."""
    cdef fault_t *fault = next_fault(core, writing, FAULT_HANG, at)
    if fault == NULL or fault.offset - at >= size:
        return size
    if fault.offset > at:
        return fault.offset - at
    fault.spent = fault.once
    while not core.stop:
        core_wait(core, 0)
    return 0


cdef void corrupt(core_t *core, int writing, uint64_t at, uint8_t *data, size_t size) noexcept nogil:
    """Flip a bit in each byte of the stream piece at ``at`` that a corrupt fault strikes."""
    cdef fault_t *fault
    cdef uint64_t position = at
    while position < at + size:
        fault = next_fault(core, writing, FAULT_CORRUPT, position)
        if fault == NULL or fault.offset >= at + size:
            return
        data[fault.offset - at] ^= 0x10
        fault.spent = fault.once
        position = fault.offset + 1

# cython: language_level=3
"""The feeder: one thread per saving session, which makes the blocks and writes them to the pipe.

Order of the stream: set-up record, initial blocks, then in PRE_COPY passes over the initial
blocks that were dirtied since; in STOP_COPY all that is unsent or dirty, and the trailer.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport write

from errnos cimport EAGAIN, ECANCELED, EINTR, errno
from poll cimport POLLOUT
from pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock

from vfioflow._fdio cimport wait_fd
from vfioflow._simcore cimport (
    BATCH_BYTES,
    STATE_STOP_COPY,
    close_pipe,
    core_advance,
    core_pace,
    core_wait,
    corrupt,
    hang_at,
    open_writer,
)
from vfioflow._simfabric cimport can_send, entry_t, ledger_t, member_ledger, member_tick_paced
from vfioflow._simstate cimport (
    CLEAN,
    DIRTY,
    HEADER_SIZE,
    RECORD_BLOCK,
    RECORD_SETUP,
    RECORD_TRAILER,
    UNSENT,
    block_fill,
    block_length,
    digest,
    header_seal,
    header_t,
    now_ns,
    setup_t,
)

cdef enum:
    MAX_BATCH = 64              # records
    IDLE_NS = 2000000           # how often a drained device looks whether it was dirtied

ctypedef struct item_t:
    uint32_t kind
    uint32_t index
    uint32_t version


cdef uint64_t trailer_length(core_t *core) noexcept nogil:
    cdef ledger_t ledger
    member_ledger(&core.member, &ledger)
    return HEADER_SIZE + 16 + <uint64_t>ledger.count * sizeof(entry_t)


cdef int start_pass(core_t *core) noexcept nogil:
    """Begin to send the dirty initial blocks, with the lock held."""
    cdef int status = open_writer(core)
    if status == 0:
        core.pass_open = 1
        core.at_pass = 0
        pthread_cond_broadcast(&core.changed)
    return status


cdef bint pick_block(
    core_t *core, uint32_t *cursor, uint32_t end, uint8_t wanted, item_t *item
) noexcept nogil:
    """The next block from ``cursor`` that needs ``wanted``; CLEAN: that needs anything."""
    cdef uint32_t i = cursor[0]
    cdef uint64_t record
    while i < end and (core.state.need[i] == CLEAN or (wanted != CLEAN and core.state.need[i] != wanted)):
        i += 1
    cursor[0] = i
    if i == end:
        return False
    record = <uint64_t>block_length(&core.state, i) + HEADER_SIZE
    core.state.pending -= record
    if core.state.need[i] == DIRTY and i < core.state.initial:
        core.state.dirty -= record
    core.state.need[i] = CLEAN
    core.picked += record
    cursor[0] = i + 1
    item.kind, item.index, item.version = RECORD_BLOCK, i, core.state.version[i]
    return True


cdef bint pick(core_t *core, item_t *item, bint first) noexcept nogil:
    """The next record, with the lock held; False: none now, or none that shares a batch."""
    if not core.setup_sent:
        core.setup_sent = 1
        core.picked += HEADER_SIZE + sizeof(setup_t)
        item.kind, item.index, item.version = RECORD_SETUP, 0, 0
        return True
    if pick_block(core, &core.at_initial, core.state.initial, UNSENT, item):
        return True
    if core.member.state == STATE_STOP_COPY:
        core.pass_open = 0
        # Nothing runs any more, so nothing that the cursor has passed can become dirty again.
        if pick_block(core, &core.at_rest, core.state.count, CLEAN, item):
            return True
        if first and not core.trailer_sent:
            core.trailer_sent = 1
            core.picked += trailer_length(core)
            item.kind, item.index, item.version = RECORD_TRAILER, 0, 0
            return True
        return False
    if core.pass_open:
        if pick_block(core, &core.at_pass, core.state.initial, DIRTY, item):
            return True
        core.pass_open = 0
    return False


cdef size_t render(core_t *core, const item_t *item, uint8_t *to) noexcept nogil:
    """Write one record to ``to``; its length in bytes."""
    cdef header_t header
    cdef setup_t setup
    cdef ledger_t ledger
    cdef uint8_t *payload = to + HEADER_SIZE
    cdef uint64_t value
    cdef uint32_t i
    memset(&header, 0, sizeof(header))
    header.kind, header.index, header.version = item.kind, item.index, item.version
    header.sequence = core.sequence
    core.sequence += 1
    if item.kind == RECORD_BLOCK:
        header.length = block_length(&core.state, item.index)
        block_fill(&core.state, item.index, item.version, payload)
        core.state.digest[item.index] = digest(payload, header.length, item.index, item.version)
    elif item.kind == RECORD_SETUP:
        setup.driver = core.driver
        setup.seed = core.state.seed
        setup.size = core.state.size
        setup.content = <uint32_t>core.state.content
        setup.block = core.state.block
        header.length = sizeof(setup_t)
        memcpy(payload, &setup, sizeof(setup_t))
    else:
        member_ledger(&core.member, &ledger)
        value = 0
        for i in range(core.state.count):
            value += core.state.digest[i]
        memcpy(payload, &value, 8)
        value = core.state.count
        memcpy(payload + 8, &value, 8)
        memcpy(payload + 16, ledger.entry, ledger.count * sizeof(entry_t))
        header.length = 16 + ledger.count * <uint32_t>sizeof(entry_t)
    header_seal(&header, payload)
    memcpy(to, &header, sizeof(header_t))
    return HEADER_SIZE + header.length


cdef int push(core_t *core, const uint8_t *data, size_t size, uint64_t *due_ns) noexcept nogil:
    """Write a batch to the pipe; -errno when the reader is gone or the session must end."""
    cdef size_t done = 0, part
    cdef ssize_t n
    cdef int status
    while done < size:
        pthread_mutex_lock(&core.lock)
        part = hang_at(core, 0, core.written, size - done)
        status = -ECANCELED if core.stop else 0
        pthread_mutex_unlock(&core.lock)
        if status == 0:
            status = core_pace(core, core.read_rate, part, due_ns)
        if status < 0:
            return status
        part += done
        while done < part:
            n = write(core.pipe, data + done, part - done)
            if n > 0:
                done += n
                pthread_mutex_lock(&core.lock)
                core.written += n
                pthread_mutex_unlock(&core.lock)
            elif errno == EAGAIN:
                status = wait_fd(core.pipe, POLLOUT, core.wake, -1)
                if status < 0:
                    return status
            elif errno != EINTR:
                return -errno
    return 0


cdef void idle(core_t *core) noexcept nogil:
    """Wait, with the lock held, for something to send."""
    cdef uint64_t until = 0
    if core.trailer_sent:
        core.finished = 1
    close_pipe(core)
    pthread_cond_broadcast(&core.changed)
    if not core.info_starts_save and core.state.dirty_rate > 0 and can_send(core.member.state):
        until = now_ns() + IDLE_NS
    core_wait(core, until)


cdef void feed(core_t *core) noexcept nogil:
    """The body of a saving session's thread; returns once ``core.stop`` is set."""
    cdef item_t items[MAX_BATCH]
    cdef uint64_t due_ns = now_ns(), bytes_before, limit = BATCH_BYTES
    cdef size_t size
    cdef int count, i, status = 0
    if 0 < core.read_rate < 100.0 * BATCH_BYTES:
        # Ten milliseconds' worth at a time, so that a slow device trickles instead of bursting.
        limit = <uint64_t>(core.read_rate / 100)
    pthread_mutex_lock(&core.lock)
    while not core.stop:
        if status < 0:
            # The reader is gone: what is left can go nowhere.
            core_wait(core, 0)
            continue
        core_advance(core)
        member_tick_paced(&core.member, core.p2p_rate, now_ns())
        if not core.info_starts_save and core.state.dirty and not core.pass_open:
            start_pass(core)
        count = 0
        bytes_before = core.picked
        while count < MAX_BATCH and (count == 0 or core.picked - bytes_before < limit):
            if core.picked - bytes_before + HEADER_SIZE + core.state.block > BATCH_BYTES:
                break
            if not pick(core, &items[count], count == 0):
                break
            count += 1
        if count == 0:
            idle(core)
            continue
        status = open_writer(core)
        if status < 0:
            continue
        pthread_mutex_unlock(&core.lock)
        size = 0
        for i in range(count):
            size += render(core, &items[i], core.buffer + size)
        corrupt(core, 0, core.written, core.buffer, size)
        status = push(core, core.buffer, size, &due_ns)
        pthread_mutex_lock(&core.lock)
    close_pipe(core)
    pthread_mutex_unlock(&core.lock)

# cython: language_level=3
"""The consumer: one thread per loading session, which parses, checks and digests the stream.

Block contents are not kept: what a block must hold follows from seed, index and version, and
the digest over the bytes received says whether it did.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove
from posix.unistd cimport read

from errnos cimport EAGAIN, ECANCELED, EFAULT, EINTR, EINVAL, ENOMEM, errno
from eventfd cimport eventfd_read, eventfd_t
from poll cimport POLLIN
from pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock

from vfioflow._fdio cimport wait_fd
from vfioflow._simcore cimport (
    BATCH_BYTES,
    core_pace,
    core_pause,
    corrupt,
    hang_at,
)
from vfioflow._simfabric cimport MAX_PEERS, entry_t
from vfioflow._simstate cimport (
    BLOCK_SIZE,
    CLEAN,
    CONTENT_FILE,
    HEADER_SIZE,
    RECORD_BLOCK,
    RECORD_SETUP,
    RECORD_TRAILER,
    block_length,
    content_known,
    digest,
    header_check,
    header_magic,
    header_t,
    setup_t,
)


cdef int load_check(core_t *core) noexcept nogil:
    """Whether the whole state has arrived as it was sent: 0 or -EINVAL."""
    if core.bad or not core.trailer_seen or core.blocks_seen != core.state.count:
        return -EINVAL
    return 0 if core.digest_seen == core.digest_told else -EINVAL


cdef int take_setup(core_t *core, const uint8_t *payload) noexcept nogil:
    memcpy(&core.setup, payload, sizeof(setup_t))
    core.setup_seen = 1
    if core.setup.driver != core.driver or core.setup.size != core.state.size:
        return EFAULT
    if core.setup.block != core.state.block or not content_known(core.setup.content):
        return EFAULT
    if core.setup.content == CONTENT_FILE and core.setup.seed != core.file_seed:
        return EFAULT
    return 0


cdef int take_block(core_t *core, const header_t *header, const uint8_t *payload) noexcept nogil:
    cdef uint32_t i = header.index
    cdef uint64_t value
    if core.state.need[i] == CLEAN:
        if header.version <= core.state.version[i]:
            return EINVAL
        core.digest_seen -= core.state.digest[i]
    else:
        core.state.need[i] = CLEAN
        core.blocks_seen += 1
    value = digest(payload, header.length, i, header.version)
    core.state.version[i] = header.version
    core.state.digest[i] = value
    core.state.loaded[i] = 1
    core.digest_seen += value
    return 0


cdef int take_trailer(core_t *core, const header_t *header, const uint8_t *payload) noexcept nogil:
    cdef uint64_t blocks
    memcpy(&core.digest_told, payload, 8)
    memcpy(&blocks, payload + 8, 8)
    core.ledger.count = (header.length - 16) // <uint32_t>sizeof(entry_t)
    memcpy(core.ledger.entry, payload + 16, header.length - 16)
    core.trailer_seen = 1
    if blocks != core.state.count:
        return EFAULT
    if not core.load_in_write:
        return 0
    if core_pause(core, core.load_ns) < 0:
        return ECANCELED
    return -load_check(core)


cdef bint fits(const core_t *core, const header_t *header) noexcept nogil:
    """Whether the header's kind, index and length can be, before anything is read by them."""
    cdef uint32_t tail
    if header.kind == RECORD_SETUP:
        return not core.setup_seen and header.length == sizeof(setup_t)
    if not core.setup_seen:
        return False
    if header.kind == RECORD_BLOCK:
        return header.index < core.state.count and header.length == block_length(&core.state, header.index)
    if header.kind != RECORD_TRAILER or header.length < 16:
        return False
    tail = header.length - 16
    return tail % sizeof(entry_t) == 0 and tail <= MAX_PEERS * sizeof(entry_t)


cdef int take_record(core_t *core, const uint8_t *data, size_t size, size_t *length) noexcept nogil:
    """Take the record at ``data``: 0, EAGAIN when it is not whole yet, or what is wrong with it."""
    cdef header_t header
    cdef uint32_t magic
    if core.trailer_seen:
        return ENOMEM
    if size < 4:
        return EAGAIN
    memcpy(&magic, data, 4)
    if magic != header_magic():
        return EFAULT
    if size < HEADER_SIZE:
        return EAGAIN
    memcpy(&header, data, sizeof(header_t))
    if not fits(core, &header):
        return EFAULT
    if size < HEADER_SIZE + header.length:
        return EAGAIN
    if header_check(&header, data + HEADER_SIZE) < 0:
        return EFAULT
    if header.sequence != core.sequence:
        return EINVAL
    core.sequence += 1
    length[0] = HEADER_SIZE + header.length
    if header.kind == RECORD_SETUP:
        return take_setup(core, data + HEADER_SIZE)
    if header.kind == RECORD_BLOCK:
        return take_block(core, &header, data + HEADER_SIZE)
    return take_trailer(core, &header, data + HEADER_SIZE)


cdef size_t take(core_t *core, uint8_t *data, size_t size) noexcept nogil:
    """Take all whole records of ``data``; how many bytes were used up."""
    cdef size_t used = 0, length = 0
    cdef int status = core.bad
    while used < size and status == 0:
        status = take_record(core, data + used, size - used, &length)
        if status == 0:
            used += length
    if status == EAGAIN:
        return used
    if status:
        pthread_mutex_lock(&core.lock)
        core.bad = status
        pthread_mutex_unlock(&core.lock)
    # After an error the rest is only drained, so that no writer is left waiting.
    return size


cdef int hold(core_t *core, uint64_t at, size_t *size) noexcept nogil:
    """Shorten ``size`` so that a hang strikes where it should, and hang there."""
    cdef int stop
    pthread_mutex_lock(&core.lock)
    size[0] = hang_at(core, 1, at, size[0])
    stop = core.stop
    pthread_mutex_unlock(&core.lock)
    return -ECANCELED if stop else 0


cdef void consume(core_t *core) noexcept nogil:
    """The body of a loading session's thread; returns once ``core.stop`` is set."""
    cdef size_t have = 0, used, room
    cdef uint64_t due_ns = 0, asked, at = 0
    cdef eventfd_t drop
    cdef ssize_t n
    cdef int ended = 0
    while True:
        pthread_mutex_lock(&core.lock)
        asked = core.flush_asked
        pthread_mutex_unlock(&core.lock)
        room = BATCH_BYTES + HEADER_SIZE + BLOCK_SIZE - have
        if hold(core, at, &room) < 0:
            return
        n = read(core.pipe, core.buffer + have, room)
        if n < 0 and errno == EINTR:
            continue
        if n > 0:
            corrupt(core, 1, at, core.buffer + have, n)
            at += n
            have += n
            used = take(core, core.buffer, have)
            have -= used
            memmove(core.buffer, core.buffer + used, have)
            if core_pace(core, core.write_rate, n, &due_ns) < 0:
                return
            pthread_mutex_lock(&core.lock)
            core.taken = at
            pthread_cond_broadcast(&core.changed)
            pthread_mutex_unlock(&core.lock)
            continue
        ended = n == 0 or errno != EAGAIN
        pthread_mutex_lock(&core.lock)
        core.flush_done = asked
        pthread_cond_broadcast(&core.changed)
        pthread_mutex_unlock(&core.lock)
        # Without a writer the pipe polls as hung up for ever: then only a wake-up matters.
        if wait_fd(-1 if ended else core.pipe, POLLIN, core.wake, -1) < 0:
            eventfd_read(core.wake, &drop)

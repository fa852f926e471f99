# cython: language_level=3
"""The core of a simulated device: sessions over real pipes, served by threads that never hold the GIL."""

import threading

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.fcntl cimport F_SETFL, O_NONBLOCK, O_RDONLY, fcntl, open
from posix.time cimport CLOCK_MONOTONIC
from posix.unistd cimport close

from errnos cimport EAGAIN, EINVAL, ENOTTY, errno
from eventfd cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_write
from pipes cimport F_SETPIPE_SZ, FIONREAD, O_CLOEXEC, O_PATH, ioctl, pipe2
from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_condattr_destroy,
    pthread_condattr_init,
    pthread_condattr_setclock,
    pthread_condattr_t,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from vfioflow._simcore cimport (
    BATCH_BYTES,
    MAX_FAULTS,
    SESSION_LOAD,
    SESSION_NONE,
    SESSION_SAVE,
    STATE_PRE_COPY,
    STATE_PRE_COPY_P2P,
    STATE_STOP_COPY,
    close_pipe,
    core_advance,
    core_wait,
    fault_t,
    open_writer,
)
from vfioflow._simfabric cimport (
    FabricCore,
    entry_t,
    ledger_t,
    member_ledger,
    member_load_ledger,
    member_set_state,
    member_tick,
)
from vfioflow._simload cimport consume, load_check
from vfioflow._simsave cimport feed, start_pass, trailer_length
from vfioflow._simstate cimport (
    BLOCK_SIZE,
    HEADER_SIZE,
    Tile,
    digest,
    now_ns,
    setup_t,
    state_curve,
    state_digest,
    state_free,
    state_fresh,
    state_init,
    state_need_all,
)

from vfioflow._simstate import content_name, get_tile
from vfioflow._status cimport check, raise_status

cdef enum:
    PIPE_SIZE = 1048576         # what an unprivileged process may ask for by default
    BUFFER_SIZE = BATCH_BYTES + HEADER_SIZE + BLOCK_SIZE

cdef long live_devices = 0
cdef long live_sessions = 0


def live():
    """Devices not closed, and open sessions: a thread, a buffer and a pipe each."""
    return {"devices": live_devices, "sessions": live_sessions}


def name_hash(str name):
    """What stands for a name in streams and ledgers."""
    data = name.encode()
    cdef const unsigned char[::1] view = data
    return digest(&view[0], view.shape[0], 0, 0) if data else 0


cdef class SimCore:
    """The part of a simulated device that works without the GIL.

    ``open_*`` and ``end_session`` must not be called by two threads at once; everything else may.
    Raises OSError with the errno that the kernel would give.
    """

    def __cinit__(
        self, str name, str driver, *, uint64_t size, uint32_t block, uint64_t initial, uint64_t hot,
        double dirty_rate, str content, path, uint64_t seed, double read_rate, double write_rate,
        double p2p_rate, double load_seconds, int drained_errno, bint info_starts_save,
        bint load_in_write, int state, faults, dirty_rates=(), double dirty_step=0,
    ):
        global live_devices
        cdef pthread_condattr_t attributes
        cdef Tile tile
        self.c.pipe = self.c.handle = self.c.wake = -1
        self.c.driver = name_hash(driver)
        self.c.member.name = name_hash(name)
        self.c.member.state = state
        self.c.read_rate, self.c.write_rate, self.c.p2p_rate = read_rate, write_rate, p2p_rate
        self.c.load_ns = <uint64_t>(load_seconds * 1e9)
        self.c.drained_errno = drained_errno
        self.c.info_starts_save = info_starts_save
        self.c.load_in_write = load_in_write
        if len(faults) > MAX_FAULTS:
            raise ValueError(f"a device takes at most {MAX_FAULTS} faults in its streams")
        for writing, kind, code, once, offset in faults:
            self.c.fault[self.c.faults] = fault_t(writing, kind, code, once, 0, offset)
            self.c.faults += 1
        if state_init(&self.c.state, size, block, initial, hot, dirty_rate) < 0:
            raise MemoryError
        if dirty_rates:
            self._set_curve(dirty_rates, dirty_step)
        tile = get_tile(content, seed, size, block, path)
        self.home = tile
        self.c.file_seed = tile.seed if path is not None else 0
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_mutex_init(&self.c.lock, NULL)
        pthread_mutex_init(&self.c.filling, NULL)
        pthread_cond_init(&self.c.changed, &attributes)
        pthread_condattr_destroy(&attributes)
        self.ready = 1
        live_devices += 1
        self.fresh()

    def __dealloc__(self):
        state_free(&self.c.state)
        if self.ready:
            pthread_cond_destroy(&self.c.changed)
            pthread_mutex_destroy(&self.c.filling)
            pthread_mutex_destroy(&self.c.lock)

    def _set_curve(self, rates, double step):
        cdef uint32_t i
        cdef double total = 0
        if state_curve(&self.c.state, len(rates), step) < 0:
            raise MemoryError
        for i in range(self.c.state.steps):
            total += <double>rates[i] * step
            self.c.state.curve[i] = total

    def close(self):
        """End the session, leave the fabric.  The object only answers questions afterwards."""
        global live_devices
        self.end_session()
        if self.fabric is not None:
            self.fabric.leave(&self.c.member, self)
        live_devices -= 1

    def join(self, FabricCore fabric not None):
        """Connect the device to the others in ``fabric``.  Raises ValueError."""
        fabric.join(&self.c.member, self)
        self.fabric = fabric

    def fresh(self):
        """The state of a device just made: its own content at version 0, an empty ledger."""
        cdef Tile tile = self.home
        cdef uint64_t seed = tile.seed
        self.tile = tile
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            self.c.state.tile, self.c.state.tile_blocks = tile.data, tile.blocks
            state_fresh(&self.c.state, seed, tile.content)
            memset(&self.c.ledger, 0, sizeof(self.c.ledger))
            member_load_ledger(&self.c.member, &self.c.ledger)
            pthread_mutex_unlock(&self.c.lock)
        if self.fabric is not None:
            self.fabric.untrap(&self.c.member)

    def arm(self, uint32_t room):
        """Have the fabric keep messages to this device, ``room`` of all such devices; nothing without one."""
        if self.fabric is not None:
            self.fabric.arm(&self.c.member, room)

    def disarm(self):
        """Let messages reach it again, unless the fabric keeps some; whether they do now."""
        return self.fabric is None or bool(self.fabric.disarm(&self.c.member))

    def take_trapped(self):
        """All messages that the fabric keeps, in order: (sender, receiver, number), names as hashes."""
        return [] if self.fabric is None else self.fabric.take_trapped()

    def receive(self, str sender, uint64_t number):
        """Give the device a message that was kept; whether it could take it."""
        return self.fabric is not None and bool(
            self.fabric.receive(&self.c.member, name_hash(sender), number)
        )

    @property
    def state(self):
        """The effective migration state, as a number."""
        return self.c.member.state

    @property
    def session(self):
        """0 none, 1 saving, 2 loading."""
        return self.c.session

    @property
    def released(self):
        """Counts calls of :meth:`release`; give it to the waits below."""
        return self.c.released

    @property
    def waiting(self):
        """How many threads wait in an arc, for a load, or inside a write."""
        return self.c.waiting

    def release(self):
        """End the waits and hangs that began before."""
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            self.c.released += 1
            pthread_cond_broadcast(&self.c.changed)
            pthread_mutex_unlock(&self.c.lock)

    def wait_arc(self, double seconds, uint64_t released):
        """Spend the time of an arc (negative: for ever); False when it was released."""
        cdef uint64_t until = 0
        cdef bint kept
        if seconds == 0:
            return self.c.released == released
        with nogil:
            if seconds > 0:
                until = now_ns() + <uint64_t>(seconds * 1e9)
            pthread_mutex_lock(&self.c.lock)
            self.c.waiting += 1
            while self.c.released == released and (until == 0 or now_ns() < until):
                core_wait(&self.c, until)
            self.c.waiting -= 1
            kept = self.c.released == released
            pthread_mutex_unlock(&self.c.lock)
        return kept

    def tick(self):
        """Let the fabric deliver."""
        with nogil:
            member_tick(&self.c.member)

    def set_effective(self, int state):
        """The end of an arc: ``state`` holds from now on; a drained stream reopens for STOP_COPY."""
        cdef int status = 0
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            core_advance(&self.c)
            if state == STATE_STOP_COPY and self.c.session == SESSION_SAVE and not self.c.finished:
                status = open_writer(&self.c)
            if status == 0:
                member_set_state(&self.c.member, state)
            pthread_cond_broadcast(&self.c.changed)
            pthread_mutex_unlock(&self.c.lock)
        if status < 0:
            raise_status(status)

    cdef int open_session(self, int kind, int fds[2], int mine) except -1:
        # Sets up everything but the thread; the caller starts it once the state is right.
        global live_sessions
        cdef char *buffer
        if self.c.session != SESSION_NONE:
            raise_status(-EINVAL)
        buffer = <char *>malloc(BUFFER_SIZE)
        if buffer == NULL:
            raise MemoryError
        try:
            check(pipe2(fds, O_CLOEXEC))
        except OSError:
            free(buffer)
            raise
        self.c.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        path = f"/proc/self/fd/{fds[mine]}".encode()
        self.c.handle = open(<const char *>path, O_PATH | O_CLOEXEC)
        if self.c.wake < 0 or self.c.handle < 0 or fcntl(fds[mine], F_SETFL, O_NONBLOCK) < 0:
            code = -errno
            for fd in (fds[0], fds[1], self.c.wake, self.c.handle):
                if fd >= 0:
                    close(fd)
            self.c.wake = self.c.handle = -1
            free(buffer)
            raise_status(code)
        # Without the larger pipe (pipe-user-pages-soft reached) the stream is only slower.
        fcntl(fds[mine], F_SETPIPE_SZ, PIPE_SIZE)
        self.c.buffer = <unsigned char *>buffer
        live_sessions += 1
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            core_advance(&self.c)
            self.c.pipe = fds[mine]
            self.c.serial += 1
            self.c.session = kind
            self.c.stop = self.c.finished = self.c.bad = self.c.pass_open = 0
            self.c.setup_sent = self.c.trailer_sent = self.c.setup_seen = self.c.trailer_seen = 0
            self.c.at_initial = self.c.at_pass = self.c.at_rest = self.c.sequence = 0
            self.c.picked = self.c.written = self.c.moved = self.c.taken = 0
            self.c.flush_asked = self.c.flush_done = 0
            self.c.blocks_seen = 0
            self.c.digest_seen = self.c.digest_told = 0
            state_need_all(&self.c.state)
            pthread_mutex_unlock(&self.c.lock)
        return 0

    def open_save(self, int state):
        """Open a saving session and enter ``state``; the fd to read from, the caller's to close."""
        cdef int fds[2]
        cdef uint64_t initial
        self.open_session(SESSION_SAVE, fds, 1)
        initial = <uint64_t>self.c.state.initial * self.c.state.block
        if initial > self.c.state.size:
            initial = self.c.state.size
        self.c.initial_total = (
            initial + <uint64_t>self.c.state.initial * HEADER_SIZE + HEADER_SIZE + sizeof(setup_t)
        )
        self._start(self._feed, state, fds[0])
        return fds[0]

    def open_load(self, int state):
        """Open a loading session and enter ``state``; the fd to write to, the caller's to close."""
        cdef int fds[2]
        self.open_session(SESSION_LOAD, fds, 0)
        memset(self.c.state.loaded, 0, self.c.state.count)
        self._start(self._consume, state, fds[1])
        return fds[1]

    def _start(self, body, int state, int fd):
        thread = threading.Thread(target=body, name="vfioflow-sim", daemon=True)
        try:
            thread.start()
            self.thread = thread
            self.set_effective(state)
        except BaseException as error:
            close(fd)
            self.end_session()
            if isinstance(error, RuntimeError):
                # No thread to be had; the device stays where it was.
                raise_status(-EAGAIN)
            raise

    def _feed(self):
        with nogil:
            feed(&self.c)

    def _consume(self):
        with nogil:
            consume(&self.c)

    def end_session(self):
        """Stop the session's thread and free what it used; ports give ENODEV from here on."""
        global live_sessions
        if self.c.session == SESSION_NONE:
            return
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            core_advance(&self.c)
            self.c.session = SESSION_NONE
            self.c.stop = 1
            pthread_cond_broadcast(&self.c.changed)
            pthread_mutex_unlock(&self.c.lock)
        eventfd_write(self.c.wake, 1)
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            close_pipe(&self.c)
            close(self.c.handle)
            close(self.c.wake)
            self.c.handle = self.c.wake = -1
            free(self.c.buffer)
            self.c.buffer = NULL
            pthread_mutex_unlock(&self.c.lock)
        live_sessions -= 1

    def flush(self, uint64_t released):
        """Wait until the consumer has taken all that was written; False when released meanwhile."""
        cdef uint64_t asked
        cdef bint kept
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            self.c.flush_asked += 1
            asked = self.c.flush_asked
            eventfd_write(self.c.wake, 1)
            self.c.waiting += 1
            while self.c.flush_done < asked and self.c.released == released:
                core_wait(&self.c, 0)
            self.c.waiting -= 1
            kept = self.c.flush_done >= asked
            pthread_mutex_unlock(&self.c.lock)
        return kept

    def load(self):
        """Take over the state that was loaded: EINVAL unless it is whole and right."""
        cdef int status
        cdef Tile tile
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            status = load_check(&self.c)
            pthread_mutex_unlock(&self.c.lock)
        if status < 0:
            raise_status(status)
        content = content_name(self.c.setup.content)
        if content == "file":
            tile = self.home
        else:
            tile = get_tile(content, self.c.setup.seed, self.c.state.size, self.c.state.block)
        self.tile = tile
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            self.c.state.tile, self.c.state.tile_blocks = tile.data, tile.blocks
            self.c.state.seed, self.c.state.content = tile.seed, tile.content
            member_load_ledger(&self.c.member, &self.c.ledger)
            pthread_mutex_unlock(&self.c.lock)

    def precopy_info(self, int fd):
        """(initial, dirty) bytes of the stream that are still to be read from ``fd``."""
        cdef uint64_t initial = 0, dirty = 0, at = 0, beyond
        cdef int status = 0
        cdef core_t *c = &self.c
        with nogil:
            member_tick(&c.member)
            pthread_mutex_lock(&c.lock)
            if c.session == SESSION_LOAD:
                status = -ENOTTY
            elif c.member.state != STATE_PRE_COPY and c.member.state != STATE_PRE_COPY_P2P:
                status = -EINVAL
            else:
                status = self.read_to(fd, &at)
            if status == 0:
                core_advance(c)
                if c.initial_total > at:
                    initial = c.initial_total - at
                beyond = at if at > c.initial_total else c.initial_total
                dirty = c.state.dirty + (c.picked - beyond if c.picked > beyond else 0)
                if c.state.dirty and not c.pass_open and at == c.picked and initial == 0:
                    status = start_pass(c)
            pthread_mutex_unlock(&c.lock)
        if status < 0:
            raise_status(status)
        return initial, dirty

    def stop_copy_size(self):
        """Bytes of the stream that a STOP_COPY from here would still hand out."""
        cdef uint64_t total, at = 0
        cdef int status = 0, fd
        cdef core_t *c = &self.c
        with nogil:
            pthread_mutex_lock(&c.lock)
            core_advance(c)
            total = 0 if c.trailer_sent and c.session == SESSION_SAVE else trailer_length(c)
            if c.session != SESSION_SAVE:
                total += HEADER_SIZE + sizeof(setup_t)
                total += c.state.size + <uint64_t>c.state.count * HEADER_SIZE
            else:
                fd = c.pipe
                if fd < 0:
                    fd = self.peek()
                status = self.read_to(fd, &at) if fd >= 0 else -errno
                if fd >= 0 and fd != c.pipe:
                    close(fd)
                total += c.state.pending + c.picked - at
                if not c.setup_sent:
                    total += HEADER_SIZE + sizeof(setup_t)
            pthread_mutex_unlock(&c.lock)
        if status < 0:
            raise_status(status)
        return total

    cdef int read_to(self, int fd, uint64_t *at) noexcept nogil:
        # How far the stream has been read: what was written less what is still in the pipe.
        cdef int left = 0, status = 0
        pthread_mutex_lock(&self.c.filling)
        if ioctl(fd, FIONREAD, &left) < 0:
            status = -errno
        at[0] = self.c.written - <uint64_t>left
        pthread_mutex_unlock(&self.c.filling)
        return status

    cdef int peek(self) noexcept nogil:
        # A reader for a moment: unlike a writer it does not disturb the end of the data.
        cdef char path[40]
        snprintf(path, sizeof(path), b"/proc/self/fd/%d", self.c.handle)
        return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)

    def true_digest(self):
        """The sum of the digests of all blocks as they are now."""
        cdef uint64_t total = 0
        cdef int status
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            core_advance(&self.c)
            status = state_digest(&self.c.state, &total)
            pthread_mutex_unlock(&self.c.lock)
        if status < 0:
            raise_status(status)
        return total

    def ledger(self):
        """What the device knows of its peers: name hash -> (sent, received, duplicates, gaps)."""
        cdef uint32_t i
        cdef entry_t *entry
        cdef ledger_t book
        with nogil:
            member_ledger(&self.c.member, &book)
        out = {}
        for i in range(book.count):
            entry = &book.entry[i]
            out[entry.peer] = (entry.sent, entry.received, entry.duplicates, entry.gaps)
        return out

"""The source's pump: from a device's data fd to the wire.

One call runs one phase of one lane on the calling thread, without the GIL.  Python may read the
counters at any time; they are plain integers that only the pump writes.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport SEEK_CUR, lseek, off_t

from errnos cimport EAGAIN, ENODATA, ENOMEM, ENOMSG, errno
from pipes cimport FIONREAD, ioctl
from poll cimport POLLIN
from pthread cimport pthread_cond_destroy, pthread_cond_init

from vfioflow._channel cimport (
    enter,
    frame_size,
    leave,
    send_frame,
    send_pages_frame,
    try_enter,
    unsent,
    writable,
)
from vfioflow._fault cimport AT_DEVICE, AT_MEMORY, AT_WIRE, fail, raise_fault
from vfioflow._waits cimport now_ns, thread_ns, wait_port
from vfioflow._balance cimport LEVELS
from vfioflow._crew cimport JOB_DONE
from vfioflow._fdio cimport PAGES_OUT, PIPE_OUT
from vfioflow._frame cimport (
    HEADER_SIZE,
    KIND_END,
    KIND_MARK,
    KIND_RAW,
    KIND_ZERO,
    MAX_CHUNK,
    digest,
)

# What OutLane.pump returns.
cdef enum:
    _CANCELLED = 0      # Cancel was set
    _DRAINED = 1        # the device has nothing more for now
    _BUDGET = 2         # the budget is used up
    _END = 3            # the device's stream is at its end
    _LATER = 4          # inside: the device is not ready, and there is other work

CANCELLED, DRAINED, BUDGET, END = _CANCELLED, _DRAINED, _BUDGET, _END

cdef enum:
    # A device that hands out less than this at a time is asked again before a frame is sent, so
    # that small reads do not become small frames.
    MIN_FRAME = 64 * 1024
    # How much a lane sends before it hands a channel that others wait for on, and how quick its device must
    # be to keep the channel meanwhile: with each frame from another device nothing is in the caches.
    TURN = 16 * 1024 * 1024
    QUICK_NS = 1000 * 1000
    # Zeros are left out in runs of at least this.
    ZERO_RUN = 64 * 1024


cdef bint all_zero(const char *data, size_t size) noexcept nogil:
    if data[0] != 0 or data[size - 1] != 0:
        return False
    return size == 1 or memcmp(data, data + 1, size - 1) == 0


cdef size_t run_of(const uint8_t *data, size_t size, bint *zero) noexcept nogil:
    """The length of the run of zero or other blocks that ``data`` begins with."""
    cdef size_t at = 0, part
    cdef bint this
    while at < size:
        part = min(<size_t> ZERO_RUN, size - at)
        this = all_zero(<const char *> data + at, part)
        if at == 0:
            zero[0] = this
        elif this != zero[0]:
            break
        at += part
    return at


cdef class OutLane:
    """The source's end of one device's stream.

    Args:
        name: the device's name, for errors.
        index: the lane's number on the wire, below 65536.
        channels: the connections that its frames may take, in turn.
        pool: buffers whose size is the most device bytes in a frame (at most 64 MiB); a running
            pump holds one, and more as the crew allows.
        cancel: ends the pump.
        limiter: the rate shared with the other lanes.
        digests: whether frames carry the running CRC32C.
        crew: compresses, and leaves out runs of zeros; None: all bytes go as they are.
        splice: the receiver passes the bytes on by splice.  Then a lane that reads a file sends it by
            sendfile; where the receiver copies, scattered pages cost it more than they save here.
        crowded: there are more lanes than processors, so that not even the bytes in a pipe are in a
            cache: with ``splice``, pass them on unseen too.
    """

    def __cinit__(self, str name, uint16_t index, list channels, Pool pool not None, Cancel cancel not None,
                  Limiter limiter not None, *, bint digests, Crew crew=None,
                  bint splice=False, bint crowded=False):
        pthread_cond_init(&self.job_done, NULL)
        if not channels:
            raise ValueError("a lane needs a channel")
        if pool.size > MAX_CHUNK:
            raise ValueError(f"a chunk has at most {MAX_CHUNK} bytes")
        self.name = name
        self.title = ""
        self.index = index
        self.owners = list(channels)
        self.channels = <channel_t **> calloc(len(channels), sizeof(channel_t *))
        if self.channels == NULL:
            raise MemoryError
        for channel in channels:
            self.channels[self.channel_count] = &(<Channel?> channel).c
            self.channel_count += 1
        self.pool = pool
        self.cancel = cancel
        self.limiter = limiter
        self.digests = digests
        self.crew = crew
        self.splice = splice
        self.crowded = crowded
        self.balance = Balance() if crew is not None and crew.automatic else None

    def __dealloc__(self):
        pthread_cond_destroy(&self.job_done)
        free(self.channels)

    def pump(self, Port port not None, uint64_t budget, *, bint precopy):
        """Move up to ``budget`` bytes from the data fd to the wire; one call for one phase.

        Returns:
            DRAINED, BUDGET, END, or CANCELLED.  In pre-copy both ``0`` and ``ENOMSG`` from the
            device mean DRAINED (the uAPI says ENOMSG, several drivers return 0); afterwards ``0``
            means END.

        Raises:
            DeviceError: the device's read failed.
            PeerLost: the connection failed.
            MemoryError: no buffer.
        """
        cdef fault_t fault
        cdef int status
        with nogil:
            status = self.run(&port.c, budget, precopy, &fault)
        if status < 0 and self.cancel.flag:
            return CANCELLED
        if status < 0:
            raise_fault(&fault, self.name, "reading its state", port, self.title)
        return status

    def mark(self):
        """Say on the wire that the initial bytes end here.  Raises PeerLost."""
        self._send_bare(KIND_MARK)

    def end(self):
        """Say on the wire that the stream ends here, with its length and digest.  Raises PeerLost."""
        self._send_bare(KIND_END)

    def _send_bare(self, int kind):
        cdef frame_t frame
        cdef fault_t fault
        cdef int status
        memset(&frame, 0, sizeof(frame))
        frame.kind = kind
        frame.digest = self.digest
        with nogil:
            status = self.send(&frame, NULL)
            self.let_go()
        if status < 0 and not self.cancel.flag:
            fail(&fault, AT_WIRE, status, self.index, self.offset)
            raise_fault(&fault, self.name, "", None, self.title)

    cdef int run(self, port_t *port, uint64_t budget, bint precopy, fault_t *fault) noexcept nogil:
        cdef int source = 0     # what the device said last: 0, DRAINED, END or -errno
        cdef int outcome = 0
        self.buffer = <uint8_t *> self.pool.take()
        if self.buffer == NULL:
            return fail(fault, AT_MEMORY, -ENOMEM, self.index, self.offset)
        if self.crew is not None:
            self.crew.join(1)
        while outcome == 0 and not self.cancel.flag:
            if source == 0 and budget > 0 and self.has_room():
                outcome = self.step(port, &budget, precopy, &source, fault)
            elif self.job_count > 0:
                outcome = self.send_first_job(fault)
            elif source < 0:
                outcome = fail(fault, AT_DEVICE, source, self.index, self.offset)
            else:
                outcome = source if source != 0 else _BUDGET
        self.let_go()
        self.drop_jobs()
        if self.crew is not None:
            self.crew.join(-1)
        self.pool.give(self.buffer)
        return outcome

    cdef int step(self, port_t *port, uint64_t *budget, bint precopy, int *source,
                  fault_t *fault) noexcept nogil:
        """Read a chunk and send it, or give it to the crew and send what came back.  0 or -errno."""
        cdef int64_t before = now_ns()
        cdef size_t want = min(budget[0], self.pool.size)
        cdef ssize_t n = self.pages_there(port, want, precopy, source) if self.may_send_pages(port) else -1
        cdef bint unseen = n >= 0
        cdef int status = 0
        if not unseen:
            n = self.fill(port, want, precopy, source)
        self.last_read_ns = now_ns() - before
        if self.cancel.flag:    # the session may be long over: its sockets are not ours any more
            return 0
        if n > 0:
            budget[0] -= n
            status = self.send_pages(port, n, fault) if unseen else self.pass_on(n, fault)
        elif source[0] == _LATER:
            source[0] = 0
            status = self.send_first_job(fault)
        while (status == 0 and self.job_count > 0 and not self.cancel.flag
               and self.crew.finished(&self.jobs[self.first_job])):
            status = self.send_first_job(fault)
        return status

    cdef bint has_room(self) noexcept nogil:
        """Whether another chunk can be read: there is a buffer, or the crew still grants one."""
        if self.job_count == MAX_JOBS:
            return False
        if self.buffer == NULL and self.crew.take_spare():
            self.buffer = <uint8_t *> self.pool.take()
            if self.buffer == NULL:
                self.crew.give_spare()
        return self.buffer != NULL

    cdef bint may_send_pages(self, const port_t *port) noexcept nogil:
        """Whether bytes can go from the port to the wire unseen, and that is faster."""
        cdef const channel_t *channel = self.channels[0]
        if not self.splice or self.digests or channel.window.size > 0 or channel.mac != NULL:
            return False
        if not port.pages & PAGES_OUT and not (self.crowded and port.pages & PIPE_OUT):
            return False
        # With a choice of compression, a look at the bytes now and then, and at all while there are zeros.
        if self.crew is None:
            return True
        return (self.balance is not None and not self.balance.packing and not self.balance.due()
                and self.job_count == 0 and not self.saw_zeros)

    cdef ssize_t fill(self, port_t *port, size_t want, bint precopy, int *source) noexcept nogil:
        """Read until a frame is worth sending.  The bytes read; source: 0, DRAINED, END, LATER or -errno."""
        cdef size_t have = 0
        cdef ssize_t n
        cdef int rounds = 0
        while have < want and have < MIN_FRAME:
            n = port.read(port, self.buffer + have, want - have)
            if n > 0:
                have += n
                rounds = 0
            elif n == 0:
                source[0] = _DRAINED if precopy else _END
                break
            elif n == -ENOMSG and precopy:
                source[0] = _DRAINED
                break
            elif n == -EAGAIN:
                if have > 0:
                    break
                if self.job_count > 0:
                    source[0] = _LATER
                    break
                self.let_go()
                n = wait_port(port, POLLIN, &rounds, self.cancel.fd)
                if n < 0:
                    source[0] = <int> n
                    break
            else:
                source[0] = <int> n
                break
        return have

    cdef ssize_t pages_there(self, const port_t *port, size_t want, bint precopy, int *source) noexcept nogil:
        """How much of ``want`` a file or pipe has; as fill, without reading it.  -1: too little, read it."""
        cdef struct_stat about
        cdef int there = 0
        if port.pages & PIPE_OUT:
            if ioctl(port.fd, FIONREAD, &there) == 0 and there >= MIN_FRAME:
                return min(want, <size_t> there)
            return -1
        cdef off_t at = lseek(port.fd, 0, SEEK_CUR)
        if at < 0 or fstat(port.fd, &about) != 0:
            source[0] = -errno
            return 0
        if at >= about.st_size:
            source[0] = _DRAINED if precopy else _END
            return 0
        return min(want, <size_t> (about.st_size - at))

    cdef int send_pages(self, const port_t *port, size_t size, fault_t *fault) noexcept nogil:
        """Send what comes next in a file or pipe.  0 or -errno."""
        cdef int64_t before = now_ns()
        cdef int status
        self.pages_fd = port.fd
        self.from_pipe = port.pages & PIPE_OUT != 0
        status = self.send_data(KIND_RAW, NULL, size, size, 0, fault)
        if self.balance is not None:
            self.balance.sent(size, now_ns() - before)
        return status

    cdef int pass_on(self, size_t size, fault_t *fault) noexcept nogil:
        """Send what was read, or give it to the crew.  0 or -errno."""
        cdef bint packing
        if self.crew is None:
            self.digest = digest(self.digest, self.buffer, size) if self.digests else 0
            return self.send_data(KIND_RAW, self.buffer, size, size, self.digest, fault)
        if self.balance is not None and self.balance.due():
            if not self.balance.packing:
                self.crew.sample(self.balance, self.buffer, size)
            self.balance.decide(now_ns(), thread_ns(), self.backlog(),
                                <double> self.crew.threads / self.crew.lanes_running)
            self.explore = self.balance.packing
        packing = self.balance is None or self.balance.packing
        if packing or self.job_count > 0:
            return self.queue(size, packing, fault)
        return self.send_raw(self.buffer, size, fault)

    cdef size_t backlog(self) noexcept nogil:
        """Bytes that the sockets of the lane's channels hold and have not put on the wire."""
        cdef size_t total = 0
        cdef int i
        for i in range(self.channel_count):
            total += unsent(self.channels[i])
        return total

    cdef int send_raw(self, const uint8_t *data, size_t size, fault_t *fault) noexcept nogil:
        """Send a chunk in runs: bytes as they are, zeros as their number.  0 or -errno."""
        cdef int64_t before
        cdef size_t part, whole = size
        cdef bint zero
        cdef int status = 0
        self.saw_zeros = False
        while size > 0 and status == 0:
            part = run_of(data, size, &zero)
            self.saw_zeros |= zero
            self.digest = digest(self.digest, data, part) if self.digests else 0
            before = now_ns()
            if zero:
                status = self.send_data(KIND_ZERO, NULL, 0, part, self.digest, fault)
            else:
                status = self.send_data(KIND_RAW, data, part, part, self.digest, fault)
                if self.balance is not None:
                    self.balance.sent(part, self.last_read_ns * part // whole + now_ns() - before)
            data += part
            size -= part
        return status

    cdef int queue(self, size_t size, bint packing, fault_t *fault) noexcept nogil:
        """Make a job of the chunk in the buffer."""
        cdef job_t *job = &self.jobs[(self.first_job + self.job_count) % MAX_JOBS]
        self.digest = digest(self.digest, self.buffer, size) if self.digests else 0
        job.digest = self.digest
        job.size = size
        job.done = &self.job_done
        job.state = JOB_DONE
        job.read_ns = self.last_read_ns
        job.explore = packing and self.explore
        job.ns[0] = 0
        self.job_count += 1
        if all_zero(<const char *> self.buffer, size):
            job.kind = KIND_ZERO
            job.data = NULL
            job.length = 0
            return 0
        job.kind = KIND_RAW
        job.data = self.buffer
        job.length = size
        self.buffer = NULL
        if packing:
            job.level = self.crew.level if self.balance is None else self.balance.level
            self.explore = False
            self.crew.submit(job)
        return 0

    cdef channel_t *free_channel(self) noexcept nogil:
        """Enter one of the lane's channels without waiting; NULL: there is none."""
        cdef channel_t *channel
        cdef int i
        for i in range(self.channel_count):
            channel = self.channels[(self.next_channel + i) % self.channel_count]
            if try_enter(channel):
                if self.channel_count == 1 or writable(channel):
                    return channel
                leave(channel)
        return NULL

    cdef void let_go(self) noexcept nogil:
        """Leave the channel to others."""
        if self.held != NULL:
            leave(self.held)
            self.held = NULL

    cdef int send_first_job(self, fault_t *fault) noexcept nogil:
        """Wait for the first job and send it.  0 or -errno."""
        cdef job_t *job = &self.jobs[self.first_job]
        cdef int64_t before = now_ns()
        cdef int status, which
        self.crew.finish(job, self.channels[self.next_channel],
                         0 if self.balance is None else self.balance.raw_rate, self.cancel)
        if self.cancel.flag:
            return 0
        status = self.send_data(job.kind, job.data, job.length, job.size, job.digest, fault)
        if self.balance is not None and job.kind != KIND_ZERO:
            self.balance.sent(job.size, job.read_ns + now_ns() - before)
            if job.explore and job.ns[0] > 0:      # unless it had to go before its turn
                for which in range(LEVELS):
                    self.balance.sampled(which, job.size, job.packed[which], job.ns[which])
        self.first_job = (self.first_job + 1) % MAX_JOBS
        self.job_count -= 1
        self.give_back(job.data)
        return status

    cdef void drop_jobs(self) noexcept nogil:
        """Have back what is under way, after a failure."""
        while self.job_count > 0:
            self.crew.withdraw(&self.jobs[self.first_job])
            self.give_back(self.jobs[self.first_job].data)
            self.first_job = (self.first_job + 1) % MAX_JOBS
            self.job_count -= 1

    cdef void give_back(self, uint8_t *buffer) noexcept nogil:
        if buffer == NULL:
            return
        if self.buffer == NULL:
            self.buffer = buffer
        else:
            self.pool.give(buffer)
            self.crew.give_spare()

    cdef int send_data(self, int kind, const void *payload, size_t length, size_t size, uint32_t sum,
                       fault_t *fault) noexcept nogil:
        """Send a frame of ``size`` device bytes; without a payload, ``length`` bytes come from the port."""
        cdef frame_t frame
        cdef int status
        memset(&frame, 0, sizeof(frame))
        frame.kind = kind
        frame.pages = payload == NULL and length > 0
        frame.length = <uint32_t> length
        frame.raw_length = <uint32_t> size
        frame.digest = sum
        status = self.limiter.take(HEADER_SIZE + length, self.cancel.fd)
        if status == 0:
            status = self.send(&frame, payload)
        if status < 0:
            return fail(fault, AT_DEVICE if status == -ENODATA else AT_WIRE, status, self.index, self.offset)
        self.offset += size
        return 0

    cdef int send(self, frame_t *frame, const void *payload) noexcept nogil:
        """Send a frame of this lane: on the channel it has, the first that is free, or the next in turn."""
        cdef channel_t *channel = self.held
        cdef int status = 0
        frame.lane = self.index
        frame.offset = self.offset
        if channel == NULL:
            channel = self.free_channel()
            if channel == NULL:
                channel = self.channels[self.next_channel]
                status = enter(channel, self.cancel)
                if status < 0:
                    return status
            self.turn_left = TURN
        self.next_channel = (self.next_channel + 1) % self.channel_count
        if payload == NULL and frame.length > 0:
            status = send_pages_frame(channel, frame, self.pages_fd, self.from_pipe)
        else:
            status = send_frame(channel, frame, payload, self.cancel)
        self.held = channel
        self.turn_left -= frame.length
        if (self.turn_left <= 0 or self.last_read_ns > QUICK_NS or self.channel_count > 1
                or self.job_count > 0):
            self.let_go()
        self.frames += 1
        self.wire_bytes += frame_size(channel, frame)
        return status

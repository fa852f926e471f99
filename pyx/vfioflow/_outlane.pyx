"""The source's pump: from a device's data fd to the wire.

One call runs one phase of one lane on the calling thread, without the GIL.  Python may read the
counters at any time; they are plain integers that only the pump writes.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from errnos cimport EAGAIN, ENOMEM, ENOMSG
from poll cimport POLLIN
from pthread cimport pthread_mutex_lock, pthread_mutex_trylock, pthread_mutex_unlock

from vfioflow._channel cimport (
    AT_DEVICE,
    AT_MEMORY,
    AT_WIRE,
    fail,
    now_ns,
    raise_fault,
    send_frame,
    wait_port,
)
from vfioflow._frame cimport (
    HEADER_SIZE,
    KIND_END,
    KIND_MARK,
    KIND_RAW,
    KIND_ZERO,
    KIND_ZSTD,
    MAX_CHUNK,
    digest,
)

# What OutLane.pump returns.
cdef enum:
    _CANCELLED = 0      # Cancel was set
    _DRAINED = 1        # the device has nothing more for now
    _BUDGET = 2         # the budget is used up
    _END = 3            # the device's stream is at its end

CANCELLED, DRAINED, BUDGET, END = _CANCELLED, _DRAINED, _BUDGET, _END

cdef enum:
    # A device that hands out less than this at a time is asked again before a frame is sent, so
    # that small reads do not become small frames.
    MIN_FRAME = 64 * 1024


cdef bint all_zero(const char *data, size_t size) noexcept nogil:
    if data[0] != 0 or data[size - 1] != 0:
        return False
    return size == 1 or memcmp(data, data + 1, size - 1) == 0


cdef class OutLane:
    """The source's end of one device's stream.

    Args:
        name: the device's name, for errors.
        index: the lane's number on the wire, below 65536.
        channels: the connections that its frames may take, in turn.
        pool: buffers whose size is the most device bytes in a frame (at most 64 MiB); a running
            pump holds one, or two with zstd.
        cancel: ends the pump.
        limiter: the rate shared with the other lanes.
        digests: whether frames carry the running CRC32C.
        elide_zeros: send all-zero chunks as a bare header.
        level: compress with zstd at this level; None: never.
    """

    def __cinit__(self, str name, uint16_t index, list channels, Pool pool not None, Cancel cancel not None,
                  Limiter limiter not None, *, bint digests, bint elide_zeros=False, level=None):
        if not channels:
            raise ValueError("a lane needs a channel")
        if pool.size > MAX_CHUNK:
            raise ValueError(f"a chunk has at most {MAX_CHUNK} bytes")
        self.name = name
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
        self.elide = elide_zeros or level is not None
        self.compressor = None if level is None else Compressor(level)

    def __dealloc__(self):
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
            raise_fault(&fault, self.name, "reading its state")
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
        with nogil:
            status = self.send(&frame, NULL)
        if status < 0 and not self.cancel.flag:
            fail(&fault, AT_WIRE, status, self.index, self.offset)
            raise_fault(&fault, self.name, "")

    cdef int run(self, port_t *port, uint64_t budget, bint precopy, fault_t *fault) noexcept nogil:
        cdef uint8_t *buffer = <uint8_t *> self.pool.take()
        cdef uint8_t *packed = NULL
        cdef int64_t before, between
        cdef ssize_t n
        cdef int status = 0, outcome = 0
        if self.compressor is not None:
            packed = <uint8_t *> self.pool.take()
        if buffer == NULL or (self.compressor is not None and packed == NULL):
            outcome = fail(fault, AT_MEMORY, -ENOMEM, self.index, self.offset)
        while outcome == 0:
            if budget == 0:
                outcome = _BUDGET
                break
            if self.cancel.flag:
                break
            before = now_ns()
            n = self.fill(port, buffer, min(budget, self.pool.size), precopy, &status)
            between = now_ns()
            self.read_ns += between - before
            if self.cancel.flag:    # the session may be long over: its sockets are not ours any more
                break
            if n > 0:
                outcome = self.send_data(buffer, n, packed, fault)
                self.send_ns += now_ns() - between
                budget -= n
            if outcome == 0 and status < 0:
                outcome = fail(fault, AT_DEVICE, status, self.index, self.offset)
            elif outcome == 0:
                outcome = status
        self.pool.give(packed)
        self.pool.give(buffer)
        return outcome

    cdef ssize_t fill(
        self, port_t *port, uint8_t *buffer, size_t want, bint precopy, int *status
    ) noexcept nogil:
        """Read until a frame is worth sending.  The bytes read; status: 0, DRAINED, END or -errno."""
        cdef size_t have = 0
        cdef ssize_t n
        cdef int rounds = 0
        status[0] = 0
        while have < want and have < MIN_FRAME:
            n = port.read(port, buffer + have, want - have)
            if n > 0:
                have += n
                rounds = 0
            elif n == 0:
                status[0] = _DRAINED if precopy else _END
                break
            elif n == -ENOMSG and precopy:
                status[0] = _DRAINED
                break
            elif n == -EAGAIN:
                if have > 0:
                    break
                n = wait_port(port, POLLIN, &rounds, self.cancel.fd)
                if n < 0:
                    status[0] = <int> n
                    break
            else:
                status[0] = <int> n
                break
        return have

    cdef int send_data(
        self, const uint8_t *data, size_t size, uint8_t *packed, fault_t *fault
    ) noexcept nogil:
        """Send ``size`` device bytes as one frame, in the form that suits them.  0 or -errno."""
        cdef frame_t frame
        cdef const uint8_t *payload = data
        cdef ssize_t n
        cdef int status
        memset(&frame, 0, sizeof(frame))
        frame.kind = KIND_RAW
        frame.length = <uint32_t> size
        frame.raw_length = <uint32_t> size
        if self.digests:
            self.digest = digest(self.digest, data, size)
        if self.elide and all_zero(<const char *> data, size):
            frame.kind = KIND_ZERO
            frame.length = 0
        elif packed != NULL:
            # No more room than the bytes themselves have: what does not shrink goes raw.
            n = self.compressor.compress(packed, size - 1, data, size)
            if n > 0:
                frame.kind = KIND_ZSTD
                frame.length = <uint32_t> n
                payload = packed
        status = self.limiter.take(HEADER_SIZE + <size_t> frame.length, self.cancel.fd)
        if status == 0:
            status = self.send(&frame, payload)
        if status < 0:
            return fail(fault, AT_WIRE, status, self.index, self.offset)
        self.offset += size
        return 0

    cdef int send(self, frame_t *frame, const void *payload) noexcept nogil:
        """Send a frame of this lane on the first of its channels that is free, else on the next in turn."""
        cdef channel_t *channel
        cdef int i, status
        frame.lane = self.index
        frame.offset = self.offset
        frame.digest = self.digest
        for i in range(self.channel_count):
            channel = self.channels[(self.next_channel + i) % self.channel_count]
            if pthread_mutex_trylock(&channel.lock) == 0:
                break
        else:
            channel = self.channels[self.next_channel]
            pthread_mutex_lock(&channel.lock)
        self.next_channel = (self.next_channel + 1) % self.channel_count
        status = send_frame(channel, frame, payload)
        pthread_mutex_unlock(&channel.lock)
        self.frames += 1
        self.wire_bytes += HEADER_SIZE + <uint64_t> frame.length
        return status

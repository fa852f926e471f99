"""The pumps: from a device's data fd to the wire, and from the wire to a data fd.

One call runs one phase of one lane (source) or the whole life of one channel (destination) on
the calling thread, without the GIL.  Python may read the counters at any time; they are plain
integers that only the pump writes.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from errnos cimport (
    EAGAIN,
    EBADMSG,
    ECANCELED,
    ECONNRESET,
    EINTR,
    EIO,
    ENOMEM,
    ENOMSG,
    EPROTO,
    ETIMEDOUT,
    errno,
)
from eventfd cimport eventfd_write
from poll cimport POLLIN, POLLOUT
from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_timedwait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from sockets cimport MSG_NOSIGNAL, MSG_WAITALL, iovec, msghdr, recv, sendmsg

from vfioflow._fdio cimport wait_fd
from vfioflow._frame cimport (
    HEADER_SIZE,
    KIND_END,
    KIND_MARK,
    KIND_PAD,
    KIND_RAW,
    KIND_ZERO,
    KIND_ZSTD,
    MAX_CHUNK,
    decode,
    digest,
    encode,
)

import os

from vfioflow.errors import DeviceError, IntegrityError, PeerLost, ProtocolError

CHUNK_LIMIT = MAX_CHUNK

# What OutLane.pump returns.
cdef enum:
    _CANCELLED = 0      # Cancel was set, or the lane was held
    _DRAINED = 1        # the device has nothing more for now
    _BUDGET = 2         # the budget is used up
    _END = 3            # the device's stream is at its end

CANCELLED, DRAINED, BUDGET, END = _CANCELLED, _DRAINED, _BUDGET, _END

cdef enum:
    # A device that hands out less than this at a time is asked again before a frame is sent, so
    # that small reads do not become small frames.
    MIN_FRAME = 64 * 1024
    # Longest that a limited lane may fall behind its rate and still catch up: 10 ms.
    BURST_NS = 10 * 1000 * 1000


cdef int64_t now_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t> time.tv_sec * 1000000000 + time.tv_nsec


cdef int fail(fault_t *fault, where_t where, int status, int lane, uint64_t offset) noexcept nogil:
    fault.where = where
    fault.status = status
    fault.lane = lane
    fault.offset = offset
    return status


cdef object raise_fault(fault_t *fault, object name, object action):
    """The one place where a pump's failure becomes an exception."""
    at = f"device {name} at byte {fault.offset} of its stream"
    if fault.where == AT_DEVICE:
        raise DeviceError(name, f"{action} at byte {fault.offset} of its stream", -fault.status)
    if fault.where == AT_DIGEST:
        raise IntegrityError(f"{at}: the digest does not agree with the bytes that arrived")
    if fault.where == AT_ZSTD:
        raise IntegrityError(f"{at}: a compressed frame does not unpack")
    if fault.where == AT_MEMORY:
        raise MemoryError(f"{at}: no buffer")
    if fault.where == AT_FRAME:
        if fault.status == -EBADMSG:
            raise IntegrityError("a data frame is damaged: its header does not check")
        about = f"{at}: " if fault.lane >= 0 else ""
        raise ProtocolError(f"{about}a data frame that the protocol does not allow here")
    if fault.status == -ECONNRESET:
        raise PeerLost("the peer closed a data connection in the middle of a stream")
    raise PeerLost(f"a data connection failed: {os.strerror(-fault.status)}")


cdef int wait_port(port_t *port, short events, int *rounds, int cancel_fd) noexcept nogil:
    """Wait until a port that said EAGAIN is worth another try.

    A driver without .poll is always "ready": then only a pause of a millisecond keeps the loop
    from spinning.
    """
    cdef int status
    if rounds[0] > 1:
        status = wait_fd(-1, 0, cancel_fd, 1)
    else:
        status = wait_fd(port.fd, events, cancel_fd, 100)
    rounds[0] += 1
    return 0 if status == -ETIMEDOUT else status


cdef int recv_all(int fd, void *buffer, size_t size) noexcept nogil:
    """0 when filled, 1 when the peer closed before the first byte, or -errno."""
    cdef size_t have = 0
    cdef ssize_t n
    while have < size:
        n = recv(fd, <char *> buffer + have, size - have, MSG_WAITALL)
        if n > 0:
            have += n
        elif n == 0:
            return 1 if have == 0 else -ECONNRESET
        elif errno != EINTR:
            return -errno
    return 0


cdef void wait_turn(in_lane_t *lane) noexcept nogil:
    """Wait until the lane moved on, or a tenth of a second, to look at the cancel switch again."""
    cdef timespec until
    clock_gettime(CLOCK_REALTIME, &until)
    until.tv_nsec += 100 * 1000 * 1000
    if until.tv_nsec >= 1000000000:
        until.tv_nsec -= 1000000000
        until.tv_sec += 1
    pthread_cond_timedwait(&lane.turn, &lane.lock, &until)


cdef bint all_zero(const char *data, size_t size) noexcept nogil:
    if data[0] != 0 or data[size - 1] != 0:
        return False
    return size == 1 or memcmp(data, data + 1, size - 1) == 0


cdef class Limiter:
    """A rate that several lanes share, in bytes a second; 0 is no limit.  May be changed at any time."""

    def __cinit__(self, rate=0):
        pthread_mutex_init(&self.lock, NULL)
        self.rate = rate

    def __dealloc__(self):
        pthread_mutex_destroy(&self.lock)

    @property
    def rate(self):
        """Bytes a second; 0 is no limit."""
        return self._rate

    @rate.setter
    def rate(self, uint64_t rate):
        self._rate = rate

    cdef int take(self, size_t size, int cancel_fd) noexcept nogil:
        cdef int64_t now, wait
        cdef int status
        if self._rate == 0:
            return 0
        pthread_mutex_lock(&self.lock)
        now = now_ns()
        if self.free_at < now - BURST_NS:
            self.free_at = now - BURST_NS
        self.free_at += <int64_t> (<double> size * 1e9 / self._rate)
        wait = self.free_at - now
        pthread_mutex_unlock(&self.lock)
        if wait < 1000000:
            return 0
        status = wait_fd(-1, 0, cancel_fd, <int> (wait // 1000000))
        return 0 if status == -ETIMEDOUT else status


cdef int send_frame(channel_t *channel, const frame_t *frame, const void *payload) noexcept nogil:
    """Send a frame whole; the caller holds the channel's lock.  0 or -errno."""
    cdef uint8_t header[HEADER_SIZE]
    cdef iovec parts[2]
    cdef msghdr message
    cdef size_t left = HEADER_SIZE + <size_t> frame.length
    cdef size_t from_header
    cdef ssize_t n
    encode(frame, header)
    memset(&message, 0, sizeof(message))
    parts[0].iov_base = header
    parts[0].iov_len = HEADER_SIZE
    parts[1].iov_base = <void *> payload
    parts[1].iov_len = frame.length
    message.msg_iov = parts
    message.msg_iovlen = 2
    while left > 0:
        n = sendmsg(channel.fd, &message, MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        left -= n
        from_header = min(<size_t> n, parts[0].iov_len)
        parts[0].iov_base = <char *> parts[0].iov_base + from_header
        parts[0].iov_len -= from_header
        parts[1].iov_base = <char *> parts[1].iov_base + (n - from_header)
        parts[1].iov_len -= n - from_header
    channel.wire_bytes += HEADER_SIZE + <size_t> frame.length
    return 0


cdef class Channel:
    """One connection for data frames.  Takes a connected stream socket and keeps it blocking.

    A frame goes out whole: lanes that share a channel wait for each other.  Shutting the socket
    down ends every pump that uses it.
    """

    def __cinit__(self, socket):
        pthread_mutex_init(&self.c.lock, NULL)
        socket.setblocking(True)
        self.socket = socket
        self.c.fd = socket.fileno()

    def __dealloc__(self):
        pthread_mutex_destroy(&self.c.lock)

    @property
    def wire_bytes(self):
        """Bytes sent on this connection, headers included."""
        return self.c.wire_bytes

    @property
    def pad_bytes(self):
        """Pad bytes received on this connection."""
        return self.c.pad_bytes

    def pad(self, size_t size, Pool pool not None, Limiter limiter not None, Cancel cancel not None):
        """Send ``size`` bytes that the receiver throws away, to measure the wire.

        Raises:
            PeerLost: the connection failed.
            MemoryError: no buffer.
        """
        cdef frame_t frame
        cdef fault_t fault
        cdef int status = 0
        cdef void *buffer = pool.take()
        if buffer == NULL:
            raise MemoryError("no buffer to measure the wire with")
        memset(&frame, 0, sizeof(frame))
        frame.kind = KIND_PAD
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            while size > 0 and status == 0:
                frame.length = <uint32_t> min(size, pool.size)
                status = limiter.take(frame.length, cancel.fd)
                if status == 0:
                    status = send_frame(&self.c, &frame, buffer)
                size -= frame.length
            pthread_mutex_unlock(&self.c.lock)
        pool.give(buffer)
        if status < 0 and not cancel.flag:
            fail(&fault, AT_WIRE, status, -1, 0)
            raise_fault(&fault, "", "")


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

    def hold(self, bint held=True):
        """Make a running pump, and any later one, return CANCELLED at its next chunk; or undo that."""
        self.held = held

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
            if self.held or self.cancel.flag:
                break
            before = now_ns()
            n = self.fill(port, buffer, min(budget, self.pool.size), precopy, &status)
            between = now_ns()
            self.read_ns += between - before
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
                if self.held:
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


cdef class InLane:
    """The destination's end of one device's stream: where its frames are put in order and loaded."""

    def __cinit__(self, str name, Port port not None):
        pthread_mutex_init(&self.c.lock, NULL)
        pthread_cond_init(&self.c.turn, NULL)
        self.name = name
        self.port = port
        self.c.port = &port.c

    def __dealloc__(self):
        pthread_cond_destroy(&self.c.turn)
        pthread_mutex_destroy(&self.c.lock)

    @property
    def offset(self):
        """Device bytes loaded so far."""
        return self.c.offset

    @property
    def wire_bytes(self):
        """Bytes of its frames on the wire so far, headers included."""
        return self.c.wire_bytes

    @property
    def frames(self):
        """Frames so far."""
        return self.c.frames

    @property
    def write_ns(self):
        """Time spent in the device's write, in nanoseconds."""
        return self.c.write_ns

    @property
    def digest(self):
        """CRC32C of the bytes loaded so far; 0 without digests."""
        return self.c.digest

    @property
    def marks(self):
        """How many times all initial bytes have been loaded."""
        return self.c.marks

    @property
    def busy(self):
        """Whether a frame is going to the device now."""
        return bool(self.c.busy)

    @property
    def ended(self):
        """Whether the stream came to its end with the right length and digest."""
        return bool(self.c.ended)


cdef class Receiver:
    """The destination's ends of all streams of a session.

    Args:
        lanes: by their number on the wire.
        pool: buffers of the agreed chunk size; each running channel holds two.
        cancel: ends the pumps (together with a shutdown of the sockets).
        signal_fd: an eventfd, written whenever a lane passes a mark or its end.
        digests: whether to check the running CRC32C of each frame.
    """

    def __cinit__(
        self, list lanes, Pool pool not None, Cancel cancel not None, int signal_fd, *, bint digests
    ):
        self.owners = list(lanes)
        self.lanes = <in_lane_t **> calloc(max(len(lanes), 1), sizeof(in_lane_t *))
        if self.lanes == NULL:
            raise MemoryError
        for lane in lanes:
            self.lanes[self.lane_count] = &(<InLane?> lane).c
            self.lane_count += 1
        self.pool = pool
        self.cancel = cancel
        self.signal_fd = signal_fd
        self.digests = digests

    def __dealloc__(self):
        free(self.lanes)

    def receive(self, Channel channel not None):
        """Load what arrives on ``channel`` until the peer ends it; one call for its whole life.

        Returns:
            True at a clean end (between two frames), False when cancelled.

        Raises:
            DeviceError: a device refused its data; fatal to the load, even where a driver would go on.
            IntegrityError: a digest or a compressed frame is wrong.
            ProtocolError: a frame that makes no sense here.
            PeerLost: the connection failed, or ended inside a frame.
            MemoryError: no buffer.
        """
        cdef fault_t fault
        cdef int status
        cdef Decompressor decompressor = Decompressor()
        with nogil:
            status = self.run(&channel.c, decompressor, &fault)
        if status < 0 and self.cancel.flag:
            return False
        if status < 0:
            name = (<InLane> self.owners[fault.lane]).name if fault.lane >= 0 else ""
            raise_fault(&fault, name, "loading its state")
        return not self.cancel.flag

    cdef int run(self, channel_t *channel, Decompressor decompressor, fault_t *fault) noexcept nogil:
        cdef uint8_t header[HEADER_SIZE]
        cdef frame_t frame
        cdef uint8_t *arrived = <uint8_t *> self.pool.take()
        cdef uint8_t *unpacked = <uint8_t *> self.pool.take()
        cdef const uint8_t *data
        cdef int fd = channel.fd
        cdef int status = 0
        if arrived == NULL or unpacked == NULL:
            status = fail(fault, AT_MEMORY, -ENOMEM, -1, 0)
        while status == 0:
            status = recv_all(fd, header, HEADER_SIZE)
            if status == 1:
                break
            if status < 0:
                fail(fault, AT_WIRE, status, -1, 0)
                break
            status = decode(header, &frame, self.pool.size, self.pool.size)
            if status < 0:
                fail(fault, AT_FRAME, status, -1, 0)
                break
            if frame.length > 0:
                status = recv_all(fd, arrived, frame.length)
                if status != 0:
                    status = fail(fault, AT_WIRE, -ECONNRESET if status == 1 else status, -1, 0)
                    break
            if frame.kind == KIND_PAD:
                channel.pad_bytes += frame.length
                eventfd_write(self.signal_fd, 1)
                continue
            if frame.lane >= self.lane_count:
                status = fail(fault, AT_FRAME, -EPROTO, -1, 0)
                break
            data = arrived
            if frame.kind == KIND_ZSTD:
                data = unpacked
                if decompressor.decompress(unpacked, frame.raw_length, arrived, frame.length) < 0:
                    status = fail(fault, AT_ZSTD, -EBADMSG, frame.lane, frame.offset)
                    break
            elif frame.kind == KIND_ZERO:
                data = unpacked
                memset(unpacked, 0, frame.raw_length)
            status = self.deliver(&frame, data, fault)
        self.pool.give(unpacked)
        self.pool.give(arrived)
        return status

    cdef int deliver(self, const frame_t *frame, const void *data, fault_t *fault) noexcept nogil:
        """Load a frame once all frames before it are loaded.  0 or -errno.

        Waiting here cannot deadlock: a lane sends its frames one after the other, so the frame
        that was sent first of all that are not loaded yet is at the head of its channel, and
        everything before it in its lane is loaded.
        """
        cdef in_lane_t *lane = self.lanes[frame.lane]
        cdef size_t done = 0
        cdef int status = 0
        cdef int64_t before
        cdef bint late_mark
        pthread_mutex_lock(&lane.lock)
        while (lane.offset < frame.offset or lane.busy) and not lane.ended and not self.cancel.flag:
            wait_turn(lane)
        # On another channel, the frames behind a mark may have been faster.
        late_mark = frame.kind == KIND_MARK and frame.offset < lane.offset
        if self.cancel.flag:
            status = fail(fault, AT_WIRE, -ECANCELED, frame.lane, frame.offset)
        elif not late_mark and (lane.offset != frame.offset or lane.ended):
            status = fail(fault, AT_FRAME, -EPROTO, frame.lane, frame.offset)
        lane.busy = status == 0
        pthread_mutex_unlock(&lane.lock)
        if status < 0:
            return status
        # From here to the end this thread alone has the lane; the lock is free meanwhile, so that a
        # device that does not return holds up nobody who only wants to look at the cancel switch.
        if self.digests and not late_mark:
            status = self.check_digest(lane, frame, data, fault)
        if status == 0 and frame.raw_length > 0:
            before = now_ns()
            status = self.load(lane.port, frame, data, &done, fault)
            lane.write_ns += now_ns() - before
        pthread_mutex_lock(&lane.lock)
        lane.offset += done
        lane.wire_bytes += HEADER_SIZE + <uint64_t> frame.length
        lane.frames += 1
        if status == 0 and frame.kind == KIND_MARK:
            lane.marks += 1
        elif status == 0 and frame.kind == KIND_END:
            lane.ended = 1
        lane.busy = 0
        pthread_cond_broadcast(&lane.turn)
        pthread_mutex_unlock(&lane.lock)
        if status == 0 and (frame.kind == KIND_MARK or frame.kind == KIND_END):
            eventfd_write(self.signal_fd, 1)
        return status

    cdef int check_digest(self, in_lane_t *lane, const frame_t *frame, const void *data,
                          fault_t *fault) noexcept nogil:
        cdef uint32_t sum = digest(lane.digest, data, frame.raw_length)
        if sum != frame.digest:
            return fail(fault, AT_DIGEST, -EBADMSG, frame.lane, frame.offset)
        lane.digest = sum
        return 0

    cdef int load(self, port_t *port, const frame_t *frame, const void *data, size_t *done,
                  fault_t *fault) noexcept nogil:
        """Write a frame's device bytes; a driver may take them in pieces.  0 or -errno."""
        cdef ssize_t n
        cdef int rounds = 0, status = 0
        while status == 0 and done[0] < frame.raw_length:
            n = port.write(port, <const char *> data + done[0], frame.raw_length - done[0])
            if n > 0:
                done[0] += n
                rounds = 0
            elif n == -EAGAIN:
                status = wait_port(port, POLLOUT, &rounds, self.cancel.fd)
            else:
                status = fail(fault, AT_DEVICE, <int> n if n < 0 else -EIO, frame.lane, frame.offset + done[0])
        return status

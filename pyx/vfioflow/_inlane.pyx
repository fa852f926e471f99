"""The destination's pumps: from the wire to the devices' data fds.

One call runs the whole life of one channel on the calling thread, without the GIL.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.fcntl cimport fcntl
from posix.unistd cimport close

from errnos cimport EAGAIN, EBADMSG, ECANCELED, ECONNRESET, EIO, ENOMEM, EPROTO
from eventfd cimport eventfd_write
from pipes cimport F_SETPIPE_SZ, O_CLOEXEC, pipe2
from poll cimport POLLOUT
from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from vfioflow._channel cimport await_bytes, frame_size, recv_all, recv_payload
from vfioflow._fault cimport (
    AT_DEVICE,
    AT_DIGEST,
    AT_FRAME,
    AT_MEMORY,
    AT_TAG,
    AT_WIRE,
    AT_ZSTD,
    fail,
    raise_fault,
)
from vfioflow._waits cimport A_MOMENT, now_ns, wait_a_little, wait_port
from vfioflow._fdio cimport ONLY_PAGES_IN, PAGES_IN, fd_splice
from vfioflow._frame cimport (
    HEADER_SIZE,
    KIND_CLOSE,
    KIND_END,
    KIND_INVALID,
    KIND_MARK,
    KIND_PAD,
    KIND_RAW,
    KIND_ZERO,
    KIND_ZSTD,
    MAX_CHUNK,
    decode,
    digest,
)
from vfioflow._mac cimport TAG_SIZE, mac_fits
from vfioflow._window cimport window_await, window_dealt_with, window_done

CHUNK_LIMIT = MAX_CHUNK


cdef class InLane:
    """The destination's end of one device's stream: where its frames are put in order and loaded."""

    def __cinit__(self, str name, Port port not None):
        pthread_mutex_init(&self.c.lock, NULL)
        pthread_cond_init(&self.c.turn, NULL)
        self.name = name
        self.title = ""
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
        cdef InLane lane
        with nogil:
            status = self.run(&channel.c, decompressor, &fault)
        if status < 0 and self.cancel.flag:
            return False
        if status < 0:
            if fault.lane >= 0:
                lane = <InLane> self.owners[fault.lane]
                raise_fault(&fault, lane.name, "loading its state", lane.port, lane.title)
            raise_fault(&fault, "", "loading its state")
        return not self.cancel.flag

    cdef int run(self, channel_t *channel, Decompressor decompressor, fault_t *fault) noexcept nogil:
        cdef frame_t frame
        cdef uint8_t *arrived = <uint8_t *> self.pool.take()
        cdef uint8_t *unpacked = <uint8_t *> self.pool.take()
        cdef wire_t wire
        cdef int status = 0
        wire.pipe[0] = wire.pipe[1] = -1
        memset(&frame, 0, sizeof(frame))
        if arrived == NULL or unpacked == NULL:
            status = fail(fault, AT_MEMORY, -ENOMEM, -1, 0)
        while status == 0 and frame.kind != KIND_CLOSE and not self.cancel.flag:
            wire.fd = channel.fd
            wire.broken = 0
            status = self.take(channel, &frame, arrived, unpacked, &wire, decompressor, fault)
            if wire.broken != 0:
                # The frame was not dealt with: it comes again, whole, on the next connection.
                frame.kind = KIND_INVALID
                status = window_await(&channel.window, self.cancel)
                if status < 0:
                    status = fail(fault, AT_WIRE, wire.broken, -1, 0)
            elif status == 0:
                if channel.mac != NULL:
                    channel.mac.number += 1
                window_dealt_with(&channel.window, wire.fd, wire.size, frame.kind == KIND_CLOSE)
        window_done(&channel.window)
        if wire.pipe[0] >= 0:
            close(wire.pipe[0])
            close(wire.pipe[1])
        self.pool.give(unpacked)
        self.pool.give(arrived)
        return status

    cdef int take(self, channel_t *channel, frame_t *frame, uint8_t *arrived, uint8_t *unpacked, wire_t *wire,
                  Decompressor decompressor, fault_t *fault) noexcept nogil:
        """Take the next frame from the wire, and deal with it.  0 or -errno; wire.broken: it is not whole."""
        cdef uint8_t header[HEADER_SIZE]
        cdef uint8_t tag[TAG_SIZE]
        cdef const uint8_t *data = arrived
        cdef int status
        wire.broken = recv_all(wire.fd, header, HEADER_SIZE)
        if wire.broken != 0:
            return 0
        status = decode(header, frame, self.pool.size, self.pool.size)
        if status < 0:
            return fail(fault, AT_FRAME, status, -1, 0)
        wire.size = frame_size(channel, frame)
        # With a window a frame whose connection breaks comes again, so none of it may be with the device;
        # with a key all of it must be seen first.
        if channel.window.size == 0 and channel.mac == NULL and self.may_splice(frame, wire):
            return self.deliver(frame, NULL, wire, fault)
        if frame.length > 0:
            wire.broken = recv_payload(wire.fd, arrived, frame.length)
            if wire.broken != 0:
                return 0
        if channel.mac != NULL:
            wire.broken = recv_all(wire.fd, tag, TAG_SIZE)
            if wire.broken != 0:
                return 0
            if not mac_fits(channel.mac, header, HEADER_SIZE, arrived, frame.length, tag):
                return fail(fault, AT_TAG, -EBADMSG, -1, 0)
        if frame.kind == KIND_CLOSE:
            return 0
        if frame.kind == KIND_PAD:
            channel.pad_bytes += frame.length
            eventfd_write(self.signal_fd, 1)
            return 0
        if frame.lane >= self.lane_count:
            return fail(fault, AT_FRAME, -EPROTO, -1, 0)
        if frame.kind == KIND_ZSTD:
            data = unpacked
            if decompressor.decompress(unpacked, frame.raw_length, arrived, frame.length) < 0:
                return fail(fault, AT_ZSTD, -EBADMSG, frame.lane, frame.offset)
        elif frame.kind == KIND_ZERO:
            data = unpacked
            memset(unpacked, 0, frame.raw_length)
        return self.deliver(frame, data, wire, fault)

    cdef bint may_splice(self, const frame_t *frame, wire_t *wire) noexcept nogil:
        """Whether a frame's bytes can go to the device unseen, by way of a pipe of this thread's own."""
        cdef int pages
        if frame.kind != KIND_RAW or self.digests or frame.lane >= self.lane_count:
            return False
        pages = self.lanes[frame.lane].port.pages
        if not pages & PAGES_IN or (pages & ONLY_PAGES_IN and not frame.pages):
            return False
        if wire.pipe[0] < 0:
            if pipe2(wire.pipe, O_CLOEXEC) != 0:
                wire.pipe[0] = wire.pipe[1] = -1
                return False
            fcntl(wire.pipe[1], F_SETPIPE_SZ, 1 << 20)
        return True

    cdef int deliver(self, const frame_t *frame, const void *data, const wire_t *wire,
                     fault_t *fault) noexcept nogil:
        """Load a frame once all frames before it are loaded; without ``data``, from the wire.  0 or -errno.

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
            wait_a_little(&lane.turn, &lane.lock, A_MOMENT)
        # On another channel, the frames behind a mark, or the end itself, may have been faster.
        late_mark = frame.kind == KIND_MARK and (
            frame.offset < lane.offset or (lane.ended and frame.offset == lane.offset)
        )
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
            if data == NULL:
                status = self.pour(lane, frame, wire, &done, fault)
            else:
                before = now_ns()
                status = self.load(lane.port, frame, data, &done, fault)
                lane.write_ns += now_ns() - before
        pthread_mutex_lock(&lane.lock)
        lane.offset += done
        lane.wire_bytes += wire.size
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
                status = <int> n if n < 0 else -EIO
                fail(fault, AT_DEVICE, status, frame.lane, frame.offset + done[0])
        return status

    cdef int pour(self, in_lane_t *lane, const frame_t *frame, const wire_t *wire, size_t *done,
                  fault_t *fault) noexcept nogil:
        """Move a frame's bytes from the socket to the device, page by page, without a copy.  0 or -errno."""
        cdef size_t left = frame.raw_length     # still in the socket
        cdef size_t held                        # in the pipe
        cdef int rounds = 0, status = 0
        cdef ssize_t n
        cdef int64_t before
        while status == 0 and left > 0:
            await_bytes(wire.fd, left)
            n = fd_splice(wire.fd, wire.pipe[1], left)
            if n <= 0:
                return fail(fault, AT_WIRE, <int> n if n < 0 else -ECONNRESET, frame.lane,
                            frame.offset + done[0])
            held = n
            left -= n
            before = now_ns()
            while status == 0 and held > 0:
                n = fd_splice(wire.pipe[0], lane.port.fd, held)
                if n > 0:
                    held -= n
                    done[0] += n
                    rounds = 0
                elif n == -EAGAIN:
                    status = wait_port(lane.port, POLLOUT, &rounds, self.cancel.fd)
                else:
                    status = fail(fault, AT_DEVICE, <int> n if n < 0 else -EIO, frame.lane,
                                  frame.offset + done[0])
            lane.write_ns += now_ns() - before
        return status

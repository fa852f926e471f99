"""What goes over a connection to a vfio-user server: requests out, replies in, one ring of what is due.

The server answers in the order in which it was asked, so replies are matched with a ring, and ids and
commands must agree. A message that cannot be ends the connection: what comes behind it cannot be understood
either.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from errnos cimport (
    EAGAIN,
    EBUSY,
    ECONNRESET,
    EINTR,
    EINVAL,
    ENOMEM,
    ENOMSG,
    EOPNOTSUPP,
    EPIPE,
    EPROTO,
    ETIMEDOUT,
    errno,
)
from poll cimport POLLOUT
from pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock
from sockets cimport (
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_SPACE,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SHUT_RDWR,
    SOL_SOCKET,
    cmsghdr,
    iovec,
    msghdr,
    recv,
    sendmsg,
    shutdown,
)

from vfioflow._fdio cimport wait_fd
from vfioflow._waits cimport now_ns

cdef enum:
    TYPE_BITS = 0xF
    TYPE_COMMAND = 0
    TYPE_REPLY = 1
    NO_REPLY = 1 << 4
    ERROR_BIT = 1 << 5
    LARGEST_ERRNO = 4095
    LARGEST = (1 << 20) + 4096      # bytes of a payload that nobody wants

ctypedef struct header_t:
    uint16_t id
    uint16_t command
    uint32_t size
    uint32_t flags
    uint32_t error


cdef void enter(line_t *line) noexcept nogil:
    pthread_mutex_lock(&line.lock)
    line.users += 1


cdef void leave(line_t *line) noexcept nogil:
    line.users -= 1
    shut_when_free(line)
    pthread_mutex_unlock(&line.lock)


cdef void shut_when_free(line_t *line) noexcept nogil:
    if line.closing and line.users == 0 and line.fd >= 0:
        close(line.fd)
        line.fd = -1


cdef void lose(line_t *line, int code, const char *why, uint64_t was, uint64_t expected) noexcept nogil:
    """The connection is of no use any more: tell everybody."""
    if line.broken != 0:
        return
    line.broken = code
    line.why = why
    line.was = was
    line.expected = expected
    shutdown(line.fd, SHUT_RDWR)
    pthread_cond_broadcast(&line.changed)


# ------------------------------------------------------------------- receiving


cdef ssize_t receive(line_t *line, void *into, size_t want) noexcept nogil:
    """Up to ``want`` bytes that are there; 0: none now, or never more."""
    cdef ssize_t n
    while True:
        n = recv(line.fd, into, want, MSG_DONTWAIT)
        if n > 0:
            return n
        if n == 0 or errno == ECONNRESET:
            if line.phase == IN_HEADER and line.got == 0:
                lose(line, ECONNRESET, "the server closed the connection", 0, 0)
            else:
                lose(line, ECONNRESET, "the server closed the connection in the middle of a message", 0, 0)
            return 0
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            lose(line, errno, "the connection cannot be read", 0, 0)
            return 0


cdef bint fill(line_t *line, uint8_t *into, size_t size) noexcept nogil:
    """Go on receiving a part of ``size`` bytes; whether it is all there."""
    if line.got < size:
        line.got += receive(line, into + line.got, size - line.got)
    return line.got == size and line.broken == 0


cdef void take_in(line_t *line, const stream_t *reader) noexcept nogil:
    while line.broken == 0 and step(line, reader):
        pass


cdef bint step(line_t *line, const stream_t *reader) noexcept nogil:
    """The next part of a message; False: not (all) there yet, or no room for it."""
    cdef slot_t *slot = &line.slots[line.first]
    cdef size_t n
    if line.phase == IN_HEADER:
        if not fill(line, line.head, HEADER):
            return False
        line.got = 0
        look(line, <const header_t *> line.head)
    elif line.phase == IN_CALL:
        if slot.call == NULL:
            line.phase = IN_REST
            line.left -= line.got
        elif line.left > 0 and not fill(line, slot.call.into, line.left):
            return False
        else:
            line.data = line.left
            finish(line)
    elif line.phase == IN_DATA_HEAD:
        if not fill(line, line.data_head, DATA_HEAD):
            return False
        line.got = 0
        look_at_data(line, slot.size)
    elif line.phase == IN_DATA:
        if line.data == line.got:
            line.phase = IN_REST
        else:
            n = take_data(line, slot.stream, reader, line.data - line.got)
            line.got += n
            line.left -= n
            return n > 0
    elif line.left > 0:
        n = receive(line, line.scratch, min(line.left, <size_t> SCRATCH))
        line.left -= n
        return n > 0
    elif line.phase == IN_COMMAND:
        refuse(line, <const header_t *> line.head)
    else:
        finish(line)
    return True


cdef void look(line_t *line, const header_t *head) noexcept nogil:
    """A header has come: is it what is due?"""
    cdef const slot_t *slot = &line.slots[line.first]
    cdef size_t most = LARGEST
    if head.size < HEADER:
        lose(line, EPROTO, "a message says that it has {was} bytes, its header alone has {expected}",
             head.size, HEADER)
        return
    line.left = head.size - HEADER
    line.error = 0
    line.data = 0
    if head.flags & TYPE_BITS == TYPE_COMMAND:
        line.phase = IN_COMMAND
    elif head.flags & TYPE_BITS != TYPE_REPLY:
        lose(line, EPROTO, "a message of type {was}, which is neither command nor reply",
             head.flags & TYPE_BITS, 0)
    elif line.count == 0:
        lose(line, EPROTO, "a reply with id {was}, and nothing was asked", head.id, 0)
    elif head.id != slot.id:
        lose(line, EPROTO, "a reply with id {was}, where that to {expected} is due", head.id, slot.id)
    elif head.command != slot.command:
        lose(line, EPROTO, "a reply to command {was}, where that to command {expected} is due",
             head.command, slot.command)
    elif head.flags & ERROR_BIT:
        line.phase = IN_REST            # servers send a payload with errors too
        line.error = head.error if 0 < head.error <= LARGEST_ERRNO else EINVAL
    elif slot.command == MIG_DATA_READ:
        line.phase = IN_DATA_HEAD
        most = DATA_HEAD + slot.size
        if line.left < DATA_HEAD:
            lose(line, EPROTO, "a reply with {was} bytes, where there must be {expected} before the data",
                 line.left, DATA_HEAD)
    elif slot.command == MIG_DATA_WRITE:
        line.phase = IN_REST
    else:
        line.phase = IN_CALL
        most = slot.size
    if line.left > most:
        lose(line, EPROTO, "a message with {was} bytes after its header, where at most {expected} may come",
             line.left, most)


cdef void look_at_data(line_t *line, size_t asked) noexcept nogil:
    """The head of a reply with data has come.  Behind the data there may be padding."""
    cdef uint32_t size
    memcpy(&size, line.data_head + 4, sizeof(size))
    line.left -= DATA_HEAD
    if size > asked or size > line.left:
        lose(line, EPROTO, "a reply says that it has {was} bytes of data, at most {expected} may come",
             size, min(asked, line.left))
        return
    line.data = size
    line.phase = IN_DATA


cdef size_t take_data(line_t *line, stream_t *stream, const stream_t *reader, size_t want) noexcept nogil:
    """Some of ``want`` bytes of data, to where they belong.  0: not now."""
    cdef uint8_t *bigger
    cdef size_t n
    if stream == NULL or stream.error:
        return receive(line, line.scratch, min(want, <size_t> SCRATCH))
    if stream.room > 0:
        n = receive(line, stream.into + stream.got, min(want, stream.room))
        stream.room -= n
        stream.got += n
    elif reader == stream:
        return 0
    else:
        if stream.stash_to + want > stream.stash_size:
            bigger = <uint8_t *> realloc(stream.stash, stream.stash_to + want)
            if bigger == NULL:
                lose(line, ENOMEM, "no memory for data that came meanwhile", 0, 0)
                return 0
            stream.stash = bigger
            stream.stash_size = stream.stash_to + want
        n = receive(line, stream.stash + stream.stash_to, want)
        stream.stash_to += n
    stream.due -= n
    return n


cdef void finish(line_t *line) noexcept nogil:
    """A reply is all here."""
    cdef slot_t *slot = &line.slots[line.first]
    if slot.call != NULL:
        slot.call.length = line.data
        slot.call.error = line.error
        slot.call.done = True
    elif slot.stream != NULL and slot.command == MIG_DATA_READ:
        was_read(slot.stream, slot.size, line.data, line.error)
    elif slot.stream != NULL:
        was_written(slot.stream, slot.size, line.error)
    line.first = (line.first + 1) % SLOTS
    line.count -= 1
    line.phase = IN_HEADER
    line.got = 0
    pthread_cond_broadcast(&line.changed)


cdef void was_read(stream_t *stream, size_t asked, size_t size, int error) noexcept nogil:
    stream.in_flight -= 1
    stream.due -= asked - size
    if error == ENOMSG and stream.precopy:
        error = 0               # what a kernel's driver says when there is nothing for now
    if error and not stream.error:
        stream.error = error
    stream.last = size
    # A short reply should be the last that has data, but servers send short ones in the middle too:
    # only one that is empty, with nothing behind it, ends anything.
    if size < asked:
        stream.tail = True
    if stream.in_flight == 0 and stream.tail:
        stream.tail = False
        stream.at_end = size == 0 and not stream.error


cdef void was_written(stream_t *stream, size_t size, int error) noexcept nogil:
    stream.in_flight -= 1
    if error and not stream.error:
        stream.error = error
    if not stream.error:
        stream.acked += size


cdef void refuse(line_t *line, const header_t *head) noexcept nogil:
    """A command of the server's.  No memory is shared by messages here, so it may ask for nothing."""
    cdef header_t answer
    cdef iovec part
    cdef msghdr message
    line.phase = IN_HEADER
    line.got = 0
    if head.flags & NO_REPLY:
        return
    answer.id = head.id
    answer.command = head.command
    answer.size = HEADER
    answer.flags = TYPE_REPLY | ERROR_BIT
    answer.error = EOPNOTSUPP
    part.iov_base = &answer
    part.iov_len = HEADER
    memset(&message, 0, sizeof(message))
    message.msg_iov = &part
    message.msg_iovlen = 1
    if line.sending or sendmsg(line.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) != HEADER:
        lose(line, EPROTO, "the server sends command {was}, and takes no answer", head.command, 0)


# --------------------------------------------------------------------- sending


cdef int post(
    line_t *line, slot_t *slot, iovec *parts, int count, const int *fds, int fd_count
) noexcept nogil:
    cdef header_t head
    cdef msghdr message
    cdef uint8_t control[256]
    cdef size_t total = HEADER, sent
    cdef ssize_t n
    cdef int at
    if line.broken:
        return -line.broken
    if line.sending or line.count == SLOTS:
        return -EBUSY
    for at in range(1, count):
        total += parts[at].iov_len
    slot.id = line.next_id
    head.id = slot.id
    head.command = slot.command
    head.size = <uint32_t> total
    head.flags = TYPE_COMMAND
    head.error = 0
    parts[0].iov_base = &head
    parts[0].iov_len = HEADER
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = count
    if fd_count > 0:
        pass_fds(&message, control, fds, fd_count)
    n = send_some(line, &message)
    if n < 0:
        return <int> n
    line.next_id += 1
    line.slots[(line.first + line.count) % SLOTS] = slot[0]
    line.count += 1
    sent = n
    if sent < total:
        message.msg_control = NULL
        message.msg_controllen = 0
        send_rest(line, &message, sent, total)
    return -line.broken


cdef void pass_fds(msghdr *message, uint8_t *control, const int *fds, int count) noexcept nogil:
    cdef cmsghdr *head
    memset(control, 0, CMSG_SPACE(count * sizeof(int)))
    message.msg_control = control
    message.msg_controllen = CMSG_SPACE(count * sizeof(int))
    head = CMSG_FIRSTHDR(message)
    head.cmsg_level = SOL_SOCKET
    head.cmsg_type = SCM_RIGHTS
    head.cmsg_len = CMSG_LEN(count * sizeof(int))
    memcpy(CMSG_DATA(head), fds, count * sizeof(int))


cdef ssize_t send_some(line_t *line, const msghdr *message) noexcept nogil:
    """One sendmsg: a server may take a message that comes in pieces for one that is too short."""
    cdef ssize_t n
    while True:
        n = sendmsg(line.fd, message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n >= 0:
            return n
        if errno == EAGAIN:
            return -EAGAIN
        if errno == EPIPE or errno == ECONNRESET:
            lose(line, ECONNRESET, "the server closed the connection", 0, 0)
        elif errno != EINTR:
            lose(line, errno, "the server takes no more", 0, 0)
        if line.broken:
            return -line.broken


cdef void send_rest(line_t *line, msghdr *message, size_t sent, size_t total) noexcept nogil:
    """A message larger than the kernel takes at once must be finished, whatever happens meanwhile."""
    cdef int64_t until = now_ns() + line.patience
    cdef ssize_t n = sent
    line.sending = True
    while True:
        while n > 0 and <size_t> n >= message.msg_iov.iov_len:
            n -= message.msg_iov.iov_len
            message.msg_iov += 1
            message.msg_iovlen -= 1
            if message.msg_iovlen == 0:
                break
        if sent == total or line.broken:
            break
        message.msg_iov.iov_base = <uint8_t *> message.msg_iov.iov_base + n
        message.msg_iov.iov_len -= n
        n = send_some(line, message)
        if n == -EAGAIN:
            n = 0
            if now_ns() >= until:
                lose(line, ETIMEDOUT, "the server does not take the rest of a message", 0, 0)
            pthread_mutex_unlock(&line.lock)
            wait_fd(line.fd, POLLOUT, -1, 100)
            pthread_mutex_lock(&line.lock)
        elif n > 0:
            sent += n
    line.sending = False
    pthread_cond_broadcast(&line.changed)


# ------------------------------------------------------------------- giving up


cdef void forget_call(line_t *line, const call_t *call) noexcept nogil:
    """Nobody waits for it any more; its reply is thrown away when it comes."""
    cdef int at
    for at in range(line.count):
        if line.slots[(line.first + at) % SLOTS].call == call:
            line.slots[(line.first + at) % SLOTS].call = NULL


cdef void forget_stream(line_t *line, stream_t *stream) noexcept nogil:
    cdef int at
    for at in range(line.count):
        if line.slots[(line.first + at) % SLOTS].stream == stream:
            line.slots[(line.first + at) % SLOTS].stream = NULL
    stream.in_flight = 0
    stream.dead = True
    pthread_cond_broadcast(&line.changed)

# The state of a connection to a vfio-user server, and what goes over it.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from sockets cimport iovec

cdef enum:
    SLOTS = 64                  # requests under way at most
    HEADER = 16
    DATA_HEAD = 8               # argsz and size, in front of migration data
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18
    SCRATCH = 16 * 1024

ctypedef struct call_t:         # somebody who waits for a reply
    uint8_t *into
    size_t length               # of the reply's payload
    int error                   # the server's errno; 0: it was done
    bint asked
    bint done

ctypedef struct stream_t:       # the data of one session, in one direction
    line_t *line
    int most                    # requests under way at most
    size_t piece                # bytes of data in one at most
    int in_flight
    int error                   # errno of a request that failed
    bint dead                   # the session is over
    bint precopy
    # reading
    uint8_t *into               # of the call that is being made; NULL: none is
    size_t room
    size_t got
    size_t due                  # bytes that were asked for and may still come
    size_t last                 # bytes of data in the last reply
    bint tail                   # a reply was short: ask for no more until all are in
    bint at_end                 # the last of them brought nothing
    uint8_t *stash              # what another thread received on its way to its own reply
    size_t stash_from
    size_t stash_to
    size_t stash_size
    uint64_t total              # bytes handed out
    uint64_t passes             # times that there was nothing left
    uint64_t pass_total         # bytes handed out up to the last of these
    int64_t pass_ns             # when it was, or the session's begin
    uint64_t pass_bytes         # what the last one moved
    int64_t pass_took           # nanoseconds
    # writing
    size_t ahead                # bytes sent of what the caller still offers
    size_t acked                # of them, bytes that the server has taken

ctypedef struct slot_t:         # a request whose reply is due
    uint16_t id
    uint16_t command
    size_t size                 # of the data; of a call: of the largest reply
    call_t *call                # NULL: nobody waits any more
    stream_t *stream

ctypedef enum phase_t:          # what comes next from the server
    IN_HEADER = 0
    IN_CALL
    IN_DATA_HEAD
    IN_DATA
    IN_REST                     # what nobody wants
    IN_COMMAND

ctypedef struct line_t:
    int fd
    int users                   # threads at work on it
    bint closing
    pthread_mutex_t lock        # of all of this; never held in a wait, nor while the GIL is waited for
    pthread_cond_t changed
    bint polling                # a thread waits for the socket, and will take in what comes
    bint sending                # a thread is in the middle of a message
    int64_t patience            # nanoseconds for a message that the server has taken in part
    int broken                  # errno; 0: it is whole
    const char *why
    uint64_t was
    uint64_t expected
    uint16_t next_id
    slot_t slots[SLOTS]         # a ring: replies come in the order of the requests
    int first
    int count
    phase_t phase
    uint8_t head[HEADER]
    uint8_t data_head[DATA_HEAD]
    size_t got                  # bytes of the part that is being received
    size_t left                 # bytes of the message that are still to come
    size_t data                 # bytes of data in a reply
    int error
    uint8_t scratch[SCRATCH]


# All but enter are called with the line entered, that is, with its lock held.
cdef void enter(line_t *line) noexcept nogil
cdef void leave(line_t *line) noexcept nogil
cdef void lose(line_t *line, int code, const char *why, uint64_t was, uint64_t expected) noexcept nogil
# Take in what has arrived; `reader`: the stream whose thread this is, which leaves what it has no room for
cdef void take_in(line_t *line, const stream_t *reader) noexcept nogil
# Ask: 0; -EAGAIN: the socket is full; -EBUSY: another thread must go first; -errno.  Waits only for the
# rest of a message.  parts[0] is for the header.
cdef int post(
    line_t *line, slot_t *slot, iovec *parts, int count, const int *fds, int fd_count
) noexcept nogil
cdef void forget_call(line_t *line, const call_t *call) noexcept nogil
cdef void forget_stream(line_t *line, stream_t *stream) noexcept nogil

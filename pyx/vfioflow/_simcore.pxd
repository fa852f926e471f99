# A simulated device as its threads see it, and the waits and faults they share.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._simfabric cimport ledger_t, member_t
from vfioflow._simstate cimport BLOCK_SIZE, HEADER_SIZE, setup_t, state_t

cdef enum:
    MAX_FAULTS = 16
    # Four records: generating, hashing and writing one batch stays within a core's L2 cache.
    BATCH_BYTES = 4 * (BLOCK_SIZE + HEADER_SIZE)
    SESSION_NONE = 0
    SESSION_SAVE = 1
    SESSION_LOAD = 2
    # enum vfio_device_mig_state
    STATE_STOP_COPY = 3
    STATE_PRE_COPY = 6
    STATE_PRE_COPY_P2P = 7

ctypedef enum fault_kind_t:
    FAULT_ERRNO = 1
    FAULT_SHORT = 2
    FAULT_HANG = 3
    FAULT_CORRUPT = 4

ctypedef struct fault_t:
    int writing                 # strikes the loading stream; else the saving one
    int kind                    # fault_kind_t
    int code                    # positive errno
    int once
    int spent
    uint64_t offset             # bytes of the stream before the one it strikes

ctypedef struct core_t:
    # Taken before the fabric's lock, never after.  Guards all that follows the configuration.
    pthread_mutex_t lock
    pthread_cond_t changed
    member_t member
    state_t state
    # configuration; constant once the device is made
    uint64_t driver             # hash of its name
    uint64_t file_seed          # identity of the content file; 0: none
    double read_rate            # bytes/s; 0: unlimited
    double write_rate
    double p2p_rate             # messages/s at feeder refills; 0: only at arcs
    uint64_t load_ns
    int drained_errno           # what a port gives in PRE_COPY when there is nothing to read: ENOMSG or 0
    int info_starts_save        # dirty data becomes readable only after precopy_info
    int load_in_write           # the load is validated inside write, not in RESUMING -> STOP
    fault_t fault[MAX_FAULTS]
    int faults
    uint64_t released           # counts resets and closes: they end the waits that began before
    # the session
    int session
    uint64_t serial             # of the session, from 1
    int stop                    # its thread must end
    int wake                    # eventfd that ends its polls
    int pipe                    # the device's end; -1 while saving and drained
    int handle                  # O_PATH on the pipe, which counts neither as reader nor as writer
    uint8_t *buffer
    uint64_t moved              # bytes that went through ports
    uint32_t sequence           # of the next record
    # saving
    int setup_sent
    int trailer_sent
    int finished                # the stream is over and the write end closed
    int pass_open               # dirty blocks are being sent
    uint32_t at_initial         # cursors over the blocks
    uint32_t at_pass
    uint32_t at_rest
    uint64_t initial_total      # stream bytes of the set-up record and the initial blocks
    uint64_t picked             # stream bytes decided upon, and those already in the pipe
    uint64_t written
    # loading
    int bad                     # positive errno: the stream is unusable
    int setup_seen
    int trailer_seen
    uint32_t blocks_seen
    uint64_t digest_seen        # sum over the blocks received
    uint64_t digest_told        # the trailer's
    uint64_t taken              # bytes that the consumer is done with
    uint64_t flush_asked
    uint64_t flush_done
    setup_t setup
    ledger_t ledger


cdef int core_wait(core_t *core, uint64_t until_ns) noexcept nogil
cdef int core_pause(core_t *core, uint64_t ns) noexcept nogil
cdef int core_pace(core_t *core, double rate, size_t size, uint64_t *due_ns) noexcept nogil
cdef void core_advance(core_t *core) noexcept nogil
cdef int open_writer(core_t *core) noexcept nogil
cdef void close_pipe(core_t *core) noexcept nogil
cdef fault_t *next_fault(core_t *core, int writing, int kind, uint64_t at) noexcept nogil
cdef uint64_t until_fault(core_t *core, int writing, int kind, uint64_t at, uint64_t size) noexcept nogil
cdef uint64_t hang_at(core_t *core, int writing, uint64_t at, uint64_t size) noexcept nogil
cdef void corrupt(core_t *core, int writing, uint64_t at, uint8_t *data, size_t size) noexcept nogil

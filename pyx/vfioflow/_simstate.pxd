# The state of a simulated device: blocks whose content is a function of (seed, index, version), and the
# records in which they travel.  Nothing here blocks or touches a file descriptor.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    BLOCK_SIZE = 65536          # the largest block, in bytes
    HEADER_SIZE = 32
    # what a block still needs in the open saving session
    CLEAN = 0
    UNSENT = 1
    DIRTY = 2

ctypedef enum content_t:
    CONTENT_ZEROS = 0
    CONTENT_STRUCTURED = 1
    CONTENT_RANDOM = 2
    CONTENT_MIX = 3
    CONTENT_FILE = 4
    CONTENT_FP16 = 5
    CONTENT_BLEND = 6           # in the low byte; above it the 64ths of zeros, and those of structured

ctypedef enum record_t:
    RECORD_SETUP = 1
    RECORD_BLOCK = 2
    RECORD_TRAILER = 3

ctypedef struct header_t:
    uint32_t magic
    uint32_t kind               # record_t
    uint32_t index              # of the block; 0 for other records
    uint32_t version
    uint32_t length             # of what follows, in bytes
    uint32_t sequence           # of the record in its stream, from 0
    uint64_t check              # over the fields above, and over the payload unless it is a block

ctypedef struct setup_t:        # payload of RECORD_SETUP
    uint64_t driver             # hash of the driver's name
    uint64_t seed
    uint64_t size               # of the whole state, in bytes
    uint32_t content            # content_t
    uint32_t block              # bytes in a full block

ctypedef struct state_t:
    uint64_t size               # bytes
    uint32_t block              # bytes in a full block; the last one may be shorter
    uint32_t count              # blocks
    uint32_t initial            # blocks offered in PRE_COPY
    uint32_t hot                # blocks that the running device dirties
    uint32_t *version
    uint64_t *digest            # of the blocks sent or loaded, at their present version
    uint8_t *need               # CLEAN, UNSENT, DIRTY; while loading: CLEAN once received
    uint8_t *loaded             # 1: digest is that of the received bytes
    uint64_t seed
    int content                 # content_t
    const uint8_t *tile
    uint32_t tile_blocks
    double dirty_rate           # bytes/s
    double *curve               # bytes dirtied until the end of each step; NULL: at dirty_rate
    uint32_t steps
    double step_ns
    uint64_t began_ns           # when the session opened, from which the curve counts
    double credit               # bytes that are due to be dirtied
    uint64_t dirtied_ns         # until when dirtying has been worked out (CLOCK_MONOTONIC)
    uint64_t prng
    uint64_t pending            # record bytes of all blocks that are not CLEAN
    uint64_t dirty              # record bytes of the initial blocks that are DIRTY


cdef class Tile:
    cdef const uint8_t *data
    cdef readonly uint32_t blocks
    cdef readonly uint32_t block
    cdef readonly int content
    cdef readonly unsigned long long seed
    cdef uint8_t *owned
    cdef object view
    cdef object __weakref__


cdef uint64_t now_ns() noexcept nogil
cdef uint64_t mix(uint64_t value, uint64_t key) noexcept nogil
cdef uint64_t digest(const uint8_t *data, size_t size, uint64_t index, uint64_t version) noexcept nogil
cdef int state_init(
    state_t *state, uint64_t size, uint32_t block, uint64_t initial, uint64_t hot, double dirty_rate
) noexcept nogil
cdef int state_curve(state_t *state, uint32_t steps, double step_seconds) noexcept nogil
cdef void state_free(state_t *state) noexcept nogil
cdef void state_fresh(state_t *state, uint64_t seed, int content) noexcept nogil
cdef void state_need_all(state_t *state) noexcept nogil
cdef bint content_known(uint32_t content) noexcept nogil
cdef void state_advance(state_t *state, uint64_t now, bint running, bint saving) noexcept nogil
cdef uint32_t block_length(const state_t *state, uint32_t index) noexcept nogil
cdef void block_fill(const state_t *state, uint32_t index, uint32_t version, uint8_t *to) noexcept nogil
cdef int state_digest(const state_t *state, uint64_t *total) noexcept nogil
cdef void header_seal(header_t *header, const uint8_t *payload) noexcept nogil
cdef int header_check(const header_t *header, const uint8_t *payload) noexcept nogil
cdef uint32_t header_magic() noexcept nogil

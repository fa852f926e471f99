# cython: language_level=3
"""What a simulated device holds: block contents, versions, digests, and record headers.

A state of many GiB takes 14 bytes of memory per block: the bytes of a block are made from
a tile, which all devices with the same content and seed share, whenever they are needed.
"""

import mmap
import os
import weakref

from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from errnos cimport EINVAL, ENOMEM

cdef extern from *:
    """
    /* Odd, with about as many ones as zeros: fractional parts of square roots of primes. */
    #define SIM_K0 0x6A09E667F3BCC909ULL
    #define SIM_K1 0xBB67AE8584CAA73BULL
    #define SIM_K2 0x3C6EF372FE94F82BULL
    #define SIM_K3 0xA54FF53A5F1D36F1ULL
    static inline unsigned long long sim_fold(unsigned long long a, unsigned long long b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (unsigned long long)product ^ (unsigned long long)(product >> 64);
    }
    """
    uint64_t sim_fold(uint64_t a, uint64_t b) noexcept nogil
    const uint64_t K0 "SIM_K0"
    const uint64_t K1 "SIM_K1"
    const uint64_t K2 "SIM_K2"
    const uint64_t K3 "SIM_K3"

cdef enum:
    MAGIC = 0x56534D31          # "VSM1"
    TILE_SIZE = 4194304
    BLEND_PARTS = 64


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef uint64_t mix(uint64_t value, uint64_t key) noexcept nogil:
    return sim_fold(value ^ K0, sim_fold(key ^ K1, K2) | 1)


cdef uint64_t digest(const uint8_t *data, size_t size, uint64_t index, uint64_t version) noexcept nogil:
    # Four independent lanes, so that the multiplier's latency does not bound the speed.
    cdef uint64_t a = mix(index, K3), b = mix(version, a), c = a ^ K2, d = b ^ K3
    cdef uint64_t w[8]
    cdef size_t at = 0
    while at + 64 <= size:
        memcpy(w, data + at, 64)
        a = sim_fold(a ^ w[0], w[1] ^ K0)
        b = sim_fold(b ^ w[2], w[3] ^ K1)
        c = sim_fold(c ^ w[4], w[5] ^ K2)
        d = sim_fold(d ^ w[6], w[7] ^ K3)
        # The product forgets everything when one factor is zero; a running sum keeps it alive.
        a += K1
        b += K2
        c += K3
        d += K0
        at += 64
    if at < size:
        memset(w, 0, 64)
        memcpy(w, data + at, size - at)
        a = sim_fold(a ^ w[0], w[1] ^ K0) + K1
        b = sim_fold(b ^ w[2], w[3] ^ K1) + K2
        c = sim_fold(c ^ w[4], w[5] ^ K2) + K3
        d = sim_fold(d ^ w[6], w[7] ^ K3) + K0
    return sim_fold(mix(a, b) ^ size, mix(c, d))


cdef inline uint64_t next_random(uint64_t *state) noexcept nogil:
    cdef uint64_t x = state[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    state[0] = x
    return x * 0x2545F4914F6CDD1DULL


cdef void fill_random(uint8_t *to, size_t size, uint64_t *prng) noexcept nogil:
    cdef size_t at = 0
    cdef uint64_t word
    while at < size:
        word = next_random(prng)
        memcpy(to + at, &word, 8 if size - at >= 8 else size - at)
        at += 8


cdef void fill_structured(uint8_t *to, size_t size, uint64_t *prng) noexcept nogil:
    # Runs of fresh bytes and repeats of what came shortly before, as in tables and object code.
    cdef size_t at = 0, length, back, i
    cdef uint64_t r
    while at < size:
        r = next_random(prng)
        length = 8 + (r >> 8) % 25
        if length > size - at:
            length = size - at
        back = 1 + (r >> 16) % 8192
        if (r & 255) < 168 and back <= at:
            for i in range(length):
                to[at + i] = to[at + i - back]
        else:
            fill_random(to + at, length, prng)
        at += length


cdef void fill_fp16(uint8_t *to, size_t size, uint64_t *prng) noexcept nogil:
    # Half-precision floats as the weights of a network are: normal around 0, deviation 0.02.
    cdef size_t at
    cdef uint64_t r
    cdef int total
    cdef float value
    cdef uint32_t bits
    cdef uint16_t half
    for at in range(0, size & ~1UL, 2):
        r = next_random(prng)
        # The sum of four uniform numbers is near enough to normal; its deviation is 65536 / sqrt(3).
        total = <int>(r & 0xFFFF) + <int>(r >> 16 & 0xFFFF) + <int>(r >> 32 & 0xFFFF) + <int>(r >> 48)
        value = (total - 131070) * <float>(0.02 * 1.7320508 / 65536)
        memcpy(&bits, &value, 4)
        half = <uint16_t>(bits >> 16 & 0x8000)
        if (bits >> 23 & 0xFF) > 112:       # smaller ones become 0
            half |= <uint16_t>(((bits >> 23 & 0xFF) - 112) << 10 | (bits >> 13 & 0x3FF))
        memcpy(to + at, &half, 2)
    if size & 1:
        to[size - 1] = 0


cdef inline bint is_mixed(int content) noexcept nogil:
    return content == CONTENT_MIX or content & 0xFF == CONTENT_BLEND


cdef bint content_known(uint32_t content) noexcept nogil:
    """Whether a stream may say that its content is of this kind."""
    if content & 0xFF == CONTENT_BLEND:
        return content >> 24 == 0 and (content >> 8 & 0xFF) + (content >> 16) <= BLEND_PARTS
    return content <= CONTENT_FP16


cdef inline int kind_of(const state_t *state, uint32_t index) noexcept nogil:
    # A mix is three parts zeros, two structured and three random of every eight blocks.
    cdef uint32_t part, zeros
    if not is_mixed(state.content):
        return state.content
    if state.content != CONTENT_MIX:
        part = index * 37 % BLEND_PARTS
        zeros = state.content >> 8 & 0xFF
        if part < zeros:
            return CONTENT_ZEROS
        return CONTENT_STRUCTURED if part < zeros + (state.content >> 16) else CONTENT_RANDOM
    part = index * 5 % 8
    return CONTENT_ZEROS if part < 3 else CONTENT_STRUCTURED if part < 5 else CONTENT_RANDOM


cdef uint32_t block_length(const state_t *state, uint32_t index) noexcept nogil:
    cdef uint64_t start = <uint64_t>index * state.block
    return <uint32_t>(state.size - start) if state.size - start < state.block else state.block


cdef void block_fill(const state_t *state, uint32_t index, uint32_t version, uint8_t *to) noexcept nogil:
    cdef uint32_t length = block_length(state, index)
    cdef int kind = kind_of(state, index)
    cdef uint64_t slot = <uint64_t>index + <uint64_t>version * 17
    cdef uint64_t stamp[2]
    if kind == CONTENT_ZEROS:
        memset(to, 0, length)
        return
    if is_mixed(state.content):
        # The tile of a mix is structured in its first half and random in its second.
        slot = slot % (state.tile_blocks // 2)
        if kind == CONTENT_RANDOM:
            slot += state.tile_blocks // 2
    else:
        slot %= state.tile_blocks
    memcpy(to, state.tile + slot * state.block, length)
    stamp[0] = index
    stamp[1] = version
    memcpy(to, stamp, 16 if length >= 16 else length)


cdef int state_init(
    state_t *state, uint64_t size, uint32_t block, uint64_t initial, uint64_t hot, double dirty_rate
) noexcept nogil:
    cdef uint64_t count = (size + block - 1) // block
    if count == 0 or count > 0x7FFFFFFF or block > BLOCK_SIZE:
        return -EINVAL
    state.size = size
    state.block = block
    state.count = <uint32_t>count
    state.initial = <uint32_t>((initial + block - 1) // block)
    state.hot = <uint32_t>((hot + block - 1) // block)
    state.dirty_rate = dirty_rate
    state.version = <uint32_t *>calloc(count, sizeof(uint32_t))
    state.digest = <uint64_t *>calloc(count, sizeof(uint64_t))
    state.need = <uint8_t *>calloc(count, 1)
    state.loaded = <uint8_t *>calloc(count, 1)
    if state.version == NULL or state.digest == NULL or state.need == NULL or state.loaded == NULL:
        return -ENOMEM
    return 0


cdef int state_curve(state_t *state, uint32_t steps, double step_seconds) noexcept nogil:
    """Room for ``state.curve``, which the caller fills."""
    state.curve = <double *>calloc(steps, sizeof(double))
    if state.curve == NULL:
        return -ENOMEM
    state.steps = steps
    state.step_ns = step_seconds * 1e9
    return 0


cdef double on_curve(const state_t *state, uint64_t now) noexcept nogil:
    """Bytes that the curve has dirtied from the session's begin until ``now``; at its end it begins again."""
    cdef double at = <double>(now - state.began_ns) / state.step_ns if now > state.began_ns else 0
    cdef double rounds = <double><uint64_t>(at / state.steps)
    cdef uint32_t step
    cdef double before
    at -= rounds * state.steps
    step = <uint32_t>at
    if step >= state.steps:         # by rounding
        step = state.steps - 1
    before = state.curve[step - 1] if step > 0 else 0
    return rounds * state.curve[state.steps - 1] + before + (at - step) * (state.curve[step] - before)


cdef void state_free(state_t *state) noexcept nogil:
    free(state.curve)
    state.curve = NULL
    free(state.version)
    free(state.digest)
    free(state.need)
    free(state.loaded)
    state.version = NULL
    state.digest = NULL
    state.need = state.loaded = NULL


cdef void state_fresh(state_t *state, uint64_t seed, int content) noexcept nogil:
    memset(state.version, 0, <size_t>state.count * sizeof(uint32_t))
    memset(state.digest, 0, <size_t>state.count * sizeof(uint64_t))
    memset(state.need, CLEAN, state.count)
    memset(state.loaded, 0, state.count)
    state.seed = seed
    state.content = content
    state.prng = mix(seed, K0) | 1
    state.credit = 0
    state.dirtied_ns = now_ns()
    state.pending = state.dirty = 0


cdef void state_need_all(state_t *state) noexcept nogil:
    memset(state.need, UNSENT, state.count)
    state.pending = state.size + <uint64_t>state.count * HEADER_SIZE
    state.dirty = 0
    state.began_ns = now_ns()


cdef inline void touch(state_t *state, uint32_t index, bint saving) noexcept nogil:
    cdef uint64_t record
    state.version[index] += 1
    state.loaded[index] = 0
    if saving and state.need[index] == CLEAN:
        record = <uint64_t>block_length(state, index) + HEADER_SIZE
        state.need[index] = DIRTY
        state.pending += record
        if index < state.initial:
            state.dirty += record


cdef void state_advance(state_t *state, uint64_t now, bint running, bint saving) noexcept nogil:
    """Dirty what the device has dirtied since the last call."""
    cdef uint64_t elapsed = now - state.dirtied_ns if now > state.dirtied_ns else 0
    cdef uint64_t picks, since = state.dirtied_ns
    cdef uint32_t i
    state.dirtied_ns = now
    if not running or state.hot == 0 or state.dirty_rate <= 0:
        return
    if saving and state.curve != NULL:
        state.credit += on_curve(state, now) - on_curve(state, since)
    else:
        state.credit += state.dirty_rate * (<double>elapsed / 1e9)
    if state.credit < state.block:
        return
    if state.credit > 8.0 * state.hot * state.block:
        # So long that every hot block was written: no need to draw each of the writes.
        state.credit = 0
        for i in range(state.hot):
            touch(state, i, saving)
        return
    picks = <uint64_t>(state.credit / state.block)
    state.credit -= <double>(picks * state.block)
    while picks:
        picks -= 1
        touch(state, <uint32_t>(next_random(&state.prng) % state.hot), saving)


cdef int state_digest(const state_t *state, uint64_t *total) noexcept nogil:
    """The sum of all block digests: those received where a block was loaded, else made anew."""
    cdef uint8_t *scratch = <uint8_t *>malloc(state.block)
    cdef uint32_t i
    if scratch == NULL:
        return -ENOMEM
    total[0] = 0
    for i in range(state.count):
        if state.loaded[i]:
            total[0] += state.digest[i]
        else:
            block_fill(state, i, state.version[i], scratch)
            total[0] += digest(scratch, block_length(state, i), i, state.version[i])
    free(scratch)
    return 0


cdef uint64_t header_sum(const header_t *header, const uint8_t *payload) noexcept nogil:
    cdef header_t copy = header[0]
    cdef uint64_t body = 0
    copy.check = 0
    if header.kind != RECORD_BLOCK:
        body = digest(payload, header.length, 0, 0)
    return digest(<const uint8_t *>&copy, sizeof(header_t), body, MAGIC)


cdef void header_seal(header_t *header, const uint8_t *payload) noexcept nogil:
    header.magic = MAGIC
    header.check = header_sum(header, payload)


cdef int header_check(const header_t *header, const uint8_t *payload) noexcept nogil:
    return 0 if header.magic == MAGIC and header.check == header_sum(header, payload) else -EINVAL


cdef uint32_t header_magic() noexcept nogil:
    return MAGIC


CONTENTS = {
    "zeros": CONTENT_ZEROS,
    "structured": CONTENT_STRUCTURED,
    "fp16": CONTENT_FP16,
    "random": CONTENT_RANDOM,
    "mix": CONTENT_MIX,
    "file": CONTENT_FILE,
}

_tiles = weakref.WeakValueDictionary()


cdef class Tile:
    """The bytes from which blocks are made: at most 4 MiB, or a mapped file."""

    def __cinit__(self, int content, unsigned long long seed, uint32_t block, uint32_t blocks, path=None):
        cdef uint64_t prng = mix(seed, K1) | 1
        cdef size_t half
        cdef const unsigned char[::1] data
        self.content, self.seed, self.block, self.blocks = content, seed, block, blocks
        if content == CONTENT_ZEROS:
            return
        if path is not None:
            data = self._map(path)
            self.blocks = <uint32_t>min(<size_t>data.shape[0] // block, <size_t>0x7FFFFFFF)
            self.data = &data[0]
            self.view = data
            # The two ends and the length stand for the file where two devices are compared.
            self.seed = mix(
                digest(self.data, block, data.shape[0], 0),
                digest(self.data + data.shape[0] - block, block, 0, 0),
            )
            return
        self.owned = <uint8_t *>malloc(<size_t>block * blocks)
        if self.owned == NULL:
            raise MemoryError
        self.data = self.owned
        half = <size_t>block * (blocks // 2)
        with nogil:
            if content == CONTENT_RANDOM:
                fill_random(self.owned, <size_t>block * blocks, &prng)
            elif content == CONTENT_STRUCTURED:
                fill_structured(self.owned, <size_t>block * blocks, &prng)
            elif content == CONTENT_FP16:
                fill_fp16(self.owned, <size_t>block * blocks, &prng)
            else:
                fill_structured(self.owned, half, &prng)
                fill_random(self.owned + half, <size_t>block * blocks - half, &prng)

    def _map(self, path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size >= self.block:
                return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            head = os.read(fd, size)
        finally:
            os.close(fd)
        if not head:
            raise ValueError(f"{path} is empty")
        return (head * (self.block // len(head) + 1))[:self.block]

    def __dealloc__(self):
        free(self.owned)


def get_tile(str content, unsigned long long seed, unsigned long long size, uint32_t block, path=None):
    """The tile for a device, shared with all live devices of the same content, seed and shape."""
    cdef uint64_t bytes_made = size + block - 1 if size < TILE_SIZE else TILE_SIZE
    cdef uint32_t blocks = <uint32_t>(bytes_made // block) & ~1U
    if blocks < 2:
        blocks = 2
    key = (content, seed, block, blocks, path)
    tile = _tiles.get(key)
    if tile is None:
        tile = _tiles[key] = Tile(_content_number(content), seed, block, blocks, path)
    return tile


def _content_number(str content):
    """How a stream names a content; ``mix:ZEROS,STRUCTURED`` has shares of 1, which count in 64ths."""
    _, _, shares = content.partition(":")
    if not shares:
        return CONTENTS[content]
    zeros, structured = (float(share) for share in shares.split(","))
    parts = round(zeros * BLEND_PARTS)
    return CONTENT_BLEND | parts << 8 | min(round(structured * BLEND_PARTS), BLEND_PARTS - parts) << 16


def content_name(int content):
    """The name of a content kind as it stands in a stream; KeyError for an unknown one."""
    if content & 0xFF == CONTENT_BLEND:
        zeros, structured = content >> 8 & 0xFF, content >> 16
        return f"mix:{zeros / <double>BLEND_PARTS:g},{structured / <double>BLEND_PARTS:g}"
    return {kind: name for name, kind in CONTENTS.items()}[content]


def block_bytes(Tile tile not None, unsigned long long size, uint32_t index, uint32_t version):
    """The bytes of one block of a state of ``size`` bytes, as a device sends them."""
    cdef state_t state
    memset(&state, 0, sizeof(state))
    state.size, state.block, state.content, state.seed = size, tile.block, tile.content, tile.seed
    state.tile, state.tile_blocks = tile.data, tile.blocks
    if <uint64_t>index * tile.block >= size:
        raise IndexError(index)
    out = bytearray(block_length(&state, index))
    cdef unsigned char[::1] to = out
    block_fill(&state, index, version, &to[0])
    return bytes(out)


def block_digest(const unsigned char[::1] data, uint64_t index, uint64_t version):
    """The device's own 64-bit digest of a block; releases the GIL."""
    cdef uint64_t value
    cdef const uint8_t *start = &data[0] if data.shape[0] else NULL
    with nogil:
        value = digest(start, data.shape[0], index, version)
    return value

"""Whether compression pays now, for one lane: from what the wire, the compressor and the data show.

Raw bytes go out as fast as the wire takes them, whatever they are.  So the rate of a period without
compression is what every period with it has to beat, and two measurements are enough to see beforehand
whether it can: how fast a compressor thread is on this data, and how much it saves.
"""

from libc.string cimport memset

cimport cython

cdef enum:
    # Wire time from one decision to the next: long against the socket's buffer, short against a drain.
    PERIOD_NS = 50 * 1000 * 1000
    # While the answer stays "raw", the samples (half a millisecond each) become rarer, up to this.
    RARELY_NS = 400 * 1000 * 1000
    # After compression turned out slower, the time until it is tried again; doubled each time.
    HOLD_NS = 500 * 1000 * 1000

cdef int64_t MOST_HOLD_NS = <int64_t> 8 * 1000 * 1000 * 1000
cdef double GAIN = 1.04         # predicted gain that is worth the processor's time
cdef double LOSS = 0.97         # below this share of the raw rate, compression costs more than it saves
cdef double BETTER = 1.02       # a level must be so much better than the present one
cdef double FADE = 0.7          # what a sample weighs when the next one comes

_LEVELS = (1, 3)


cdef int level_of(int which) noexcept nogil:
    return 1 if which == 0 else 3


@cython.final
cdef class Balance:
    """The state of the decision.  Times in nanoseconds; of each method only the lane's pump is the caller."""

    def __cinit__(self):
        memset(self.samples, 0, sizeof(self.samples))
        self.level = level_of(0)

    cpdef void sent(self, uint64_t size, int64_t ns) noexcept nogil:
        """``size`` device bytes took ``ns`` from being read to being with the socket.  Zero runs do not count."""
        self.size += size
        self.ns += ns

    cpdef void sampled(self, int which, uint64_t size, uint64_t packed, int64_t ns) noexcept nogil:
        """One thread took ``ns`` to make ``packed`` out of ``size`` bytes, at level number ``which``."""
        cdef sample_t *sample = &self.samples[which]
        sample.size = sample.size * FADE + size
        sample.packed = sample.packed * FADE + packed
        sample.ns = sample.ns * FADE + max(ns, 1)

    cpdef bint due(self) noexcept nogil:
        """Whether it is time for a sample of each level and a decision."""
        return self.ns >= self.period_ns

    cpdef void decide(self, int64_t now, double threads) noexcept nogil:
        """Set ``packing`` and ``level`` for the next period; ``threads``: this lane's share of the compressors."""
        cdef double rate = <double> self.size / self.ns if self.ns > 0 else 0
        cdef double best = 0, present = 0, rate_of_best = 0, goodput, ratio, speed
        cdef int which, choice = 0
        cdef bint measured = self.size > 0
        self.size = 0
        self.ns = 0
        self.period_ns = PERIOD_NS if self.packing else min(max(2 * self.period_ns, <int64_t> PERIOD_NS),
                                                            <int64_t> RARELY_NS)
        if measured and not self.packing:
            self.raw_rate = rate if self.raw_rate == 0 else (self.raw_rate + rate) / 2
        if self.packing and measured:
            self.slow_periods = self.slow_periods + 1 if rate < LOSS * self.raw_rate else 0
            if self.slow_periods >= 2:
                self.packing = False
                self.hold_ns = min(max(2 * self.hold_ns, <int64_t> HOLD_NS), MOST_HOLD_NS)
                self.held_until = now + self.hold_ns
                self.period_ns = PERIOD_NS
                return
        for which in range(LEVELS):
            if self.samples[which].size == 0:
                continue
            ratio = self.samples[which].size / max(self.samples[which].packed, 1.0)
            speed = threads * self.samples[which].size / self.samples[which].ns
            # What is not compressed in time goes raw: a gain either way, up to the whole ratio.
            goodput = min(self.raw_rate * ratio, self.raw_rate + speed * (1 - 1 / ratio))
            if level_of(which) == self.level:
                present = goodput
            if goodput > best:
                best, choice, rate_of_best = goodput, which, speed
        if best > BETTER * present:
            self.level = level_of(choice)
        # Compressors much slower than the wire cannot make up for the time that they take from it.
        self.packing = (
            self.raw_rate > 0 and now >= self.held_until
            and best > GAIN * self.raw_rate and rate_of_best > self.raw_rate / 2
        )
        if self.packing:
            self.period_ns = PERIOD_NS

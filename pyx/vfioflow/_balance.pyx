"""Whether compression pays now, for one lane: from what the wire, the compressors and the data show.

Raw bytes go out as fast as the wire takes them, whatever they are.  So the rate of a period without
compression is what every period with it has to beat, and two measurements are enough to see beforehand
whether it can: how fast a compressor thread is on this data, and how much it saves.
"""

from libc.string cimport memset

cimport cython

cdef enum:
    # The first decision on a wire comes after this, the first after a change of mind after that: long enough
    # for a rate, short against a drain.
    FIRST_NS = 20 * 1000 * 1000
    PERIOD_NS = 50 * 1000 * 1000
    # While the answer stays the same, samples become rarer, up to this.
    RARELY_NS = 400 * 1000 * 1000
    # After compression turned out slower, the time until it is tried again; doubled each time.
    HOLD_NS = 250 * 1000 * 1000

cdef int64_t MOST_HOLD_NS = <int64_t> 8 * 1000 * 1000 * 1000
cdef double GAIN = 1.04         # predicted gain that is worth the processor's time
cdef double LOSS = 0.97         # below this share of the raw rate twice, compression costs more than it saves
cdef double BIG_LOSS = 0.8      # below this, once
cdef double BETTER = 1.02       # a level must be so much better than the present one
cdef double ENOUGH = 0.7        # compressors slower than this share of the wire cost more than they gain
cdef double FADE = 0.7          # what a sample weighs when the next one comes
cdef double WORKING = 0.75      # a lane that computes and copies for longer does not wait for the wire


cdef int level_of(int which) noexcept nogil:
    """The levels to choose from; 1 first, to begin with."""
    return 1 if which == 0 else -5 if which == 1 else 3


@cython.final
cdef class Balance:
    """The state of the decision.  Times in nanoseconds; only the lane's own pump calls the methods."""

    def __cinit__(self):
        memset(self.samples, 0, sizeof(self.samples))
        self.level = level_of(0)

    cpdef void sent(self, uint64_t size, int64_t ns) noexcept nogil:
        """It took ``ns`` to read ``size`` bytes and to hand them to the socket, packed or not.

        Runs of zeros do not count: they cost the wire nothing either way.
        """
        self.size += size
        self.ns += ns

    cpdef void sampled(self, int which, uint64_t size, uint64_t packed, int64_t ns) noexcept nogil:
        """One thread took ``ns`` to make ``packed`` out of ``size`` bytes, at level number ``which``."""
        cdef sample_t *sample = &self.samples[which]
        sample.size = sample.size * FADE + size
        sample.packed = sample.packed * FADE + packed
        sample.ns = sample.ns * FADE + max(ns, 1)

    cpdef bint due(self) noexcept nogil:
        """Whether it is time for a sample and a decision."""
        return self.ns >= self.period_ns

    cpdef void decide(self, int64_t now, int64_t cpu, uint64_t backlog, double threads) noexcept nogil:
        """Set ``packing`` and ``level`` for the next period.

        ``now`` and ``cpu`` are the clocks of the world and of this thread, ``backlog`` is how many bytes the
        sockets hold unsent, ``threads`` is this lane's share of the compressors.
        """
        # What only went into the socket's buffer says nothing of the wire.
        cdef uint64_t gone = self.size - min(self.size, backlog - min(backlog, self.backlog))
        cdef double rate = <double> (self.size if self.packing else gone) / max(self.ns, 1) if gone > 0 else 0
        cdef bint waits = cpu - self.cpu_began < <int64_t> (WORKING * (now - self.began))
        cdef bint was_packing = self.packing
        cdef int which
        cdef double best
        self.size = 0
        self.ns = 0
        self.backlog = backlog
        self.began = now
        self.cpu_began = cpu
        self.period_ns = min(max(2 * self.period_ns, <int64_t> FIRST_NS), <int64_t> RARELY_NS)
        if rate > 0 and not self.packing:
            self.raw_rate = rate if self.raw_rate == 0 else (self.raw_rate + rate) / 2
        if rate > 0 and self.packing and self.too_slow(rate):
            self.packing = False
            self.period_ns = PERIOD_NS
            self.hold_ns = min(max(2 * self.hold_ns, <int64_t> HOLD_NS), MOST_HOLD_NS)
            self.held_until = now + self.hold_ns
            return
        for which in range(LEVELS):
            if self.goodput(which, threads) > BETTER * self.goodput(self.choice, threads):
                self.choice = which
        self.level = level_of(self.choice)
        best = self.goodput(self.choice, threads)
        self.packing = (
            best > GAIN * self.raw_rate and self.speed(self.choice, threads) > ENOUGH * self.raw_rate
            and now >= self.held_until and (was_packing or waits)
        )
        if self.packing != was_packing:
            self.period_ns = PERIOD_NS
            self.periods = self.slow_periods = 0

    cdef bint too_slow(self, double rate) noexcept nogil:
        """Whether periods with compression are slower than without.  The first is warming up."""
        self.periods += 1
        if self.periods == 1:
            return False
        self.slow_periods = self.slow_periods + 1 if rate < LOSS * self.raw_rate else 0
        return self.slow_periods >= 2 or rate < BIG_LOSS * self.raw_rate

    cdef double goodput(self, int which, double threads) noexcept nogil:
        """What can be expected of a level; what is not compressed in time goes raw, which is a gain too."""
        cdef sample_t *sample = &self.samples[which]
        cdef double ratio
        if sample.size == 0:
            return 0
        ratio = sample.size / max(sample.packed, 1.0)
        return min(self.raw_rate * ratio, self.raw_rate + self.speed(which, threads) * (1 - 1 / ratio))

    cdef double speed(self, int which, double threads) noexcept nogil:
        return threads * self.samples[which].size / max(self.samples[which].ns, 1.0)

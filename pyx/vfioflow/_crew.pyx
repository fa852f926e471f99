"""The threads that compress, shared by all lanes of a session.

A lane reads chunks, hands them in as jobs, and sends them in order when they are done.  Each worker keeps
one spare buffer and swaps it with the job's when the payload is in it, so nothing is allocated or copied on
the way.
"""

import threading

from libc.stdlib cimport free, malloc

from pthread cimport (
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)

from vfioflow._balance cimport LEVELS, level_of
from vfioflow._channel cimport unsent
from vfioflow._waits cimport A_MOMENT, now_ns, wait_a_little
from vfioflow._frame cimport KIND_ZSTD

cdef enum:
    # With less than this waiting in the socket, the wire is about to stand still: what it takes in a
    # millisecond, and a full segment at the least.
    HUNGRY_NS = 1000 * 1000
    LEAST_HUNGRY = 64 * 1024
    # For so long after that, the workers count as too slow for the wire.
    BUSY_NS = 50 * 1000 * 1000
    SAMPLE = 64 * 1024          # enough to see whether compression is worth a try
    GLANCE = 16 * 1024          # enough to see whether it is worth a whole chunk

cdef double WORTH = 0.8         # compressed to more than this share, a chunk is not, while others wait


cdef class Crew:
    """Compressor threads.

    Args:
        threads: how many, at least 1.
        pool: the buffers of the lanes; each thread holds one, and all lanes together up to ``spare_jobs``
            besides the one that each has.
        spare_jobs: chunks that may be under way beyond one per lane.
        level: the zstd level; None: each lane chooses, and may go without.
    """

    def __cinit__(self, int threads, Pool pool not None, int spare_jobs, *, level=None):
        if threads < 1 or spare_jobs < 0:
            raise ValueError("a crew needs a thread")
        pthread_mutex_init(&self.lock, NULL)
        pthread_mutex_init(&self.scout_lock, NULL)
        pthread_cond_init(&self.work_to_do, NULL)
        self.threads = threads
        self.pool = pool
        self.spare_jobs = spare_jobs
        self.automatic = level is None
        self.level = level_of(0) if level is None else level
        self.compressors = [Compressor(self.level) for _ in range(threads)]
        if self.automatic:
            self.scout = Compressor(self.level)
            self.scout_buffer = <uint8_t *> malloc(SAMPLE)
            if self.scout_buffer == NULL:
                raise MemoryError
        self.running = []

    def start(self):
        """Start the threads."""
        for number, compressor in enumerate(self.compressors):
            thread = threading.Thread(
                target=self._work, args=(compressor,), name=f"vfioflow-zstd-{number}", daemon=True
            )
            thread.start()
            self.running.append(thread)

    def close(self, *, bint wait=True):
        """End the threads, each when its present job is done, and ``wait`` for that.  Safe to call twice.

        A pump that still runs must have been cancelled.
        """
        pthread_mutex_lock(&self.lock)
        self.closing = 1
        pthread_cond_broadcast(&self.work_to_do)
        pthread_mutex_unlock(&self.lock)
        while wait and self.running:
            self.running.pop().join()

    def __dealloc__(self):
        free(self.scout_buffer)
        pthread_cond_destroy(&self.work_to_do)
        pthread_mutex_destroy(&self.scout_lock)
        pthread_mutex_destroy(&self.lock)

    def _work(self, Compressor compressor not None):
        with nogil:
            self.run(compressor)

    cdef void run(self, Compressor compressor) noexcept nogil:
        cdef uint8_t *spare = <uint8_t *> self.pool.take()
        cdef job_t *job
        pthread_mutex_lock(&self.lock)
        while not self.closing:
            job = self.head
            if job == NULL:
                pthread_cond_wait(&self.work_to_do, &self.lock)
                continue
            self.unlink(job)
            job.state = JOB_BUSY
            pthread_mutex_unlock(&self.lock)
            if spare == NULL:
                spare = <uint8_t *> self.pool.take()
            if spare != NULL:       # else it goes as it is
                self.pack(job, compressor, &spare)
            pthread_mutex_lock(&self.lock)
            if job.kind == KIND_ZSTD:
                self.packed_in += job.size
                self.packed_out += job.length
            job.state = JOB_DONE
            pthread_cond_signal(job.done)
        pthread_mutex_unlock(&self.lock)
        self.pool.give(spare)

    cdef void pack(self, job_t *job, Compressor compressor, uint8_t **spare) noexcept nogil:
        cdef ssize_t n
        if job.explore:
            self.explore(job, compressor, spare[0])
        compressor.set_level(job.level)
        if self.automatic and not job.explore and not self.shrinks(job, compressor, spare[0]):
            return
        # No room for more than the chunk itself: then it goes raw.
        n = compressor.compress(spare[0], job.size, job.data, job.size)
        if n > 0 and <size_t> n < job.size:
            job.data, spare[0] = spare[0], job.data
            job.length = n
            job.kind = KIND_ZSTD

    cdef void explore(self, job_t *job, Compressor compressor, uint8_t *room) noexcept nogil:
        """Measure all levels; on a whole chunk, since a higher one gains nothing on less."""
        cdef int which
        cdef int64_t before
        cdef ssize_t n
        for which in range(LEVELS):
            before = now_ns()
            compressor.set_level(level_of(which))
            n = compressor.compress(room, job.size, job.data, job.size)
            job.packed[which] = n if n > 0 else job.size
            job.ns[which] = now_ns() - before

    cdef bint late(self) noexcept nogil:
        return self.hungry_at > 0 and now_ns() - self.hungry_at < BUSY_NS

    cdef bint shrinks(self, const job_t *job, Compressor compressor, uint8_t *room) noexcept nogil:
        """While the wire is faster than the workers: whether a piece of the chunk compresses well."""
        cdef ssize_t n
        if job.size < 4 * GLANCE or not self.late():
            return True
        n = compressor.compress(room, 2 * GLANCE, job.data + job.size // 2, GLANCE)
        return 0 < n < <ssize_t> (WORTH * GLANCE)

    cdef void join(self, int change) noexcept nogil:
        """Count a pump that begins (1) or ends (-1)."""
        pthread_mutex_lock(&self.lock)
        self.lanes_running += change
        pthread_mutex_unlock(&self.lock)

    cdef bint take_spare(self) noexcept nogil:
        cdef bint got
        pthread_mutex_lock(&self.lock)
        got = self.spare_jobs > 0
        self.spare_jobs -= got
        pthread_mutex_unlock(&self.lock)
        return got

    cdef void give_spare(self) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.spare_jobs += 1
        pthread_mutex_unlock(&self.lock)

    cdef void submit(self, job_t *job) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        job.state = JOB_READY
        job.next = NULL
        if self.tail == NULL:
            self.head = self.tail = job
        elif self.late():
            # The newest first: the oldest go as they are before a worker would be done with them.
            job.next = self.head
            self.head = job
        else:
            self.tail.next = job
            self.tail = job
        pthread_cond_signal(&self.work_to_do)
        pthread_mutex_unlock(&self.lock)

    cdef bint finished(self, job_t *job) noexcept nogil:
        cdef int state
        pthread_mutex_lock(&self.lock)
        state = job.state
        pthread_mutex_unlock(&self.lock)
        return state == JOB_DONE

    cdef void finish(self, job_t *job, const channel_t *channel, double wire_rate,
                     Cancel cancel) noexcept nogil:
        """Wait for a job; with the level left to the lane, not longer than the wire has something to do.

        ``wire_rate``: what it takes, in bytes a nanosecond; 0: unknown.
        """
        cdef bint patient
        pthread_mutex_lock(&self.lock)
        while job.state != JOB_DONE and not cancel.flag:
            patient = not self.automatic or job.state == JOB_BUSY
            if not patient and unsent(channel) < max(HUNGRY_NS * wire_rate, <double> LEAST_HUNGRY):
                self.unlink(job)
                job.state = JOB_DONE
                self.hungry_at = now_ns()
                break
            wait_a_little(job.done, &self.lock, A_MOMENT if patient else HUNGRY_NS // 2)
        pthread_mutex_unlock(&self.lock)

    cdef void withdraw(self, job_t *job) noexcept nogil:
        """Have a job back, whatever became of it."""
        pthread_mutex_lock(&self.lock)
        if job.state == JOB_READY:
            self.unlink(job)
            job.state = JOB_DONE
        while job.state != JOB_DONE:
            pthread_cond_wait(job.done, &self.lock)
        pthread_mutex_unlock(&self.lock)

    cdef void unlink(self, job_t *job) noexcept nogil:
        """Take a job out of the queue; with the lock held."""
        cdef job_t *before = NULL
        cdef job_t *at = self.head
        while at != job:
            before = at
            at = at.next
        if before == NULL:
            self.head = job.next
        else:
            before.next = job.next
        if self.tail == job:
            self.tail = before

    cdef void sample(self, Balance balance, const uint8_t *data, size_t size) noexcept nogil:
        """Let ``balance`` know the speed and the ratio of the first level on a piece of this chunk."""
        cdef int64_t before
        cdef ssize_t n
        if pthread_mutex_trylock(&self.scout_lock) != 0:
            return
        if size > SAMPLE:
            data += (size - SAMPLE) // 2
            size = SAMPLE
        before = now_ns()
        n = self.scout.compress(self.scout_buffer, size, data, size)
        balance.sampled(0, size, n if n > 0 else size, now_ns() - before)
        pthread_mutex_unlock(&self.scout_lock)

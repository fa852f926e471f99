# Threads that compress, and the jobs that lanes give them.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t, pthread_mutex_t

from vfioflow._balance cimport LEVELS, Balance
from vfioflow._buffers cimport Pool
from vfioflow._channel cimport channel_t
from vfioflow._fdio cimport Cancel
from vfioflow._zstd cimport Compressor

cdef enum job_state_t:
    JOB_DONE = 0
    JOB_READY                   # in the queue
    JOB_BUSY                    # with a worker

# One chunk on its way to the wire
ctypedef struct job_t:
    uint8_t *data               # a buffer of the pool: device bytes, then the payload; NULL: zeros
    size_t size                 # device bytes
    size_t length               # payload bytes
    uint32_t digest             # of the device's stream up to here
    int kind                    # of the frame
    int level
    int state
    int64_t read_ns             # what it took to read it
    bint explore                # try all levels on it, for the next two
    size_t packed[LEVELS]
    int64_t ns[LEVELS]
    pthread_cond_t *done        # signalled when it is
    job_t *next


cdef class Crew:
    cdef pthread_mutex_t lock
    cdef pthread_cond_t work_to_do
    cdef job_t *head
    cdef job_t *tail
    cdef readonly int threads
    cdef readonly int level
    cdef readonly bint automatic
    cdef readonly int lanes_running
    cdef readonly uint64_t packed_in
    cdef readonly uint64_t packed_out
    cdef int spare_jobs
    cdef int closing
    cdef int64_t hungry_at
    cdef Pool pool
    cdef list compressors
    cdef list running
    cdef Compressor scout
    cdef pthread_mutex_t scout_lock
    cdef uint8_t *scout_buffer
    cdef void run(self, Compressor compressor) noexcept nogil
    cdef void pack(self, job_t *job, Compressor compressor, uint8_t **spare) noexcept nogil
    cdef bint shrinks(self, const job_t *job, Compressor compressor, uint8_t *room) noexcept nogil
    cdef void join(self, int change) noexcept nogil
    cdef bint take_spare(self) noexcept nogil
    cdef void give_spare(self) noexcept nogil
    cdef void submit(self, job_t *job) noexcept nogil
    cdef bint finished(self, job_t *job) noexcept nogil
    cdef bint late(self) noexcept nogil
    cdef void finish(self, job_t *job, const channel_t *channel, double wire_rate,
                     Cancel cancel) noexcept nogil
    cdef void withdraw(self, job_t *job) noexcept nogil
    cdef void unlink(self, job_t *job) noexcept nogil
    cdef void explore(self, job_t *job, Compressor compressor, uint8_t *room) noexcept nogil
    cdef void sample(self, Balance balance, const uint8_t *data, size_t size) noexcept nogil

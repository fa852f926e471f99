# The source's end of one device's stream.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from pthread cimport pthread_cond_t

from vfioflow._balance cimport Balance
from vfioflow._buffers cimport Pool
from vfioflow._channel cimport Channel, channel_t
from vfioflow._fault cimport fault_t
from vfioflow._waits cimport Limiter
from vfioflow._crew cimport Crew, job_t
from vfioflow._fdio cimport Cancel, Port, port_t
from vfioflow._frame cimport frame_t

cdef enum:
    MAX_JOBS = 32               # chunks of one lane under way at most


cdef class OutLane:
    cdef readonly str name
    cdef public str title       # of a stream that is no device's, for errors
    cdef readonly uint16_t index
    cdef readonly uint64_t offset
    cdef readonly uint64_t wire_bytes
    cdef readonly uint64_t frames
    cdef readonly uint32_t digest
    cdef readonly Balance balance
    cdef bint digests
    cdef bint splice            # the other end passes pages on
    cdef bint crowded           # more lanes than processors
    cdef channel_t **channels
    cdef int channel_count
    cdef int next_channel
    cdef channel_t *held        # the channel that the lane has for a turn; NULL: none
    cdef int64_t turn_left      # bytes
    cdef list owners            # keeps the channels alive
    cdef Pool pool
    cdef Cancel cancel
    cdef Limiter limiter
    cdef Crew crew
    cdef int pages_fd           # what is being sent unseen
    cdef bint from_pipe
    cdef bint saw_zeros         # in the last chunk that was looked at
    cdef bint explore         # the next job
    cdef int64_t last_read_ns
    cdef uint8_t *buffer        # for the next read; NULL: in a job
    cdef job_t jobs[MAX_JOBS]   # a ring: on their way to the wire, in order
    cdef int first_job
    cdef int job_count
    cdef pthread_cond_t job_done
    cdef int run(self, port_t *port, uint64_t budget, bint precopy, fault_t *fault) noexcept nogil
    cdef int step(self, port_t *port, uint64_t *budget, bint precopy, int *source,
                  fault_t *fault) noexcept nogil
    cdef bint has_room(self) noexcept nogil
    cdef bint may_send_pages(self, const port_t *port) noexcept nogil
    cdef ssize_t fill(self, port_t *port, size_t want, bint precopy, int *source) noexcept nogil
    cdef ssize_t pages_there(self, const port_t *port, size_t want, bint precopy, int *source) noexcept nogil
    cdef int send_pages(self, const port_t *port, size_t size, fault_t *fault) noexcept nogil
    cdef int pass_on(self, size_t size, fault_t *fault) noexcept nogil
    cdef size_t backlog(self) noexcept nogil
    cdef int send_raw(self, const uint8_t *data, size_t size, fault_t *fault) noexcept nogil
    cdef int queue(self, size_t size, bint packing, fault_t *fault) noexcept nogil
    cdef channel_t *free_channel(self) noexcept nogil
    cdef void let_go(self) noexcept nogil
    cdef int send_first_job(self, fault_t *fault) noexcept nogil
    cdef void drop_jobs(self) noexcept nogil
    cdef void give_back(self, uint8_t *buffer) noexcept nogil
    cdef int send_data(self, int kind, const void *payload, size_t length, size_t size, uint32_t sum,
                       fault_t *fault) noexcept nogil
    cdef int send(self, frame_t *frame, const void *payload) noexcept nogil

"""Buffers for the pumps: page-aligned, bounded in number, used again while still warm in cache."""

from libc.stdlib cimport free, malloc
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef class Pool:
    """At most ``capacity`` buffers of ``size`` bytes; each is mapped when it is first needed.

    The memory that pumps hold is ``capacity * size`` bytes whatever they move.
    """

    def __cinit__(self, size_t size, int capacity):
        if size == 0 or capacity <= 0:
            raise ValueError("a pool needs a size and a capacity above 0")
        pthread_mutex_init(&self.lock, NULL)
        self.size = size
        self.capacity = capacity
        self.free = <void **> malloc(capacity * sizeof(void *))
        if self.free == NULL:
            raise MemoryError

    cdef void *take(self) noexcept nogil:
        cdef void *buffer = NULL
        cdef bint fresh = False
        pthread_mutex_lock(&self.lock)
        if self.idle:
            self.idle -= 1
            buffer = self.free[self.idle]
        elif self.allocated < self.capacity:
            self.allocated += 1
            fresh = True
        pthread_mutex_unlock(&self.lock)
        if fresh:
            buffer = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if buffer == MAP_FAILED:
                buffer = NULL
                pthread_mutex_lock(&self.lock)
                self.allocated -= 1
                pthread_mutex_unlock(&self.lock)
        return buffer

    cdef void give(self, void *buffer) noexcept nogil:
        if buffer == NULL:
            return
        pthread_mutex_lock(&self.lock)
        self.free[self.idle] = buffer
        self.idle += 1
        pthread_mutex_unlock(&self.lock)

    @property
    def in_use(self):
        """How many buffers are out now; 0 when no pump runs."""
        return self.allocated - self.idle

    def __dealloc__(self):
        while self.idle:
            self.idle -= 1
            munmap(self.free[self.idle], self.size)
        free(self.free)
        pthread_mutex_destroy(&self.lock)

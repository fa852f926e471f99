# cython: language_level=3
"""Peer-to-peer messages between simulated devices, numbered so that a lost one shows.

One lock per fabric covers the members' effective states, their ledgers and all deliveries,
so that a message is either accepted by a peer that may receive, or lost, never half of each.
"""

from libc.string cimport memset
from pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef enum:
    # enum vfio_device_mig_state; the sets below are those of vfioflow.states, and a test compares them
    STATE_RUNNING = 2
    STATE_RUNNING_P2P = 5
    STATE_PRE_COPY = 6
    STATE_PRE_COPY_P2P = 7


cdef bint can_send(int state) noexcept nogil:
    return state == STATE_RUNNING or state == STATE_PRE_COPY


cdef inline bint can_receive(int state) noexcept nogil:
    return can_send(state) or state == STATE_RUNNING_P2P or state == STATE_PRE_COPY_P2P


cdef entry_t *entry_for(ledger_t *ledger, uint64_t peer) noexcept nogil:
    cdef uint32_t i
    for i in range(ledger.count):
        if ledger.entry[i].peer == peer:
            return &ledger.entry[i]
    if ledger.count == MAX_PEERS:
        return NULL
    memset(&ledger.entry[ledger.count], 0, sizeof(entry_t))
    ledger.entry[ledger.count].peer = peer
    ledger.count += 1
    return &ledger.entry[ledger.count - 1]


cdef void send(member_t *sender, member_t *receiver) noexcept nogil:
    cdef entry_t *out = entry_for(&sender.ledger, receiver.name)
    cdef entry_t *into
    cdef uint64_t number
    if out == NULL:
        return
    number = out.sent
    out.sent += 1
    if not can_receive(receiver.state):
        return
    into = entry_for(&receiver.ledger, sender.name)
    if into == NULL:
        return
    if number < into.expected:
        into.duplicates += 1
        return
    into.gaps += number - into.expected
    into.received += 1
    into.expected = number + 1


cdef void exchange(fabric_t *fabric) noexcept nogil:
    cdef uint32_t i, j
    for i in range(fabric.count):
        if can_send(fabric.member[i].state):
            for j in range(fabric.count):
                if i != j:
                    send(fabric.member[i], fabric.member[j])


cdef void member_set_state(member_t *member, int state) noexcept nogil:
    """Make ``state`` the effective one; messages flow right before and right after."""
    if member.fabric == NULL:
        member.state = state
        return
    pthread_mutex_lock(&member.fabric.lock)
    exchange(member.fabric)
    member.state = state
    exchange(member.fabric)
    pthread_mutex_unlock(&member.fabric.lock)


cdef void member_tick(member_t *member) noexcept nogil:
    if member.fabric != NULL:
        pthread_mutex_lock(&member.fabric.lock)
        exchange(member.fabric)
        pthread_mutex_unlock(&member.fabric.lock)


cdef void member_tick_paced(member_t *member, double rate, uint64_t now) noexcept nogil:
    """Let messages flow unless that happened less than 1/rate seconds ago."""
    if member.fabric == NULL or rate <= 0:
        return
    pthread_mutex_lock(&member.fabric.lock)
    if <double>now >= <double>member.fabric.ticked_ns + 1e9 / rate:
        member.fabric.ticked_ns = now
        exchange(member.fabric)
    pthread_mutex_unlock(&member.fabric.lock)


cdef void member_ledger(member_t *member, ledger_t *out) noexcept nogil:
    if member.fabric != NULL:
        pthread_mutex_lock(&member.fabric.lock)
    out[0] = member.ledger
    if member.fabric != NULL:
        pthread_mutex_unlock(&member.fabric.lock)


cdef void member_load_ledger(member_t *member, const ledger_t *ledger) noexcept nogil:
    if member.fabric != NULL:
        pthread_mutex_lock(&member.fabric.lock)
    member.ledger = ledger[0]
    if member.fabric != NULL:
        pthread_mutex_unlock(&member.fabric.lock)


cdef class FabricCore:
    """The members of a fabric.  :class:`vfioflow.devices.sim.Fabric` is its face."""

    def __cinit__(self):
        self.ready = pthread_mutex_init(&self.c.lock, NULL) == 0
        if not self.ready:
            raise MemoryError
        self.owners = []

    cdef int join(self, member_t *member, object owner) except -1:
        cdef uint32_t i
        if member.fabric != NULL:
            raise ValueError("the device is in a fabric already")
        if self.c.count == MAX_PEERS:
            raise ValueError(f"a fabric has room for {MAX_PEERS} devices")
        for i in range(self.c.count):
            if self.c.member[i].name == member.name:
                raise ValueError("the fabric has a device of that name already")
        self.owners.append(owner)
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            self.c.member[self.c.count] = member
            self.c.count += 1
            member.fabric = &self.c
            pthread_mutex_unlock(&self.c.lock)
        return 0

    cdef int leave(self, member_t *member, object owner) except -1:
        cdef uint32_t i
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            for i in range(self.c.count):
                if self.c.member[i] == member:
                    self.c.count -= 1
                    self.c.member[i] = self.c.member[self.c.count]
                    break
            member.fabric = NULL
            pthread_mutex_unlock(&self.c.lock)
        self.owners.remove(owner)
        return 0

    def tick(self):
        """One message from every device that may send to each of its peers."""
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            exchange(&self.c)
            pthread_mutex_unlock(&self.c.lock)

    def __dealloc__(self):
        if self.ready:
            pthread_mutex_destroy(&self.c.lock)

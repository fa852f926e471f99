# cython: language_level=3
"""Peer-to-peer messages between simulated devices, numbered so that a lost one shows.

One lock per fabric covers the members' effective states, their ledgers and all deliveries,
so that a message is either accepted by a peer that may receive, or lost, never half of each.
"""

from libc.stdlib cimport calloc, free
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
    cdef uint64_t number
    if out == NULL:
        return
    number = out.sent
    if receiver.trapped:
        if not keep(receiver.fabric, sender.name, receiver.name, number):
            return      # a write that finds no room has not been made yet
        out.sent += 1
        return
    out.sent += 1
    receive(receiver, sender.name, number)


cdef bint keep(fabric_t *fabric, uint64_t sender, uint64_t receiver, uint64_t number) noexcept nogil:
    """Whether there was room to keep a message."""
    cdef message_t *message
    if fabric.kept_count == fabric.kept_room:
        return False
    message = &fabric.kept[fabric.kept_count]
    message.sender, message.receiver, message.number = sender, receiver, number
    fabric.kept_count += 1
    return True


cdef bint receive(member_t *receiver, uint64_t sender, uint64_t number) noexcept nogil:
    """Whether the receiver could take it."""
    cdef entry_t *into
    if not can_receive(receiver.state):
        return False
    into = entry_for(&receiver.ledger, sender)
    if into == NULL:
        return False
    if number < into.expected:
        into.duplicates += 1
        return True
    into.gaps += number - into.expected
    into.received += 1
    into.expected = number + 1
    return True


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
            # The pointer stays: another thread may be about to lock through it.
            pthread_mutex_unlock(&self.c.lock)
        self.owners.remove(owner)
        return 0

    cdef int arm(self, member_t *member, uint32_t room) except -1:
        cdef message_t *kept = NULL
        if self.c.kept == NULL:
            kept = <message_t *> calloc(room, sizeof(message_t))
            if kept == NULL:
                raise MemoryError
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            if kept != NULL:
                self.c.kept, self.c.kept_room, self.c.kept_count = kept, room, 0
            member.trapped = True
            pthread_mutex_unlock(&self.c.lock)
        return 0

    cdef bint disarm(self, member_t *member):
        cdef bint empty
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            empty = self.c.kept_count == 0
            if empty:
                member.trapped = False
            pthread_mutex_unlock(&self.c.lock)
        return empty

    cdef void untrap(self, member_t *member):
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            member.trapped = False
            pthread_mutex_unlock(&self.c.lock)

    cdef bint receive(self, member_t *receiver, uint64_t sender, uint64_t number):
        cdef bint taken
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            taken = receive(receiver, sender, number)
            pthread_mutex_unlock(&self.c.lock)
        return taken

    def take_trapped(self):
        """The messages that were kept, in order, as (sender, receiver, number) of name hashes; none stays."""
        cdef uint32_t i, count
        cdef message_t *kept
        taken = []
        if self.c.kept == NULL:
            return taken
        kept = <message_t *> calloc(self.c.kept_room, sizeof(message_t))
        if kept == NULL:
            raise MemoryError
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            count, self.c.kept_count = self.c.kept_count, 0
            kept, self.c.kept = self.c.kept, kept
            pthread_mutex_unlock(&self.c.lock)
        for i in range(count):
            taken.append((kept[i].sender, kept[i].receiver, kept[i].number))
        free(kept)
        return taken

    def tick(self):
        """One message from every device that may send to each of its peers."""
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            exchange(&self.c)
            pthread_mutex_unlock(&self.c.lock)

    def __dealloc__(self):
        free(self.c.kept)
        if self.ready:
            pthread_mutex_destroy(&self.c.lock)

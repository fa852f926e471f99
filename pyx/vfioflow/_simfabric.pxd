# Peer-to-peer traffic between simulated devices: who sent how much to whom, and what arrived.

from libc.stdint cimport uint32_t, uint64_t
from pthread cimport pthread_mutex_t

cdef enum:
    MAX_PEERS = 64

ctypedef struct entry_t:        # what a device knows of one peer; travels in the trailer
    uint64_t peer               # hash of the peer's name
    uint64_t sent               # messages numbered 0 .. sent-1 went to the peer
    uint64_t received           # in order
    uint64_t expected           # the number that the next message should bear
    uint64_t duplicates         # numbers that had been seen already
    uint64_t gaps               # numbers that never came

ctypedef struct ledger_t:
    uint32_t count
    entry_t entry[MAX_PEERS]

ctypedef struct message_t:
    uint64_t sender             # hash of its name
    uint64_t receiver
    uint64_t number

ctypedef struct fabric_t        # (declared first: members point back)

ctypedef struct member_t:       # the part of a device that its peers see; guarded by the fabric's lock
    uint64_t name               # hash
    int state                   # the effective migration state
    int trapped                 # messages to it are kept by the fabric
    ledger_t ledger
    fabric_t *fabric            # NULL: alone

ctypedef struct fabric_t:
    pthread_mutex_t lock
    uint32_t count
    member_t *member[MAX_PEERS]
    uint64_t ticked_ns
    message_t *kept             # messages to trapped members, in the order of sending
    uint32_t kept_count
    uint32_t kept_room


cdef class FabricCore:
    cdef fabric_t c
    cdef int ready
    cdef list owners            # keeps the members' memory alive
    cdef int join(self, member_t *member, object owner) except -1
    cdef int leave(self, member_t *member, object owner) except -1
    cdef int arm(self, member_t *member, uint32_t room) except -1
    cdef bint disarm(self, member_t *member)
    cdef void untrap(self, member_t *member)
    cdef bint receive(self, member_t *receiver, uint64_t sender, uint64_t number)


cdef bint can_send(int state) noexcept nogil
cdef void member_set_state(member_t *member, int state) noexcept nogil
cdef void member_tick(member_t *member) noexcept nogil
cdef void member_tick_paced(member_t *member, double rate, uint64_t now) noexcept nogil
cdef void member_ledger(member_t *member, ledger_t *out) noexcept nogil
cdef void member_load_ledger(member_t *member, const ledger_t *ledger) noexcept nogil

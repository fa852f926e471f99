"""A process that stores all the time, and a mapping whose stores are held: none is lost, none slips by."""

import mmap
import os
import socket
import struct
import subprocess
import sys

import pytest

from vfioflow import ConfigError
from vfioflow.access import HeldMemory

SLOTS = 2048  # of 8 bytes: four pages
SIZE = 8 * SLOTS
STORES = 300_000

WRITER = """
import mmap, socket, struct, sys
from vfioflow.access import HeldMemory
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
control = socket.socket(fileno=int(sys.argv[3]))
with HeldMemory(memory) as held:
    socket.send_fds(control, [struct.pack("<QQ", held.start, held.size)], [held.fd])
    control.recv(1)
    words = memoryview(memory).cast("Q")
    slots, count = len(words), int(sys.argv[4])
    for number in range(1, count + 1):
        words[number % slots] = number
    control.sendall(b"x")
    control.recv(1)
"""


@pytest.fixture
def writer():
    """Shared memory, its holder, and the process that stores once it is told to."""
    shared = os.memfd_create("bar")
    os.ftruncate(shared, SIZE)
    memory = mmap.mmap(shared, SIZE)
    mine, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(shared), str(SIZE), str(theirs.fileno()), str(STORES)],
        pass_fds=(shared, theirs.fileno()),
    )
    theirs.close()
    os.close(shared)
    mine.settimeout(60)
    about, [fd], _, _ = socket.recv_fds(mine, 16, 1)
    held = HeldMemory.received(fd, *struct.unpack("<QQ", about))
    with mine, held:
        yield memory, held, mine
        mine.sendall(b"x")
        assert process.wait(60) == 0
    memory.close()


def newest(memory):
    """The last number that was stored, after a check that no store before it is missing."""
    words = struct.unpack(f"<{SLOTS}Q", memory[:])
    last = max(words)
    for slot, number in enumerate(words):
        before = last - (last - slot) % SLOTS
        assert number == max(before, 0), f"slot {slot} has {number}: a store is missing"
    return last


def test_no_store_is_lost_and_none_reaches_memory_that_is_held(writer):
    memory, held, control = writer
    control.sendall(b"x")
    seen = []
    while not seen or seen[-1] < STORES // 2:
        held.arm()
        first = newest(memory)
        tried = []
        while not tried:  # somebody stores now, and waits
            tried = held.held()
        assert tried[0] == 8 * ((first + 1) % SLOTS) // mmap.PAGESIZE * mmap.PAGESIZE or (
            tried[0] == 8 * ((first + 1) % SLOTS)
        )
        assert newest(memory) == first
        seen.append(first)
        held.disarm()
        while newest_of(memory) == first:
            pass
    assert control.recv(1) == b"x"
    assert newest(memory) == STORES
    assert seen == sorted(set(seen))


def newest_of(memory):
    """The last number, while somebody stores."""
    return max(struct.unpack(f"<{SLOTS}Q", memory[:]))


def test_nothing_is_held_while_it_is_not_armed(writer):
    memory, held, control = writer
    control.sendall(b"x")
    assert control.recv(1) == b"x"
    assert held.held() == []
    assert newest(memory) == STORES


def test_memory_of_which_the_kernel_knows_nothing(writer):
    memory, held, control = writer
    wrong = HeldMemory.received(os.dup(held.fd), 1 << 60, SIZE)
    with wrong, pytest.raises(ConfigError, match="cannot be held"):
        wrong.arm()
    control.sendall(b"x")
    assert control.recv(1) == b"x"
    assert newest(memory) == STORES


def test_what_is_no_whole_page():
    with mmap.mmap(-1, 100) as memory, pytest.raises(ConfigError, match="cannot be held"):
        HeldMemory(memory)

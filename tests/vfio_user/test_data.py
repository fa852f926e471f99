"""Migration data: several requests under way, in order, no more than may be, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading

import pytest

from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._fdio import Cancel
from vfioflow._inlane import InLane
from vfioflow._outlane import CANCELLED, DRAINED, END, OutLane
from vfioflow._vfio_user_data import DataPort
from vfioflow._waits import Limiter
from vfioflow.errors import DeviceError
from vfioflow.states import State

PIECE = 1000


@pytest.fixture
def port(pair, stack):
    """Makes ports onto the pair's connection."""
    line, _ = pair

    def make(most: int = 4, *, piece: int = PIECE, precopy: bool = False) -> DataPort:
        made = DataPort(os.dup(line.fileno()), line, piece, most, precopy)
        stack.callback(made.close)
        return made

    return make


def once(port: DataPort, size: int) -> bytes:
    """One read, as a pump does it."""
    buffer = bytearray(size)
    return bytes(buffer[: port.readinto(buffer)])


def read(port: DataPort, size: int) -> bytes:
    """A read that gives something, however long the server takes."""
    while True:
        try:
            return once(port, size)
        except BlockingIOError:
            pass


def read_all(port: DataPort, size: int) -> bytes:
    """So many bytes, or those up to the end."""
    found = b""
    while len(found) < size and (part := read(port, size - len(found))):
        found += part
    return found


def write(port: DataPort, data: bytes) -> int:
    """The same for a write; what is left is offered again."""
    done = 0
    while done < len(data):
        with contextlib.suppress(BlockingIOError):
            done += port.write(data[done:])
    return done


def asked(far, count: int) -> list[int]:
    """The ids of so many reads, each of the full size."""
    ids = []
    for _ in range(count):
        number, command, payload = far.request()
        assert command == 17
        assert struct.unpack("=II", payload) == (8 + PIECE, PIECE)
        ids.append(number)
    return ids


def block(n: int) -> bytes:
    return bytes([n]) * PIECE


@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_as_many_reads_are_under_way_as_may_be(pair, port, background, most):
    _, far = pair
    got = background(read_all, port(most), 8 * PIECE)
    ids = asked(far, most)
    assert not far.waiting()
    for n in range(8):
        far.data(ids.pop(0), block(n))
        ids += asked(far, 1)  # the stream goes on: the next is asked for at once
    assert got() == b"".join(map(block, range(8)))


def test_in_pre_copy_no_more_is_asked_for_than_there_is_room(pair, port, background):
    _, far = pair
    device = port(8, precopy=True)
    got = background(read_all, device, 2 * PIECE + 500)
    ids = asked(far, 2)
    number, _, payload = far.request()
    assert struct.unpack("=II", payload) == (508, 500)
    for n, each in enumerate(ids):
        far.data(each, block(n))
    far.data(number, block(9)[:500])
    assert got() == block(0) + block(1) + block(9)[:500]
    assert not far.waiting()


def test_padding_is_no_data(pair, port, background):
    _, far = pair
    got = background(read_all, port(1), PIECE)
    far.data(*asked(far, 1), b"short", pad=PIECE - 5)
    number, _, _ = far.request()  # a short reply may not be the last one
    far.data(number, b"er", pad=PIECE - 2)
    far.data(*asked(far, 1), b"", pad=PIECE)
    assert got() == b"shorter"


def test_an_empty_reply_is_the_end(pair, port, background):
    _, far = pair
    device = port(3)
    got = background(read_all, device, 5 * PIECE)
    one, two, three = asked(far, 3)
    far.data(one, block(1))
    four = asked(far, 1)[0]
    far.data(two, b"the last")
    far.data(three, b"")
    far.data(four, b"")
    assert got() == block(1) + b"the last"
    assert not far.waiting()


def test_what_comes_behind_an_empty_reply_counts(pair, port, background):
    _, far = pair
    device = port(3, precopy=True)
    got = background(read_all, device, 3 * PIECE)
    one, two, three = asked(far, 3)
    far.data(one, b"")
    far.data(two, b"")
    far.data(three, b"it ran meanwhile")
    for _ in range(3):
        far.data(far.request()[0], b"")
    assert got() == b"it ran meanwhile"
    assert not far.waiting()


def test_the_end_may_be_asked_for_again(pair, port, background):
    _, far = pair
    device = port(1, precopy=True)
    for n in range(3):
        got = background(read, device, PIECE)
        far.data(*asked(far, 1), b"")
        assert got() == b""
        total, passes, (since, _), _ = device.progress()
        assert (total, passes, since) == (0, n + 1, 0)


def test_enomsg_is_nothing_for_now_in_pre_copy_alone(pair, port, background):
    _, far = pair
    got = background(read, port(1, precopy=True), PIECE)
    far.say(*asked(far, 1), 17, flags=0x21, error=errno.ENOMSG)
    assert got() == b""
    got = background(read, port(1), PIECE)
    far.say(*asked(far, 1), 17, flags=0x21, error=errno.ENOMSG)
    with pytest.raises(OSError, match="desired type") as caught:
        got()
    assert caught.value.errno == errno.ENOMSG


def test_an_error_comes_after_the_data_before_it(pair, port, background):
    _, far = pair
    device = port(3)
    got = background(read, device, PIECE)
    one, two, three = asked(far, 3)
    far.data(one, block(1))
    four = asked(far, 1)[0]
    far.say(two, 17, b"besides", flags=0x21, error=errno.EIO)
    far.data(three, block(3))
    far.data(four, block(4))
    assert got() == block(1)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            read(device, PIECE)
    assert not far.waiting()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "with 0 bytes, where there must be 8 before the data"),
        (struct.pack("=II", 8, PIECE + 1) + bytes(PIECE), "1001 bytes of data, at most 1000"),
        (struct.pack("=II", 8, 6) + bytes(5), "6 bytes of data, at most 5"),
        (bytes(8 + PIECE + 1), "1009 bytes after its header, where at most 1008"),
    ],
)
def test_replies_that_cannot_be(pair, port, background, payload, reason):
    _, far = pair
    device = port(1)
    got = background(read, device, PIECE)
    far.say(*asked(far, 1), 17, payload)
    with pytest.raises(OSError, match="Protocol error"):
        got()
    assert reason in device.advice


def test_replies_out_of_order_are_refused(pair, port, background):
    _, far = pair
    device = port(2)
    got = background(read, device, 2 * PIECE)
    one, two = asked(far, 2)
    far.data(two, block(2))
    with pytest.raises(OSError, match="Protocol error"):
        got()
    assert device.advice == f"a reply with id {two}, where that to {one} is due"


def test_a_server_that_goes_in_the_middle_of_data(pair, port, background):
    _, far = pair
    device = port(1)
    got = background(read, device, 2 * PIECE)
    far.say(*asked(far, 1), 17, struct.pack("=II", 1008, 1000) + b"a part", size=1024)
    far.sock.close()
    assert got() == b"a part"
    with pytest.raises(ConnectionResetError):
        read(device, 1)
    assert "in the middle of a message" in device.advice


def test_another_thread_that_asks_does_not_disturb_the_stream(pair, port, background):
    line, far = pair
    device = port(3)
    got = background(read, device, PIECE)
    ids = asked(far, 3)
    far.data(ids[0], block(0))
    ids += asked(far, 1)
    assert got() == block(0)
    other = background(line.request, 16, b"what", 64, -1.0)  # its reply is behind the data
    number, _, _ = far.request()
    for n, each in enumerate(ids[1:], 1):
        far.data(each, block(n)[: PIECE - n])
    far.say(number, 16, b"that")
    assert other() == (0, b"that")
    whole = b"".join(block(n)[: PIECE - n] for n in (1, 2, 3))
    assert read(device, 700) + read_all(device, len(whole) - 700) == whole


def test_into_stop_copy_what_was_asked_for_comes_first_and_0_counts_anew(pair, port, background):
    _, far = pair
    device = port(2, precopy=True)
    with pytest.raises(BlockingIOError):
        once(device, 2 * PIECE)
    one, two = asked(far, 2)
    settled = background(device.stop_copy, 30.0)
    far.data(one, b"from before")
    far.data(two, b"")
    settled()
    assert read(device, PIECE) == b"from before"
    got = background(read, device, PIECE)
    one, two = asked(far, 2)
    far.data(one, block(1))
    assert got() == block(1)


def test_into_stop_copy_only_so_long(pair, port):
    _, far = pair
    device = port(1, precopy=True)
    with pytest.raises(BlockingIOError):
        once(device, PIECE)
    with pytest.raises(TimeoutError):
        device.stop_copy(0.01)
    far.sock.close()
    with pytest.raises(OSError, match="the server closed the connection"):
        device.stop_copy(30.0)


@pytest.mark.parametrize("how", ["end", "drop"])
def test_a_session_that_is_over(pair, port, background, how):
    line, far = pair
    device = port(2)
    got = background(read, device, PIECE)
    one, two = asked(far, 2)
    far.data(one, block(1))
    three = asked(far, 1)[0]
    assert got() == block(1)
    if how == "end":
        device.end()
        with pytest.raises(OSError, match="No such device"):
            once(device, 1)
    device.close()
    del device
    other = background(line.request, 16, b"", 64, -1.0)
    number, _, _ = far.request()
    for each in (two, three):
        far.data(each, block(2))
    far.say(number, 16, b"fine")
    assert other() == (0, b"fine")
    assert line.waiting == 0


# --------------------------------------------------------------------- writing


def taken(far, size: int) -> tuple[int, bytes]:
    """The next write of so many bytes: its id, and they."""
    number, command, payload = far.request()
    assert command == 18
    assert struct.unpack_from("=II", payload) == (8 + size, size)
    assert len(payload) == 8 + size
    return number, payload[8:]


@pytest.mark.parametrize("most", [1, 3])
def test_as_many_writes_are_under_way_as_may_be(pair, port, background, most):
    _, far = pair
    data = os.urandom(6 * PIECE + 5)
    done = background(write, port(most), data)
    sizes = [PIECE] * 6 + [5]
    waiting = [taken(far, sizes.pop(0)) for _ in range(most)]
    got = b""
    while waiting:
        assert not far.waiting()
        number, part = waiting.pop(0)
        got += part
        far.say(number, 18)
        if sizes:
            waiting.append(taken(far, sizes.pop(0)))
    assert done() == len(data)
    assert got == data


def test_a_write_counts_what_the_server_has_taken(pair, port, background):
    _, far = pair
    device = port(4)
    data = os.urandom(4 * PIECE)
    first = background(device.write, data)
    ids = [taken(far, PIECE)[0] for _ in range(4)]
    far.say(ids[0], 18)
    assert first() == PIECE  # a tenth of a second is all that it waits for the others
    rest = background(write, device, data[PIECE:])
    for each in ids[1:]:
        far.say(each, 18)
    assert rest() == 3 * PIECE
    assert not far.waiting()  # nothing was sent again


def test_an_error_of_a_write_is_at_its_place(pair, port, background):
    _, far = pair
    device = port(4)
    done = background(device.write, bytes(4 * PIECE))
    ids = [taken(far, PIECE)[0] for _ in range(4)]
    far.say(ids[0], 18)
    far.say(ids[1], 18, b"besides", flags=0x21, error=errno.ENOSPC)
    far.say(ids[2], 18)
    far.say(ids[3], 18)
    assert done() == PIECE
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            device.write(bytes(3 * PIECE))
    assert not far.waiting()


def test_a_server_that_takes_nothing_is_not_waited_for(pair, port):
    device = port(2)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            device.write(bytes(2 * PIECE))


def test_a_message_of_32_kib_arrives_in_one_piece(stack, server, connect):
    """What servers need that read a message's body at once; so does this one."""
    busy = server(device={"size": 4 << 20})
    device = connect(busy, in_flight=8)
    port = device.port(device.set_state(State.RESUMING))
    stack.callback(port.close)
    head = struct.pack("=4sQQ", b"DATA", 0, 4 << 20)
    assert write(port, head + bytes(4 << 20)) == len(head) + (4 << 20)
    assert busy.short_bodies == 0
    assert busy.device.written == len(head) + (4 << 20)


@pytest.mark.parametrize(("piece", "most"), [(0, 1), (1, 0), (1, 33)])
def test_limits_that_cannot_be(port, piece, most):
    with pytest.raises(OSError, match="Invalid argument"):
        port(most, piece=piece)


# ------------------------------------------------------------------ the pumps


def test_a_pump_is_cancelled_while_the_server_says_nothing(pair, port, stack):
    _, far = pair
    cancel = Cancel()
    lane = lane_of(stack, cancel)
    outcome = []
    pump = threading.Thread(
        target=lambda: outcome.append(lane.pump(port(2), 1 << 20, precopy=False))
    )
    pump.start()
    asked(far, 2)
    cancel.set()
    pump.join(30)
    assert outcome == [CANCELLED]


def lane_of(stack, cancel) -> OutLane:
    near, far = socket.socketpair()
    stack.callback(near.close)
    stack.callback(far.close)
    return OutLane("nic0", 0, [Channel(near)], Pool(1 << 16, 2), cancel, Limiter(), digests=True)


def test_a_pump_names_the_device_the_place_and_what_was_wrong(pair, port, background, stack):
    _, far = pair
    lane = lane_of(stack, Cancel())
    pumped = background(lane.pump, port(1), 1 << 20, precopy=True)
    far.data(*asked(far, 1), block(1))
    far.say(77, 17)
    with pytest.raises(DeviceError, match=r"device nic0: reading its state at byte 1000 .* id 77"):
        pumped()


def test_what_a_pump_makes_of_the_ends(pair, port, background, stack):
    _, far = pair
    lane = lane_of(stack, Cancel())
    device = port(1, precopy=True)
    pumped = background(lane.pump, device, 1 << 20, precopy=True)
    far.data(*asked(far, 1), b"")
    assert pumped() == DRAINED
    device.stop_copy(30.0)
    pumped = background(lane.pump, device, 1 << 20, precopy=False)
    far.data(*asked(far, 1), b"rest")
    far.data(*asked(far, 1), b"")
    assert pumped() == END
    assert lane.offset == 4


def test_the_destination_knows_the_port(port):
    assert InLane("nic0", port()).name == "nic0"
    assert not port().takes_pages
    assert select.select([], [port()], [], 0)[1]

"""A connection: many threads that ask, replies that cannot be, time limits, the end."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from server import HEADER

from vfioflow._vfio_user import Line


def test_a_request_and_its_reply(pair, background):
    line, far = pair
    asked = background(line.request, 16, b"what", 64, -1.0)
    number, command, payload = far.request()
    assert (command, payload) == (16, b"what")
    far.say(number, command, b"that")
    assert asked() == (0, b"that")
    assert (line.broken, line.reason, line.waiting) == (0, "", 0)


def test_many_threads_each_get_their_own(pair, background):
    line, far = pair
    asked = {n: background(line.request, 16, bytes([n]), 64, -1.0) for n in range(40)}
    waiting = [far.request() for _ in range(40)]
    assert sorted(payload[0] for _, _, payload in waiting) == list(range(40))
    for number, command, payload in waiting:
        far.say(number, command, payload * 3)
    assert {n: result() for n, result in asked.items()} == {
        n: (0, bytes([n] * 3)) for n in range(40)
    }


def test_ids_wrap(pair, background):
    line, far = pair

    def ask() -> int:
        for _ in range(66_000):
            assert line.request(13, b"", 0, -1.0) == (0, b"")
        return line.waiting

    asked = background(ask)
    for count in range(66_000):
        number, command, _ = far.request()
        assert number == count % 65536
        far.say(number, command)
    assert asked() == 0


@pytest.mark.parametrize(
    ("error", "code"), [(errno.EBUSY, errno.EBUSY), (0, errno.EINVAL), (70_000, errno.EINVAL)]
)
@pytest.mark.parametrize("payload", [b"", b"besides", bytes(100_000)])
def test_an_error_with_and_without_a_payload(pair, background, error, code, payload):
    line, far = pair
    asked = background(line.request, 16, b"", 64, -1.0)
    number, command, _ = far.request()
    far.say(number, command, payload, flags=0x21, error=error)
    assert asked() == (code, b"")
    asked = background(line.request, 16, b"", 64, -1.0)
    far.say(far.request()[0], 16, b"fine")
    assert asked() == (0, b"fine")


def test_commands_of_the_servers_are_refused_and_do_no_harm(pair, background):
    line, far = pair
    asked = background(line.request, 16, b"", 64, -1.0)
    number, command, _ = far.request()
    far.say(number, 11, bytes(16), flags=0)  # an id that is ours too
    answer = far.all(16)
    assert answer == _header(number, 11, 16, 0x21, errno.EOPNOTSUPP)
    far.say(5, 12, bytes(300), flags=1 << 4)
    far.say(number, command, b"fine")
    assert asked() == (0, b"fine")
    assert not far.waiting()


def _header(*fields: int) -> bytes:
    return HEADER.pack(*fields)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"size": 15}, "says that it has 15 bytes, its header alone has 16"),
        ({"size": 0}, "says that it has 0 bytes"),
        ({"size": 0xFFFFFFFF}, "4294967279 bytes after its header, where at most 64 may come"),
        ({"payload": bytes(65)}, "65 bytes after its header, where at most 64 may come"),
        ({"number": 77}, "a reply with id 77, where that to 0 is due"),
        ({"command": 17}, "a reply to command 17, where that to command 16 is due"),
        ({"flags": 2}, "a message of type 2, which is neither command nor reply"),
        ({"flags": 0x21, "size": 1 << 30}, "where at most 1052672 may come"),
        ({"flags": 0, "size": 1 << 30}, "where at most 1052672 may come"),
    ],
)
def test_messages_that_cannot_be(pair, background, message, reason):
    line, far = pair
    asked = background(line.request, 16, b"", 64, -1.0)
    number, command, _ = far.request()
    message = {"number": number, "command": command, "payload": b"", **message}
    far.say(message.pop("number"), message.pop("command"), message.pop("payload"), **message)
    with pytest.raises(OSError, match=reason) as caught:
        asked()
    assert caught.value.errno == errno.EPROTO == line.broken
    with pytest.raises(OSError, match=reason):
        line.request(16, b"", 64, -1.0)
    assert far.sock.recv(1) == b""


def test_a_reply_to_nothing(pair, background):
    line, far = pair
    asked = background(line.request, 16, b"", 64, -1.0)
    number, command, _ = far.request()
    far.sock.sendall(2 * _header(number, command, 16, 1, 0))
    assert asked() == (0, b"")
    assert line.reason == "a reply with id 0, and nothing was asked"


def test_replies_out_of_order_are_refused(pair, background):
    line, far = pair
    first = background(line.request, 16, b"", 64, -1.0)
    one = far.request()
    second = background(line.request, 16, b"", 64, -1.0)
    two = far.request()
    far.say(two[0], 16)
    for asked in (first, second):
        with pytest.raises(OSError, match=f"id {two[0]}, where that to {one[0]} is due"):
            asked()


@pytest.mark.parametrize(
    ("sent", "reason"), [(0, "closed the connection$"), (7, "in the middle"), (20, "in the middle")]
)
def test_a_server_that_is_gone(pair, background, sent, reason):
    line, far = pair
    asked = background(line.request, 16, b"", 64, -1.0)
    number, command, _ = far.request()
    far.sock.sendall((_header(number, command, 24, 1, 0) + bytes(8))[:sent])
    far.sock.close()
    with pytest.raises(OSError, match=reason) as caught:
        asked()
    assert caught.value.errno == errno.ECONNRESET
    with pytest.raises(OSError, match=reason):
        line.request(16, b"", 64, -1.0)


def test_a_server_that_was_gone_before(pair):
    line, far = pair
    far.sock.close()
    with pytest.raises(OSError, match="closed the connection"):
        line.request(16, b"", 64, -1.0)
    assert line.broken == errno.ECONNRESET


def test_a_late_reply_is_thrown_away(pair, background):
    line, far = pair
    with pytest.raises(TimeoutError):
        line.request(16, b"slow", 64, 0.0)
    assert line.waiting == 1
    slow = far.request()
    asked = background(line.request, 16, b"quick", 64, -1.0)
    quick = far.request()
    far.say(slow[0], 16, b"late")
    far.say(quick[0], 16, b"in time")
    assert asked() == (0, b"in time")


def test_a_reply_that_was_given_up_in_its_middle(pair, background):
    line, far = pair
    whole = _header(0, 16, 16 + 60, 1, 0) + bytes(60)
    asked = background(line.request, 16, b"", 64, 0.2)
    far.request()
    far.sock.sendall(whole[:40])
    with pytest.raises(TimeoutError):
        asked()
    asked = background(line.request, 16, b"", 64, -1.0)
    number, _, _ = far.request()
    far.sock.sendall(whole[40:])
    far.say(number, 16, b"mine")
    assert asked() == (0, b"mine")


def test_a_server_that_answers_nothing_cannot_be_asked_for_ever(pair):
    line, _ = pair
    for _ in range(64):
        with pytest.raises(TimeoutError):
            line.request(16, b"", 64, 0.0)
    assert line.waiting == 64
    with pytest.raises(TimeoutError):
        line.request(16, b"", 64, 0.01)
    assert line.waiting == 64


def test_shutting_ends_every_wait(pair, background):
    line, far = pair
    asked = [background(line.request, 16, b"", 64, -1.0) for _ in range(3)]
    for _ in range(3):
        far.request()
    line.shut(errno.ENODEV, "it is over")
    for one in asked:
        with pytest.raises(OSError, match="it is over") as caught:
            one()
        assert caught.value.errno == errno.ENODEV
    line.shut(errno.EIO, "again")
    assert line.broken == errno.ENODEV
    with pytest.raises(OSError, match="closed"):
        line.fileno()


def test_descriptors_go_with_a_request(pair, background):
    line, far = pair
    fd = os.memfd_create("memory")
    os.write(fd, b"seen")
    asked = background(line.request, 2, b"map", 0, -1.0, [fd])
    data, fds, _, _ = socket.recv_fds(far.sock, 19, 8)
    assert data[16:] == b"map"
    assert os.pread(fds[0], 4, 0) == b"seen"
    far.say(0, 2)
    assert asked() == (0, b"")
    for each in (fd, *fds):
        os.close(each)


def test_no_more_descriptors_than_a_message_has_room_for(pair):
    line, _ = pair
    with pytest.raises(ValueError, match="at most 8"):
        line.request(2, b"", 0, -1.0, [0] * 9)


def test_a_large_request_waits_for_a_slow_server(pair, background):
    line, far = pair
    payload = os.urandom(4 << 20)
    asked = background(line.request, 16, payload, 0, -1.0)
    number, _, got = far.request()
    assert got == payload
    far.say(number, 16)
    assert asked() == (0, b"")


def test_a_server_that_takes_half_a_message_is_given_up(stack):
    near, far = socket.socketpair()
    with far:
        line = Line(near.detach(), 0.05)
        with pytest.raises(OSError, match="does not take the rest of a message"):
            line.request(16, bytes(4 << 20), 0, -1.0)
        assert line.broken == errno.ETIMEDOUT
        line.shut(errno.ENODEV, "")

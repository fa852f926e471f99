"""A host that has no threads, descriptors or memory left; sessions that end meanwhile."""

import asyncio
import errno
import os
import socket
import threading

import pytest

from vfioflow import PeerLost, Policy, ResourceError, StallError, lanes
from vfioflow.lanes import Inbound, Outbound, drive
from vfioflow.threads import in_thread
from vfioflow.wire.address import Address
from vfioflow.wire.control import Control
from vfioflow.wire.opening import Preamble, Role, connect
from vfioflow.wire.security import Guard


@pytest.fixture
def no_threads(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_call_that_gets_no_thread_fails(no_threads):
    async def body():
        return await in_thread(lambda: 1, name="x")

    with pytest.raises(ResourceError, match="out of resources: no thread for x") as caught:
        asyncio.run(body())
    assert caught.value.errno == errno.EAGAIN


def test_or_it_is_made_here(no_threads):
    async def body():
        return await in_thread(lambda: threading.current_thread().name, name="x", or_here=True)

    assert asyncio.run(body()) == threading.current_thread().name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError("no buffer"), errno.ENOMEM),
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE),
        (OSError(errno.ENFILE, "Too many open files in system"), errno.ENFILE),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), errno.ENOMEM),
    ],
)
def test_what_a_lack_of_resources_looks_like(error, code):
    meant = ResourceError.of(error)
    assert isinstance(meant, ResourceError)
    assert meant.errno == code
    assert os.strerror(code) in str(meant)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("x"), PeerLost("x")])
def test_anything_else_stays_what_it_is(error):
    assert ResourceError.of(error) is error


def test_a_connection_without_a_descriptor_is_a_lost_peer(monkeypatch):
    def none_left(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def body():
        monkeypatch.setattr(socket, "socket", none_left)
        await connect(Address("127.0.0.1", 1), Preamble(Role.CONTROL), 5, Guard())

    with pytest.raises(PeerLost, match=r"cannot connect to \S+: Too many open files"):
        asyncio.run(body())


def test_one_that_stands_still_is_found_while_others_move():
    """It is told before the pumps, which may hang in the device, are waited for."""
    moved = iter(range(10**9))
    order = []

    async def body():
        pump = asyncio.get_running_loop().create_future()

        async def stalled(error):
            order.append(str(error))

        def stop():
            order.append("stop")
            pump.set_result(None)

        await drive(
            [pump],
            stop=stop,
            failure=asyncio.get_running_loop().create_future(),
            busy=lambda: {"device a": next(moved), "device b": 7},
            stall_timeout=0.3,
            stalled=stalled,
            tick=lambda: None,
        )

    with pytest.raises(StallError, match=r"^device b: nothing has moved for 0\.3 s$"):
        asyncio.run(body())
    assert order == ["device b: nothing has moved for 0.3 s", "stop"]


def test_a_control_connection_that_comes_back_too_late_is_closed():
    async def body():
        pairs = [socket.socketpair(), socket.create_server(("127.0.0.1", 0))]
        listening = pairs[1]
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
        near.setblocking(False)
        control = Control(near, side="source")
        await control.close()
        late, other = pairs[0]
        with pytest.raises(PeerLost, match="the session has ended"):
            await control.resume(late, 0)
        assert late.fileno() == -1
        for sock in (other, far, listening):
            sock.close()

    asyncio.run(body())


def test_a_channel_that_comes_back_too_late_is_left_to_whoever_brought_it():
    async def body():
        near, far = socket.socketpair()
        late, other = socket.socketpair()
        late.setblocking(False)
        signal = os.eventfd(0)
        inbound = Inbound([], [near], chunk_size=4096, digests=False, signal_fd=signal, window=9000)
        inbound.close(stuck=False)
        with pytest.raises(PeerLost, match="the session"):
            await inbound.resume(0, late, b"")
        assert late.fileno() >= 0
        for sock in (late, other, far):
            sock.close()
        os.close(signal)

    asyncio.run(body())


def test_compressors_that_cannot_be_had_leave_nothing(nothing_left, one_thread):
    near, far = socket.socketpair()
    policy = Policy(compression="zstd:1", compression_threads=3)
    with pytest.raises(ResourceError, match="no 3 threads"):
        Outbound(["nic0"], [near], policy, splice=False)
    assert not one_thread[0].is_alive()
    near.close()
    far.close()


def test_buffers_that_cannot_be_had_leave_nothing(nothing_left, monkeypatch):
    def none_left(*args):
        raise MemoryError

    near, far = socket.socketpair()
    monkeypatch.setattr(lanes, "Pool", none_left)
    with pytest.raises(MemoryError):
        Outbound(["nic0"], [near], Policy(), splice=False)
    with pytest.raises(MemoryError):
        Inbound([], [near], chunk_size=4096, digests=False, signal_fd=0)
    near.close()
    far.close()


def test_the_descriptors_of_stuck_pumps_are_closed_with_them(nothing_left):
    near, far = socket.socketpair()
    signal = os.eventfd(0)
    inbound = Inbound([], [near], chunk_size=4096, digests=False, signal_fd=signal)
    inbound.close(stuck=True)
    del inbound
    far.close()
    os.close(signal)

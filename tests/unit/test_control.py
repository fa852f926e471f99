"""The control connection: signs of life beside the messages."""

import asyncio
import contextlib
import gc
import os
import socket
import warnings
from types import SimpleNamespace

import pytest

from vfioflow import PeerLost, listen
from vfioflow.reconnect import Rejoin
from vfioflow.wire import control as module
from vfioflow.wire import messages
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import HEARD, Preamble, Role

SIGN = bytes(8)


@contextlib.asynccontextmanager
async def connection():
    """Both ends of one."""
    near, far = pair()
    try:
        yield near, far
    finally:
        near.close()
        far.close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "_EVERY", 0.01)


def test_a_peer_that_gives_no_sign_of_life_is_lost(quick):
    async def body():
        async with connection() as (near, _):
            control = Control(near, side="source")
            control.patience = 0.05
            await asyncio.wait([control.failure], timeout=10)
            with pytest.raises(PeerLost, match="has given no sign of life for 6 s"):
                control.failure.result()
            await control.close()

    asyncio.run(body())


@pytest.mark.parametrize("psk", [b"", b"a key of both sides"], ids=["no key", "key"])
def test_two_that_live_know_it_and_lose_no_message(quick, psk):
    async def body():
        async with connection() as (near, far):
            keys = [Keys(b"said", psk) if psk else None for _ in range(2)]
            one = Control(near, side="source", keys=keys[0])
            two = Control(far, side="destination", keys=keys[1])
            one.patience = two.patience = 0.06
            for number in range(3):
                done, _ = await asyncio.wait([one.failure, two.failure], timeout=0.1)
                assert not done
                await one.send(messages.Probe(size=number))
                got = await two.expect(messages.Probe, timeout=10, what="a probe")
                assert got.size == number
            assert (one.heard, two.heard) == (0, 3)
            await one.close()
            await two.close()

    asyncio.run(body())


def test_a_peer_that_reads_nothing_holds_up_nobody_for_longer_than_it_is_waited_for(quick):
    async def body():
        async with connection() as (near, far):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            control = Control(near, side="source")
            control.patience = 0.05
            large = messages.Config(devices={"nic0": bytes(1_000_000)})
            with pytest.raises(PeerLost, match="has given no sign of life"):
                await asyncio.wait_for(control.send(large), 20)
            await control.close()

    asyncio.run(body())


def pair():
    """A connection, neither end of which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    for sock in (near, far):
        sock.setblocking(False)
    return near, far


def test_of_two_that_come_back_at_once_the_later_one_stays():
    """And no reader of the other is left behind."""

    async def body():
        keys = Keys(b"said")
        ends = [pair() for _ in range(3)]
        signal = os.eventfd(0, os.EFD_NONBLOCK)
        control = Control(ends[0][0], side="destination")
        control.resumable = True
        rejoin = Rejoin(keys, control, SimpleNamespace(channels=[], broken_fd=signal), limit=60)

        def back(attempt):
            token = keys.token(Role.CONTROL, 0, attempt)
            ends[attempt][0].sendall(HEARD.pack(0))
            return rejoin.take(Preamble(Role.CONTROL, 0, token, attempt), ends[attempt][1])

        _, second = await asyncio.gather(back(1), back(2), return_exceptions=True)
        assert second is True
        readers = [t for t in asyncio.all_tasks() if t.get_name() == "vfioflow-control"]
        assert len(readers) == 1
        await control.send(messages.Failed(reason="hello"))
        assert b"hello" in await asyncio.get_running_loop().sock_recv(ends[2][0], 4096)
        await control.close()
        for near, far in ends:
            near.close()
            far.close()
        os.close(signal)

    asyncio.run(body())


def test_a_sign_of_life_is_eight_zeros(quick):
    async def body():
        async with connection() as (near, far):
            control = Control(near, side="source", keys=Keys(b"said", b"a key of both sides"))
            assert await asyncio.get_running_loop().sock_recv(far, 8) == SIGN
            await control.close()

    asyncio.run(body())


def test_one_whose_connection_is_lost_is_not_silent(quick):
    """Until it comes back, or nobody waits for it any more, the wire is at fault."""

    async def body():
        async with connection() as (near, far):
            control = Control(near, side="source")
            control.patience = 0.02
            control.resumable = True
            far.close()
            await control.lost.wait()
            done, _ = await asyncio.wait([control.failure], timeout=0.2)
            assert not done
            await control.close()

    asyncio.run(body())


@pytest.mark.parametrize("turns", range(6))
def test_a_listener_that_ends_closes_what_has_just_come(turns):
    """Also a connection whose task has not begun yet."""

    async def body():
        async with listen("tcp://127.0.0.1:0", []) as listener:
            host, port = listener.address.removeprefix("tcp://").split(":")
            with socket.create_connection((host, int(port))):
                for _ in range(turns):
                    await asyncio.sleep(0)  # each turn of the loop is another moment to end in

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(body())
        gc.collect()

"""The control connection: signs of life beside the messages."""

import asyncio
import contextlib
import gc
import socket
import warnings

import pytest

from vfioflow import PeerLost, listen
from vfioflow.wire import control as module
from vfioflow.wire import messages
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys

SIGN = bytes(8)


@contextlib.asynccontextmanager
async def connection():
    """Both ends of one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    for sock in (near, far):
        sock.setblocking(False)
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

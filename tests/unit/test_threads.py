"""Calls on threads: those that are there already, and time limits that a suspended process keeps."""

import asyncio
import threading

import pytest

from vfioflow import ResourceError
from vfioflow.threads import in_thread, ready, settle


def whose():
    return threading.get_ident()


def idle():
    return [thread for thread in threading.enumerate() if thread.name == "vfioflow-idle"]


def test_calls_use_the_threads_that_are_there():
    async def body():
        with ready(2):
            assert len(idle()) == 2
            ours = idle()
            for _ in range(3):
                used = await asyncio.gather(*(in_thread(whose, name="x") for _ in range(2)))
                assert set(used) == {thread.ident for thread in ours}
            return ours

    for thread in asyncio.run(body()):
        thread.join(10)
        assert not thread.is_alive()


def test_one_more_is_made_and_kept():
    both = threading.Barrier(2)

    def together():
        both.wait(10)
        return threading.current_thread()

    async def body():
        with ready(1):
            first, second = [
                {await call for call in [in_thread(together, name="x") for _ in range(2)]}
                for _ in range(2)
            ]
        assert first == second
        return first

    for thread in asyncio.run(body()):
        thread.join(10)
        assert not thread.is_alive()


def test_one_that_is_busy_ends_after_its_job():
    go_on = threading.Event()

    async def body():
        with ready(1):
            [thread] = idle()
            call = in_thread(go_on.wait, 10, name="slow")
        assert thread.is_alive()
        go_on.set()
        assert await call
        return thread

    thread = asyncio.run(body())
    thread.join(10)
    assert not thread.is_alive()


def test_a_call_finds_its_thread_where_no_other_can_be_had(monkeypatch):
    def start(self):
        raise MemoryError

    async def body():
        with ready(1):
            monkeypatch.setattr(threading.Thread, "start", start)
            assert await in_thread(lambda: 7, name="x") == 7

    asyncio.run(body())


def test_threads_that_cannot_be_had(one_thread):
    with pytest.raises(ResourceError, match="no 3 threads"), ready(3):
        pass
    one_thread[0].join(10)
    assert not one_thread[0].is_alive()


def test_a_result_is_handed_over_once_there_is_memory(monkeypatch):
    class Starved(asyncio.SelectorEventLoop):
        refused = 0

        def call_soon_threadsafe(self, *args, **kwargs):
            if self.refused < 3:
                self.refused += 1
                raise MemoryError
            return super().call_soon_threadsafe(*args, **kwargs)

    async def body():
        assert await in_thread(lambda: 7, name="x") == 7
        return asyncio.get_running_loop().refused

    with asyncio.Runner(loop_factory=Starved) as runner:
        assert runner.run(body()) == 3


def test_a_process_that_was_suspended_has_not_waited():
    class Jumping(asyncio.SelectorEventLoop):
        ahead = 0.0

        def time(self):
            return super().time() + self.ahead

    async def body():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def wake():  # the clock has gone on meanwhile; what is waited for is there right afterwards
            loop.ahead = 1000.0
            loop.call_soon(loop.call_soon, future.set_result, None)

        loop.call_soon(wake)
        return await settle([future], timeout=100)

    with asyncio.Runner(loop_factory=Jumping) as runner:
        assert runner.run(body())


def test_a_task_that_outlives_the_block_gets_threads_of_its_own():
    """A hook may have started it; it has the block's context."""
    go_on = None

    async def later():
        await go_on.wait()
        return await in_thread(lambda: 7, name="x")

    async def body():
        nonlocal go_on
        go_on = asyncio.Event()
        with ready(1):
            task = asyncio.create_task(later())
            await in_thread(lambda: None, name="x")
        go_on.set()
        return await asyncio.wait_for(task, 10)

    assert asyncio.run(body()) == 7

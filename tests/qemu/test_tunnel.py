"""A running QEMU guest migrates through the tunnel, and goes on counting; or stays where it was."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

import pytest
from guest import SIZE, Guest
from processes import running

from vfioflow.wire.security import write_psk

COMMAND = f"{sys.executable} -m vfioflow tunnel"

ZSTD = ("--compression", "zstd:1")
WAYS = {
    "plain": (),
    "zstd": ZSTD,
    "key": ("--psk", "key"),
    "key, zstd, two channels": ("--psk", "key", "--channels", "2", *ZSTD),
    "that would reconnect": ("--reconnect-timeout", "5s"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the guests' files and sockets are, as relative names: a socket's path is short."""
    monkeypatch.chdir(tmp_path)
    write_psk("key")
    (tmp_path / "here.ram").write_bytes(os.urandom(SIZE))
    return tmp_path


@asynccontextmanager
async def guests(folder):
    """A guest that runs, and one that waits; then stands still, so that RAM can be compared."""
    async with (
        Guest(folder, "here") as here,
        Guest(folder, "there", "-S", "-incoming", "defer") as there,
    ):
        await here.counts_on()
        await there.set_up()
        yield here, there


async def said(guest, words):
    """The rest of the line with these words in what a guest's process, or its commands, said."""
    while words not in guest.log:
        await guest.status()  # takes a moment
    return guest.log.partition(words)[2].partition("\n")[0].strip()


async def becomes(guest, status):
    """Its run state changes a moment after it says that a migration has ended."""
    while await guest.status() != status:
        pass


async def has_moved(here, there):
    """RAM is equal, and the guest goes on on the other side, from where it stopped."""
    assert [await here.migrated(), await there.migrated()] == ["completed", "completed"]
    await becomes(here, "postmigrate")
    await becomes(there, "paused")
    assert here.memory.read_bytes() == there.memory.read_bytes()
    await there.monitor.execute("cont")
    await there.counts_on()


async def goes_on(here, there):
    """The migration failed at the source, whose guest runs; the other QEMU gave up its load."""
    assert await here.migrated() == "failed"
    await becomes(here, "running")
    await here.counts_on()
    assert await there.ended() == 1
    assert "load of migration failed" in there.log


def receive_words(options):
    both = {"--psk": 1}
    kept = [options[i : i + 2] for i in range(0, len(options), 2) if options[i] in both]
    return [word for pair in kept for word in pair]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_by_exec(folder, options):
    async def main():
        async with guests(folder) as (here, there):
            words = " ".join(
                ["receive --listen tcp://127.0.0.1:0 --into -", *receive_words(options)]
            )
            await there.monitor.execute("migrate-incoming", {"uri": f"exec:{COMMAND} {words}"})
            to = await said(there, "listening on")
            words = " ".join(["send --from - --to", to, *options])
            await here.migrate(f"exec:{COMMAND} {words}")
            await has_moved(here, there)
            assert "vfioflow: sent " in here.log
            await said(there, "vfioflow: received")

    asyncio.run(main())


@asynccontextmanager
async def by_sockets(folder, *, options=(), capabilities=()):
    """Two guests, and a tunnel between their sockets that waits for the source to connect."""
    async with guests(folder) as (here, there):
        await there.set_up(*capabilities)
        await here.set_up(*capabilities)
        await there.monitor.execute("migrate-incoming", {"uri": "unix:in"})
        with running(
            *("tunnel", "receive", "--listen", "tcp://127.0.0.1:0", "--into", "unix:in", "--json"),
            *receive_words(options),
        ) as receiver:
            to = receiver.wait_for("listening on").split()[-1]
            with running(
                *("tunnel", "send", "--from", "unix:out", "--to", to, "--json", *options)
            ) as sender:
                sender.wait_for("waiting for a connection to unix:out")
                yield here, there, sender, receiver


@pytest.mark.parametrize("capabilities", [(), ("return-path",)], ids=["one way", "return path"])
@pytest.mark.parametrize("options", [(), WAYS["key, zstd, two channels"]], ids=["plain", "all"])
def test_by_unix_sockets(folder, options, capabilities):
    async def main():
        ways = by_sockets(folder, options=options, capabilities=capabilities)
        async with ways as (here, there, sender, receiver):
            await here.monitor.execute("migrate", {"uri": "unix:out"})
            await has_moved(here, there)
            (code, sent), (code_there, taken) = sender.report(), receiver.report()
        assert (code, code_there) == (0, 0)
        assert sent["bytes"] == taken["bytes"] > SIZE
        assert sent["digest"] == taken["digest"] != ""
        assert bool(sent["bytes_back"]) == bool(capabilities)
        assert sent["bytes_back"] == taken["bytes_back"]

    asyncio.run(main())


@pytest.mark.parametrize("victim", ["sender", "receiver"])
def test_a_tunnel_that_is_killed_leaves_the_guest_where_it_is(folder, victim):
    async def main():
        async with by_sockets(folder) as (here, there, sender, receiver):
            await here.set_up(**{"max-bandwidth": SIZE // 8})  # eight seconds
            await here.monitor.execute("migrate", {"uri": "unix:out"})
            while not await moved(here):
                pass
            {"sender": sender, "receiver": receiver}[victim].process.send_signal(signal.SIGKILL)
            await goes_on(here, there)
            code, out, log = (receiver if victim == "sender" else sender).end()
        assert code == 5, log
        assert '"outcome":"failed"' in out

    asyncio.run(main())


async def moved(guest):
    """Bytes of RAM that a migration has moved so far."""
    return (await guest.monitor.execute("query-migrate")).get("ram", {}).get(
        "transferred", 0
    ) // 2**20


def test_by_exec_a_sender_that_is_killed_leaves_the_guest_where_it_is(folder):
    async def main():
        async with guests(folder) as (here, there):
            words = "receive --listen tcp://127.0.0.1:0 --into -"
            await there.monitor.execute("migrate-incoming", {"uri": f"exec:{COMMAND} {words}"})
            to = await said(there, "listening on")
            await here.set_up(**{"max-bandwidth": SIZE // 8})
            words = f"echo $$ >pid; exec {COMMAND} send --from - --to {to}"
            await here.monitor.execute("migrate", {"uri": f"exec:{words}"})
            while not await moved(here):
                pass
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
            await goes_on(here, there)

    asyncio.run(main())


def test_a_destination_that_is_not_there_leaves_the_guest_where_it_is(folder):
    async def main():
        async with Guest(folder, "here") as here:
            await here.counts_on()
            await here.migrate(f"exec:{COMMAND} send --from - --to tcp://127.0.0.1:1")
            assert await here.migrated() == "failed"
            await becomes(here, "running")
            await here.counts_on()
            await said(here, "error: ")

    asyncio.run(main())


@pytest.mark.parametrize("capabilities", [(), ("return-path",)], ids=["one way", "return path"])
def test_what_qemu_makes_of_a_loss_at_the_very_end(folder, capabilities):
    """What the tunnel has taken in, and not delivered: only with a return path QEMU waits for it."""

    async def main():
        (folder / "here.ram").unlink()  # zeros: the whole stream fits the tunnel's buffers
        ways = by_sockets(folder, capabilities=capabilities)
        async with ways as (here, there, sender, receiver):
            receiver.process.send_signal(signal.SIGSTOP)
            await here.monitor.execute("migrate", {"uri": "unix:out"})
            if capabilities:
                await becomes(here, "finish-migrate")
                receiver.process.kill()
                await goes_on(here, there)
            else:
                assert await here.migrated() == "completed"
                receiver.process.kill()
                assert await there.ended() == 1
                await becomes(here, "postmigrate")
                await here.monitor.execute("cont")
                await here.counts_on()
            code, _, log = sender.end()
            assert code == 5, log

    asyncio.run(main())

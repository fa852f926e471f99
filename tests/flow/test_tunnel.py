"""Tunnels between two ends in this process: every kind of end, both ways, and everything that goes wrong."""

import asyncio
import errno
import os
import random
import resource
import socket
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import Authority
from proxy import Proxy, flip

from vfioflow import ConfigError, PeerError, PeerLost, Policy, SimDevice, State, migrate
from vfioflow.errors import AuthenticationError, EndError, IntegrityError, RemoteError, StallError
from vfioflow.listener import listen as listen_for_devices
from vfioflow.tunnel import Sender, listen, send
from vfioflow.wire.security import Security

pytestmark = pytest.mark.usefixtures("nothing_left")

LOOP = "tcp://127.0.0.1:0"
DATA = random.Random(1).randbytes(3_000_000) + bytes(2_000_000) + b"end"
SMALL = Policy(chunk_size=64 << 10)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Paths are relative: a socket's is short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def ends(*works):
    """What each gives or raises."""
    return await asyncio.gather(*works, return_exceptions=True)


async def tunnel(source, into, *, policy=SMALL, wire=None, **more):
    """Both sides; the summary or the exception of each, source first."""
    async with listen(LOOP, into, policy=policy, **more) as listener:
        if wire is None:
            return await ends(
                send(source, listener.address, policy=policy, **more), listener.receive()
            )
        async with wire(listener.address) as address:
            return await ends(send(source, address, policy=policy, **more), listener.receive())


def run(work, *, within=60):
    """One after the other that fails, raised."""

    async def limited():
        async with asyncio.timeout(within):
            return await work

    return asyncio.run(limited())


def whole(both):
    """Both sides' summaries of a stream that arrived."""
    for one in both:
        if isinstance(one, BaseException):
            raise one
    source, destination = both
    assert source.outcome == destination.outcome == "completed"
    assert source.bytes == destination.bytes
    assert source.digest == destination.digest
    return source, destination


def feed(fd, data=DATA):
    """Write into a descriptor, and close it, beside the tunnel."""

    def body():
        with os.fdopen(fd, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def drink(fd, found):
    """Read a descriptor to its end."""

    def body():
        with os.fdopen(fd, "rb") as file:
            found.append(file.read())

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def from_file():
    Path("in").write_bytes(DATA)
    return "in", None


def from_pipe():
    out, inn = os.pipe()
    return f"fd:{out}", feed(inn)


def from_socket():
    near, far = socket.socketpair()
    thread = feed(far.detach())
    return f"fd:{near.detach()}", thread


def from_fifo():
    os.mkfifo("fifo-in")

    def body():
        Path("fifo-in").write_bytes(DATA)

    thread = threading.Thread(target=body)
    thread.start()
    return "fifo-in", thread


def from_unix():
    def body():
        sock = socket.socket(socket.AF_UNIX)
        with sock:
            while sock.connect_ex("sock-in"):
                pass
            sock.sendall(DATA)

    thread = threading.Thread(target=body)
    thread.start()
    return "unix:sock-in", thread


def into_file(found):
    return "out", None


def into_pipe(found):
    out, inn = os.pipe()
    return f"fd:{inn}", drink(out, found)


def into_socket(found):
    near, far = socket.socketpair()
    return f"fd:{near.detach()}", drink(far.detach(), found)


def into_fifo(found):
    os.mkfifo("fifo-out")

    def body():
        found.append(Path("fifo-out").read_bytes())

    thread = threading.Thread(target=body)
    thread.start()
    return "fifo-out", thread


def into_unix(found):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("sock-out")
    sock.listen(1)

    def body():
        with sock:
            conn, _ = sock.accept()
            with conn, conn.makefile("rb") as file:
                found.append(file.read())

    thread = threading.Thread(target=body)
    thread.start()
    return "unix:sock-out", thread


SOURCES = [from_file, from_pipe, from_socket, from_fifo, from_unix]
SINKS = [into_file, into_pipe, into_socket, into_fifo, into_unix]


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_end(source, sink):
    found = []
    into, reader = sink(found)
    where, writer = source()
    summary, _ = whole(run(tunnel(where, into)))
    for thread in (reader, writer):
        if thread is not None:
            thread.join()
    assert (found or [Path("out").read_bytes()]) == [DATA]
    assert summary.bytes == len(DATA)
    assert not Path("sock-in").exists()


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", ["none", "zstd:1", "auto"])
def test_every_way_over_the_wire(compression, channels, digest):
    where, _ = from_file()
    policy = Policy(chunk_size=64 << 10, compression=compression, channels=channels, digest=digest)
    source, _ = whole(run(tunnel(where, "out", policy=policy)))
    assert Path("out").read_bytes() == DATA
    assert source.channels == channels
    assert (source.bytes_wire < source.bytes) == (compression != "none")
    assert bool(source.digest) == digest


@pytest.mark.parametrize("size", [0, 1, 4095, 65536, 65537])
def test_every_length(size):
    Path("in").write_bytes(DATA[:size])
    whole(run(tunnel("in", "out")))
    assert Path("out").read_bytes() == DATA[:size]


@pytest.mark.parametrize("how", ["key", "certificates"])
def test_both_ways_with_security(how):
    key = Security(psk=bytes(range(32)))
    security = key if how == "key" else Security.from_tls_dir(Authority().folder(Path("pki")))

    async def main():
        loop = asyncio.get_running_loop()
        async with conversation(security=security) as (here, there, moving):
            hearing = asyncio.create_task(read_all(there))
            await loop.sock_sendall(here, DATA)
            here.shutdown(socket.SHUT_WR)
            assert await hearing == DATA
            await loop.sock_sendall(there, b"thanks")
            there.shutdown(socket.SHUT_WR)
            assert await read_all(here) == b"thanks"
            return await moving

    whole(run(main()))


class Ticking(Sender):
    """A source that can tell that it has been looked after for a while."""

    ticks = 0

    def _tick(self):
        self.ticks += 1
        if self.ticks == 5:
            self.long_after.set()


def test_a_stream_that_pauses_is_waited_for():
    """Far longer than anything else may stand still; and what was written before the pause is there in it."""
    out, inn = os.pipe()
    taken, given = os.pipe()
    policy = Policy(stall_timeout=0.05)

    async def main():
        async with listen(LOOP, f"fd:{given}", policy=policy) as listener:
            sender = Ticking(f"fd:{out}", listener.address, policy=policy)
            sender.long_after = asyncio.Event()
            moving = asyncio.create_task(ends(sender.run(), listener.receive()))
            for part in (b"before", b"after"):
                os.write(inn, part)
                assert await asyncio.to_thread(os.read, taken, 100) == part
                await sender.long_after.wait()
            os.close(inn)
            return await moving

    whole(run(main()))
    assert os.read(taken, 100) == b""
    os.close(taken)


# ------------------------------------------------------------------- both ways


@asynccontextmanager
async def conversation(**more):
    """The two far ends of a tunnel between sockets, and what becomes of it."""
    here, near = socket.socketpair()
    there, far = socket.socketpair()
    moving = asyncio.create_task(tunnel(f"fd:{near.detach()}", f"fd:{far.detach()}", **more))
    for sock in (here, there):
        sock.setblocking(False)
    with here, there:
        yield here, there, moving


async def read_all(sock):
    loop, data = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(sock, 1 << 16):
        data += part
    return data


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
def test_an_answer_comes_back_after_the_half_close(size):
    async def main():
        loop = asyncio.get_running_loop()
        async with conversation() as (here, there, moving):
            await loop.sock_sendall(here, b"question")
            here.shutdown(socket.SHUT_WR)
            assert await read_all(there) == b"question"
            assert not moving.done()
            hearing = asyncio.create_task(read_all(here))
            await loop.sock_sendall(there, DATA[:size])
            there.shutdown(socket.SHUT_WR)
            assert await hearing == DATA[:size]
            return await moving

    source, destination = whole(run(main()))
    assert source.bytes_back == destination.bytes_back == size


def test_the_other_end_may_speak_first_and_stop_first():
    async def main():
        loop = asyncio.get_running_loop()
        async with conversation() as (here, there, moving):
            await loop.sock_sendall(there, b"welcome")
            there.shutdown(socket.SHUT_WR)
            assert await read_all(here) == b"welcome"
            await loop.sock_sendall(here, b"thanks")
            here.shutdown(socket.SHUT_WR)
            assert await read_all(there) == b"thanks"
            return await moving

    whole(run(main()))


def test_nobody_waits_for_an_answer_that_nobody_would_hear():
    async def main():
        loop = asyncio.get_running_loop()
        async with conversation() as (here, there, moving):
            await loop.sock_sendall(here, b"no answer, please")
            here.close()
            assert await read_all(there) == b"no answer, please"
            return await moving

    whole(run(main()))


def test_a_reader_that_answers_an_input_which_cannot_hear_is_an_error():
    async def main():
        there, far = socket.socketpair()
        out, inn = os.pipe()
        with there:
            there.send(b"hello?")
            both = await tunnel(f"fd:{out}", f"fd:{far.detach()}")
        os.close(inn)
        return both

    source, destination = run(main())
    assert isinstance(destination, EndError)
    assert "its reader talks back, and the source's input takes nothing back" in str(destination)
    assert isinstance(source, RemoteError)


# ------------------------------------------------------------------ what goes wrong


def test_a_full_disk():
    where, _ = from_file()
    source, destination = run(tunnel(where, "/dev/full"))
    assert isinstance(destination, EndError)
    assert destination.errno == errno.ENOSPC
    assert str(destination).startswith("the output (/dev/full): writing at byte 0 of the stream")
    assert isinstance(source, RemoteError)
    assert "ENOSPC" in str(source)


def test_a_file_that_may_grow_no_further_is_not_there():
    where, _ = from_file()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        source, destination = run(tunnel(where, "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(destination, EndError)
    assert destination.errno == errno.EFBIG
    assert isinstance(source, RemoteError)
    assert {path.name for path in Path().iterdir()} == {"in"}


def test_a_reader_that_goes_away():
    where, _ = from_file()
    out, inn = os.pipe()
    os.close(out)
    source, destination = run(tunnel(where, f"fd:{inn}"))
    assert isinstance(destination, EndError)
    assert destination.errno == errno.EPIPE
    assert isinstance(source, RemoteError)


def test_a_reader_that_does_not_read():
    where, _ = from_file()
    out, inn = os.pipe()
    policy = Policy(stall_timeout=0.2, chunk_size=64 << 10)
    source, destination = run(tunnel(where, f"fd:{inn}", policy=policy))
    os.close(out)
    assert isinstance(destination, StallError)
    assert f"the output (fd:{inn}): nothing has moved" in str(destination)
    assert isinstance(source, RemoteError)


def test_nobody_to_read():
    where, _ = from_file()
    os.mkfifo("fifo-out")
    policy = Policy(connect_timeout=0.2)
    for into in ("unix:nowhere", "fifo-out"):
        source, destination = run(tunnel(where, into, policy=policy))
        assert isinstance(destination, EndError), into
        assert "opening it" in str(destination)
        assert isinstance(source, RemoteError)


def test_an_input_that_fails():
    source, destination = run(tunnel("/proc/self/mem", "out"))
    assert isinstance(source, EndError)
    assert source.errno == errno.EIO
    assert str(source).startswith(
        "the input (/proc/self/mem): reading at byte 0 of the stream: EIO"
    )
    assert isinstance(destination, RemoteError)
    assert list(Path().iterdir()) == []


def test_a_source_that_is_interrupted():
    out, inn = os.pipe()
    taken, given = os.pipe()

    async def main():
        async with listen(LOOP, f"fd:{given}", policy=SMALL) as listener:
            sender = Sender(f"fd:{out}", listener.address, policy=SMALL)
            sending = asyncio.create_task(sender.run())
            os.write(inn, b"some")
            receiver = await listener.next_session()
            taking = asyncio.create_task(receiver.run())
            assert await asyncio.to_thread(os.read, taken, 100) == b"some"
            sending.cancel()
            both = await ends(sending, taking)
            return both, sender.summary, receiver.summary

    (source, destination), said, heard = run(main())
    with pytest.raises(BrokenPipeError):
        os.write(inn, b"more")
    os.close(inn)
    os.close(taken)
    assert isinstance(source, asyncio.CancelledError)
    assert isinstance(destination, RemoteError)
    assert (said.outcome, heard.outcome) == ("cancelled", "failed")


@pytest.mark.parametrize("link", [0, 1])
def test_a_wire_that_is_cut(link):
    where, _ = from_file()

    async def forward(which, data):
        if which.number == 1 and len(which.seen) > 1_000_000:
            wire.cut(wire.links[link : link + 1], for_good=True)
        return data

    wire = Proxy(forward)
    source, destination = run(tunnel(where, "out", wire=wire))
    assert isinstance(source, PeerError)
    assert isinstance(destination, PeerError)
    assert not Path("out").exists()


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_a_wire_that_is_cut_and_comes_back(compression):
    where, _ = from_file()

    async def forward(which, data):
        if which.number and len(which.seen) > 500_000:
            wire.cut()
        return data

    wire = Proxy(forward)
    policy = Policy(
        chunk_size=32 << 10,
        channels=2,
        window=192 << 10,
        reconnect_timeout=10.0,
        compression=compression,
    )
    source, _ = whole(run(tunnel(where, "out", policy=policy, wire=wire)))
    assert Path("out").read_bytes() == DATA
    assert wire.cuts > 2
    assert source.reconnects >= wire.cuts


@pytest.mark.parametrize("key", [b"", bytes(range(32))], ids=["digest", "key"])
def test_a_wire_that_changes_something(key):
    where, _ = from_file()

    async def forward(which, data):
        if which.number == 1 and 1_000_000 < len(which.seen) < 2_000_000:
            return flip(data, -1)
        return data

    security = Security(psk=key) if key else None
    source, destination = run(tunnel(where, "out", wire=Proxy(forward), security=security))
    assert isinstance(destination, IntegrityError)
    assert key or "the stream at byte" in str(destination)
    assert isinstance(source, PeerError)
    assert not Path("out").exists()


def test_keys_that_differ():
    where, _ = from_file()

    async def main():
        async with listen(LOOP, "out", security=Security(psk=bytes(range(32)))) as listener:
            for security in (Security(psk=bytes(range(1, 33))), None):
                with pytest.raises(AuthenticationError):
                    await send(where, listener.address, security=security)

    run(main())
    assert not Path("out").exists()


def test_others_hosts_need_a_key():
    async def main():
        async with listen("tcp://0.0.0.0:0", "out"):
            pass

    with pytest.raises(ConfigError, match="give both sides a key"):
        run(main())


def test_devices_are_refused_by_a_tunnel_and_a_stream_by_a_migration():
    where, _ = from_file()

    async def main():
        with SimDevice("gpu0", seed=1) as here, SimDevice("gpu0") as there:
            async with listen(LOOP, "out") as listener:
                with pytest.raises(RemoteError, match="a stream arrives here, and no devices"):
                    await migrate([here], listener.address)
                # It waits on for a stream.
                whole(await ends(send(where, listener.address), listener.receive()))
            async with listen_for_devices(LOOP, [there]) as listener:
                with pytest.raises(RemoteError, match="devices arrive here, and no stream"):
                    await send(where, listener.address)
            assert here.state == there.state == State.RUNNING

    run(main())
    assert Path("out").read_bytes() == DATA


def test_one_stream_only():
    out, inn = os.pipe()

    async def main():
        async with listen(LOOP, "out") as listener:
            first = asyncio.create_task(send(f"fd:{out}", listener.address))
            receiving = asyncio.create_task((await listener.next_session()).run())
            with pytest.raises(RemoteError, match="another stream has arrived here already"):
                await send("/dev/null", listener.address)
            os.write(inn, b"x")
            os.close(inn)
            return await ends(first, receiving)

    whole(run(main()))
    assert Path("out").read_bytes() == b"x"


def test_nobody_there():
    with pytest.raises(PeerLost):
        run(send("/dev/null", "tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "names nothing"),
        ("fd:x", "write fd:N"),
        ("fd:999", "no such descriptor"),
        ("fd:99999999999", "write fd:N"),
        ("unix:", "1 to 107 bytes"),
        ("unix:" + "x" * 108, "1 to 107 bytes"),
        (".", "is a directory"),
    ],
)
def test_an_end_that_is_none(where, words):
    with pytest.raises(ConfigError, match=words):
        run(send(where, "tcp://127.0.0.1:1"))

    async def main():
        async with listen(LOOP, where):
            pass

    with pytest.raises(ConfigError, match=words):
        run(main())


def test_an_end_that_is_open_the_wrong_way():
    out, inn = os.pipe()
    with pytest.raises(ConfigError, match="not open for reading"):
        run(send(f"fd:{inn}", "tcp://127.0.0.1:1"))

    async def main():
        async with listen(LOOP, f"fd:{out}"):
            pass

    with pytest.raises(ConfigError, match="not open for writing"):
        run(main())
    os.close(out)
    os.close(inn)


def test_a_socket_that_is_there_already_is_left_alone():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("taken")
        with pytest.raises(ConfigError, match="is there already"):
            run(send("unix:taken", "tcp://127.0.0.1:1"))
    assert Path("taken").is_socket()


def test_whoever_shares_a_descriptor_gets_its_flags_back():
    out, inn = os.pipe()
    shared = os.dup(out)
    thread = feed(inn)
    whole(run(tunnel(f"fd:{out}", "out")))
    thread.join()
    assert os.get_blocking(shared)
    os.close(shared)

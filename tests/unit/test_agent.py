"""The agent's parts by themselves: how messages come apart, what stays of descriptors, who may come in."""

import asyncio
import errno
import json
import os
import re
import socket
import stat
import threading
import typing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioflow import ConfigError, PeerLost, Report, SimDevice
from vfioflow.agent import gateway, methods, server, words
from vfioflow.agent.client import Client
from vfioflow.agent.connection import MAX_FDS, MAX_LINE, Connection
from vfioflow.agent.gateway import Credentials, Gate
from vfioflow.agent.methods import METHODS
from vfioflow.errors import ProtocolError, RemoteError
from vfioflow.events import Phase


def serve(speak, handle=None):
    """A connection; ``speak`` uses its other end, on the loop.  What came in, and how it ended."""
    came = []

    async def note(incoming):
        fds = []
        while True:
            try:
                fds.append(incoming.take(len(fds)))
            except LookupError:
                break
        came.append((incoming.text, [os.read(fd, 100) for fd in fds]))
        for fd in fds:
            os.close(fd)

    async def body():
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        connection = Connection(near, handle or note)
        running = asyncio.create_task(connection.run())
        with far:
            try:
                await speak(far, connection)
            finally:
                far.shutdown(socket.SHUT_WR)
                [ended] = await asyncio.gather(running, return_exceptions=True)
        return ended

    before = len(list(Path("/proc/self/fd").iterdir()))
    ended = asyncio.run(body())
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    return came, ended


def pipe_with(data):
    there, here = os.pipe()
    os.write(here, data)
    os.close(here)
    return there


async def send(sock, data, fds=()):
    """One sendmsg for the descriptors; what it did not take goes after it."""
    sent = socket.send_fds(sock, [data], fds) if fds else 0
    for fd in fds:
        os.close(fd)
    await asyncio.get_running_loop().sock_sendall(sock, data[sent:])


MESSAGES = st.lists(
    st.tuples(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")), st.integers(0, 2)),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.data())
def test_messages_and_their_descriptors_come_apart_as_they_were_sent(messages, data):
    """Whatever is joined on the way; a message without descriptors may also come in pieces."""

    async def speak(sock, _):
        for number, (text, fds) in enumerate(messages):
            line = text + b"\n"
            if fds:
                await send(sock, line, [pipe_with(b"%d.%d" % (number, n)) for n in range(fds)])
            else:
                cut = data.draw(st.integers(0, len(line)))
                await send(sock, line[:cut])
                if data.draw(st.booleans()):
                    await asyncio.sleep(0)
                await send(sock, line[cut:])

    came, ended = serve(speak)
    assert ended is None
    assert came == [
        (text, [b"%d.%d" % (number, n) for n in range(fds)])
        for number, (text, fds) in enumerate(messages)
    ]


def test_a_large_message_with_a_descriptor_comes_whole():
    text = b"x" * (1 << 20)

    async def speak(sock, _):
        await send(sock, b"first\n")
        await send(sock, text + b"\n", [pipe_with(b"mine")])
        await send(sock, b"last\n")

    came, ended = serve(speak)
    assert ended is None
    assert came == [(b"first", []), (text, [b"mine"]), (b"last", [])]


def test_descriptors_that_nobody_takes_are_closed():
    async def ignore(incoming):
        return None

    async def speak(sock, _):
        await send(sock, b"one\n", [pipe_with(b"a")])
        await send(sock, b"half", [pipe_with(b"b")])

    _, ended = serve(speak, ignore)
    assert ended is None


@pytest.mark.parametrize("what", ["line", "descriptors"])
def test_too_much_of_it_ends_the_connection(what):
    async def speak(sock, _):
        if what == "line":
            with pytest.raises(ConnectionError):
                await send(sock, b"x" * (2 * MAX_LINE))
        else:
            for _ in range(MAX_FDS + 1):
                await send(sock, b"x", [pipe_with(b"")])

    _, ended = serve(speak)
    assert isinstance(ended, ProtocolError)
    assert str(MAX_LINE if what == "line" else MAX_FDS) in str(ended)


@pytest.mark.parametrize(
    "said", [{"error": "no"}, {"error": {}}, {"result": 1, "error": {"code": "x"}}]
)
def test_an_answer_that_is_none_is_an_error_of_the_client_s(said):
    async def speak(sock, connection):
        asked = asyncio.create_task(connection.call("hook.one", {}))
        await asyncio.get_running_loop().sock_recv(sock, 4096)
        await send(sock, json.dumps({"jsonrpc": "2.0", "id": 1, **said}).encode() + b"\n")
        with pytest.raises(RemoteError, match="the client's answer is none"):
            await asked

    assert serve(speak) == ([], None)


def test_answers_are_read_however_many_requests_wait():
    """A client may wait for many things, and be asked meanwhile."""
    release = []

    async def wait(incoming):
        await release[0].wait()

    async def speak(sock, connection):
        release.append(asyncio.Event())
        await send(sock, b"{}\n" * 1000)
        asked = asyncio.create_task(connection.call("hook.one", {}))
        await asyncio.get_running_loop().sock_recv(sock, 4096)
        await send(sock, b'{"jsonrpc": "2.0", "id": 1, "result": 7}\n')
        assert await asked == 7
        release[0].set()

    assert serve(speak, wait)[1] is None


def test_more_requests_than_that_end_the_connection():
    async def wait(incoming):
        await asyncio.Event().wait()

    async def speak(sock, _):
        await send(sock, b"{}\n" * 1100)

    ended = serve(speak, wait)[1]
    assert isinstance(ended, ProtocolError)
    assert "more than 1024 requests" in str(ended)


def test_a_question_to_the_client_has_its_answer_or_its_error():
    async def speak(sock, connection):
        loop = asyncio.get_running_loop()
        good = asyncio.create_task(connection.call("hook.one", {"a": 1}))
        bad = asyncio.create_task(connection.call("hook.two", {}))
        lost = asyncio.create_task(connection.call("hook.three", {}))
        lines = b""
        while lines.count(b"\n") < 3:
            lines += await loop.sock_recv(sock, 4096)
        one, two, _ = [json.loads(line) for line in lines.splitlines()]
        assert one == {"jsonrpc": "2.0", "id": 1, "method": "hook.one", "params": {"a": 1}}
        answers = [
            {"jsonrpc": "2.0", "id": 99, "result": "nobody asked"},
            {"jsonrpc": "2.0", "id": two["id"], "error": {"code": 5, "message": "no"}},
            {"jsonrpc": "2.0", "id": one["id"], "result": [1]},
        ]
        await send(sock, b"".join(json.dumps(a).encode() + b"\n" for a in answers))
        assert await good == [1]
        with pytest.raises(RemoteError, match="no"):
            await bad
        sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(PeerLost):
            await lost
        with pytest.raises(PeerLost):
            await connection.call("hook.four", {})

    came, ended = serve(speak)
    assert (came, ended) == ([], None)


def test_events_are_left_out_for_a_client_that_does_not_read_and_that_is_said():
    async def speak(sock, connection):
        loop = asyncio.get_running_loop()
        for number in range(40):
            connection.notify("event", {"number": number, "filler": "x" * 100_000})
        seen, rest = [], b""
        while not seen or seen[-1]["method"] != "last":
            rest += await loop.sock_recv(sock, 1 << 20)
            *lines, rest = rest.split(b"\n")
            seen += [json.loads(line) for line in lines]
            if seen and not rest and seen[-1]["method"] == "event":
                await asyncio.sleep(0)  # the writer takes what waits
                connection.notify("last", {})
        numbers = [m["params"]["number"] for m in seen if m["method"] == "event"]
        [dropped] = [m["params"]["count"] for m in seen if m["method"] == "events.dropped"]
        assert numbers == list(range(len(numbers)))
        assert 0 < len(numbers) < 40
        assert dropped == 40 - len(numbers)

    assert serve(speak) == ([], None)


def test_the_end_of_a_migration_is_not_left_out():
    async def speak(sock, connection):
        client = Client(None, lambda: False)
        client.connection = connection

        class Ends:
            report = Report(role="source", outcome="completed", session="s")
            phase = Phase.DONE

            async def run(self):
                for _ in range(40):
                    connection.notify("event", {"filler": "x" * 1_000_000})

        migration = client.run("m1", Ends(), [])
        seen = b""
        while b"migration.ended" not in seen and b"stop" not in seen:
            seen += await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
            if migration.task.done() and not connection._waiting:
                connection.notify("stop", {})
        assert b"migration.ended" in seen

    assert serve(speak) == ([], None)


def test_a_device_is_in_use_until_its_log_has_ended(monkeypatch):
    """A client that does not wait for `dirty.stop` cannot have it closed under its log."""
    at_work, may = threading.Event(), threading.Event()

    class Slow:
        teller, page_size = "device", 4096

        def __init__(self, devices):
            pass

        def start(self, ranges, page_size):
            return page_size

        def stop(self):
            at_work.set()
            may.wait()

    monkeypatch.setattr(methods, "DirtySet", Slow)

    async def body():
        client = Client(None, lambda: False)
        call = methods.Call(client, None)
        client.devices["a"] = SimDevice("a")
        await METHODS["dirty.start"].function(call, words.DirtyStart(ranges=[(0, 4096)]))
        stop = METHODS["dirty.stop"].function(call, words.LogNamed(log="d1"))
        stopping = asyncio.create_task(stop)
        await asyncio.to_thread(at_work.wait)
        try:
            with pytest.raises(ConfigError, match="device a is used by d1"):
                await client.remove("a")
        finally:
            may.set()
            await stopping
        await client.remove("a")

    asyncio.run(body())


# ------------------------------------------------------------------ who may come in


@pytest.mark.parametrize(
    ("who", "may"),
    [
        (Credentials(1, 0, 0), True),
        (Credentials(1, 1000, 1000), True),
        (Credentials(1, 1001, 5), True),
        (Credentials(1, 1002, 77), True),
        (Credentials(1, 1002, 5), False),
    ],
)
def test_root_oneself_and_those_that_are_named(who, may):
    gate = Gate(frozenset({1001}), frozenset({77}), own=1000)
    assert gate.lets_in(who) is may


def test_groups_that_a_user_has_besides_count_too(monkeypatch):
    monkeypatch.setattr(gateway, "_groups", lambda uid: [5, 77] if uid == 1002 else [5])
    gate = Gate(gids=frozenset({77}), own=1000)
    assert gate.lets_in(Credentials(1, 1002, 5))
    assert not gate.lets_in(Credentials(1, 1003, 5))


def test_who_is_there_is_what_the_kernel_says():
    near, far = socket.socketpair()
    with near, far:
        assert Credentials.of(near) == Credentials(os.getpid(), os.getuid(), os.getgid())


@pytest.mark.parametrize("kind", ["user", "group"])
def test_names_that_nobody_has(kind):
    given = {"users": ("nobody-of-this-name",)} if kind == "user" else {"groups": ("no-such",)}
    with pytest.raises(ConfigError, match=f"there is no {kind}"):
        Gate.of(**given)
    assert Gate.of(("0", "12"), ("root",)).uids == {0, 12}


# -------------------------------------------------------------------- the socket


def test_the_socket_has_its_mode_and_goes_away(tmp_path):
    path = tmp_path / "agent.sock"
    with gateway.listening(path, mode=0o660, group=str(os.getgid())):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
    assert not path.exists()


def test_one_that_a_dead_agent_left_is_replaced(tmp_path):
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with gateway.listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_that_lives_is_left_alone(tmp_path):
    path = tmp_path / "agent.sock"
    with (
        gateway.listening(path),
        pytest.raises(ConfigError, match="somebody listens there already"),
        gateway.listening(path),
    ):
        pass
    with gateway.listening(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_places_where_no_socket_can_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for path, said in [
        (file, "that is no socket"),
        (tmp_path / "missing" / "a", "make the folder first"),
        (open_to_all / "a", "anybody may write there"),
        (tmp_path / ("x" * 200), "too long"),
    ]:
        with pytest.raises(ConfigError, match=said), gateway.listening(path):
            pass
    open_to_all.chmod(0o1777)
    with gateway.listening(open_to_all / "a"):
        pass


class Exhausted(socket.socket):
    """A listening socket for which there is no descriptor, the first time."""

    tried = 0

    def accept(self):
        self.tried += 1
        if self.tried == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_without_descriptors_the_agent_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 0)

    async def body():
        with Exhausted(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
            sock.bind(str(tmp_path / "sock"))
            sock.listen()
            sock.setblocking(False)
            running = asyncio.create_task(server.Agent(sock, gate=Gate()).run())
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(tmp_path / "sock"))
            await send(client, b'{"jsonrpc": "2.0", "id": 1, "method": "agent.info"}\n')
            receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(client, 4096))
            await asyncio.wait({receiving, running}, return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), "the agent has ended"
            assert json.loads(await receiving)["result"]["protocol"] == 1
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(body())
    assert "cannot accept a client: Too many open files" in caplog.text


def test_systemd_is_told(tmp_path, monkeypatch):
    gateway.notify("READY=1")  # nobody asked
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        gateway.notify("READY=1")
        assert sock.recv(100) == b"READY=1"


# ------------------------------------------------------------------------- words


def test_a_policy_in_words():
    assert words.policy_of({"downtime_limit": 1, "compression": "auto"}).downtime_limit == 1.0
    with pytest.raises(ConfigError, match="there is no downtime"):
        words.policy_of({"downtime": 1})
    with pytest.raises(ConfigError, match="downtime_limit"):
        words.policy_of({"downtime_limit": -1})
    with pytest.raises(ConfigError, match=r"policy: Expected `int`"):
        words.policy_of({"channels": "many"})


def test_trust_in_words(tmp_path):
    with pytest.raises(ConfigError, match="exclude each other"):
        words.Trust(psk="a", tls="b").security()
    with pytest.raises(ConfigError, match="missing"):
        words.Trust(psk=str(tmp_path / "missing")).security()
    assert words.Trust().security().psk is None
    assert words.Trust(tls=str(tmp_path), peer="vm").security().peer == "vm"


# ----------------------------------------------------------------- the documentation


DOCS = (Path(__file__).parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")


def test_the_page_has_every_method_with_its_parameters():
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) ?\| .*\|$", DOCS, re.MULTILINE)
    page = {name: set(re.findall(r"`([a-z_]+)`", words)) for name, words in rows if name in METHODS}
    assert page == {
        name: {field.name for field in msgspec.structs.fields(entry.takes)}
        for name, entry in METHODS.items()
    }
    asked = {name for name, _ in rows} | set(
        re.findall(r"`(hook\.[a-z_]+|pending\.[a-z_]+|trap\.[a-z_]+)`", DOCS)
    )
    hooks = {f"hook.{name}" for name in typing.get_args(words.HookName)}
    steps = {f"pending.{step}" for step in ("estimate", "exact", "iterate", "complete", "abort")}
    traps = {
        f"trap.{step}" for step in ("arm", "collect", "deliver", "read", "interrupt", "disarm")
    }
    assert {n for n in asked if n.startswith(("hook.", "pending.", "trap."))} == (
        hooks | steps | traps | {"pending.moved"}
    )


def test_what_the_page_says_can_be_said():
    requests = [json.loads(line) for line in re.findall(r"^> (.*)$", DOCS, re.MULTILINE)]
    asked = [request for request in requests if "method" in request]
    assert len(asked) == 2
    for request in asked:
        assert msgspec.convert(request["params"], METHODS[request["method"]].takes)

"""`vfioflow agent` as a process, and both ends of migrations through it."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from agents import EXAMPLES, Running, client, ends, names, start, states
from processes import running

from vfioflow.agent.methods import METHODS


@pytest.fixture
def agent(tmp_path):
    """An agent's socket, with ``.process``."""
    path = tmp_path / "agent.sock"
    with running("agent", "--socket", path, "--journal", tmp_path / "journal") as command:
        command.wait_for("serving on")
        yield Running(path, command)


# ------------------------------------------------------------------- the examples


def test_the_example_in_python(agent):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "client.py", agent.path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"may switch over\nvCPUs stop\nvCPUs start there\ncompleted: \d+ MiB\n"
        r"here STOP\nthere RUNNING\n",
        done.stdout,
    )


def test_the_example_in_c(agent, tmp_path):
    """It hands over the port that it listens on, by SCM_RIGHTS."""
    program = tmp_path / "client"
    source = EXAMPLES / "client.c"
    assert source.read_text().count("\n") < 200
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    done = subprocess.run([program, agent.path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "here: hook.may_switch_over\nhere: hook.stop_vcpus\nthere: hook.start_vcpus\n"
        "completed: the device is RUNNING there\n"
    )


# -------------------------------------------------------------------- JSON-RPC 2.0


def exchange(agent, text):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(agent.path)
        sock.sendall(text)
        with sock.makefile("rb") as lines:
            return json.loads(lines.readline())


INFO = {"jsonrpc": "2.0", "id": 7, "method": "agent.info"}


def test_what_the_agent_can(agent):
    answer = exchange(agent, json.dumps(INFO).encode() + b"\n")
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 7)
    assert answer["result"]["methods"] == sorted(METHODS)


@pytest.mark.parametrize(
    ("said", "code", "number"),
    [
        (b"{not json}\n", -32700, None),
        (b'{"jsonrpc": "1.0", "id": 7, "method": "agent.info"}\n', -32600, None),
        (b"[]\n", -32600, None),
        (b"17\n", -32600, None),
        (b"\xff\xfe\n", -32700, None),
        (json.dumps(INFO | {"method": "agent.nothing"}).encode() + b"\n", -32601, 7),
        (json.dumps(INFO | {"params": {"what": 1}}).encode() + b"\n", -32602, 7),
        (json.dumps(INFO | {"params": [1]}).encode() + b"\n", -32602, 7),
        (json.dumps(INFO | {"method": "device.remove", "params": {"name": 3}}).encode() + b"\n", -32602, 7),
        (json.dumps(INFO | {"method": "device.remove", "params": {"name": "x"}}).encode() + b"\n", -32002, 7),
    ],
)  # fmt: skip
def test_what_is_wrong_has_the_codes_of_the_specification(agent, said, code, number):
    answer = exchange(agent, said)
    assert (answer["error"]["code"], answer["id"]) == (code, number)
    with agent.client() as peer:
        assert peer.call("agent.info")["protocol"] == 1


def test_a_batch_and_a_notification(agent):
    batch = [INFO, {k: v for k, v in INFO.items() if k != "id"}, INFO | {"id": "x", "method": "no"}]
    answers = exchange(agent, json.dumps(batch).encode() + b"\n")
    assert sorted(str(answer["id"]) for answer in answers) == ["7", "x"]


def test_an_error_says_what_a_program_wants_to_know(agent):
    with agent.client() as peer:
        with pytest.raises(client.AgentError) as caught:
            peer.call("source.start", to="tcp://127.0.0.1:1")
        assert caught.value.code == -32002
        assert caught.value.data == {"type": "ConfigError", "exit_code": 2, "notes": []}
        assert "there is no device; add one first" in str(caught.value)


# ------------------------------------------------------------------------ devices


def test_descriptors_that_are_no_devices_are_refused_and_closed(agent, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with agent.client() as peer:
        peer.call("agent.info")
        before = agent.open_fds()
        for fd, asked, said in [
            (os.open(file, os.O_RDONLY), {"fd": 0}, "device x"),
            (os.open(file, os.O_RDONLY), {"fd": 1}, "no descriptor 1"),
            (os.open(file, os.O_RDONLY), {"socket_fd": 0}, "no socket"),
            (os.memfd_create("x"), {}, "by one of"),
            (os.memfd_create("x"), {"fd": 0, "socket": "/x"}, "by one of"),
            (socket.socket(socket.AF_UNIX).detach(), {"socket_fd": 0}, "device x"),
        ]:
            with pytest.raises(client.AgentError, match=said):
                peer.call("device.add", fds=[fd], name="x", **asked)
            os.close(fd)
        peer.call("device.add", name="x", simulated={})
        for fd, said in [
            (os.memfd_create("x"), "no socket"),
            (socket.socket().detach(), "does not listen on TCP"),
        ]:
            with pytest.raises(client.AgentError, match=said):
                peer.call("destination.listen", fds=[fd], fd=0)
            os.close(fd)
        assert states(peer) == ["RUNNING"]
        peer.call("device.remove", name="x")
        assert agent.open_fds() == before


def test_a_name_that_is_taken_and_a_device_that_is_busy(agent):
    with agent.pair() as (source, destination, port):
        with pytest.raises(client.AgentError, match="name of its own"):
            source.call("device.add", name="net0", simulated={})
        sent, taken = start(source, destination, port, hold=True)
        for peer, user in ((source, f"migration {sent}"), (destination, f"migration {taken}")):
            with pytest.raises(client.AgentError, match=f"device net0 is used by {user}"):
                peer.call("device.remove", name="net0")
        with pytest.raises(client.AgentError, match="used by migration"):
            source.call("source.start", to=port["address"])


def test_what_a_client_has_no_other_sees(agent):
    with agent.pair() as (_, _, _), agent.client() as other:
        assert other.call("device.list") == {"devices": []}
        with pytest.raises(client.AgentError, match="there is no listener 'l1'"):
            other.call("destination.accept", listener="l1")
        with pytest.raises(client.AgentError, match="there is no migration 'm1'"):
            other.call("migration.status", migration="m1")


def test_plan_says_whether_they_may(agent):
    with agent.pair() as (source, _, port):
        assert source.call("plan", to=port["address"])["may"] is True
        source.call("device.add", name="old", simulated={"profile": "qat"})
        answer = source.call("plan", to=port["address"])
        assert answer["may"] is False
        assert {f["rule"] for f in answer["findings"] if f["level"] == "may-not"} >= {"missing"}


# --------------------------------------------------------------------- migrations


def test_hooks_are_asked_of_the_client_in_order(agent):
    asked = []

    def note(side, name, answer=None):
        def hook(**about):
            asked.append((side, name, about))
            return answer

        return hook

    here = {f"hook.{n}": note("here", n) for n in ("before", "after", "stop_vcpus")}
    here["hook.may_switch_over"] = note("here", "may_switch_over", True)
    here["hook.save_config"] = note("here", "save_config", "Y29uZmln")
    there = {f"hook.{n}": note("there", n) for n in ("start_vcpus", "load_config")}
    with agent.pair(here=here, there=there) as (source, destination, port):
        sent, taken = start(source, destination, port, hooks=names(here))
        ended = ends(source, sent)
        assert (ended["outcome"], ended["failure"]) == ("completed", None)
        assert ends(destination, taken)["outcome"] == "completed"
        assert ended["report"]["bytes_total"] > 8 << 20
        assert (states(source), states(destination)) == (["STOP"], ["RUNNING"])
    mine = [(name, about.get("phase", "")) for side, name, about in asked if side == "here"]
    phases = ["connect", "set up", "pre-copy", "stop-copy", "hand over"]
    assert [each for each in mine if each[0] in ("before", "after")] == [
        (when, phase) for phase in phases for when in ("before", "after")
    ]
    assert mine.index(("may_switch_over", "")) < mine.index(("stop_vcpus", ""))
    [decision] = [about["decision"] for _, name, about in asked if name == "may_switch_over"]
    assert decision["verdict"] == "switch over"
    [loaded] = [about for _, name, about in asked if name == "load_config"]
    assert loaded == {"migration": taken, "device": "net0", "data": "Y29uZmln"}


def test_a_hook_that_the_client_answers_with_an_error(agent):
    def refuse(**_):
        raise RuntimeError("the VMM says no")

    with agent.pair() as (source, destination, port):
        source._hooks["hook.stop_vcpus"] = refuse
        sent, taken = start(source, destination, port, hooks=["stop_vcpus"])
        ended = ends(source, sent)
        assert ended["outcome"] == "failed"
        assert ended["failure"]["type"] == "HookError"
        assert ended["failure"]["message"] == "the hook stop_vcpus failed: the VMM says no"
        assert ends(destination, taken)["outcome"] == "failed"
        assert (states(source), states(destination)) == (["RUNNING"], ["RUNNING"])


def test_held_changed_and_let_go(agent):
    with agent.pair() as (source, destination, port):
        sent, taken = start(source, destination, port, hold=True, events=True)
        source.wait_for(lambda method, about: about.get("event") == "switchover-held")
        assert source.call("migration.status", migration=sent)["phase"] == "pre-copy"
        source.call("source.change", migration=sent, downtime_limit=0.7, max_bandwidth=1 << 30)
        with pytest.raises(client.AgentError, match="downtime_limit=0"):
            source.call("source.change", migration=sent, downtime_limit=0)
        with pytest.raises(client.AgentError, match="the source decides"):
            destination.call("source.hold", migration=taken)
        source.call("source.hold", migration=sent)
        source.call("source.go_on", migration=sent)
        report = ends(source, sent)["report"]
        assert report["downtime_limit_ms"] == 700
        assert report["policy"]["max_bandwidth"] == 1 << 30
        source.wait_for(lambda method, about: method == "migration.ended")
        events = [about["event"] for method, about in source.told if method == "event"]
        assert (events[0], events[-1]) == ("began", "ended")
        assert {about["migration"] for method, about in source.told} == {sent}
        assert [method for method, _ in destination.told if method == "event"] == []


def test_cancelled(agent):
    with agent.pair() as (source, destination, port):
        sent, taken = start(source, destination, port, hold=True)
        assert source.call("migration.cancel", migration=sent) is None
        assert ends(source, sent)["outcome"] == "cancelled"
        assert ends(destination, taken)["outcome"] == "failed"
        assert (states(source), states(destination)) == (["RUNNING"], ["RUNNING"])
        # The same devices and the same port serve for the next.
        sent, taken = start(source, destination, port)
        assert ends(source, sent)["outcome"] == "completed"
        assert ends(destination, taken)["outcome"] == "completed"


def test_ram_that_the_client_moves(agent):
    left = {"bytes": 64 << 20, "moved": 0}
    steps = []

    def size(**about):
        steps.append("size")
        return left["bytes"]

    def iterate(migration, source, budget):
        part = min(budget, left["bytes"])
        left["bytes"] -= part
        left["moved"] += part
        steps.append("iterate")
        return left["moved"]

    def complete(migration, source):
        steps.append("complete")
        return iterate(migration, source, left["bytes"])

    hooks = {"pending.estimate": size, "pending.exact": size, "pending.iterate": iterate,
             "pending.complete": complete}  # fmt: skip
    with agent.pair(here=hooks) as (source, destination, port):
        sent, _ = start(source, destination, port, pending=["ram"])
        report = ends(source, sent)["report"]
    [ram] = report["pending"]
    assert ram["name"] == "ram"
    assert ram["bytes_precopy"] + ram["bytes_stopcopy"] == 64 << 20
    assert steps[-2:] == ["complete", "iterate"]


def test_ram_that_the_client_cannot_move(agent):
    aborted = threading.Event()
    hooks = {"pending.estimate": lambda **_: -1, "pending.abort": lambda **_: aborted.set()}
    with agent.pair(here=hooks) as (source, destination, port):
        sent, _ = start(source, destination, port, pending=["ram"])
        ended = ends(source, sent)
        assert ended["failure"]["message"] == (
            "the pending source ram: estimate failed: pending.estimate of ram: bytes, not -1"
        )
        assert aborted.is_set()
        assert states(source) == ["RUNNING"]


def test_accesses_that_the_client_traps(agent):
    """Two devices without P2P states; what the source's client traps comes out at the destination's."""
    delivered, steps = [], []
    clients = {}

    def arm(migration, devices):
        steps.append("arm here")
        for number in range(3):
            data = base64.b64encode(bytes([number])).decode()
            clients["here"].call(
                "access.write", migration=migration, device="b", region=0, offset=number, data=data
            )
        clients["here"].call("access.interrupt", migration=migration, device="a", vector=2)

    there = {
        "trap.arm": lambda **_: steps.append("arm there"),
        "trap.collect": lambda **_: None,
        "trap.deliver": lambda **about: delivered.append(about),
        "trap.interrupt": lambda **about: steps.append((about["device"], about["vector"])),
        "trap.disarm": lambda **_: steps.append("disarm there"),
    }
    mine = {"trap.arm": arm, "trap.collect": lambda **_: None}
    with agent.client(mine) as here, agent.client(there) as far:
        clients["here"] = here
        for peer in (here, far):
            for name in ("a", "b"):
                simulated = {"profile": "generic", "flags": ["STOP_COPY"], "state_size": 1 << 20}
                peer.call("device.add", name=name, simulated=simulated)
        with pytest.raises(client.AgentError, match="nothing is trapped for migration 'm1'"):
            here.call("access.write", migration="m1", device="b", region=0, offset=0, data="")
        policy = {"access_queue": "writes"}
        port = far.call("destination.listen", address="tcp://127.0.0.1:0", policy=policy, trap=True)
        sent, taken = start(here, far, port, policy=policy, trap=True)
        ended = ends(here, sent)
        assert (ended["outcome"], ended["failure"]) == ("completed", None)
        assert ends(far, taken)["report"]["accesses"] == ended["report"]["accesses"] == 3
    assert [(each["device"], each["offset"], each["data"]) for each in delivered] == [
        ("b", 0, "AA=="),
        ("b", 1, "AQ=="),
        ("b", 2, "Ag=="),
    ]
    assert steps == ["arm here", "arm there", ("a", 2), "disarm there"]


def test_trapped_writes_that_are_sent_at_once_stay_in_order_and_devices_may_interrupt(agent):
    """Also late ones, which pass through before the trap is opened again."""
    delivered, interrupts, clients = [], [], {}

    def write(peer, migration, first):
        for number in range(first, first + 100):
            data = base64.b64encode(bytes([number])).decode()
            where = {"migration": migration, "device": "b", "region": 0, "offset": number}
            peer.send(
                {"id": 1000 + number, "method": "access.write", "params": {**where, "data": data}}
            )

    def deliver(migration, offset, **_):
        delivered.append(offset)
        if offset == 150:
            clients["far"].call("access.interrupt", migration=migration, device="b", vector=1)

    mine = {
        "trap.arm": lambda **_: None,
        "trap.collect": lambda migration: write(clients["here"], migration, 0),
    }
    there = {
        "trap.arm": lambda **_: None,
        "trap.collect": lambda **_: None,
        "trap.deliver": deliver,
        "trap.interrupt": lambda device, vector, **_: interrupts.append((device, vector)),
        "trap.disarm": lambda migration, **_: write(clients["far"], migration, 100),
        "hook.start_vcpus": lambda **_: None,
    }
    with agent.client(mine) as here, agent.client(there) as far:
        clients |= {"here": here, "far": far}
        for peer in (here, far):
            for name in ("a", "b"):
                simulated = {"profile": "generic", "flags": ["STOP_COPY"], "state_size": 1 << 20}
                peer.call("device.add", name=name, simulated=simulated)
        policy = {"access_queue": "writes"}
        port = far.call("destination.listen", address="tcp://127.0.0.1:0", policy=policy, trap=True)
        sent, _ = start(here, far, port, policy=policy, trap=True)
        ended = ends(here, sent)
        assert (ended["outcome"], ended["failure"]) == ("completed", None)
        assert ended["report"]["accesses"] == 100
        far.answer(1199)
    assert delivered == list(range(200))
    assert interrupts == [("b", 1)]


def test_what_the_set_has_written(agent):
    with agent.client() as peer:
        peer.call("device.add", name="a", simulated={"profile": "mlx5", "tracking": "device"})
        peer.call("device.add", name="b", simulated={"profile": "mlx5"})
        log = peer.call("dirty.start", devices=["a"], ranges=[[0, 1 << 20]])
        assert log == {"log": "d1", "page_size": 4096, "teller": "device"}
        with pytest.raises(client.AgentError, match="ask for 137438953472 at most"):
            peer.call("dirty.report", log="d1", iova=0, length=1 << 50)
        report = peer.call("dirty.report", log="d1", iova=0, length=1 << 20)
        assert report == {"bitmap": "A" * 43 + "=", "page_size": 4096, "all_tracking": True}
        with pytest.raises(client.AgentError, match="device a is used by d1"):
            peer.call("device.remove", name="a")
        peer.call("dirty.stop", log="d1")
        peer.call("device.remove", name="a")
        assert peer.call("dirty.start", ranges=[[0, 4096]])["teller"] == "nobody"
        with pytest.raises(client.AgentError, match="there is no log 'd1'"):
            peer.call("dirty.report", log="d1", iova=0, length=4096)


def test_the_journal_is_told_from(agent):
    with agent.client() as peer:
        assert peer.call("journal.pending") == {"sessions": []}


# ------------------------------------------------------------- clients that go away


def gone_in(agent, moment):
    """Both ends; the source's client goes away at that moment.  How the destination ended, and its state."""
    reached, killed = threading.Event(), threading.Event()

    def hook(phase="", **_):
        if phase in ("", moment):
            reached.set()
            assert killed.wait(20)

    name = "stop_vcpus" if moment == "stop_vcpus" else "before"
    with agent.pair(here={f"hook.{name}": hook}) as (source, destination, port):
        source.call("source.start", to=port["address"], hooks=[name])
        accepting = []
        if moment not in ("connect", "set up"):  # before that there is no offer
            accepting.append(destination.call("destination.accept", listener=port["listener"]))
        assert reached.wait(20)
        source.kill()
        killed.set()
        ended = [ends(destination, taken["migration"])["outcome"] for taken in accepting]
        return ended, states(destination)


@pytest.mark.parametrize(
    "moment", ["connect", "set up", "pre-copy", "stop-copy", "stop_vcpus", "hand over"]
)
def test_a_source_whose_client_goes_away_runs_on(moment, tmp_path):
    """Where its device is then is asked in tests/vfio_user, of a server that outlives the agent."""
    path = tmp_path / "agent.sock"
    with running("agent", "--socket", path, "--no-journal") as command:
        command.wait_for("serving on")
        ended, there = gone_in(Running(path, command), moment)
        assert ended in ([], ["failed"], ["cancelled"])
        assert there == ["RUNNING"]
        # The agent is well, and has put the other end's device back: the next client finds it so.
        with Running(path, command).client() as peer:
            assert peer.call("device.list") == {"devices": []}


def test_a_destination_whose_client_goes_away_after_the_commit_is_in_doubt(agent):
    reached, killed = threading.Event(), threading.Event()

    def start_vcpus(**_):
        reached.set()
        assert killed.wait(20)

    with agent.pair(there={"hook.start_vcpus": start_vcpus}) as (source, destination, port):
        sent, _ = start(source, destination, port, policy={"resolve_timeout": 0})
        assert reached.wait(20)
        destination.kill()
        killed.set()
        ended = ends(source, sent)
        assert (ended["outcome"], ended["failure"]["exit_code"]) == ("in-doubt", 7)
        assert states(source) == ["STOP_COPY"]


def test_nothing_of_a_client_stays_behind(agent):
    with agent.client() as first:
        first.call("agent.info")
        before = agent.open_fds()
    for _ in range(3):
        with agent.pair() as (source, destination, port):
            start(source, destination, port, hold=True)
    with agent.client() as last:
        # It has ended when its listener's port is free again, and its files are closed.
        while agent.open_fds() != before:
            last.call("agent.info")


def test_sigterm_takes_back_what_runs(agent):
    with agent.pair() as (source, destination, port):
        sent, _ = start(source, destination, port, hold=True, events=True)
        source.wait_for(lambda method, about: about.get("event") == "switchover-held")
        agent.process.send_signal(signal.SIGTERM)
        _, ended = source.wait_for(lambda method, about: method == "migration.ended")
        assert (ended["migration"], ended["outcome"]) == (sent, "cancelled")
        back = [about for method, about in source.told if about.get("event") == "rolled-back"]
        assert [(each["device"], each["state"]) for each in back] == [("net0", "RUNNING")]
        code, out, _ = agent.command.end()
    assert (code, out) == (0, "")
    assert not Path(agent.path).exists()


# -------------------------------------------------------------------- who may come


def test_a_stranger_is_told_why(tmp_path):
    path = tmp_path / "agent.sock"
    with running("agent", "--socket", path, "--mode", "666", "--no-journal") as command:
        command.wait_for("serving on")
        for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
            folder.chmod(0o755)
        program = (
            "import os, socket, sys\n"
            "os.setuid(65534)\n"
            "sock = socket.socket(socket.AF_UNIX)\n"
            "sock.connect(sys.argv[1])\n"
            "print(sock.makefile().read())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, path],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        error = json.loads(done.stdout)["error"]
        assert error["code"] == -32000
        assert "of user 65534" in error["message"]
        assert "--allow-user" in error["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-journal"], "--socket is missing"),
        (["--socket", "/nowhere/a.sock"], "make the folder first"),
        (["--socket", "a.sock", "--mode", "999"], "no mode"),
        (["--socket", "a.sock", "--allow-user", "nobody-of-this-name"], "there is no user"),
    ],
)
def test_usage(options, said):
    with running("agent", *options) as command:
        code, out, log = command.end()
    assert (code, out) == (2, "")
    assert said in log


def test_systemd_hands_the_socket_over_and_is_told(tmp_path):
    path, notify = tmp_path / "agent.sock", tmp_path / "notify"
    with (
        socket.socket(socket.AF_UNIX) as given,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        given.bind(str(path))
        given.listen()
        told.bind(str(notify))
        told.settimeout(20)
        program = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', NOTIFY_SOCKET=sys.argv[2]);"
            "os.execv(sys.argv[3], sys.argv[3:])"
        )
        prefix = (sys.executable, "-c", program, str(given.fileno()), str(notify))
        with running("agent", "--no-journal", prefix=prefix, pass_fds=(given.fileno(),)) as command:
            assert told.recv(100) == b"READY=1"
            with Running(path, command).client() as peer:
                assert peer.call("agent.info")["protocol"] == 1
            command.process.send_signal(signal.SIGTERM)
            assert told.recv(100) == b"STOPPING=1"
            assert command.end()[0] == 0
    assert path.exists()  # it is systemd's

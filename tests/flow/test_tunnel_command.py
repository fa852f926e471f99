"""``vfioflow tunnel`` as real processes: what it prints, and how it exits."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import running

DATA = random.Random(2).randbytes(3_000_000)
LOOP = "tcp://127.0.0.1:0"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").write_bytes(DATA)


@contextmanager
def receiving(*words, **more):
    with running("tunnel", "receive", "--listen", LOOP, *words, **more) as command:
        yield command, command.wait_for("listening on").split()[-1]


def test_from_standard_input_into_standard_output():
    with (
        receiving("--into", "-", "--json", prefix=("sh", "-c", 'exec "$@" >out', "sh")) as (r, to),
        Path("in").open("rb") as stdin,
        running("tunnel", "send", "--from", "-", "--to", to, "--json", stdin=stdin) as s,
    ):
        code, sent = s.report()
        code_there, out, log = r.end()
    assert (code, code_there, out) == (0, 0, "")
    assert Path("out").read_bytes() == DATA
    taken = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert sent == {
        "role": "source",
        "outcome": "completed",
        "error": None,
        "session": taken["session"],
        "peer": to,
        "end": "the input (standard input)",
        "channels": 1,
        "bytes": len(DATA),
        "bytes_wire": taken["bytes_wire"],
        "bytes_back": 0,
        "digest": taken["digest"],
        "reconnects": 0,
        "seconds": sent["seconds"],
    }
    assert (taken["role"], taken["outcome"]) == ("destination", "completed")
    assert taken["end"] == "the output (standard output)"


def test_descriptors_that_were_handed_over():
    out, inn = os.pipe()
    with receiving("--into", f"fd:{inn}", pass_fds=[inn]) as (r, to):
        os.close(inn)
        fd = os.open("in", os.O_RDONLY)
        os.lseek(fd, 1000, os.SEEK_SET)
        with (
            os.fdopen(out, "rb") as reader,
            running("tunnel", "send", "--from", f"fd:{fd}", "--to", to, pass_fds=[fd]) as s,
        ):
            os.close(fd)
            assert reader.read() == DATA[1000:]
            code, _, log = s.end()
        assert code == 0
        assert "vfioflow: sent 2.9 MiB in " in log
        code, _, log = r.end()
    assert code == 0
    assert "vfioflow: received 2.9 MiB in " in log


def test_quiet_says_nothing():
    with receiving("--into", "out", "-q") as (r, to):
        with running("tunnel", "send", "--from", "in", "--to", to, "-q") as s:
            assert s.end() == (0, "", "")
        code, out, log = r.end()
    assert (code, out) == (0, "")
    assert log.count("\n") == 1  # where it listens
    assert Path("out").read_bytes() == DATA


def test_a_full_disk_is_told_on_both_sides():
    with receiving("--into", "/dev/full", "--json") as (r, to):
        with running("tunnel", "send", "--from", "in", "--to", to, "--json") as s:
            code, sent = s.report()
        assert (code, sent["outcome"]) == (5, "failed")
        assert (
            "gave up: the output (/dev/full): writing at byte 0 of the stream: ENOSPC"
            in sent["error"]
        )
        code, taken = r.report()
    assert (code, taken["outcome"]) == (4, "failed")
    assert taken["error"].startswith("the output (/dev/full): writing at byte 0")


@contextmanager
def sending(to):
    """A source in the middle of its stream."""
    out, inn = os.pipe()
    with running("tunnel", "send", "--from", "-", "--to", to, "-v", stdin=out) as command:
        os.close(out)
        os.write(inn, DATA[:1000])
        command.wait_for("moving the input (standard input) to tcp://")
        yield command
    os.close(inn)


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_one_side_is_killed(victim):
    with receiving("--into", "out") as (r, to), sending(to) as s:
        (s if victim == "source" else r).process.kill()
        code, _, log = (r if victim == "source" else s).end()
    assert code == 5, log
    assert "Traceback" not in log
    assert not Path("out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_either_side(number):
    with receiving("--into", "out", "--json") as (r, to):
        with sending(to) as s:
            s.process.send_signal(number)
            code, _, log = s.end()
        assert code == 130
        assert log.endswith("vfioflow: interrupted\n")
        code, taken = r.report()
        assert code == 5
        assert taken["error"].endswith("gave up: interrupted")
    with receiving("--into", "out", "--json") as (r, _):
        r.process.send_signal(number)
        code, taken = r.report()
    assert (code, taken["outcome"]) == (130, "cancelled")


def test_a_wrong_end_is_a_usage_error():
    with running("tunnel", "send", "--from", "nowhere", "--to", "tcp://127.0.0.1:1", "--json") as s:
        code, sent = s.report()
    assert code == 2
    assert sent["error"] == "the input (nowhere): No such file or directory"
    with running("tunnel", "receive", "--listen", "tcp://0.0.0.0:0", "--into", "out") as r:
        code, _, log = r.end()
    assert code == 2
    assert "give both sides a key" in log


def test_the_wrong_peer():
    Path("devices.toml").write_text('[[device]]\nname = "nic0"\nprofile = "mlx5"\n')
    devices = ("--devices", "devices.toml")
    with running("receive", *devices, "--listen", LOOP) as r:
        to = r.wait_for("listening on").split()[-1]
        with running("tunnel", "send", "--from", "in", "--to", to) as s:
            code, _, log = s.end()
    assert code == 5
    assert (
        "devices arrive here, and no stream: it is `vfioflow tunnel receive` that takes one" in log
    )
    with receiving("--into", "out") as (_, to):
        with running("send", *devices, "--to", to) as s:
            code, _, log = s.end()
        assert code == 5
        assert "a stream arrives here, and no devices: `vfioflow receive` takes those" in log
        with running("plan", *devices, "--to", to) as s:
            assert s.end()[0] == 5


def most_memory(command):
    """Bytes that a process has held at most so far."""
    status = Path(f"/proc/{command.process.pid}/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) << 10


def test_memory_stays_flat():
    out, inn = os.pipe()
    with (
        receiving("--into", "/dev/null", "-q") as (r, to),
        running("tunnel", "send", "--from", "-", "--to", to, "-q", stdin=out) as s,
    ):
        os.close(out)
        held = []
        for _ in range(2):
            for _ in range(256):
                os.write(inn, bytes(1 << 20))
            held.append((most_memory(s), most_memory(r)))
        os.close(inn)
        assert s.end()[0] == r.end()[0] == 0
    for first, second in zip(*held, strict=True):
        assert second - first < 16 << 20


def test_the_help_teaches():
    with running("tunnel", "--help") as command:
        _, out, _ = command.end()
    assert "-incoming" in out
    assert 'migrate "exec:vfioflow tunnel send --from -' in out


def test_the_example_of_the_documentation_runs():
    page = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text(encoding="utf-8")
    section = page.partition("## A stream of bytes\n")[2].partition("\n## ")[0]
    [example] = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"48000000 bytes sent, 48000000 taken, \d{4,5} on the wire\n", done.stdout
    ), done.stdout
    assert Path("vm.stream").read_bytes() == b"guest memory" * 4_000_000

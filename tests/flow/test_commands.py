"""The commands as real processes: what they print, how they exit, and where the devices are."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import running

from vfioflow import Journal
from vfioflow.devices.config import load_devices
from vfioflow.story import Step
from vfioflow.wire.opening import Preamble, Role

DEVICES = """
[[device]]
name = "nic0"
profile = "mlx5"
state_size = "24MiB"
dirty_rate = "1MiB"
seed = 1

[[device]]
name = "xe0"
profile = "xe"
state_size = "4MiB"
seed = 2
"""

SLOW = ["--max-bandwidth=8MiB", "--chunk-size=64KiB"]
"""24 MiB take seconds; nothing waits for them, every test that is slow ends before."""

FAULT = """
[[device.fault]]
at = "{at}"
kind = "errno"
errno = "EIO"
offset = "1MiB"
"""


@pytest.fixture
def devices(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    return file


@contextmanager
def receiving(devices, *args):
    with running(
        "receive", "--devices", devices, "--listen=tcp://127.0.0.1:0", "--json", *args
    ) as command:
        line = command.wait_for("listening on ")
        assert re.fullmatch(r"vfioflow: listening on tcp://127\.0\.0\.1:\d+\n", line)
        command.address = line.split()[-1]
        yield command


def sending(devices, address, *args):
    return running("send", "--devices", devices, "--to", address, "--json", *args)


def states(report):
    return {device["name"]: device["final_state"] for device in report["devices"]}


RUNNING = {"nic0": "RUNNING", "xe0": "RUNNING"}
STOP = {"nic0": "STOP", "xe0": "STOP"}


def children(process):
    """Processes that it has started and that are still there."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ------------------------------------------------------------------------ demo


def test_demo_with_its_own_devices():
    with running("-q", "demo", "--json", "--seed=7", "--downtime-limit=5s") as demo:
        code, report = demo.report()
        assert (code, report["outcome"], demo.log) == (0, "completed", "")
    assert 0 < report["downtime_ms"] < report["total_ms"]
    assert sum(report["steps_ms"].values()) == pytest.approx(report["downtime_ms"])
    assert len(report["devices"]) == 4
    assert len({device["profile"] for device in report["devices"]}) == 4
    assert set(states(report).values()) == {"RUNNING"}  # where they ended up
    assert all(device["digest_ok"] for device in report["devices"])
    there = report["destination"]
    assert (there["role"], there["outcome"]) == ("destination", "completed")
    assert set(states(there).values()) == {"RUNNING"}
    assert there["p2p"]["balanced"]
    assert [d["digest"] for d in there["devices"]] == [d["digest"] for d in report["devices"]]


def test_demo_prints_a_report(devices):
    with running("demo", "--devices", devices, "--downtime-limit=5s") as demo:
        code, out, log = demo.end()
    assert code == 0, log
    assert "Migrated 2 devices" in out
    assert re.search(r"Downtime \d+ ms   within the limit of 5\.00 s", out)
    assert "✓ content" in out
    assert "✓ peer-to-peer" in out
    assert "\x1b" not in out + log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted(devices, number):
    with running("-vv", "demo", "--devices", devices, "--json", *SLOW) as demo:
        demo.wait_for("Decided(iteration=0")
        (child,) = children(demo.process)
        demo.process.send_signal(number)
        code, report = demo.report()
    assert (code, report["outcome"], states(report)) == (130, "cancelled", RUNNING)
    assert "vfioflow: interrupted: every device is RUNNING at the source again\n" in demo.log
    assert report["destination"]["outcome"] == "failed"
    assert states(report["destination"]) == RUNNING
    assert not alive(child)


def test_demo_killed_leaves_no_process(devices):
    with running("-vv", "demo", "--devices", devices, *SLOW) as demo:
        demo.wait_for("Decided(iteration=0")
        (child,) = children(demo.process)
        watched = os.pidfd_open(child)
        demo.process.kill()
        # A pidfd polls readable when its process has ended.
        ready, _, _ = select.select([watched], [], [], 30)
        os.close(watched)
    assert ready


def test_demo_that_does_not_converge(devices):
    limits = ("--downtime-limit=1ms", "--on-no-convergence=abort")
    with running("demo", "--devices", devices, "--json", *limits) as demo:
        code, report = demo.report()
    assert (code, report["outcome"], states(report)) == (6, "failed", RUNNING)
    assert "vfioflow: error: pre-copy does not converge" in demo.log
    assert "every device is RUNNING at the source" in demo.log
    assert report["destination"]["outcome"] == "failed"


# -------------------------------------------------------------- send, receive


def test_between_two_processes(devices):
    with (
        receiving(devices) as there,
        sending(devices, there.address, "--downtime-limit=5s") as here,
    ):
        code, report = here.report()
        assert (code, report["outcome"], states(report)) == (0, "completed", STOP)
        code, report = there.report()
        assert (code, report["outcome"], states(report)) == (0, "completed", RUNNING)
        assert report["p2p"]["balanced"]


def test_progress_in_plain_lines(devices):
    with receiving(devices) as there, sending(devices, there.address, *SLOW) as here:
        line = here.wait_for("est_downtime=")  # the first may come before anything was decided
    assert re.fullmatch(
        r"vfioflow: phase=pre-copy iter=\d+ pending=\S+iB bw=\S+iB/s est_downtime=\S+m?s\n", line
    )


def test_send_interrupted(devices):
    with receiving(devices) as there, sending(devices, there.address, "-vv", *SLOW) as here:
        here.wait_for("Decided(iteration=0")
        here.process.send_signal(signal.SIGINT)
        code, report = here.report()
        assert (code, report["outcome"], states(report)) == (130, "cancelled", RUNNING)
        code, report = there.report()
        assert (code, report["outcome"], states(report)) == (5, "failed", RUNNING)
        assert "cancelled" in report["error"]


def slow(devices, arc):
    """The first device takes a second for ``arc``."""
    first, second = devices.read_text().split("\n\n")
    devices.write_text(f'{first}\n[device.arc_seconds]\n"{arc}" = 1.0\n\n{second}')


def test_a_second_interruption_is_asked_for_patience(devices):
    slow(devices, "PRE_COPY->RUNNING")
    with receiving(devices) as there, sending(devices, there.address, "-vv", *SLOW) as here:
        here.wait_for("Decided(iteration=0")
        here.process.send_signal(signal.SIGINT)
        here.wait_for("Phase.GOING_BACK")
        here.process.send_signal(signal.SIGINT)
        here.wait_for("vfioflow: still putting the devices back")
        code, report = here.report()
    assert (code, report["outcome"], states(report)) == (130, "cancelled", RUNNING)


def test_an_interruption_after_the_commit_changes_nothing(devices):
    slow(devices, "STOP_COPY->STOP")
    limit = "--downtime-limit=5s"
    with receiving(devices, "-vv") as there, sending(devices, there.address, limit) as here:
        there.wait_for("StateChanged(device='nic0', start=<State.RUNNING_P2P: 5>, end=<State.RUN")
        here.process.send_signal(signal.SIGINT)
        code, report = here.report()
        assert (code, report["outcome"], states(report)) == (0, "completed", STOP)
        assert "the interruption came after the commit: the migration is complete" in here.log


def test_receive_interrupted_while_it_loads(devices):
    with receiving(devices, "-vv") as there, sending(devices, there.address, *SLOW) as here:
        there.wait_for("PhaseEntered(phase=<Phase.PRE_COPY")
        there.process.send_signal(signal.SIGINT)
        code, report = there.report()
        assert (code, report["outcome"], states(report)) == (130, "cancelled", RUNNING)
        assert "interrupted: every device here was reset" in there.log
        code, report = here.report()
        assert (code, report["outcome"], states(report)) == (5, "failed", RUNNING)


def test_receive_interrupted_while_it_waits(devices):
    with receiving(devices) as there:
        there.process.send_signal(signal.SIGTERM)
        code, report = there.report()
    assert (code, report["outcome"]) == (130, "cancelled")
    assert "interrupted: no device here was touched" in there.log


def test_receive_killed(devices):
    with receiving(devices) as there, sending(devices, there.address, "-vv", *SLOW) as here:
        here.wait_for("Decided(iteration=0")
        there.process.kill()
        code, report = here.report()
    assert (code, report["outcome"], states(report)) == (5, "failed", RUNNING)


def test_send_to_a_server_of_another_kind(devices):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with sending(devices, address) as here:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                code, report = here.report()
    assert (code, states(report)) == (5, RUNNING)
    assert "does not speak vfioflow's protocol" in here.log


def test_send_to_nobody(devices):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with sending(devices, address) as here:
        code, report = here.report()
    assert (code, states(report)) == (5, RUNNING)
    assert "Connection refused" in report["error"]


def test_garbage_and_then_a_migration(devices):
    with receiving(devices) as there:
        host, port = there.address.removeprefix("tcp://").split(":")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"", bytes(64)):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(garbage)
                if not garbage:
                    stranger.shutdown(socket.SHUT_WR)
                assert "vfioflow: warning: refused a connection from" in there.wait_for("refused")
        # One that begins well, and is gone before it offers anything.
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(Preamble(Role.CONTROL).pack())
            stranger.shutdown(socket.SHUT_WR)
            there.wait_for("vfioflow: warning: refused a connection from")
        with sending(devices, there.address, "--downtime-limit=5s") as here:
            code, _ = here.report()
            assert code == 0, here.log
        code, report = there.report()
        assert (code, report["outcome"], states(report)) == (0, "completed", RUNNING)


def test_devices_that_do_not_fit(devices, tmp_path):
    others = tmp_path / "others.toml"
    others.write_text(DEVICES.replace('"mlx5"', '"virtio"'))
    with receiving(others) as there, sending(devices, there.address) as here:
        code, report = here.report()
        assert (code, report["outcome"], states(report)) == (3, "failed", RUNNING)
        assert "nic0" in here.log
        code, _ = there.report()
        assert code == 3
        assert "nic0" in there.log


@pytest.mark.parametrize("at", ["read", "write"])
def test_a_device_that_fails(devices, tmp_path, at):
    broken = tmp_path / "broken.toml"
    first, second = DEVICES.split("\n\n")
    broken.write_text(first + FAULT.format(at=at) + second)
    with receiving(broken) as there, sending(broken, there.address) as here:
        code, report = here.report()
        assert (code, states(report)) == (4 if at == "read" else 5, RUNNING)
        assert "nic0" in report["error"]
        code, report = there.report()
        assert (code, states(report)) == (4 if at == "write" else 5, RUNNING)
        assert "nic0" in report["error"]


def test_a_seed_shifts_every_device(devices):
    def digests(seed):
        loaded = load_devices(devices, seed=seed)
        try:
            return [device.true_digest() for device in loaded]
        finally:
            for device in loaded:
                device.close()

    assert digests(0) == digests(0)
    assert not set(digests(0)) & set(digests(7))


# --------------------------------------------------------------------- journal


def resolve(journal, *words):
    with running("resolve", "--journal", journal, *words) as command:
        return command.end()


def test_a_killed_source_is_settled_before_anything_else_is_sent(devices, tmp_path):
    journal = f"--journal={tmp_path / 'journal'}"
    with receiving(devices) as there:
        first = (journal, "--session=b7", "-vv", *SLOW)
        with sending(devices, there.address, *first) as here:
            here.wait_for("Decided(iteration=0")
            here.process.kill()
        code, out, _ = resolve(tmp_path / "journal", "--json")
        (known,) = json.loads(out)
        assert (code, known["session"], known["step"]) == (0, "b7", "BEGUN")
        with sending(devices, there.address, journal) as here:
            code, report = here.report()
        assert (code, states(report)) == (3, RUNNING)
        assert "vfioflow send --session b7" in here.log
        with sending(devices, there.address, journal, "--session=b7") as here:
            code, report = here.report()
        assert (code, report["session"], states(report)) == (5, "b7", RUNNING)
        assert "it had not been committed; the devices run here" in here.log
        assert "nic0 is RUNNING (fresh: its state died with the process that held it)" in here.log
        assert resolve(tmp_path / "journal", "--json")[1] == "[]\n"


def test_a_journal_that_cannot_be_made(devices, tmp_path):
    (tmp_path / "file").write_text("")
    journal = f"--journal={tmp_path / 'file' / 'journal'}"
    with receiving(devices) as there, sending(devices, there.address, journal) as here:
        code, report = here.report()
        assert (code, states(report)) == (8, RUNNING)
        assert "cannot be opened (Not a directory)" in here.log
    with running("receive", "--devices", devices, "--listen=tcp://127.0.0.1:0", journal) as there:
        code, _, log = there.end()
    assert code == 8
    assert "Traceback" not in log


def test_without_a_journal(devices):
    with (
        receiving(devices, "--no-journal") as there,
        sending(devices, there.address, "--no-journal", "--downtime-limit=5s") as here,
    ):
        code, report = here.report()
        assert (code, "journal" in report["steps_ms"]) == (0, False)
        assert list(Path(here.state.name).iterdir()) == []
        there.report()
        assert list(Path(there.state.name).iterdir()) == []


def test_what_cannot_be_resolved(tmp_path):
    assert resolve(tmp_path, "b7")[0] == 2
    assert resolve(tmp_path, "../b7")[0] == 2
    assert resolve(tmp_path, "--run")[0] == 2
    assert resolve(tmp_path)[:2] == (0, f"{tmp_path}: no session has yet to end\n")


def test_a_destination_in_doubt_says_so_and_a_person_decides(devices, tmp_path):
    journal = Journal(tmp_path / "journal")
    names = dict.fromkeys(RUNNING, False)
    with journal.begin("b7", "destination", "tcp://10.0.0.1:9", names) as entry:
        entry.record(Step.LOADED, states=dict.fromkeys(RUNNING, "RUNNING_P2P"))
    with running(
        "receive", "--devices", devices, "--listen=tcp://127.0.0.1:0",
        "--journal", journal.directory,
    ) as there:  # fmt: skip
        there.wait_for("session b7 of tcp://10.0.0.1:9 is LOADED here, and in doubt")
    run = ("b7", "--run", "--yes", "--devices", devices)
    code, _, log = resolve(journal.directory, *run)
    assert code == 2
    assert "do not hold its state any more: nic0 is RUNNING" in log
    code, out, _ = resolve(journal.directory, "b7", "--devices", devices)
    assert code == 0
    assert "nic0 is RUNNING (fresh" in out
    code, _, log = resolve(journal.directory, "b7", "--discard")  # nobody says yes
    assert code == 130
    assert journal.find("b7", "destination").step is Step.LOADED
    code, out, _ = resolve(journal.directory, "b7", "--discard", "--yes", "--json")
    assert code == 0
    assert json.loads(out)["steps"][-1]["choice"] == "discard"
    assert journal.find("b7", "destination").choice == "discard"


# --------------------------------------------------------- odd surroundings


def test_a_report_that_cannot_be_written_does_not_change_the_exit_code(devices):
    """It is migrated; a stack that reads exit codes must not start the source again."""
    with receiving(devices) as receive, Path("/dev/full").open("w") as full:
        sent = subprocess.run(
            [sys.executable, "-m", "vfioflow", "send", "--devices", devices, "--to",
             receive.address, "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        code, report = receive.report()
    assert (code, report["outcome"]) == (0, "completed")
    assert "cannot write to standard output: No space left on device" in sent.stderr
    assert sent.returncode == 0


def test_closed_standard_files_do_no_harm(devices):
    with receiving(devices) as receive:
        shell = 'exec "$0" -m vfioflow send --devices "$1" --to "$2" <&- >&- 2>&-'
        sent = subprocess.run(
            ["sh", "-c", shell, sys.executable, devices, receive.address], check=False
        )
        code, report = receive.report()
    assert (code, report["outcome"]) == (0, "completed")
    assert sent.returncode == 0


def test_an_odd_host_name_is_a_wrong_address(devices):
    with running("send", "--devices", devices, "--to", "tcp://a..b:1") as send:
        code, _, log = send.end()
    assert code == 2
    assert "vfioflow: error: 'tcp://a..b:1' is not an address" in log

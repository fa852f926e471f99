"""Two hosts: a migration between two network namespaces, and how much memory each side takes."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from processes import running

MIB = 1 << 20

LARGE = """
[[device]]
name = "vgpu0"
profile = "vgpu"
state_size = "6GiB"
initial_bytes = "6000MiB"
seed = 1

[[device]]
name = "vgpu1"
profile = "vgpu"
state_size = "2GiB"
initial_bytes = "2000MiB"
content = "random"
seed = 2
"""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts():
    """Two network namespaces with a wire between them: (name, address) of each."""
    names = [f"vfioflow-{os.getpid()}-{side}" for side in "ab"]
    ends = [f"vff{os.getpid() % 100000}{side}" for side in "ab"]
    addresses = ["10.88.0.1", "10.88.0.2"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth",
           "peer", "name", ends[1], "netns", names[1])  # fmt: skip
        for name, end, address in zip(names, ends, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(zip(names, addresses, strict=True))
    finally:
        for name in made:
            ip("netns", "delete", name)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)
def test_the_demo_set_between_two_network_namespaces():
    devices = files("vfioflow.cli").joinpath("demo.toml")
    with two_hosts() as [(near, _), (far, address)]:
        enter = ("ip", "netns", "exec")
        with running(
            "receive", "--devices", devices, "--listen", f"tcp://{address}:0", "--json",
            prefix=(*enter, far),
        ) as receive:  # fmt: skip
            listening = receive.wait_for("listening on ").split()[-1]
            assert listening.startswith(f"tcp://{address}:")
            with running(
                "send", "--devices", devices, "--to", listening, "--json",
                "--on-no-convergence=switchover", "--precopy-timeout=20s",
                prefix=(*enter, near),
            ) as send:  # fmt: skip
                code, report = send.report()
            assert (code, report["outcome"]) == (0, "completed"), send.log
            there_code, there = receive.report()
        assert (there_code, there["outcome"]) == (0, "completed"), receive.log
    assert {d["final_state"] for d in report["devices"]} == {"STOP"}
    assert {d["final_state"] for d in there["devices"]} == {"RUNNING"}
    assert all(d["digest_ok"] for d in (*report["devices"], *there["devices"]))
    assert report["bytes_total"] >= 1024 * MIB


def peak_mib(pid):
    """Wait for a process; the most memory that it ever held, in MiB."""
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1024


def test_memory_does_not_grow_with_the_state(tmp_path):
    """8 GiB of state, in 200 MiB on either side: all of the process, the interpreter included."""
    devices = tmp_path / "devices.toml"
    devices.write_text(LARGE)
    report = tmp_path / "report.json"
    base = [sys.executable, "-m", "vfioflow"]
    with (
        report.open("w") as out,
        subprocess.Popen(
            [*base, "receive", "--devices", devices, "--listen", "tcp://127.0.0.1:0", "--quiet"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as receive,
    ):
        address = receive.stderr.readline().split()[-1]
        limits = ["--downtime-limit=2s", "--on-no-convergence=switchover", "--precopy-timeout=40s"]
        with subprocess.Popen(
            [*base, "send", "--devices", devices, "--to", address, "--json", "--quiet", *limits],
            stdout=out,
        ) as send:
            peaks = {"source": peak_mib(send.pid)}
            send.returncode = 0
        peaks["destination"] = peak_mib(receive.pid)
        receive.returncode = 0
    moved = json.loads(Path(report).read_text())["bytes_total"]
    assert moved >= 8 << 30
    assert max(peaks.values()) < 200, peaks

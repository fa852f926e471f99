"""Two hosts: a migration between two network namespaces, and how much memory each side takes."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from processes import running

from comparison.wires import Veth, why_no_veth
from vfioflow.wire.security import write_psk

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


@pytest.mark.skipif(why_no_veth() is not None, reason=str(why_no_veth()))
def test_the_demo_set_between_two_network_namespaces(tmp_path):
    devices = files("vfioflow.cli").joinpath("demo.toml")
    key = tmp_path / "migration.key"
    write_psk(key)
    with Veth() as veth:
        with running(
            "receive", "--psk", key, "--devices", devices, "--listen", f"tcp://{veth.host}:0", "--json",
            prefix=veth.receiving([]),
        ) as receive:  # fmt: skip
            listening = receive.wait_for("listening on ").split()[-1]
            assert listening.startswith(f"tcp://{veth.host}:")
            with running(
                "send", "--psk", key, "--devices", devices, "--to", listening, "--json",
                "--on-no-convergence=switchover", "--precopy-timeout=20s",
                prefix=veth.sending([]),
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

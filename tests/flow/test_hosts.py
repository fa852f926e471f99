"""Two hosts: a migration between two network namespaces, and how much memory each side takes."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from processes import running

from comparison.wires import Veth
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


def test_the_demo_set_between_two_network_namespaces(namespaces, tmp_path):
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


# The command, which says at its end how much memory it ever had.  Not by ru_maxrss, which begins with
# what the process had that started it.
MEASURED = """
import atexit, sys
from pathlib import Path
status = Path(sys.argv.pop(1))
atexit.register(lambda: status.write_text(Path("/proc/self/status").read_text()))
from vfioflow.cli import main
main()
"""


def peak_mib(status):
    """The most memory that a process ever held, in MiB."""
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)[1]) / 1024


def test_memory_does_not_grow_with_the_state(tmp_path):
    """8 GiB of state, in 200 MiB on either side: all of the process, the interpreter included."""
    devices = tmp_path / "devices.toml"
    devices.write_text(LARGE)
    report = tmp_path / "report.json"
    here, there = tmp_path / "here", tmp_path / "there"
    base = [sys.executable, "-c", MEASURED]
    address = "tcp://127.0.0.1:0"
    with (
        report.open("w") as out,
        subprocess.Popen(
            [*base, there, "receive", "--quiet", "--devices", devices, "--listen", address],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as receive,
    ):
        address = receive.stderr.readline().split()[-1]
        limits = ["--downtime-limit=2s", "--on-no-convergence=switchover", "--precopy-timeout=40s"]
        send = [*base, here, "send", "--devices", devices, "--to", address, "--json", "--quiet"]
        assert subprocess.run([*send, *limits], stdout=out).returncode == 0
        assert receive.wait() == 0
    moved = json.loads(Path(report).read_text())["bytes_total"]
    assert moved >= 8 << 30
    assert max(peak_mib(here), peak_mib(there)) < 200

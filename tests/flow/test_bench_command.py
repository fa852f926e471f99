"""``vfioflow bench``: tiny scenarios for real, over loopback and over network namespaces."""

import json
import os
import re
import select
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from processes import running

from vfioflow.lab.running import evaluate, opened_bench
from vfioflow.lab.scenario import Wire, parse_scenario
from vfioflow.policy import Policy
from vfioflow.wire.security import write_psk

MIB = 1 << 20
SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"

TINY = """
repetitions = 2
warm_up = 1

[wire]
{wire}

[policy]
{policy}

[[device]]
name = "nic"
count = 2
state_size = "4MiB"
initial_bytes = "2MiB"
arc_seconds = {{ "PRE_COPY->PRE_COPY_P2P" = 0.002 }}

[[device]]
name = "gpu"
profile = "xe"
state_size = "2MiB"
"""


def tiny(tmp_path, wire='kind = "loopback"', policy=""):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(wire=wire, policy=policy))
    return path


def scenario(**changes):
    found = parse_scenario(TINY.format(wire="", policy=""), "tiny", "tiny.toml")
    return replace(found, **changes)


def namespace_of(pid):
    """The network namespace that a process is in; None: it is gone, or a zombie."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def inside(spaces):
    """The processes in these network namespaces."""
    pids = [int(process.name) for process in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if namespace_of(pid) in spaces]


def wait_until_gone(pid):
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(process, select.POLLIN)
    assert poller.poll(20_000)
    os.close(process)


def test_both_orders_over_loopback(tmp_path):
    results = tmp_path / "results.json"
    with running("bench", "run", tiny(tmp_path), "--order", "both", "--json", results) as bench:
        code, out, log = bench.end()
    assert code == 0, log
    assert re.search(r"^tiny +vfioflow ", out, re.MULTILINE)
    assert re.search(r"^ +qemu ", out, re.MULTILINE)
    found = json.loads(results.read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    [one] = found["scenarios"]
    assert one["wire"]["kind"] == "loopback"
    assert [d["name"] for d in one["devices"]] == ["nic0", "nic1", "gpu"]
    for order in one["orders"]:
        assert len(order["runs"]) == 2
        assert order["failed"] == 0
        for run in order["runs"]:
            left = run["outcome"]["left"]
            # What pre-copy does not offer, all of the GPU, and headers.
            assert 2 * MIB <= left["nic0"] < 3 * MIB
            assert 2 * MIB <= left["gpu"] < 3 * MIB
            assert run["outcome"]["bytes_stopcopy"] == sum(left.values())
            assert 0 < run["bound"] < run["outcome"]["downtime"]


def test_over_namespaces_that_are_gone_afterwards(namespaces):
    wire = Wire("namespaces", rate=125_000_000)
    with opened_bench(scenario(wire=wire, repetitions=1, warm_up=0)) as bench:
        sides = [bench.wire.sending, bench.wire.receiving]
        spaces = {str(Path(side[1].removeprefix("--net=")).readlink()) for side in sides}
        assert len(spaces) == 2
        assert namespace_of("self") not in spaces
        assert bench.wire.kind == "namespaces"
        assert bench.address.startswith("tcp://192.0.2.2:")
        assert 0 < bench.gave < 1.1 * 125_000_000
        runs = list(bench.rounds(["vfioflow", "qemu"]))
    assert [(run.order, run.counts, run.outcome.error) for run in runs] == [
        ("vfioflow", True, ""),
        ("qemu", True, ""),
    ]
    assert inside(spaces) == []


def test_latency_is_made_or_said_not_to_be(namespaces):
    wire = Wire("namespaces", latency=0.005)
    with opened_bench(scenario(wire=wire, repetitions=1, warm_up=0)) as bench:
        shaped = subprocess.run(
            [*bench.wire.sending, "tc", "qdisc", "show", "dev", "out"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    if "netem" in shaped:
        assert "delay 5ms" in shaped
        assert bench.wire.notes == []
    else:
        [note] = bench.wire.notes
        assert note.startswith("no latency and no loss: this kernel has no netem")


def test_nothing_is_left_of_a_bench_that_was_killed(tmp_path, namespaces):
    mine = tiny(tmp_path, 'kind = "namespaces"')
    with running("bench", "run", mine, "--repetitions", 1000) as bench:
        bench.wait_for("tiny: ")
        children = Path(f"/proc/{bench.process.pid}/task/{bench.process.pid}/children")
        spaces = set()
        while len(spaces) < 2:  # it is making them
            found = {namespace_of(pid) for pid in children.read_text().split()}
            spaces |= found - {None, namespace_of("self")}
        bench.process.kill()
        while left := inside(spaces):
            wait_until_gone(left[0])
    assert inside(spaces) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_measured(tmp_path, number):
    tiny(tmp_path).rename(tmp_path / "first.toml")
    endless = tiny(tmp_path)
    files = tmp_path / "first.toml", endless
    results = tmp_path / "results.json"
    text = endless.read_text().replace("repetitions = 2", "repetitions = 1000")
    endless.write_text(text)
    with running("bench", "run", *files, "--json", results) as bench:
        bench.wait_for("tiny: ")
        bench.process.send_signal(number)
        code, out, log = bench.end()
    assert code == 130, log
    assert "interrupted" in log
    assert re.search(r"^first +vfioflow ", out, re.MULTILINE)
    assert json.loads(results.read_text())["scenarios"][0]["name"] == "first"


def test_a_run_that_fails_is_told_with_its_exit_code(tmp_path):
    mine = tiny(tmp_path, policy='downtime_limit = "1ms"\nprecopy_timeout = "100ms"')
    with running("bench", "run", mine, "--repetitions", 1, "--warm-up", 0) as bench:
        code, out, log = bench.end()
    assert code == 6, log
    text = " ".join(out.split())
    assert "1 of 1 runs in vfioflow's order failed: pre-copy does not converge" in text


def test_another_host(tmp_path):
    key = tmp_path / "bench.key"
    write_psk(key)
    there = tiny(tmp_path)
    with running(
        "bench", "receive", there, "--listen", "tcp://127.0.0.1:0", "--psk", key
    ) as receive:
        address = receive.wait_for("listening on ").split()[-1]
        here = tmp_path / "here.toml"
        here.write_text(TINY.format(wire=f'kind = "host"\naddress = "{address}"', policy=""))
        with running(
            "bench", "run", here, "--order", "both", "--json", "-", "--psk", key, "-q"
        ) as bench:
            code, out, log = bench.end()
        assert (code, log) == (0, "")
        [one] = json.loads(out)["scenarios"]
        assert (one["wire"]["kind"], one["wire"]["gave"]) == ("host", None)
        assert [order["failed"] for order in one["orders"]] == [0, 0]
        receive.process.send_signal(signal.SIGINT)
        code, _, log = receive.end()
    assert code == 0
    assert log.count("completed") == 6


def test_one_run_with_another_policy():
    found = evaluate(scenario(wire=Wire("loopback")), Policy(downtime_limit=2.0, channels=1))
    assert found.error == ""
    assert 0 < found.predicted < 2.0
    assert set(found.left) == {"nic0", "nic1", "gpu"}

"""The bench without runs: lower bounds, spreads, results, the library, and what is printed."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vfioflow import barrier
from vfioflow.cli import cli
from vfioflow.cli.bench_table import table
from vfioflow.devices.profile import Profile
from vfioflow.devices.sim import Fault, SimDevice, live
from vfioflow.errors import ConfigError, DeviceError
from vfioflow.lab.bound import Left, bound_of, lower_bound, transition_seconds
from vfioflow.lab.library import find, library, text_of
from vfioflow.lab.qemu_order import QemuOrder, qemu_policy
from vfioflow.lab.results import MadeWire, Results, carried, scenario_result, spread, summary
from vfioflow.lab.running import outcome_of
from vfioflow.lab.scenario import Outcome, Scenario, SimulatedDevice, Wire, parse_scenario
from vfioflow.lab.side import session_name
from vfioflow.order import Order
from vfioflow.policy import Policy
from vfioflow.report import DeviceReport, Report
from vfioflow.states import State

MIB = 1 << 20
SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"

NIC = Profile(
    load_in="write",
    load_seconds=0.03,
    arc_seconds={
        "PRE_COPY->PRE_COPY_P2P": 0.01,
        "PRE_COPY_P2P->STOP_COPY": 0.02,
        "RUNNING_P2P->RUNNING": 0.005,
    },
)
GPU = Profile(
    load_in="stop",
    load_seconds=0.2,
    initial_bytes=0,
    flags=("STOP_COPY", "P2P"),
    arc_seconds={"RUNNING->RUNNING_P2P": 0.05, "STOP->STOP_COPY": 0.01},
)


def invoke(*args):
    return CliRunner().invoke(cli, args)


# ------------------------------------------------------------------ lower bound


def test_each_barrier_is_as_long_as_its_slowest_device():
    assert transition_seconds([NIC]) == pytest.approx(0.035)
    assert transition_seconds([GPU]) == pytest.approx(0.26)
    # quiesce 50 ms of the GPU, stop 20 of the NIC, validate 200 of the GPU, resume 5 of the NIC
    assert transition_seconds([NIC, GPU, NIC]) == pytest.approx(0.275)


def test_what_is_left_goes_over_the_wire_then_loads():
    left = [Left(NIC, 10 * MIB), Left(NIC, 30 * MIB)]
    assert lower_bound(left, 100 * MIB) == pytest.approx(0.035 + 0.4 + 0.03)
    assert lower_bound(left, None) == pytest.approx(0.035 + 0.03)


def test_a_device_slower_than_the_wire_counts_alone():
    slow = replace(NIC, read_rate=10 * MIB)
    left = [Left(slow, 5 * MIB + MIB), Left(NIC, MIB)]  # a MiB of it is read ahead
    assert lower_bound(left, 1000 * MIB) == pytest.approx(0.035 + 0.5 + 0.03)


def test_compressed_bytes_take_less_of_the_wire():
    whole, half = (lower_bound([Left(GPU, 40 * MIB, wire)], 100 * MIB) for wire in (1.0, 0.5))
    assert whole - half == pytest.approx(0.2)


PROFILES = st.builds(
    lambda load_in, load, quiesce, rate: replace(
        NIC,
        load_in=load_in,
        load_seconds=load,
        arc_seconds={"PRE_COPY->PRE_COPY_P2P": quiesce},
        read_rate=rate,
    ),
    st.sampled_from(["write", "stop"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0.0, 1e6, 1e9]),
)
LEFT = st.lists(
    st.builds(Left, PROFILES, st.integers(0, 1 << 30), st.floats(0.1, 1)), min_size=1, max_size=5
)


@given(LEFT, st.floats(1e5, 1e11), st.floats(1.0, 10.0))
def test_a_faster_wire_never_raises_the_bound(left, rate, faster):
    assert lower_bound(left, rate * faster) <= lower_bound(left, rate)
    assert lower_bound(left, None) <= lower_bound(left, rate * faster)


@given(LEFT, st.data(), st.floats(1e5, 1e11))
def test_another_device_never_lowers_the_bound(left, data, rate):
    fewer = data.draw(st.lists(st.sampled_from(left), max_size=len(left), unique_by=id))
    assert lower_bound(fewer, rate) <= lower_bound(left, rate) * (1 + 1e-9)


# ------------------------------------------------------------------- QEMU's order


class Seen:
    """Which device passed which barrier, in order."""

    def __init__(self):
        self.names = []

    def __call__(self, event):
        if type(event).__name__ == "StateChanging":
            self.names.append(event.device)


def cross(order, name, targets):
    seen = Seen()

    async def main():
        return await order.cross(name, targets, timeout=5, observer=seen)

    return asyncio.run(main()), seen.names


@pytest.mark.parametrize(
    ("name", "expected"),
    [("quiesce", ["c", "b", "a"]), ("stop-copy", ["c", "b", "a"]), ("resume", ["a", "b", "c"])],
)
def test_one_after_the_other_at_the_stop_in_reverse(name, expected):
    devices = [SimDevice(each, state_size=65536) for each in "abc"]
    crossing, names = cross(QemuOrder(), name, [(d, State.RUNNING_P2P) for d in devices])
    assert names == expected
    assert set(crossing.moved) == {"a", "b", "c"}
    assert [d.state for d in devices] == [State.RUNNING_P2P] * 3
    for device in devices:
        device.close()


def test_a_device_that_fails_leaves_no_descriptor_of_those_before_it():
    fault = Fault(at="RUNNING->PRE_COPY", kind="errno")
    good, bad = SimDevice("good"), SimDevice("bad", faults=[fault])
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(DeviceError, match="bad"):
        cross(QemuOrder(), "pre-copy", [(good, State.PRE_COPY), (bad, State.PRE_COPY)])
    good.close()
    bad.close()
    assert set(Path("/proc/self/fd").iterdir()) <= before
    assert live() == {"devices": 0, "sessions": 0}


@pytest.mark.parametrize(("order", "most"), [(Order(), 3), (QemuOrder(), 1)])
def test_drains_together_or_one_by_one(order, most):
    under_way, seen = 0, []

    async def main():
        gate = asyncio.get_running_loop()

        async def drive(futures):
            nonlocal under_way
            seen.append(under_way)
            return [await future for future in futures]

        def begin():
            nonlocal under_way
            under_way += 1
            future = gate.create_future()
            gate.call_soon(end, future)
            return future

        def end(future):
            nonlocal under_way
            under_way -= 1
            future.set_result(None)

        await order.drain(drive, [begin] * 3)

    asyncio.run(main())
    assert max(seen) == most
    assert under_way == 0


def test_qemu_has_one_channel_and_no_compression():
    policy = Policy(channels=4, compression="auto", downtime_limit=0.5)
    assert qemu_policy(policy) == Policy(channels=1, downtime_limit=0.5)
    assert not QemuOrder.counts_changes
    assert barrier.cross is not QemuOrder.cross


# ----------------------------------------------------------------------- results


SCENARIO = Scenario(
    "two", (SimulatedDevice("a", 0, NIC, "mlx5"), SimulatedDevice("b", 0, NIC, "mlx5"))
)


def outcome(downtime, **changes):
    values = {
        "downtime": downtime,
        "total": 2.0,
        "bytes_total": 100 * MIB,
        "bytes_wire": 100 * MIB,
        "bytes_stopcopy": 20 * MIB,
        "bandwidth": 90.0 * MIB,
        "steps": {"drain": 0.2, "load": 0.03},
        "left": {"a": 15 * MIB, "b": 5 * MIB},
    }
    return Outcome(**{**values, **changes})


def results(*outcomes, wire=None):
    wire = wire or MadeWire(kind="namespaces", asked=125e6, gave=100.0 * MIB, carried=100.0 * MIB)
    orders = {"vfioflow": list(outcomes), "qemu": [outcome(0.6), outcome(0.7), outcome(0.8)]}
    found = scenario_result(SCENARIO, wire, orders, {"channels": 0})
    return Results(
        version="1", machine={}, began="now", scenarios=[found], summary=summary([found])
    )


def test_the_bound_of_a_run():
    assert bound_of(SCENARIO, outcome(1.0), 100 * MIB) == pytest.approx(0.035 + 0.2 + 0.03)
    squeezed = outcome(1.0, bytes_wire=50 * MIB)
    assert bound_of(SCENARIO, squeezed, 100 * MIB) == pytest.approx(0.035 + 0.1 + 0.03)


def test_medians_spread_and_the_distance_from_the_bound():
    found = results(outcome(0.3), outcome(0.28), outcome(0.35)).scenarios[0]
    ours, qemu = found.orders
    assert (ours.downtime.median, ours.downtime.least, ours.downtime.most) == (0.3, 0.28, 0.35)
    assert ours.over_bound.median == pytest.approx(0.3 / 0.265)
    assert [m.over_bound for m in qemu.runs] == pytest.approx(
        [0.6 / 0.265, 0.7 / 0.265, 0.8 / 0.265]
    )
    assert found.to_qemu == pytest.approx(0.3 / 0.7)


def test_runs_that_failed_are_counted_and_not_measured():
    failed = Outcome(error="the wire broke", exit_code=5)
    found = results(failed, outcome(0.3)).scenarios[0].orders[0]
    assert found.failed == 1
    assert found.downtime.median == 0.3
    assert results(failed).scenarios[0].orders[0].downtime is None
    assert results(failed).scenarios[0].to_qemu is None
    assert results(failed).summary.over_bound_worst is None


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=20))
def test_a_spread_is_in_order(values):
    found = spread(values)
    assert min(values) == found.least <= found.low <= found.high <= found.most == max(values)
    assert found.low <= found.median <= found.high


def test_of_nothing_there_is_no_spread():
    assert spread([]) is None


def test_what_a_wire_carried_is_the_best_of_the_runs_and_at_most_what_it_is_for():
    runs = [outcome(0.3), outcome(0.3, bandwidth=None), Outcome(error="lost")]
    assert carried(SCENARIO, runs) == pytest.approx(100 * MIB)  # 20 MiB in 0.2 s
    assert carried(SCENARIO, runs[2:]) is None
    assert carried(replace(SCENARIO, wire=Wire(rate=50 * MIB)), runs) == 50 * MIB
    few = outcome(0.3, bytes_stopcopy=MIB, steps={"drain": 0.001, "load": 0.03})
    assert carried(SCENARIO, [few]) == 90 * MIB


def test_what_a_report_says_of_a_run():
    report = Report(
        role="source",
        outcome="completed",
        total_ms=1500.0,
        downtime_ms=250.0,
        predicted_downtime_ms=200.0,
        iterations=3,
        bandwidth=1e9,
        bytes_total=100,
        bytes_wire=90,
        steps_ms={"drain": 100.0},
        devices=[
            DeviceReport(name="a", profile="mlx5", bytes_precopy=60, bytes_stopcopy=30),
            DeviceReport(name="b", profile="mlx5", bytes_precopy=10, bytes_stopcopy=0),
        ],
    )
    assert outcome_of(report, 0) == Outcome(
        downtime=0.25,
        total=1.5,
        predicted=0.2,
        bytes_total=100,
        bytes_wire=90,
        bytes_stopcopy=30,
        iterations=3,
        bandwidth=1e9,
        steps={"drain": 0.1},
        left={"a": 30, "b": 0},
    )
    lost = outcome_of(Report(role="source", outcome="failed", error="lost"), 5)
    assert (lost.error, lost.exit_code, lost.downtime) == ("lost", 5, None)


def test_the_published_schema_is_that_of_the_types():
    assert json.loads(SCHEMA.read_text()) == msgspec.json.schema(Results)


def test_results_fit_the_published_schema_and_are_read_back():
    found = results(outcome(0.3), Outcome(error="lost", exit_code=5))
    jsonschema.validate(json.loads(found.to_json()), json.loads(SCHEMA.read_text()))
    assert msgspec.json.decode(found.to_json(), type=Results) == found


# --------------------------------------------------------------------- the table


def drawn(found, width=100):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table(found))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_table_has_a_line_for_each_order():
    lines = drawn(results(outcome(0.3), outcome(0.28), outcome(0.35)))
    assert lines[1].split() == [
        "two", "vfioflow", "300", "ms", "290", "to", "325", "ms", "265", "ms", "1.13x", "2.00", "s", "0.43x",
    ]  # fmt: skip
    assert lines[2].split()[:3] == ["qemu", "700", "ms"]


def test_the_table_says_what_the_wire_was_not():
    wire = MadeWire(
        kind="namespaces",
        asked=1250e6,
        gave=200.0 * MIB,
        carried=100.0 * MIB,
        notes=["no latency and no loss: this kernel has no netem"],
    )
    said = drawn(results(outcome(0.3), Outcome(error="it broke", exit_code=5), wire=wire))
    assert "two: no latency and no loss: this kernel has no netem" in said
    assert "two: the wire gave 200.0 MiB/s of 1.2 GiB/s" in said
    assert "two: 1 of 2 runs in vfioflow's order failed: it broke" in said


# ------------------------------------------------------------------- the library


def test_the_library_has_the_cases_that_it_is_for():
    names = library()
    wanted = {f"mlx5-{n}vf-{rate}" for n in (1, 2, 4) for rate in ("10g", "100g")}
    assert wanted | {"vgpu-16g-10g"} <= set(names)
    assert any(name.startswith("mixed") for name in names)
    assert any(name.startswith("dirty") for name in names)


@pytest.mark.parametrize("name", library())
def test_each_scenario_says_what_it_is(name):
    found = find(name)
    assert found.name == name
    assert 10 < len(found.about) <= 60
    assert found.wire.rate == {"1g": 125e6, "10g": 1250e6, "100g": 12500e6}[name.split("-")[-1]]
    assert found.wire.kind == "auto"
    assert transition_seconds(d.profile for d in found.devices) < found.policy.downtime_limit


def test_a_file_of_ones_own(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(text_of("mixed-1g"))
    assert replace(find(str(mine)), name="mixed-1g") == find("mixed-1g")
    mine.write_text("about = 1")
    with pytest.raises(ConfigError, match=r"mine\.toml: about"):
        find(str(mine))
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        find(str(tmp_path / "none.toml"))
    mine.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"mine\.toml: not UTF-8"):
        find(str(mine))


def test_a_scenario_travels_to_its_processes_whole():
    for name in library():
        found = find(name)
        assert msgspec.json.decode(msgspec.json.encode(found), type=Scenario) == found


def test_the_order_travels_in_the_sessions_name():
    assert session_name("qemu", 3, "abc") == "bench-qemu-abc-3"


# ------------------------------------------------------------------- the commands


def test_list_and_show():
    listed = invoke("bench", "list")
    assert listed.exit_code == 0
    assert [
        line.split()[0] for line in listed.stdout.splitlines()[1:] if line[1] != " "
    ] == library()
    shown = invoke("bench", "show", "mlx5-4vf-100g").stdout
    assert parse_scenario(shown, "mlx5-4vf-100g", "shown") == find("mlx5-4vf-100g")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run"], "name scenarios, or take --all"),
        (["run", "--all", "mixed-1g"], "name scenarios, or take --all"),
        (["run", "nothing"], "there is no scenario 'nothing'"),
        (["run", "mixed-1g", "--psk", "/nowhere"], "/nowhere"),
        (["show", "nothing"], "there is no scenario 'nothing'"),
        (["receive", "mixed-1g", "--listen", "tcp://0.0.0.0:0"], "whoever reaches this address"),
    ],
)
def test_what_is_wrong_is_said(args, said):
    result = invoke("bench", *args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_names_are_completed():
    command = cli.get_command(None, "bench").get_command(None, "run")
    found = command.params[0].shell_complete(None, "mlx5-4")
    assert [item.value for item in found if item.type == "plain"] == [
        "mlx5-4vf-100g",
        "mlx5-4vf-10g",
    ]


def test_a_wire_that_cannot_be_made_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    mine = tmp_path / "mine.toml"
    mine.write_text('[wire]\nkind = "namespaces"\n[[device]]\nname = "a"\n')
    result = invoke("bench", "run", str(mine))
    assert result.exit_code == 2
    assert "network namespaces" in result.stderr
    assert Wire("auto", rate=1000).shaped

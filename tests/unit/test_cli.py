"""The commands without processes: options, help, exit codes, and what is drawn."""

import asyncio
import json
import re
from dataclasses import fields

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from vfioflow import events
from vfioflow.cli import cli, render, units, view
from vfioflow.cli.bars import Bar
from vfioflow.cli.options import BANDWIDTH, DURATION, SIZE, policy_options
from vfioflow.cli.session import Ended, conclude, whereabouts
from vfioflow.errors import DeviceError, HandoverInDoubt, NoConvergence
from vfioflow.events import DeviceProgress, Phase, Progress
from vfioflow.policy import Policy
from vfioflow.precopy import Decision, Verdict
from vfioflow.report import DeviceReport, Report
from vfioflow.states import State

MIB = 1 << 20


def invoke(*args):
    return CliRunner().invoke(cli, args)


def report(**changes):
    values = {
        "role": "source",
        "outcome": "completed",
        "peer": "tcp://127.0.0.1:4747",
        "total_ms": 1234.0,
        "downtime_ms": 200.0,
        "predicted_downtime_ms": 180.0,
        "downtime_limit_ms": 300.0,
        "iterations": 3,
        "bandwidth": 512.0 * MIB,
        "bytes_total": 110 * MIB,
        "bytes_wire": 110 * MIB,
        "steps_ms": {"stop_vcpus": 0.0, "quiesce": 50.0, "drain": 100.0, "resume": 50.0},
        "devices": [
            DeviceReport(
                name="nic0",
                profile="mlx5",
                bytes_precopy=90 * MIB,
                bytes_stopcopy=10 * MIB,
                iterations=3,
                digest="12345678",
                digest_ok=True,
                final_state="STOP",
            ),
            DeviceReport(name="gpu0", profile="xe", bytes_stopcopy=10 * MIB, final_state="STOP"),
        ],
    }
    return Report(**{**values, **changes})


def drawn(renderable, width=80):
    console = Console(width=width, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


# ------------------------------------------------------------------------ help


def test_group_help_lists_commands_and_exit_codes():
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("demo", "send", "receive", "resolve", "completion"):
        assert re.search(rf"^  {word} ", result.stdout, re.MULTILINE)
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 130):
        assert re.search(rf"^    {code} ", result.stdout, re.MULTILINE)


def test_manual_pages(tmp_path):
    """One for each command, with every option of it; nothing in them is a request of roff by accident."""
    assert invoke("man", "--into", str(tmp_path)).exit_code == 0
    pages = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {"vfioflow.1", "vfioflow-agent.1", "vfioflow-tunnel-send.1"} <= pages.keys()
    assert r"\fBvfioflow\-agent\fR(1)" in pages["vfioflow.1"]
    for option in ("socket", "mode", r"allow\-user", "journal"):
        assert rf"\fB\-\-{option}" in pages["vfioflow-agent.1"]
    requests = {".TH", ".SH", ".B", ".PP", ".TP", ".nf", ".fi"}
    for text in pages.values():
        lines = text.splitlines()
        assert {line.split()[0] for line in lines if line[:1] in (".", "'")} <= requests
        assert lines.count(".nf") == lines.count(".fi")
    assert invoke("man", "tunnel", "send").output == pages["vfioflow-tunnel-send.1"]
    assert invoke("man", "nothing").exit_code == 2
    assert invoke("man", "--into", "/dev/null/x").exit_code == 2


@pytest.mark.parametrize("command", ["demo", "send", "receive", "resolve", "completion"])
def test_command_help_keeps_its_examples_on_their_lines(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "\b" not in result.stdout
    assert "\\b" not in result.stdout
    assert re.search(rf"^  .*vfioflow {command} ", result.stdout, re.MULTILINE)


def test_version():
    assert re.fullmatch(r"vfioflow \d+\.\d+\.\d+\n", invoke("--version").stdout)


@pytest.mark.parametrize("command", ["demo", "send"])
def test_every_policy_field_has_an_option(command):
    text = invoke(command, "--help").stdout
    for field in fields(Policy):
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("shell", "marker"),
    [("bash", "complete -o nosort"), ("zsh", "#compdef vfioflow"), ("fish", "complete --")],
)
def test_completion_prints_a_script(shell, marker):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert marker in result.stdout
    assert "_VFIOFLOW_COMPLETE" in result.stdout


# --------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (DURATION, "300ms", 0.3),
        (DURATION, "0.3s", 0.3),
        (DURATION, ".3", 0.3),
        (DURATION, "2 min", 120.0),
        (SIZE, "64KiB", 65536),
        (SIZE, "4096", 4096),
        (BANDWIDTH, "1GiB", 1 << 30),
        (BANDWIDTH, "500MiB/s", 500 * MIB),
        (BANDWIDTH, "10Gbit", 1_250_000_000),
        (BANDWIDTH, "2.5 Gbit/s", 312_500_000),
    ],
)
def test_a_quantity_is_read(kind, text, value):
    assert kind.convert(text, None, None) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [(DURATION, "soon"), (DURATION, "-1"), (DURATION, "3h"), (SIZE, "1MB"), (BANDWIDTH, "fast")],
)
def test_a_wrong_quantity_says_how_to_write_it(kind, text):
    with pytest.raises(click.BadParameter, match="write"):
        kind.convert(text, None, None)


def test_options_become_a_policy():
    @click.command
    @policy_options()
    def command(policy):
        click.echo(repr(policy))

    def policy(*args):
        result = CliRunner().invoke(command, args)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    assert policy() == repr(Policy())
    assert policy(
        "--downtime-limit=150ms", "--max-bandwidth=10Gbit", "--compression=zstd:3", "--no-digest"
    ) == repr(
        Policy(downtime_limit=0.15, max_bandwidth=1_250_000_000, compression="zstd:3", digest=False)
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--downtime-limit", "0", "must be above 0 seconds"),
        ("--channels", "65", "must be from 0 to 64, not 65"),
        ("--compression", "gzip", 'must be "none"'),
        ("--chunk-size", "1KiB", "must be 4096 to"),
    ],
)
def test_a_value_that_the_policy_refuses_names_the_option(option, value, message):
    result = invoke("send", "--devices=x", "--to=y", option, value)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vfioflow: error: Invalid value for '{option}': ")
    assert message in result.stderr


# ------------------------------------------------------------------ exit codes


@pytest.mark.parametrize("args", [["frob"], ["send"], ["demo", "--nope"]])
def test_wrong_usage(args):
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("vfioflow: error: ")
    assert "--help" in result.stderr


def test_a_missing_devices_file():
    result = invoke("send", "--devices=/does/not/exist.toml", "--to=tcp://127.0.0.1:1", "--json")
    assert result.exit_code == 2
    assert "/does/not/exist.toml" in result.stderr
    assert json.loads(result.stdout)["outcome"] == "failed"
    assert "/does/not/exist.toml" in json.loads(result.stdout)["error"]


def test_a_wrong_address(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text('[[device]]\nname = "a"\nprofile = "mtty"\n')
    result = invoke("send", f"--devices={file}", "--to=10.0.0.2")
    assert result.exit_code == 2
    assert "write tcp://HOST:PORT" in result.stderr


RUNNING = [DeviceReport(name=name, profile="mtty", final_state="RUNNING") for name in "ab"]


@pytest.mark.parametrize(
    ("error", "changes", "code", "message"),
    [
        (None, {}, 0, ""),
        ("cancel", {}, 0, "the migration is complete"),
        (
            "cancel",
            {"outcome": "cancelled", "error": "cancelled", "devices": RUNNING},
            130,
            "interrupted: every device is RUNNING at the source again",
        ),
        (
            "cancel",
            {"role": "destination", "outcome": "cancelled", "devices": RUNNING},
            130,
            "interrupted: every device here was reset: RUNNING, and empty",
        ),
        (
            "cancel",
            {"outcome": "cancelled", "error": "cancelled; device nic0: stuck"},
            130,
            "at the source, nic0 is STOP, gpu0 is STOP",
        ),
        (
            NoConvergence("too fast"),
            {"outcome": "failed", "devices": RUNNING},
            6,
            "vfioflow: error: too fast\n  every device is RUNNING at the source\n",
        ),
        (DeviceError("nic0", "read", 5), {"outcome": "failed"}, 4, "device nic0: read: EIO"),
        (HandoverInDoubt("lost"), {"outcome": "in-doubt"}, 7, "nic0 is STOP"),
        ("cancel", {"outcome": "failed", "error": "peer gone"}, 130, "vfioflow: error: peer gone"),
    ],
)
def test_every_end_has_its_code_and_its_words(capsys, error, changes, code, message):
    if error == "cancel":
        error = asyncio.CancelledError()
    assert conclude(Ended(report(**changes), error)) == code
    assert message in capsys.readouterr().err


def test_nothing_touched():
    assert whereabouts(report(devices=[])) == "no device at the source was touched"


# --------------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KiB"),
        (1000 * MIB, "1.0 GiB"),
        (12 * MIB, "12.0 MiB"),
    ],
)
def test_sizes(number, text):
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0.0 ms"), (9.94, "9.9 ms"), (85.4, "85 ms"), (999.4, "999 ms"), (1240, "1.24 s")],
)
def test_durations(number, text):
    assert units.duration(number) == text


@pytest.mark.parametrize(
    ("bar", "text"),
    [
        (Bar(0.0, 0.0), "────────"),
        (Bar(0.0, 0.5), "━━━━────"),
        (Bar(0.0, 0.01), "╸───────"),
        (Bar(0.0, 1.0), "━━━━━━━━"),
        (Bar(0.25, 0.5, track=False), "  ━━"),
        (Bar(0.0625, 0.1875, track=False), "╺╸"),
        (Bar(1.0, 1.001, track=False), "       ╺"),
    ],
)
def test_bars_to_half_a_character(bar, text):
    assert drawn(bar, 8) == [text]


def test_a_bar_has_its_width_whatever_its_ends():
    for start in range(33):
        for end in range(start, 33):
            console = Console(width=8)
            (line,) = console.render_lines(Bar(start / 32, end / 32))
            assert sum(segment.cell_length for segment in line) == 8, (start, end)


def test_the_summary_of_a_source():
    check = render.Check("content", True, "whole")
    assert drawn(render.summary(report(), [check]), 80) == [
        "",
        " Migrated 2 devices to tcp://127.0.0.1:4747",
        " 110.0 MiB in 1.23 s, 3 pre-copy rounds at 512.0 MiB/s",
        "",
        " device   profile   pre-copy   stop-copy   rounds   digest      state",
        " nic0     mlx5      90.0 MiB    10.0 MiB        3   ok          STOP",
        " gpu0     xe               –    10.0 MiB        –   unchecked   STOP",
        "",
        " Downtime 200 ms   within the limit of 300 ms, predicted 180 ms",
        " stop vCPUs   0.0 ms   0%",
        " quiesce       50 ms  25% " + "━" * 13,
        " drain        100 ms  50% " + " " * 13 + "━" * 27,
        " resume        50 ms  25% " + " " * 39 + "╺" + "━" * 13,
        "",
        " ✓ content  whole",
        "",
    ]


def test_a_downtime_over_the_limit():
    text = "\n".join(drawn(render.downtime(report(downtime_ms=400.0))))
    assert "Downtime 400 ms   over the limit of 300 ms" in text


def test_the_summary_of_a_destination():
    text = "\n".join(drawn(render.summary(report(role="destination", downtime_ms=None))))
    assert " Migrated 2 devices from tcp://127.0.0.1:4747" in text
    assert "on the wire" in text
    assert "Downtime" not in text


def board():
    rows = {
        "nic0": view.Row("nic0", "mlx5", "RUNNING"),
        "gpu0": view.Row("gpu0", "xe", "RUNNING"),
    }
    return view.Board("tcp://10.0.0.2:4747", 0.3, rows, since=10.0)


def feed(target):
    decision = Decision(Verdict.ITERATE, "", 60 * MIB, None, 12 * MIB, 0.085)
    for now, event in (
        (10.0, events.PhaseEntered(Phase.PRE_COPY)),
        (10.0, events.StateChanged("nic0", State.RUNNING, State.PRE_COPY, 0.01)),
        (10.1, progress(0, 100 * MIB)),
        (10.1, events.Decided(0, 0, 512.0 * MIB, decision)),
        (10.6, progress(50 * MIB, 100 * MIB)),
    ):
        target.update(event, now)


def progress(moved, pending):
    return Progress(
        Phase.PRE_COPY,
        (DeviceProgress("nic0", moved, moved, pending), DeviceProgress("gpu0", 0, 0, 20 * MIB)),
    )


def test_a_board_counts_down_between_two_looks_at_the_device():
    target = board()
    feed(target)
    row = target.rows["nic0"]
    assert (row.state, row.moved, row.left, row.whole) == (
        "PRE_COPY",
        50 * MIB,
        50 * MIB,
        100 * MIB,
    )
    assert row.rate == pytest.approx(100 * MIB)
    assert target.pending == 70 * MIB
    target.update(events.Decided(1, 50 * MIB, 512.0 * MIB, target.decision), 10.7)
    target.update(progress(50 * MIB, 60 * MIB), 10.7)
    assert (row.left, row.whole) == (60 * MIB, 110 * MIB)


def test_a_board_in_one_line():
    target = board()
    feed(target)
    assert view.line(target) == (
        "phase=pre-copy iter=0 pending=70.0MiB bw=512.0MiB/s est_downtime=85ms"
    )


def test_a_board_drawn():
    target = board()
    feed(target)
    assert drawn(view.draw(target, 11.5), 80) == [
        "pre-copy  tcp://10.0.0.2:4747" + " " * 46 + "1.5 s",
        "",
        "device  profile  state                             moved         rate    pending",
        "nic0    mlx5     PRE_COPY      ━━━━━━━───────   50.0 MiB  100.0 MiB/s   50.0 MiB",
        "gpu0    xe       RUNNING       ──────────────        0 B        0 B/s   20.0 MiB",
        "",
        "iteration 0 · 512.0 MiB/s · threshold 12.0 MiB · downtime 85 ms of 300 ms",
    ]


def test_a_destination_has_no_bars():
    target = board()
    target.update(Progress(Phase.PRE_COPY, (DeviceProgress("nic0", MIB, MIB, None),)), 10.1)
    assert view.line(target) == "phase=connect moved=1.0MiB"
    assert "━" not in "\n".join(drawn(view.draw(target, 11.0)))

"""``vfioflow report`` on what a real migration printed."""

import json

import pytest
from processes import running

from vfioflow.report import Report

DEVICES = """
[[device]]
name = "nic<0>"
profile = "mlx5"
state_size = "4MiB"
seed = 1

[[device]]
name = "xe0"
profile = "xe"
state_size = "8MiB"
seed = 2
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The JSON of a migration between two processes."""
    folder = tmp_path_factory.mktemp("report")
    devices = folder / "devices.toml"
    devices.write_text(DEVICES)
    with running("demo", "--devices", devices, "--json") as demo:
        code, out, log = demo.end()
    assert code == 0, log
    file = folder / "run.json"
    file.write_text(out)
    return file


def says(*args):
    with running("report", *args) as command:
        code, out, log = command.end()
    return code, out, log


def test_the_timeline_of_a_real_migration_is_consistent(run):
    report = Report.from_json(run.read_bytes())
    line = report.timeline
    assert [p.name for p in line.phases] == [
        *("connect", "set up", "pre-copy", "stop-copy", "hand over", "done")
    ]
    assert [p.at for p in line.phases] == sorted(p.at for p in line.phases)
    assert [b.name for b in line.barriers] == ["pre-copy", "quiesce", "stop-copy", "release"]
    for arc in line.arcs:
        assert arc.seconds is not None
        assert 0 <= arc.at <= report.total_ms / 1e3
    assert sum(report.steps_ms.values()) == pytest.approx(report.downtime_ms)
    assert line.rounds[-1].predicted * 1e3 == pytest.approx(report.predicted_downtime_ms)
    assert report.fixed_ms < report.predicted_downtime_ms
    assert report.over_bound >= 1.0
    assert report.policy["compression"] == "none"
    assert [s.moved for s in line.samples] == sorted(s.moved for s in line.samples)
    assert line.samples[-1].moved <= report.bytes_total


def test_why_it_was_so_long(run):
    code, out, _ = says(run)
    report = Report.from_json(run.read_bytes())
    assert code == 0
    assert out.startswith(f"The downtime was {report.downtime_ms:.0f} ms: ")
    assert "Where it went:" in out
    # The destination's part is in the same file, so its devices are named too.
    assert "RESUMING -> STOP, where drivers load and check; " in out


def test_a_page(run, tmp_path):
    page = tmp_path / "run.html"
    code, out, _ = says(run, "--html", page)
    assert code == 0
    assert f"The page is in {page}." in out
    text = page.read_text()
    assert "nic&lt;0&gt;" in text
    assert "nic<0>" not in text


def test_two_compared(run, tmp_path):
    other = json.loads(run.read_text())
    other["downtime_ms"] += 100.0
    other["steps_ms"]["drain"] += 100.0
    file, page = tmp_path / "other.json", tmp_path / "both.html"
    file.write_text(json.dumps(other))
    code, out, _ = says(run, file, "--compare", "--html", page)
    assert code == 0
    first, *rest = out.splitlines()
    assert first.split()[0] == "downtime"
    assert any(line.startswith("step drain") for line in rest)
    assert "<h2>Before</h2>" in page.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no report, as --json prints it"),
        ("[1]", "no report, as --json prints it: Expected `object`"),
        ('{"role": "source"}', "missing required field `outcome`"),
        ("[" * 100_000, "no report"),
    ],
)
def test_what_is_no_report(tmp_path, text, words):
    file = tmp_path / "x.json"
    file.write_text(text)
    code, out, log = says(file)
    assert (code, out) == (2, "")
    assert words in log
    assert "Traceback" not in log


def test_files_that_cannot_be_had(run, tmp_path):
    code, _, log = says(tmp_path / "none.json")
    assert (code, "cannot be read: No such file" in log) == (2, True)
    code, _, log = says(run, "--html", tmp_path / "none" / "x.html")
    assert (code, "cannot be written: No such file" in log) == (2, True)
    code, _, log = says(run, "--compare")
    assert (code, "--compare takes two files" in log) == (2, True)

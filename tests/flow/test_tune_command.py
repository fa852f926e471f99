"""`vfioflow bench predict`, `bench model` and `tune`, as commands."""

import json
import re
import signal

import pytest
from processes import running

from vfioflow import Policy
from vfioflow.policy_table import read_policy

SCENARIO = """
[wire]
kind = "loopback"
[policy]
downtime_limit = "500ms"
[[device]]
name = "nic"
profile = "generic"
state_size = "8MiB"
initial_bytes = "6MiB"
"""


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO)
    return path


def run(*args):
    with running(*args) as command:
        return command.end()


def test_a_prediction(scenario):
    code, out, _ = run("bench", "predict", scenario, "--json")
    [said] = json.loads(out).values()
    assert (code, said["verdict"]) == (0, "switch over")
    assert 8 << 20 <= said["bytes_total"] < 9 << 20
    assert 0 < said["downtime"] < 0.5
    code, out, log = run("bench", "predict")
    assert (code, out) == (2, "")
    assert "name scenarios, or take --all" in log


def test_predictions_are_compared_with_runs_of_the_bench(scenario, tmp_path):
    results = tmp_path / "results.json"
    code, _, log = run(
        "bench", "run", scenario, "--repetitions", "2", "--warm-up", "0", "--json", results
    )
    assert code == 0, log
    code, out, _ = run("bench", "model", results, scenario, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["plain"]["runs"] == found["learned"]["runs"] == 2
    assert found["plain"]["verdicts"] == 1.0
    [line] = found["lines"]
    assert line["runs"] == 2
    assert line["downtime"] > 0
    code, out, _ = run("bench", "predict", scenario, "--learn", results, "--json")
    assert code == 0
    code, _, log = run("bench", "model", results)
    assert code == 2
    assert "no run migrated that is known here" in log
    results.write_text("{}")
    code, _, log = run("bench", "model", results)
    assert code == 2
    assert "no results of `vfioflow bench run --json`" in log


def test_tuned_in_the_model_and_by_real_runs_and_taken_up_again(scenario, tmp_path):
    study, policy, page = tmp_path / "study.db", tmp_path / "policy.toml", tmp_path / "page.html"
    common = ("tune", scenario, "--study", study, "--trials", "30", "--json")
    code, out, log = run(*common, "--model-only", "--out", policy, "--html", page)
    assert code == 0, log
    first = json.loads(out)
    assert (first["runs"], first["meets"]) == (0, True)
    assert read_policy(policy) == Policy(**first["recommended"]["policy"])
    assert "by the model alone" in policy.read_text()
    text = page.read_text()
    assert re.search(r"<h1>tiny: settings for the least downtime</h1>", text)
    assert text.count("<svg") == 4
    assert "<script" not in text
    code, out, log = run(*common, "--budget", "0", "--out", policy)
    assert code == 0, log
    assert json.loads(out)["runs"] == 1
    assert "by 1 real runs" in policy.read_text()
    code, out, _ = run(*common, "--budget", "0")
    assert json.loads(out)["runs"] == 2
    code, out, log = run(*common, "--model-only", "--out", "/dev/null/x")
    assert code == 2
    assert "cannot be written" in log


def test_ctrl_c_ends_it_with_what_was_found(scenario, tmp_path):
    policy = tmp_path / "policy.toml"
    common = ("--study", tmp_path / "study.db", "--trials", "30", "--json", "--out", policy)
    with running("tune", scenario, "--budget", "10min", *common) as command:
        command.wait_for("the model: 60 settings")
        command.wait_for("real runs: 600 s")
        command.process.send_signal(signal.SIGINT)
        code, out, log = command.end()
    assert code == 130
    assert log.endswith("interrupted: this is what was found by then\n")
    assert read_policy(policy) == Policy(**json.loads(out)["recommended"]["policy"])


def test_tuned_with_a_recorded_profile(tmp_path):
    devices, recorded = tmp_path / "devices.toml", tmp_path / "nic.toml"
    devices.write_text('[[device]]\nname = "nic0"\nprofile = "mlx5"\nstate_size = "8MiB"\n')
    code, _, log = run("record", devices, "--for", "300ms", "--stop-copy", "--to-file", recorded)
    assert code == 0, log
    scenario = tmp_path / "mine.toml"
    table = f'name = "nic"\ncount = 2\nprofile = "{recorded}"'
    scenario.write_text(f'[wire]\nkind = "loopback"\n[[device]]\n{table}\n')
    common = ("tune", scenario, "--study", tmp_path / "study.db", "--trials", "30", "--json")
    for runs in (1, 2):
        code, out, log = run(*common, "--budget", "0")
        assert code == 0, log
        found = json.loads(out)
        assert (found["runs"], found["meets"]) == (runs, True)
    assert found["before"]["measured"]["downtime"] > 0.05  # the arcs that were recorded


def test_send_takes_the_policy_and_what_is_given_besides_counts(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("[policy]\ndowntime_limit = '2s'\nchannels = 3\ndigest = false\n")
    common = ("demo", "--json", "--policy", policy)
    code, out, log = run(*common, "--channels", "2")
    assert code == 0, log
    used = json.loads(out)["policy"]
    assert (used["downtime_limit"], used["channels"], used["digest"]) == (2.0, 2, False)
    policy.write_text("[policy]\nspeed = 9\n")
    code, out, log = run(*common)
    assert code == 2
    assert f"{policy}: unknown key 'speed'" in log

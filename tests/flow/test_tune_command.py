"""`vfioflow bench predict`, `bench model` and `tune`, as commands."""

import json
import re

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

"""A slice of the chaos runs: see docs/testing.md."""

import os
import subprocess
import sys

import msgspec
import pytest
from chaos.draw import KINDS, schedule
from chaos.many import Summary
from chaos.mutants import MUTATIONS, ROOT

SEEDS = range(253, 403)  # the first 150 in a row that have every kind of fault


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """The runs fork, so they need a process with one thread: not this one."""
    file = tmp_path_factory.mktemp("chaos") / "summary.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.chaos", "--json", file),
            *("--runs", str(len(SEEDS)), "--start", str(SEEDS[0])),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert file.exists(), ran.stdout + ran.stderr
    return msgspec.json.decode(file.read_bytes(), type=Summary), ran


def test_no_run_violates_an_invariant(summary):
    result, ran = summary
    assert result.violations == {}, ran.stdout
    assert ran.returncode == 0
    assert ran.stderr == ""
    assert result.runs == len(SEEDS)


def test_the_slice_has_each_kind_of_fault_and_both_outcomes(summary):
    result, _ = summary
    assert set(result.by_kind) == set(KINDS)
    assert {"the source runs", "the destination runs"} <= set(result.results)


def test_a_schedule_is_a_function_of_its_seed():
    assert [schedule(seed) for seed in SEEDS] == [schedule(seed) for seed in SEEDS]
    assert len({str(schedule(seed)) for seed in SEEDS}) == len(SEEDS)


def test_every_mutation_has_its_place():
    places = {m.name: (ROOT / m.file).read_text(encoding="utf-8").count(m.old) for m in MUTATIONS}
    assert places == dict.fromkeys(places, 1)

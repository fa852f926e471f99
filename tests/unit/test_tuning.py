"""The search for settings: what it tries, what it keeps, what it recommends."""

from dataclasses import replace

import pytest

from vfioflow import ConfigError, Policy
from vfioflow.lab.model import Known
from vfioflow.lab.scenario import Outcome, parse_scenario
from vfioflow.lab.tuning import Candidate, Figures, _front, tune
from vfioflow.policy_table import read_policy, table_of

KNOWN = Known(rate=1e12)
TEXT = """
    [wire]
    kind = "namespaces"
    rate = "1Gbit"
    [policy]
    downtime_limit = "{limit}"
    [[device]]
    name = "gpu"
    profile = "generic"
    state_size = "128MiB"
    initial_bytes = "120MiB"
    dirty_rate = "{dirty}"
    content = "structured"
"""


def scenario(limit="500ms", dirty="20MiB"):
    return parse_scenario(TEXT.format(limit=limit, dirty=dirty), "gpu", "gpu.toml")


def ran(policy, downtime, total=1.0, size=100):
    return Outcome(downtime=downtime, total=total, bytes_wire=size)


class Clock:
    """Each real run takes a second."""

    def __init__(self):
        self.now = 0.0
        self.policies = []

    def __call__(self):
        return self.now

    def run(self, answer):
        def evaluate(policy):
            self.now += 1.0
            self.policies.append(policy)
            return answer(policy)

        return evaluate


def search(where, answer, clock, *, budget=30.0, **more):
    return tune(
        where,
        evaluate=clock.run(answer),
        budget=budget,
        clock=clock,
        known=KNOWN,
        trials=60,
        **more,
    )


def test_the_model_alone_finds_settings_that_keep_the_limit():
    found = tune(scenario(), known=KNOWN, trials=80, objective="bytes")
    assert found.meets
    assert found.runs == 0
    assert found.recommended.predicted.downtime <= 0.5
    assert found.recommended.predicted.bytes < found.before.predicted.bytes  # half of it compresses
    assert found.recommended.policy.compression != "none"
    assert set(found.importances) == {
        *("threshold", "channels", "chunk_bits", "compression", "max_iterations")
    }
    assert found.importances["compression"] == max(found.importances.values())
    assert found.trials == 160  # and as many at random


def test_what_does_not_matter_is_not_blamed():
    found = tune(scenario(), known=KNOWN, trials=300)
    assert found.importances["threshold"] + found.importances["compression"] > 0.9


def test_the_same_search_finds_the_same():
    one, two = (tune(scenario(), known=KNOWN, trials=40) for _ in range(2))
    assert one == two


def test_real_runs_take_turns_and_their_medians_decide():
    """The model likes compression; here it is slow, which it does not know."""
    clock = Clock()

    def answer(policy):
        slow = policy.compression != "none"
        return ran(policy, 0.4 if slow else 0.3 + 0.001 * len(clock.policies))

    found = search(scenario(), answer, clock, budget=27.0)
    assert found.runs == len(clock.policies) == 27
    assert found.recommended.policy.compression == "none"
    assert found.before.runs >= 3
    assert clock.policies[0] == found.before.policy
    each = [c for c in found.front if c.runs]
    assert all(c.measured is not None for c in each)


def test_one_run_is_made_in_any_case():
    clock = Clock()
    assert search(scenario(), lambda policy: ran(policy, 0.1), clock, budget=0.0).runs == 1


def test_what_keeps_the_limit_goes_before_what_is_faster_in_all():
    clock = Clock()

    def answer(policy):
        over = policy.compression == "none"
        return ran(policy, 0.7 if over else 0.45, total=1.0 if over else 9.0)

    found = search(scenario(), answer, clock, objective="total")
    assert found.meets
    assert found.recommended.measured == Figures(0.45, 9.0, 100.0)


def test_no_settings_that_keep_it():
    clock = Clock()
    found = search(
        scenario(), lambda policy: ran(policy, 0.6 + 0.01 * policy.channels), clock, budget=60.0
    )
    assert not found.meets
    assert found.recommended.measured.downtime == min(
        c.measured.downtime for c in found.front if c.runs
    )


def test_settings_that_fail_now_and_then_are_not_recommended():
    clock = Clock()

    def answer(policy):
        if policy.compression == "none":
            return ran(policy, 0.3)
        failed = len(clock.policies) % 2
        return Outcome(error="it broke") if failed else ran(policy, 0.1)

    found = search(scenario(), answer, clock, budget=50.0)
    assert found.recommended.failed == 0


def test_a_study_is_taken_up_again_and_nothing_is_counted_twice(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    clock = Clock()
    first = search(scenario(), lambda p: ran(p, 0.3), clock, budget=5.0, storage=storage)
    second = search(scenario(), lambda p: ran(p, 0.3), clock, budget=4.0, storage=storage)
    assert (first.runs, second.runs) == (5, 9)
    assert tune(scenario(), known=KNOWN, trials=60, storage=storage).runs == 9


def test_a_run_that_is_interrupted_does_not_count(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    clock = Clock()

    def answer(policy):
        if len(clock.policies) == 3:
            raise KeyboardInterrupt
        return ran(policy, 0.3)

    with pytest.raises(KeyboardInterrupt):
        search(scenario(), answer, clock, storage=storage)
    assert tune(scenario(), known=KNOWN, trials=60, storage=storage).runs == 2


def test_a_study_of_another_scenario_is_refused(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    tune(scenario(), known=KNOWN, trials=5, storage=storage)
    with pytest.raises(ConfigError, match="another scenario called gpu"):
        tune(scenario(limit="400ms"), known=KNOWN, trials=5, storage=storage)
    with pytest.raises(ConfigError, match="cannot be kept in sqlite:////dev/null/x"):
        tune(scenario(), known=KNOWN, trials=5, storage="sqlite:////dev/null/x")


def test_a_scenario_that_migrates_with_no_settings():
    hopeless = scenario(limit="1ms", dirty="4GiB")
    with pytest.raises(ConfigError, match="would not migrate with any settings"):
        search(hopeless, lambda policy: ran(policy, 1.0), Clock())


def test_the_front_has_what_nothing_beats():
    def candidate(*figures):
        return Candidate({}, Policy(), Figures(*figures))

    points = [(1, 5, 5), (2, 2, 2), (2, 3, 2), (5, 1, 9), (2, 2, 2)]
    front = _front([candidate(*point) for point in points])
    assert [c.predicted for c in front] == [Figures(*p) for p in [(1, 5, 5), (2, 2, 2), (5, 1, 9)]]


def test_a_policy_that_is_written_is_read_again(tmp_path):
    policy = replace(
        Policy(),
        downtime_limit=0.25,
        channels=3,
        compression="zstd:-5",
        digest=False,
        window=1 << 20,
    )
    path = tmp_path / "policy.toml"
    path.write_text(table_of(policy))
    assert read_policy(path) == policy
    path.write_text("downtime_limit = '1s'")
    assert read_policy(path) == Policy(downtime_limit=1.0)
    path.write_text("[policy]\nno_such = 1")
    with pytest.raises(ConfigError, match=r"policy.toml: unknown key 'no_such'"):
        read_policy(path)
    path.write_text("policy = 3")
    with pytest.raises(ConfigError, match=r"must be a table \[policy\]"):
        read_policy(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_policy(tmp_path / "missing.toml")

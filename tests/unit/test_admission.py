"""Who may migrate, with whom, and why not: each rule, and what it says."""

import re
from pathlib import Path

import pytest

from vfioflow import Policy
from vfioflow.admission import RULES, Circumstances, Facts, Level, judge
from vfioflow.states import FLAG_SETS, Flags

STOP_COPY, P2P, PRE_COPY, ALL = FLAG_SETS
MIB = 1 << 20


def facts(name="net0", driver="mlx5_vfio_pci", flags=ALL, **more):
    return Facts(name=name, driver=driver, flags=flags, **more)


def around(rate=None, limit=0.3, **more):
    policy = Policy(downtime_limit=limit, **more.pop("policy", {}))
    return Circumstances(policy=policy, bandwidth=rate, **more)


ACC = facts("acc0", "hisi_acc_vfio_pci", PRE_COPY)
GPU = facts("gpu0", "xe_vfio_pci", P2P, stop_copy_bytes=64 * MIB)
NET = facts()
SLOW = facts(arc_seconds={"STOP->RUNNING_P2P": 0.2, "PRE_COPY->PRE_COPY_P2P": 0.15})


def there(**changes):
    return [facts(**changes)]


CASES = {
    "no-devices": ([], {}, None, "there is no device to migrate"),
    "name": ([NET, NET], {}, None, "two devices of the set have this name"),
    "usable": ([facts(why_not="no permission to open /dev/vfio/9")], {}, None, "no permission"),
    "stop-copy": ([facts(driver="x", flags=Flags.NONE)], {}, None, "its driver x does not support"),
    "state": ([facts(state="STOP")], {}, None, "it is in STOP; only a RUNNING device"),
    "p2p": ([NET, ACC, GPU], {}, None, "no P2P states: net0 and gpu0 could not be kept from DMA"),
    "alone": ([ACC], {}, None, "has no P2P states"),
    "late-load": ([facts(late_load=True)], {}, None, "not that it is loaded"),
    "dirty-tracking": ([facts(tracking="none")], {}, None, "tells which pages of guest memory"),
    "viommu": ([facts(tracking="device")], {"viommu": True}, None, "the guest's own IOMMU"),
    "bitmap-size": ([facts(tracking="iommu")], {"guest_memory": 9 << 40}, None, "9.0 TiB of guest"),
    "feature": ([NET], {"features": frozenset({"postcopy"})}, None, "as postcopy needs"),
    "downtime": ([SLOW], {"rate": 1e9}, None, "at least 350 ms: state changes and round trips 350"),
    "large": ([GPU], {"rate": 400e6}, None, "its 64.0 MiB take 168 ms of the downtime limit"),
    "missing": ([NET], {}, [], "the destination has no device of this name"),
    "free": ([NET], {}, there(state="RESUMING"), "at the destination it is in RESUMING"),
    "driver": ([NET], {}, there(driver="xe_vfio_pci"), "the destination's is xe_vfio_pci"),
    "flags": ([NET], {}, there(flags=P2P), "the destination's lacks PRE_COPY"),
    "model": ([facts(model="a:1")], {}, there(model="a:2"), "it is a a:1, the destination's is a a:2"),
    "firmware": ([facts(firmware="1")], {}, there(firmware="2"), "its firmware is 1, the dest"),
    "version": ([facts(version="1")], {}, there(version="2"), "its driver is of version 1"),
    "empty": ([NET], {}, [NET, GPU], "it would stay empty"),
}  # fmt: skip
CONDITIONS = {"alone", "late-load", "dirty-tracking", "large", "version"}


@pytest.mark.parametrize("rule", CASES)
def test_what_a_rule_says(rule):
    devices, more, destination, words = CASES[rule]
    verdict = judge(devices, around(**more), destination=destination)
    [finding] = [f for f in verdict.findings if f.rule == rule]
    assert words in finding.reason
    assert finding.remedy
    assert finding.level is (Level.CONDITION if rule in CONDITIONS else Level.MAY_NOT)
    assert verdict.level >= finding.level
    if finding.level is Level.MAY_NOT:
        said = verdict.reasons()[finding.devices[0] if finding.devices else "(all)"]
        assert f"{finding.reason}; {finding.remedy}" in said


@pytest.mark.parametrize("rule", CASES)
def test_no_rule_speaks_without_need(rule):
    """A set that has nothing against it: also not when all is known of it."""
    known = facts(
        tracking="iommu", stop_copy_bytes=MIB, version="6.1", firmware="28.41", model="15b3:101e"
    )
    circumstances = around(1e9, guest_memory=8 << 40)
    for destination in (None, [known]):
        verdict = judge([known], circumstances, destination=destination)
        assert rule not in {f.rule for f in verdict.findings}
        assert verdict.level is Level.MAY
        assert verdict.reasons() == {}


def test_every_rule_is_tried_and_documented():
    assert list(CASES) == [rule.name for rule in RULES]
    page = Path(__file__).parents[2].joinpath("docs/admission.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+?) \|", page, re.MULTILINE)
    assert rows == [(rule.name, rule.when) for rule in RULES]


def test_one_device_needs_no_p2p():
    verdict = judge([ACC])
    assert verdict.level is Level.CONDITION
    assert verdict.reasons() == {}


def test_a_set_needs_p2p_of_each_and_says_whose_is_missing():
    verdict = judge([NET, ACC, GPU])
    assert list(verdict.reasons()) == ["acc0"]
    [finding] = verdict.of("acc0")
    assert finding.because == ("net0", "gpu0")
    assert finding.remedy == "migrate it alone, or without it; or see docs/access-queue.md"


def test_with_an_access_queue_such_a_set_may_under_a_condition():
    around = Circumstances(policy=Policy(access_queue="writes"))
    verdict = judge([NET, ACC, GPU], around)
    assert (verdict.level, verdict.reasons()) == (Level.CONDITION, {})
    [finding] = verdict.of("acc0")
    assert (finding.rule, finding.level, finding.because) == (
        "p2p",
        Level.CONDITION,
        ("net0", "gpu0"),
    )
    assert finding.reason.endswith("net0 and gpu0 may write to it while it stands still")
    assert "trapped, queued and replayed" in finding.remedy
    assert judge([NET, GPU], around).level is Level.MAY


def test_more_flags_at_the_destination_do_no_harm():
    assert judge([facts(flags=P2P)], destination=[NET]).level is Level.MAY


@pytest.mark.parametrize(
    ("driver", "level"), [("mlx5_vfio_pci", Level.MAY_NOT), ("other", Level.CONDITION)]
)
def test_another_firmware_matters_to_some_drivers(driver, level):
    verdict = judge(
        [facts(driver=driver, firmware="1")], destination=there(driver=driver, firmware="2")
    )
    assert verdict.level is level


def test_the_sum_of_what_has_no_pre_copy_counts():
    devices = [facts(f"gpu{n}", "xe_vfio_pci", P2P, stop_copy_bytes=20 * MIB) for n in range(8)]
    assert judge(devices[:4], around(400e6)).level is Level.MAY
    verdict = judge(devices, around(400e6))
    assert verdict.reasons()["(all)"].startswith("the downtime would be at least 419 ms: without ")
    assert verdict.seconds == pytest.approx(8 * 20 * MIB / 400e6)


def test_who_switches_over_all_the_same_gets_a_condition():
    lenient = around(400e6, limit=0.01, policy={"on_no_convergence": "switchover"})
    assert judge([GPU], lenient).level is Level.CONDITION


def test_a_size_that_is_not_known_is_said():
    verdict = judge([facts("gpu0", "xe_vfio_pci", P2P)], around(1e9))
    [finding] = [f for f in verdict.findings if f.rule == "downtime"]
    assert (finding.level, finding.devices) == (Level.CONDITION, ("gpu0",))
    assert "does not tell its size" in finding.reason


def test_several_reasons_for_one_device_are_all_said():
    verdict = judge([facts()], destination=there(driver="x", flags=P2P))
    said = verdict.reasons()["net0"]
    assert "the destination's is x" in said
    assert "lacks PRE_COPY" in said

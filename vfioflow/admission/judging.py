"""What all rules say of a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vfioflow.admission.facts import Circumstances, Facts
from vfioflow.admission.rules import RULES, Case
from vfioflow.admission.verdict import Verdict

__all__ = ["judge"]


def judge(
    devices: Sequence[Facts],
    around: Circumstances | None = None,
    *,
    destination: Iterable[Facts] | None = None,
) -> Verdict:
    """What becomes of this set, migrated together.

    Args:
        devices: the set, as it is at the source.
        around: what is known besides.
        destination: the devices there; None: nothing is known of them.
    """
    there = None if destination is None else {device.name: device for device in destination}
    case = Case(tuple(devices), around or Circumstances(), there)
    findings = tuple(finding for rule in RULES for finding in rule.findings(case))
    return Verdict(tuple(device.name for device in devices), findings, case.seconds)

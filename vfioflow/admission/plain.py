"""Facts and verdicts as what JSON can say."""

from __future__ import annotations

from typing import Any

from vfioflow.admission.facts import Facts
from vfioflow.admission.rules import RULES
from vfioflow.admission.verdict import Verdict
from vfioflow.states import Flags

__all__ = ["facts_as_dict", "findings_as_dicts", "level_of"]

_SOURCES = {rule.name: rule.source for rule in RULES}


def level_of(level: Any) -> str:
    """May, may not, or with a condition."""
    return str(level.name).lower().replace("_", "-")


def findings_as_dicts(verdict: Verdict) -> list[dict[str, Any]]:
    """Each finding with its rule, and where that comes from."""
    return [
        {
            "rule": f.rule,
            "level": level_of(f.level),
            "devices": list(f.devices),
            "because": list(f.because),
            "reason": f.reason,
            "remedy": f.remedy,
            "source": _SOURCES[f.rule],
        }
        for f in verdict.findings
    ]


def facts_as_dict(device: Facts) -> dict[str, Any]:
    """One device."""
    return {
        "name": device.name,
        "driver": device.driver,
        "flags": [str(flag.name) for flag in Flags if flag and flag in device.flags],
        "dirty_tracking": device.tracking,
        "stop_copy_bytes": device.stop_copy_bytes,
        "state": device.state if not device.why_not else None,
        "driver_version": device.version,
        "firmware": device.firmware,
        "model": device.model,
        "iommufd": device.iommufd,
        "why_not": device.why_not,
    }

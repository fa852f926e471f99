"""A verdict: what every rule finds about a set of devices."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Finding", "Level", "Verdict"]


class Level(enum.IntEnum):
    """How much something stands in the way."""

    MAY = 0
    CONDITION = 1
    MAY_NOT = 2

    def __str__(self) -> str:
        return ("may migrate", "may migrate with a condition", "may not migrate")[self]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says, of these devices (none: of the set as a whole).

    ``because``: other devices, the first sixteen, without any of which it would not be said.
    ``remedy``: what would make it possible, or what has to be seen to.
    """

    rule: str
    level: Level
    devices: tuple[str, ...]
    reason: str
    remedy: str
    because: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Of a set.

    ``findings`` are in the order of the rules; ``seconds`` is the downtime that no pre-copy
    shortens, None where that is not known.
    """

    devices: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: float | None

    @cached_property
    def level(self) -> Level:
        """Of the whole set."""
        return max((f.level for f in self.findings), default=Level.MAY)

    def of(self, device: str) -> tuple[Finding, ...]:
        """What is said of one device."""
        return tuple(f for f in self.findings if device in f.devices)

    def reasons(self) -> dict[str, str]:
        """Why the set may not migrate, by device; what concerns the whole set under "(all)"."""
        reasons: dict[str, str] = {}
        for finding in self.findings:
            if finding.level is Level.MAY_NOT:
                for name in finding.devices or ("(all)",):
                    text = f"{finding.reason}; {finding.remedy}"
                    reasons[name] = f"{reasons[name]}; {text}" if name in reasons else text
        return reasons

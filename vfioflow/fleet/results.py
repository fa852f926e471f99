"""A plan, and what came of it when it was simulated, as JSON has it.  Pure.

Units are in the names.  `docs/evacuate.schema.json` is the schema.
"""

from __future__ import annotations

import msgspec

__all__ = ["Comparison", "GroupResult", "Help", "MachineResult", "Plan", "Stays"]


class MachineResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine leaves.  ``_s``: seconds since the evacuation begins.

    ``send_limit_ms``: the downtime limit to give to `vfioflow send`; to be raised by a tenth each
    second, up to ``downtime_limit_ms``, when pre-copy has gone on for ``patience_s``, or gives up.
    ``bound_ms``: no schedule gives it a shorter downtime.  ``held_s``: for how long it could have
    switched over, and another stood still.
    """

    name: str
    group: int
    priority: int
    deadline_s: float | None
    downtime_limit_ms: float
    send_limit_ms: float
    patience_s: float
    started_s: float
    stopped_s: float
    drained_s: float
    left_s: float
    downtime_ms: float
    bound_ms: float
    held_s: float
    rounds: int
    bytes_total: int
    bytes_stopcopy: int
    late: bool = False
    """Away after its deadline."""


class GroupResult(msgspec.Struct, frozen=True):
    """Machines that begin together; the next group begins ``end_s``, when their last byte is there."""

    machines: list[str]
    begin_s: float
    end_s: float
    why: list[str]
    """Sentences."""


class Help(msgspec.Struct, frozen=True):
    """What would let a machine leave, by itself and as little of it as needed.

    ``kind`` is "downtime_limit" (``value`` in seconds), "wire" (bytes per second) or "dirty_rate" (the
    share of the present rate).
    """

    kind: str
    value: float
    words: str


class Stays(msgspec.Struct, frozen=True):
    """A machine that cannot leave within its limit, although it has the wire to itself."""

    name: str
    downtime_limit_ms: float
    bound_ms: float
    reason: str
    would_help: list[Help]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Another way for the machines that can leave, or the plan under other circumstances.

    ``stayed``, ``over_limit``, ``late``: machines that gave up, that stood still for longer than their
    limits, that missed their deadlines.  ``downtime_ms`` is that of those that left.  ``mean_left_s``:
    when they left, on the average by priority.
    """

    name: str
    left: int
    downtime_ms: float
    end_s: float
    mean_left_s: float
    stayed: list[str]
    over_limit: list[str]
    late: list[str]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.  ``exact``: no other way with groups of up to ``most_at_once`` is better.

    ``bound_ms``: no schedule whatever gives a shorter total downtime.
    """

    schema_version: int = 1
    wire_rate: int
    wire_latency_s: float
    most_at_once: int
    exact: bool
    simulated_groups: int
    groups: list[GroupResult]
    machines: list[MachineResult]
    stay: list[Stays]
    downtime_ms: float
    bound_ms: float
    end_s: float
    mean_left_s: float
    compared: list[Comparison]

    @property
    def over_bound(self) -> float:
        """The total downtime in multiples of the bound; 1.0 where nobody leaves."""
        return self.downtime_ms / self.bound_ms if self.bound_ms else 1.0

    @property
    def late(self) -> list[str]:
        """Who misses the deadline."""
        return [machine.name for machine in self.machines if machine.late]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()

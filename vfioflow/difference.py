"""What changed from one report to another.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vfioflow.report import Report

__all__ = ["Change", "changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both; ``weight`` is by how much it differs, for their order."""

    name: str
    before: str
    after: str
    weight: float


def changes(before: Report, after: Report) -> list[Change]:
    """Figures that differ: the downtime first, then the others by how much, then the policy."""
    found = [
        _ms("total", before.total_ms, after.total_ms),
        *(
            _ms(f"step {step}", before.steps_ms.get(step), after.steps_ms.get(step))
            for step in dict.fromkeys([*before.steps_ms, *after.steps_ms])
        ),
        _number("bytes moved", before.bytes_total, after.bytes_total),
        _number("bytes on the wire", before.bytes_wire, after.bytes_wire),
        _number("bytes moved while stopped", before.bytes_stopcopy, after.bytes_stopcopy),
        _number("rounds", before.iterations, after.iterations),
        _number("bandwidth (bytes/s)", before.bandwidth, after.bandwidth),
        _ms("lower bound", before.lower_bound_ms, after.lower_bound_ms),
        _ms("predicted downtime", before.predicted_downtime_ms, after.predicted_downtime_ms),
    ]
    real = sorted((c for c in found if c.before != c.after), key=lambda c: -c.weight)
    names = dict.fromkeys([*before.policy, *after.policy])
    policy = [
        Change(f"policy {name}", str(before.policy.get(name)), str(after.policy.get(name)), 0.0)
        for name in names
        if before.policy.get(name) != after.policy.get(name)
    ]
    outcome = []
    if before.outcome != after.outcome:
        outcome = [Change("outcome", before.outcome, after.outcome, 0.0)]
    return [*outcome, _ms("downtime", before.downtime_ms, after.downtime_ms), *real, *policy]


def _ms(name: str, before: float | None, after: float | None) -> Change:
    weight = abs((after or 0.0) - (before or 0.0))
    return Change(name, _text_ms(before), _text_ms(after), weight + 1e6)


def _text_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _number(name: str, before: float | None, after: float | None) -> Change:
    one, other = before or 0.0, after or 0.0
    weight = abs(other - one) / max(one, other, 1.0)
    texts = ["-" if value is None else f"{value:,.0f}" for value in (before, after)]
    return Change(name, texts[0], texts[1], weight)

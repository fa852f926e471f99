"""A plan as one page of HTML.  Pure.  Needs ``pip install "vfioflow[report]"``."""

from __future__ import annotations

from html import escape

from vfioflow.fleet.results import Plan
from vfioflow.page.charts import Row, schedule
from vfioflow.page.html import section, table, whole

__all__ = ["page"]


def page(plan: Plan) -> str:
    """The whole page.  Raises ConfigError without matplotlib."""
    everybody = len(plan.machines) + len(plan.stay)
    title = f"{len(plan.machines)} of {everybody} machines leave in {plan.end_s:.1f} s"
    parts = [f"<h1>{escape(title)}</h1>", _answer(plan), _figures(plan)]
    if plan.machines:
        parts += [
            section("Who is under way when", _picture(plan)),
            section("Machines", _machines(plan)),
        ]
        parts.append(section("Why this order", _why(plan)))
    if plan.stay:
        parts.append(section("Cannot leave within the limit", _stay(plan)))
    if plan.compared:
        parts.append(section("Compared", _compared(plan)))
    return whole(title, parts)


def _answer(plan: Plan) -> str:
    kind = "the best of all ways" if plan.exact else "the best way that was found"
    lines = [
        f"<p>{plan.downtime_ms:.0f} ms of downtime in all; no schedule whatever could give less than"
        f" {plan.bound_ms:.0f} ms. This is {kind} with up to {plan.most_at_once} machines at once.</p>"
    ]
    if plan.late:
        lines.append(f'<p class="bad">After the deadline: {escape(", ".join(plan.late))}</p>')
    return f'<div class="answer">{"".join(lines)}</div>'


def _figures(plan: Plan) -> str:
    found = [
        ("downtime in all", f"{plan.downtime_ms:.0f} ms"),
        ("its lower bound", f"{plan.bound_ms:.0f} ms"),
        ("the last has left", f"{plan.end_s:.1f} s"),
        ("on the average, by priority", f"{plan.mean_left_s:.1f} s"),
        ("the wire", f"{plan.wire_rate * 8 / 1e9:.3g} Gbit/s"),
    ]
    cells = "".join(f"<div>{escape(name)}<b>{escape(value)}</b></div>" for name, value in found)
    return f'<div class="figures">{cells}</div>'


def _picture(plan: Plan) -> str:
    rows = [Row(m.name, m.started_s, m.stopped_s, m.left_s, m.deadline_s) for m in plan.machines]
    legend = (
        '<p class="dim">Thin: pre-copy, the machine runs here. Thick: its downtime, at least as wide as'
        " can be seen. A stroke: its deadline.</p>"
    )
    return schedule(rows) + legend


def _machines(plan: Plan) -> str:
    rows = [
        (
            machine.name,
            str(machine.group),
            f"{machine.started_s:.1f} s",
            f"{machine.left_s:.1f} s",
            "-" if machine.deadline_s is None else f"{machine.deadline_s:.1f} s",
            f"{machine.downtime_ms:.0f} ms",
            f"{machine.bound_ms:.0f} ms",
            f"{machine.downtime_limit_ms:.0f} ms",
            f"{machine.send_limit_ms:.0f} ms",
        )
        for machine in plan.machines
    ]
    titles = (
        *("machine", "group", "begins", "has left", "deadline"),
        *("downtime", "bound", "limit", "send with"),
    )
    return table(titles, rows, numbers=range(1, 8))


def _why(plan: Plan) -> str:
    items = []
    for group in plan.groups:
        if group.why:
            lines = "".join(f"<li>{escape(line)}</li>" for line in group.why)
            items.append(f"<p><b>{escape(', '.join(group.machines))}</b></p><ul>{lines}</ul>")
    return "".join(items) or "<p>There is only one group.</p>"


def _stay(plan: Plan) -> str:
    rows = [
        (
            each.name,
            f"{each.downtime_limit_ms:.0f} ms",
            f"{each.bound_ms:.0f} ms",
            each.reason,
            "; or ".join(help_.words for help_ in each.would_help) or "nothing that was tried",
        )
        for each in plan.stay
    ]
    return table(("machine", "limit", "bound", "why", "would help"), rows, numbers=(1, 2))


def _compared(plan: Plan) -> str:
    rows = [
        (
            each.name,
            str(each.left),
            f"{each.downtime_ms:.0f} ms",
            f"{each.mean_left_s:.1f} s",
            f"{each.end_s:.1f} s",
            ", ".join(each.stayed) or "-",
            ", ".join(each.over_limit) or "-",
            ", ".join(each.late) or "-",
        )
        for each in plan.compared
    ]
    mine = (
        *("this plan", str(len(plan.machines)), f"{plan.downtime_ms:.0f} ms"),
        *(
            f"{plan.mean_left_s:.1f} s",
            f"{plan.end_s:.1f} s",
            "-",
            "-",
            ", ".join(plan.late) or "-",
        ),
    )
    titles = ("", "left", "downtime", "mean", "end", "stayed", "over the limit", "late")
    return table(titles, [mine, *rows], numbers=range(1, 5))

"""The page of a search for settings: what is recommended, the front, and what mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

from vfioflow.page.charts import DIM, INK, SERIES, both
from vfioflow.page.html import section, table, whole
from vfioflow.policy import Policy

if TYPE_CHECKING:
    from vfioflow.lab.tuning import Candidate, Figures, Tuned

__all__ = ["page"]

_WORDS = {
    "threshold": "how much of the downtime limit is aimed at",
    "channels": "connections",
    "chunk_bits": "chunk size",
    "compression": "compression",
    "max_iterations": "rounds at most",
}


def page(found: Tuned) -> str:
    """The whole page."""
    title = f"{found.scenario.name}: settings for the least {found.objective}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(found.scenario.about)}; {found.trials} settings in the model,'
        f" {found.runs} real runs</p>",
        f'<div class="answer"><p>{escape(_answer(found))}</p></div>',
        section("What changes", _changes(found)),
        section("Downtime and time in all", _front_picture(found)),
        section("The front", _front_table(found)),
        section("What decided it, in the model", _importances(found)),
    ]
    return whole(title, parts)


def _answer(found: Tuned) -> str:
    now, before = found.recommended.figures, found.before.figures
    assert now is not None
    limit = found.scenario.policy.downtime_limit
    kind = "measured" if found.recommended.runs else "predicted"
    said = f"{now.downtime * 1e3:.0f} ms of downtime, {kind}"
    if not found.meets:
        said += (
            f": over the limit of {limit * 1e3:.0f} ms. No settings keep it; these come nearest."
        )
    else:
        said += f", of {limit * 1e3:.0f} ms that are allowed."
    if before is not None and found.before.policy != found.recommended.policy:
        said += f" With the scenario's own settings it is {before.downtime * 1e3:.0f} ms."
    most = next(iter(found.importances), "")
    if most:
        said += f" What decides most is {_WORDS.get(most, most)}."
    return said


def _changes(found: Tuned) -> str:
    before, after = found.before.policy, found.recommended.policy
    rows = [
        (field.name, str(getattr(before, field.name)), str(getattr(after, field.name)))
        for field in fields(Policy)
        if getattr(before, field.name) != getattr(after, field.name)
    ]
    return (
        table(("setting", "before", "recommended"), rows)
        if rows
        else "<p>Nothing: it is the best.</p>"
    )


def _front_picture(found: Tuned) -> str:
    def draw(axes: Any, narrow: bool) -> None:
        del narrow
        kinds = (
            ("the front", found.front, SERIES[0], 28),
            ("before", (found.before,), DIM, 70),
            ("recommended", (found.recommended,), SERIES[1], 70),
        )
        for label, candidates, colour, size in kinds:
            points = [c.figures for c in candidates if c.figures is not None]
            axes.scatter(
                [p.total for p in points],
                [p.downtime * 1e3 for p in points],
                s=size,
                color=colour,
                label=label,
                zorder=3,
            )
        axes.axhline(found.scenario.policy.downtime_limit * 1e3, color=INK, lw=0.8, ls="--")
        axes.set_xlabel("seconds in all")
        axes.set_ylabel("downtime, ms")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=INK)

    return both(draw, 3.4, "downtime against time in all; the dashed line is the downtime limit")


def _front_table(found: Tuned) -> str:
    rows = [
        (
            f"{_figures(each).downtime * 1e3:.0f} ms",
            f"{_figures(each).total:.2f} s",
            f"{_figures(each).bytes / 2**20:.1f} MiB",
            str(each.policy.channels),
            each.policy.compression,
            f"{each.policy.chunk_size >> 10} KiB",
            f"{each.policy.downtime_limit * 1e3:.0f} ms",
            _runs(each),
        )
        for each in found.front[:40]
    ]
    titles = ("downtime", "in all", "wire", "channels", "compression", "chunk", "aims at", "runs")
    failed = any(each.failed for each in found.front)
    note = (
        "<p>Settings with which a run failed are not recommended, however fast the others were.</p>"
    )
    return table(titles, rows, numbers=(0, 1, 2, 3)) + (note if failed else "")


def _runs(candidate: Candidate) -> str:
    if not candidate.runs:
        return "the model's"
    return f"{candidate.runs}" + (f", and {candidate.failed} failed" if candidate.failed else "")


def _importances(found: Tuned) -> str:
    shares: Sequence[tuple[str, float]] = list(found.importances.items())[::-1]

    def draw(axes: Any, narrow: bool) -> None:
        del narrow
        axes.barh([_WORDS.get(n, n) for n, _ in shares], [s for _, s in shares], color=SERIES[0])
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"share of what decides the {found.objective}")

    words = ", ".join(f"{_WORDS.get(n, n)}: {s:.0%}" for n, s in found.importances.items())
    return both(draw, 2.2, words)


def _figures(candidate: Candidate) -> Figures:
    assert candidate.figures is not None
    return candidate.figures

"""The pictures of a report, as SVG whose colours are CSS variables, so that they fit light and dark.

Drawn by matplotlib.  Each picture is drawn wide and narrow; the page shows the one that fits.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vfioflow.errors import ConfigError
from vfioflow.report import Report

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError:
    raise ConfigError(
        'the page needs the package matplotlib: pip install "vfioflow[report]"'
    ) from None

__all__ = ["Row", "both", "downtime", "pending", "schedule", "throughput", "timeline"]

INK, DIM, PAPER = "#010203", "#020304", "#0a0b0c"
SERIES = ("#030405", "#040506", "#050607", "#060708", "#070809")
_VARIABLES = {
    INK: "--ink",
    DIM: "--dim",
    PAPER: "--paper",
    **{colour: f"--c{number}" for number, colour in enumerate(SERIES)},
}
_WIDE, _NARROW = 10.0, 4.4
"""Inches."""

_PHASES = {"pre-copy": SERIES[0], "stop-copy": SERIES[1], "hand over": SERIES[3]}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may have a dollar sign
    "svg.hashsalt": "vfioflow",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": DIM,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}

Draw = Callable[[Any, bool], None]
"""Draws on the axes; whether there is little room."""


def both(draw: Draw, height: float, words: str) -> str:
    """The picture, drawn wide and narrow, as HTML; ``words`` for those who cannot see it.

    ``height`` in inches.
    """
    parts = []
    for name, width in (("wide", _WIDE), ("narrow", _NARROW)):
        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            # It only measures the text; the browser has the glyphs.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure = Figure(figsize=(width, height), layout="constrained")
            axes = figure.subplots()
            draw(axes, name == "narrow")
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        parts.append(_inline(file.getvalue(), name, words))
    return "".join(parts)


def _inline(svg: str, name: str, words: str) -> str:
    """Without the file's head, in the colours of the page, as wide as there is room."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg class="{name}" role="img" aria-label="{label}"', 1)


def timeline(report: Report) -> str:
    """Phases, and the changes of state of each device, over time."""
    line = report.timeline
    end = max([report.total_ms / 1e3, *(phase.at for phase in line.phases), 1e-3])
    names = list(dict.fromkeys(arc.device for arc in line.arcs))

    def draw(axes: Any, narrow: bool) -> None:
        ends = [phase.at for phase in line.phases[1:]] + [end]
        for phase, until in zip(line.phases, ends, strict=False):
            colour = _PHASES.get(phase.name, DIM)
            width = max(until - phase.at, end / 500)
            axes.barh(0, width, left=phase.at, height=0.55, color=colour, alpha=0.85)
            if width > end * (0.12 if narrow else 0.06):
                axes.text(phase.at + width / 2, 0.45, phase.name, ha="center", va="bottom")
        for row, name in enumerate(names, 1):
            for arc in line.arcs:
                if arc.device == name:
                    seconds = max(arc.seconds or 0.0, end / 300)
                    axes.barh(-row, seconds, left=arc.at, height=0.5, color=SERIES[2])
        axes.set_yticks([0, *(-row for row in range(1, len(names) + 1))], ["phase", *names])
        axes.set_xlim(0, end * 1.01)
        axes.set_ylim(-len(names) - 0.6, 0.95)
        axes.set_xlabel("seconds since the session began")
        axes.tick_params(axis="y", length=0)

    words = f"{', '.join(phase.name for phase in line.phases)}; {len(line.arcs)} changes of state"
    return both(draw, 1.3 + 0.32 * len(names), words)


def pending(report: Report) -> str:
    """What was left, against what fits the downtime limit, round by round."""
    rounds = report.timeline.rounds

    def draw(axes: Any, _: bool) -> None:
        at = [judged.at for judged in rounds]
        left = [(j.exact if j.exact is not None else j.estimate) / 2**20 for j in rounds]
        axes.plot(at, left, color=SERIES[0], marker="o", markersize=3.5, label="pending")
        threshold = [judged.threshold / 2**20 for judged in rounds]
        axes.step(at, threshold, color=SERIES[1], where="post", label="threshold")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the session began")
        axes.set_ylabel("MiB")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98))

    words = f"{len(rounds)} rounds"
    return both(draw, 2.6, words)


def throughput(report: Report) -> str:
    """Device bytes per second between two looks at the counters."""
    samples = report.timeline.samples

    def draw(axes: Any, _: bool) -> None:
        at, device, wire = [], [], []
        step = max(report.total_ms / 1e3 / 120, 0.05)
        last = samples[0]
        for sample in samples[1:]:
            if sample.at - last.at >= step:
                at.append(sample.at)
                device.append((sample.moved - last.moved) / (sample.at - last.at) / 2**30)
                wire.append((sample.wire - last.wire) / (sample.at - last.at) / 2**30)
                last = sample
        axes.plot(at, device, color=SERIES[0], label="device bytes", drawstyle="steps-pre")
        axes.plot(
            at, wire, color=SERIES[3], label="on the wire", drawstyle="steps-pre", linestyle="--"
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the session began")
        axes.set_ylabel("GiB/s")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98))

    return both(draw, 2.4, f"{len(samples)} looks at the counters")


def downtime(report: Report) -> str:
    """The steps of the downtime, one after the other."""
    steps = {name: ms for name, ms in report.steps_ms.items() if ms >= 0.05}
    total = sum(steps.values()) or 1.0

    def draw(axes: Any, narrow: bool) -> None:
        at = 0.0
        for row, (name, ms) in enumerate(steps.items()):
            colour = SERIES[0] if name in ("drain", "load") else SERIES[2]
            axes.barh(-row, ms, left=at, height=0.6, color=colour)
            words = f"{ms:.1f} ms"
            if ms > total * (0.3 if narrow else 0.15):
                axes.text(at + ms / 2, -row, words, va="center", ha="center", color=PAPER)
            elif at + ms < total * 0.7:
                axes.text(at + ms + total * 0.01, -row, words, va="center")
            else:
                axes.text(at - total * 0.01, -row, words, va="center", ha="right")
            at += ms
        axes.set_yticks([-row for row in range(len(steps))], [n.replace("_", " ") for n in steps])
        axes.set_xlim(0, total * 1.02)
        axes.set_xlabel("milliseconds since the vCPUs stopped")
        axes.tick_params(axis="y", length=0)

    words = ", ".join(f"{name} {ms:.1f} ms" for name, ms in steps.items())
    return both(draw, 0.9 + 0.29 * len(steps), words)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a schedule: a name, and when its parts begin and end, in seconds."""

    name: str
    begin: float
    stopped: float
    end: float
    deadline: float | None = None


def schedule(rows: Sequence[Row]) -> str:
    """Who is under way when: pre-copy, the downtime, and deadlines where there are any."""
    end = max([row.end for row in rows] + [1e-3])

    def draw(axes: Any, narrow: bool) -> None:
        for number, row in enumerate(rows):
            axes.barh(
                -number, row.stopped - row.begin, left=row.begin, height=0.55, color=SERIES[0]
            )
            width = max(row.end - row.stopped, end / 300)
            axes.barh(-number, width, left=row.stopped, height=0.8, color=SERIES[1])
            if row.deadline is not None and row.deadline <= end * 1.2:
                axes.plot([row.deadline] * 2, [-number - 0.45, -number + 0.45], color=INK)
        axes.set_yticks([-number for number in range(len(rows))], [row.name for row in rows])
        axes.set_xlim(0, end * 1.02 if not narrow else end * 1.04)
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        axes.set_xlabel("seconds since the evacuation began")
        axes.tick_params(axis="y", length=0)

    words = ", ".join(f"{row.name} from {row.begin:.1f} to {row.end:.1f} s" for row in rows)
    return both(draw, 0.9 + 0.29 * len(rows), words)

"""The page around the pictures: one file, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vfioflow import advice
from vfioflow.difference import Change, changes
from vfioflow.page import charts
from vfioflow.report import DeviceReport, Report

__all__ = ["comparison", "page", "section", "table", "whole"]

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2126; --dim: #8a939c; --line: #e3e6e9;
  --card: #f6f7f8; --c0: #1f6fb2; --c1: #c2410c; --c2: #5b7f3a; --c3: #7c4daf; --c4: #a16207; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e6e9ec; --dim: #7d8791;
  --line: #2a3138; --card: #1c2227; --c0: #62a8e5; --c1: #f0935c; --c2: #9cc26f; --c3: #b794f0;
  --c4: #e0b252; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem; }
p { margin: .5rem 0; } .dim { color: var(--dim); }
.answer { background: var(--card); border-left: 4px solid var(--c0); padding: .9rem 1.1rem; margin: 1rem 0;
  border-radius: 0 6px 6px 0; }
.answer ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.figures { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.figures div { background: var(--card); border-radius: 6px; padding: .5rem .9rem; flex: 1 8.5rem; }
.figures b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td:last-child { white-space: normal; min-width: 9rem; }
th { font-weight: 600; color: var(--dim); } .n { text-align: right; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif; }
svg.narrow { display: none; }
@media (max-width: 640px) { svg.narrow { display: block; } svg.wide { display: none; } }
.bad { color: var(--c1); }
"""


def page(report: Report) -> str:
    """The whole page of a source's report."""
    parts = [
        f"<h1>{escape(_title(report))}</h1>",
        f'<p class="dim">session {escape(report.session)}, {escape(report.role)}, with'
        f" {escape(report.peer)}</p>",
        _answer(report),
        _figures(report),
    ]
    if report.steps_ms:
        parts += [section("Where the downtime went", charts.downtime(report)), _causes(report)]
        parts.append(_prediction(report))
    if report.timeline.phases:
        parts.append(section("What happened when", charts.timeline(report)))
    if report.timeline.rounds:
        parts.append(section("Pending against the threshold", charts.pending(report)))
    if len(report.timeline.samples) > 2:
        parts.append(section("Throughput", charts.throughput(report)))
    parts += [section("Devices", _devices(report.devices)), _policy(report)]
    return whole(_title(report), parts)


def comparison(before: Report, after: Report) -> str:
    """Two reports side by side: what changed, and the waterfall of each."""
    title = f"{_short(before)} against {_short(after)}"
    parts = [f"<h1>{escape(title)}</h1>", _table_of(changes(before, after))]
    for name, report in (("Before", before), ("After", after)):
        parts.append(f"<h2>{name}</h2><p>{escape(advice.headline(report))}</p>")
        if report.steps_ms:
            parts.append(charts.downtime(report))
    return whole(title, parts)


def whole(title: str, parts: Iterable[str]) -> str:
    """The page: ``parts`` are HTML, ``title`` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading, which is text, and HTML below it."""
    return f"<h2>{escape(title)}</h2>\n{body}"


def _short(report: Report) -> str:
    return _title(report).removeprefix("Migrated ")


def _title(report: Report) -> str:
    noun = "device" if len(report.devices) == 1 else "devices"
    if report.downtime_ms is None:
        return f"{len(report.devices)} {noun}: {report.outcome}"
    return f"Migrated {len(report.devices)} {noun}, {report.downtime_ms:.0f} ms of downtime"


def _answer(report: Report) -> str:
    lines = [f"<p>{escape(advice.headline(report))}</p>"]
    halves, worth = advice.to_halve(report), advice.remedies(report)
    if halves:
        lines.append("<p><b>What would halve it</b>, alone or together:</p>")
    elif worth:
        lines.append("<p><b>What would shorten it</b>; nothing here halves it:</p>")
    if chosen := halves or worth[:4]:
        lines.append("<ul>")
        lines += [f"<li>{escape(r.what)}: up to {r.saves_ms:.0f} ms</li>" for r in chosen]
        lines.append("</ul>")
    if report.error:
        lines.append(f'<p class="bad">{escape(report.error)}</p>')
    return f'<div class="answer">{"".join(lines)}</div>'


def _figures(report: Report) -> str:
    limit = report.downtime_limit_ms
    found = [
        ("downtime", _ms(report.downtime_ms)),
        ("its limit", _ms(limit)),
        ("predicted", _ms(report.predicted_downtime_ms)),
        ("lower bound", _ms(report.lower_bound_ms)),
        ("in all", f"{report.total_ms / 1e3:.2f} s"),
        ("moved", _size(report.bytes_total)),
    ]
    cells = "".join(f"<div>{escape(name)}<b>{escape(value)}</b></div>" for name, value in found)
    return f'<div class="figures">{cells}</div>'


def _causes(report: Report) -> str:
    rows = [
        (cause.name, f"{cause.ms:.1f} ms", f"{cause.ms / (report.downtime_ms or 1):.0%}", cause.why)
        for cause in advice.causes(report)
    ]
    return table(("part", "took", "share", "what it is"), rows, numbers=(1, 2))


def _prediction(report: Report) -> str:
    rows = [
        (part, f"{before:.0f} ms", f"{after:.0f} ms")
        for part, before, after in advice.prediction(report)
    ]
    titles = ("", "predicted", "happened")
    return section("Predicted and happened", table(titles, rows, numbers=(1, 2))) if rows else ""


def _devices(devices: Sequence[DeviceReport]) -> str:
    rows = [
        (
            device.name,
            device.profile,
            _size(device.bytes_precopy),
            _size(device.bytes_stopcopy),
            _size(device.bytes_wire),
            "-" if device.compression is None else f"{device.compression:.2f}",
            str(device.iterations or "-"),
            device.final_state,
        )
        for device in devices
    ]
    titles = (
        "device",
        "profile",
        "pre-copy",
        "stop-copy",
        "on the wire",
        "a byte",
        "rounds",
        "state",
    )
    return table(titles, rows, numbers=(2, 3, 4, 5, 6))


def _policy(report: Report) -> str:
    if not report.policy:
        return ""
    rows = [(name, str(value)) for name, value in report.policy.items()]
    body = table(("policy", "value"), rows)
    return f"<details><summary>The policy</summary>{body}</details>"


def _table_of(found: Sequence[Change]) -> str:
    rows = [(change.name, change.before, change.after) for change in found]
    return table(("", "before", "after"), rows, numbers=(1, 2))


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> str:
    """Rows of text under titles; the columns ``numbers`` are set to the right."""

    def cells(kind: str, words: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{_right(number in numbers)}>{escape(word)}</{kind}>"
            for number, word in enumerate(words)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", titles)}</tr>{body}</table></div>'


def _right(number: bool) -> str:
    return ' class="n"' if number else ""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _size(value: int | None) -> str:
    if not value:
        return "-"
    return f"{value / 2**20:.1f} MiB" if value < 1 << 30 else f"{value / 2**30:.2f} GiB"

"""A few cells of each comparison in under two minutes, against a stored reference of ratios.

A part in which something seems slower is measured again, and the better of the two counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.table import Table

from comparison import compressed, raw, reference, scale
from comparison.ends import DEVNULL, MEMFD, PIPE
from comparison.reference import Ratio, Verdict
from comparison.rounds import Cell
from comparison.stage import Stage
from comparison.wires import LOOPBACK

REFERENCE = Path(__file__).parents[1] / "reference.json"

Part = Callable[[Stage, int, int], dict[str, Ratio]]
"""Measures ratios by name, with so many bytes in a run, in so many rounds."""


def rows_of(cells: list[Cell], *, cpu: bool) -> dict[str, Ratio]:
    """The ratios of vfioflow's movers; ``cpu``: also those of CPU time, turned so that more is better."""
    found = {}
    for cell in cells:
        for row in cell.rows:
            if not row.mover.startswith("vfioflow") or row.mover == cell.yardstick:
                continue
            name = f"{cell.title}: {row.mover}"
            found[name] = Ratio(row.ratio, row.spread)
            if cpu and row.cpu_ratio > 0:
                found[f"{name}, CPU"] = Ratio(1 / row.cpu_ratio, row.spread)
    return found


def _raw(source: str, sink: str, devices: int) -> Part:
    def part(stage: Stage, size: int, rounds: int) -> dict[str, Ratio]:
        cells = raw.run(
            stage, size, rounds, sources=(source,), sinks=(sink,), wires=(LOOPBACK,),
            devices=(devices,), others=[],
        )  # fmt: skip
        return rows_of(cells, cpu=True)

    return part


def _compressed(content: str, wire: str) -> Part:
    def part(stage: Stage, size: int, rounds: int) -> dict[str, Ratio]:
        cells = compressed.run(
            stage, size, rounds, contents=(content,), wires=(wire,), fixed=("none", "zstd:1"),
            seconds=0.5,
        )  # fmt: skip
        found = rows_of(cells, cpu=False)
        return {name: ratio for name, ratio in found.items() if name.endswith(compressed.AUTO)}

    return part


def _scale(stage: Stage, size: int, rounds: int) -> dict[str, Ratio]:
    sessions, failures = scale.run(
        stage, [(1, size), (64, size), (16, size), (16, 4 * size)], rounds
    )
    for title, why in failures.items():
        stage.note(f"{title}: {why}")
    by_place = {(s.devices, s.size, s.round): s for s in sessions}
    rates, memory = [], []
    for number in range(rounds):
        one, many = (by_place.get((devices, size, number)) for devices in (1, 64))
        little, much = (by_place.get((16, bytes_, number)) for bytes_ in (size, 4 * size))
        if one and many:
            rates.append(many.rate / one.rate)
        if little and much:
            memory.append(little.target.peak_rss_mib / much.target.peak_rss_mib)
    found = {"migrations: 64 devices to 1": rates, "migrations: memory, little to much": memory}
    return {
        name: Ratio(median(values), (max(values) - min(values)) / 2)
        for name, values in found.items()
        if values
    }


PARTS: tuple[Part, ...] = (
    _raw(MEMFD, DEVNULL, 1),
    _raw(PIPE, MEMFD, 1),
    _raw(MEMFD, DEVNULL, 16),
    _compressed("mix", "veth 2.5"),
    _compressed("structured", LOOPBACK),
    _compressed("fp16", LOOPBACK),
    _scale,
)


def run(
    stage: Stage, size: int, rounds: int, known: dict[str, Ratio]
) -> tuple[dict[str, Ratio], list[Verdict]]:
    """All ratios, and how they compare with the ``known`` ones."""
    ratios: dict[str, Ratio] = {}
    for part in PARTS:
        found = part(stage, size, rounds)
        if any(verdict.slower for verdict in reference.compare(found, known)):
            found = reference.better(found, part(stage, size, rounds))
        ratios |= found
    return ratios, reference.compare(ratios, known)


def table(verdicts: list[Verdict]) -> Table:
    """For people."""
    result = Table(title="Ratios against the reference, more is better", title_justify="left")
    result.add_column("what")
    for heading in ("now", "±", "reference", "may be"):
        result.add_column(heading, justify="right")
    result.add_column("")
    for verdict in verdicts:
        old, now = verdict.reference, verdict.now
        mark = "new" if old is None else "[red]slower" if verdict.slower else "[green]ok"
        result.add_row(
            verdict.name,
            f"{now.value:.2f}",
            f"{now.spread:.2f}",
            "" if old is None else f"{old.value:.2f}",
            "" if old is None else f"{old.value * (1 - verdict.tolerance):.2f}",
            mark,
        )
    return result

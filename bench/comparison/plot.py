"""Results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from comparison.compressed import AUTO
from comparison.rounds import Cell
from comparison.scale import Line
from comparison.summary import GIB

_OURS = ("#0b4f8a", "#5aa0d8")
_OTHERS = ("#8c510a", "#d8a35d", "#7a7a7a", "#b2182b", "#ef8a7a")


def _bars(
    axes: Axes,
    groups: Sequence[str],
    series: dict[str, list[tuple[float, float] | None]],
    colours: Sequence[str],
) -> None:
    """Grouped bars with their spread; a missing one leaves a gap."""
    width = 0.84 / len(series)
    for number, (name, values) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * width
        there = [(i + offset, value) for i, value in enumerate(values) if value is not None]
        axes.bar(
            [x for x, _ in there],
            [ratio for _, (ratio, _) in there],
            width * 0.92,
            yerr=[spread for _, (_, spread) in there],
            error_kw={"linewidth": 0.7, "ecolor": "#333333"},
            label=name,
            color=colours[number % len(colours)],
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def raw(cells: Sequence[Cell], path: Path, machine: str) -> None:
    """The ratio to the best C loop, a panel for each number of devices."""
    counts = sorted({int(cell.where["devices"]) for cell in cells})
    names = list(
        dict.fromkeys(
            row.mover for cell in cells for row in cell.rows if row.mover not in cell.yardsticks
        )
    )
    colours = [*_OURS, *_OTHERS]
    figure, panels = plt.subplots(
        len(counts), 1, figsize=(12, 3.6 * len(counts) + 0.6), squeeze=False, layout="constrained"
    )
    for axes, count in zip(panels[:, 0], counts, strict=True):
        mine = [cell for cell in cells if cell.where["devices"] == count]
        series: dict[str, list[tuple[float, float] | None]] = {}
        for name in names:
            found = [next((r for r in cell.rows if r.mover == name), None) for cell in mine]
            series[name] = [None if row is None else (row.ratio, row.spread) for row in found]
        groups = [
            f"{cell.where['source']} to {cell.where['sink']}\n{cell.where['wire']}\n"
            f"C: {next((r.rate for r in cell.rows if r.mover == cell.yardstick), 0):.1f} GiB/s"
            for cell in mine
        ]
        _bars(axes, groups, series, colours)
        axes.set_ylabel("throughput / best C loop")
        axes.set_title(f"{count} device{'s at once' if count > 1 else ''}", loc="left")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(names), frameon=False)
    figure.supxlabel(machine, fontsize=8)
    _save(path)


def compressed(cells: Sequence[Cell], path: Path, machine: str) -> None:
    """The ratio of ``auto`` to the best fixed choice, over contents and wires."""
    grid = [cell for cell in cells if "with" not in cell.where]
    contents = list(dict.fromkeys(str(cell.where["content"]) for cell in grid))
    wires = list(dict.fromkeys(str(cell.where["wire"]) for cell in grid))
    series: dict[str, list[tuple[float, float] | None]] = {}
    for wire in wires:
        values: list[tuple[float, float] | None] = []
        for content in contents:
            place = {"content": content, "wire": wire}
            rows = next((cell.rows for cell in grid if cell.where == place), [])
            row = next((r for r in rows if r.mover.endswith(AUTO)), None)
            values.append(None if row is None else (row.ratio, row.spread))
        label = wire if wire == "loopback" else f"{wire} Gbit/s"
        series[label] = values
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    _bars(axes, contents, series, ("#c6dbef", "#9ecae1", "#6baed6", "#2171b5", "#08306b"))
    axes.axhline(0.95, color="#b2182b", linewidth=0.8, linestyle="--", label="0.95")
    axes.set_ylabel("throughput of auto / best fixed choice")
    figure.legend(loc="outside upper center", ncols=len(wires) + 1, frameon=False)
    figure.supxlabel(machine, fontsize=8)
    _save(path)


def scale(lines: Sequence[Line], path: Path, machine: str) -> None:
    """Throughput over the number of devices, peak memory over the size of the state."""
    sizes = {line.size for line in lines}
    base = max(sizes, key=lambda size: sum(line.size == size for line in lines))
    wide = max((line.devices for line in lines if line.size != base), default=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    across = sorted((line for line in lines if line.size == base), key=lambda line: line.devices)
    left.plot(
        [line.devices for line in across], [line.rate for line in across], "o-", color=_OURS[0]
    )
    left.set_xscale("log", base=2)
    left.set_xticks([line.devices for line in across], [str(line.devices) for line in across])
    left.set_xlabel(f"devices, {base / GIB:g} GiB of state together")
    left.set_ylabel("GiB/s, whole migration")
    deep = sorted((line for line in lines if line.devices == wide), key=lambda line: line.size)
    for side, colour in (("source", _OURS[0]), ("target", _OTHERS[0])):
        values = [getattr(line, f"{side}_rss") for line in deep]
        right.plot([line.size / GIB for line in deep], values, "o-", color=colour, label=side)
    right.set_xscale("log", base=2)
    right.set_xticks(
        [line.size / GIB for line in deep], [f"{line.size / GIB:g}" for line in deep], minor=False
    )
    right.set_xlabel(f"GiB of state on {wide} devices")
    right.set_ylabel("peak memory of the process, MiB")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.grid(linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(machine, fontsize=8)
    _save(path)


def _save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)
    plt.close()

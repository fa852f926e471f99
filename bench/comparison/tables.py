"""Results as tables for people.  A star marks the yardstick of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from comparison.compressed import AUTO
from comparison.rounds import Cell
from comparison.summary import Row


def raw(cells: Sequence[Cell]) -> list[Table]:
    """A table for each source and sink."""

    def ends(cell: Cell) -> tuple[str, str]:
        return str(cell.where["source"]), str(cell.where["sink"])

    return [
        movers(f"{source} to {sink}", list(mine), ("wire", "devices"), "best C loop")
        for (source, sink), mine in groupby(sorted(cells, key=ends), ends)
    ]


def security(cells: Sequence[Cell]) -> Table:
    """What protection costs."""
    return movers("memfd to memfd, with digests", cells, ("wire", "devices"), "plain")


def tunnelled(cells: Sequence[Cell]) -> Table:
    """QEMU's migration, by itself and through the tunnel."""
    return movers("QEMU's migration of its RAM", cells, ("wire",), "QEMU by itself")


def peers(cells: Sequence[Cell]) -> list[Table]:
    """Programs that compress."""
    return (
        [movers("memfd to memfd, compressed", cells, ("content", "wire"), "zstd | socat")]
        if cells
        else []
    )


def movers(title: str, cells: Sequence[Cell], columns: Sequence[str], against: str) -> Table:
    """The columns that tell cells apart, then a line for each mover."""
    result = _table(title)
    for column in (*columns, "mover"):
        result.add_column(column, no_wrap=True)
    headings = ("GiB/s", f"to {against}", "±", "CPU s/GiB", "CPU to that", "wire/byte")
    for heading in headings:
        result.add_column(heading, justify="right")
    notes: list[str] = []
    for cell in cells:
        where = [str(cell.where[column]) for column in columns]
        for row in cell.rows:
            mark = " *" if row.mover == cell.yardstick else ""
            result.add_row(
                *where,
                row.mover + mark,
                f"{row.rate:.2f}",
                f"{row.ratio:.2f}",
                f"{row.spread:.2f}",
                f"{row.cpu:.2f}",
                f"{row.cpu_ratio:.2f}",
                f"{row.wire:.3f}",
                style="bold" if row.mover.startswith("vfioflow") else "",
            )
            where = [""] * len(columns)
        for name, why in cell.failures.items():
            result.add_row(*where, name, "not installed" if "not installed" in why else "failed")
            where = [""] * len(columns)
        result.add_section()
        notes += _notes(cell)
    result.caption = "\n".join(dict.fromkeys(notes)) or None
    return result


def grid(cells: Sequence[Cell]) -> Table:
    """Contents and wires: the rates of all choices, and ``auto`` against the best fixed one."""
    result = _table("vfioflow's choices of compression, GiB/s")
    choices = list(dict.fromkeys(name for cell in cells for name in cell.yardsticks))
    for heading in ("content", "wire"):
        result.add_column(heading, no_wrap=True)
    names = [name.removeprefix("vfioflow ") for name in choices]
    for heading in (*names, AUTO, "to best", "±", "CPU s/GiB", "wire/byte"):
        result.add_column(heading, justify="right")
    notes: list[str] = []
    last = ""
    for cell in cells:
        content, wire = str(cell.where["content"]), str(cell.where["wire"])
        if last and content != last:
            result.add_section()
        by_name = {row.mover: row for row in cell.rows}
        auto = next((row for name, row in by_name.items() if name.endswith(AUTO)), None)
        fixed = [_rate(by_name.get(name), name == cell.yardstick) for name in choices]
        more = ["-"] * 5
        if auto is not None:
            more = [f"{x:.2f}" for x in (auto.rate, auto.ratio, auto.spread, auto.cpu)]
            more.append(f"{auto.wire:.3f}")
        result.add_row("" if content == last else content, wire, *fixed, *more)
        last = content
        notes += _notes(cell)
    result.caption = "\n".join(dict.fromkeys(notes)) or None
    return result


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", caption_justify="left")


def _rate(row: Row | None, yardstick: bool) -> str:
    return "-" if row is None else f"{row.rate:.2f}{' *' if yardstick else ''}"


def _notes(cell: Cell) -> list[str]:
    notes = [f"{name} ({cell.title}): {why}" for name, why in cell.failures.items()]
    if cell.left_out:
        slow = ", ".join(f"{name} {rate:.2f}" for name, rate in cell.left_out.items())
        notes.append(f"Left out after a short run ({cell.title}), GiB/s: {slow}")
    return notes

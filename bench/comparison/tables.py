"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from comparison.rounds import Cell


def table(title: str, cells: Sequence[Cell], columns: Sequence[str], against: str) -> Table:
    """One table over ``cells``: the columns that tell them apart, then a line for each mover."""
    result = Table(title=title, title_justify="left")
    for column in (*columns, "mover"):
        result.add_column(column, no_wrap=column == "mover")
    for heading in ("GiB/s", f"ratio to {against}", "±", "CPU s/GiB", "ratio", "wire"):
        result.add_column(heading, justify="right")
    for cell in cells:
        where = [str(cell.where[column]) for column in columns]
        for row in cell.rows:
            name = row.mover
            style = "bold" if name == cell.yardstick else ""
            result.add_row(
                *where,
                f"{name} *" if name == cell.yardstick else name,
                f"{row.rate:.2f}",
                f"{row.ratio:.2f}",
                f"{row.spread:.2f}",
                f"{row.cpu:.2f}",
                f"{row.cpu_ratio:.2f}",
                f"{row.wire:.2f}",
                style=style,
            )
            where = [""] * len(columns)
        for name, why in cell.failures.items():
            result.add_row(*where, name, f"[dim]{why}", *[""] * 5)
        result.add_section()
    return result


def grouped(
    cells: Sequence[Cell], title: str, by: Sequence[str], columns: Sequence[str], against: str
) -> list[Table]:
    """A table for each combination of the values of ``by``; ``title`` is filled in with them."""

    def key(cell: Cell) -> tuple[str, ...]:
        return tuple(str(cell.where[name]) for name in by)

    return [
        table(title.format(*values), list(group), columns, against)
        for values, group in groupby(sorted(cells, key=key), key)
    ]

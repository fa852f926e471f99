"""A bar that fills the part of its cell between two points, to half a character."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

__all__ = ["Bar"]


@dataclass(frozen=True, slots=True)
class Bar:
    """Filled from ``start`` to ``end`` (0 to 1) on a track; half a character at least."""

    start: float
    end: float
    style: str = "cyan"
    track: bool = True

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        half, left, right = ("-", "-", " ") if options.ascii_only else ("━", "╸", "╺")
        first = min(int(min(max(self.start, 0.0), 1.0) * width * 2), width * 2 - 1)
        last = round(min(max(self.end, 0.0), 1.0) * width * 2)
        if self.end > self.start:
            last = max(last, first + 1)
        before, lead = divmod(first, 2)
        whole, trail = divmod(last, 2)
        filled = ""
        if last > first:
            if lead:
                filled = right
            filled += half * (whole - before - lead)
            if trail and whole >= before + lead:
                filled += left
        after = width - before - len(filled)
        empty = ("." if options.ascii_only else "─") if self.track else " "
        dim = console.get_style("bar.back" if self.track else "none")
        if before:
            yield Segment(empty * before, dim)
        yield Segment(filled, console.get_style(self.style))
        if after > 0:
            yield Segment(empty * after, dim)

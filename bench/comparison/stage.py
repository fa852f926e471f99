"""What all comparisons run on: the compiled C loop, the wires, and who is to be left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from comparison.content import Content
from comparison.ends import Ends
from comparison.movers import Mover
from comparison.rounds import Measure
from comparison.summary import Run
from comparison.wires import Wire, Wires


@dataclass
class Stage:
    """``say`` is told what runs now, ``tick`` counts rounds, of which ``expect`` announced more."""

    loop: str
    wires: Wires
    say: Callable[[str], None]
    tick: Callable[[], None]
    expect: Callable[[int], None]
    only: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    """What was not run, and why."""

    def wire(self, name: str) -> Wire | None:
        """The wire of that name; None, and a note, when it cannot be had."""
        wire = self.wires.get(name)
        if wire is None and self.wires.why_not is not None:
            self.note(f"{self.wires.why_not}; only loopback was run")
        return wire

    def note(self, text: str) -> None:
        """Say something at the end, once."""
        if text not in self.notes:
            self.notes.append(text)

    def wants(self, title: str) -> bool:
        """Whether a cell is to be run: all words of one --only are in its title."""
        words = title.replace(",", " ").split()
        return not self.only or any(
            all(word in words for word in choice.split()) for choice in self.only
        )

    def streams(self, content: Content, source: str, sink: str, wire: Wire) -> Measure:
        """A measure that moves all of ``content`` from such sources to such sinks."""

        def measure(mover: Mover, number: int) -> Run:
            with Ends(source, sink, content, self.loop) as ends:
                moved = mover.move(ends, wire)
            return Run(mover.name, number, content.size, moved.seconds, moved.cpu, moved.wire)

        return measure

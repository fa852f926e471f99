"""The compressed path: what ``auto`` chooses against each fixed choice, over contents and wires.

Each mover gets as many bytes as it moves in about two seconds, from the start of the same content, so
that a fast one is not judged by its first milliseconds; sizes are powers of two.  The yardstick is
the best fixed choice.  One more cell sets vfioflow beside programs of others that compress.
"""

from __future__ import annotations

from contextlib import ExitStack

from comparison.content import KINDS, MIB, Content
from comparison.ends import DEVNULL, MEMFD
from comparison.movers import Mover, vfioflow, zstd_socat
from comparison.programs import ProgramFailed
from comparison.qemu import Qemu
from comparison.rounds import Cell, interleave
from comparison.stage import Stage
from comparison.summary import Run
from comparison.wires import LOOPBACK, Wire

WIRES = ("veth 1", "veth 2.5", "veth 5", "veth 10", LOOPBACK)
FIXED = ("none", "zstd:1", "zstd:-5", "zstd:3")
AUTO = "auto"

PEERS = {"content": "mix", "wire": "veth 2.5"}
"""Where the other programs are run."""

_LEAST = 64 * MIB
SECONDS = 1.5
"""What a run takes at least, unless there is not as much content, and less than twice of it."""


def ours(*choices: str) -> list[Mover]:
    """vfioflow with each of these choices of compression."""
    return [vfioflow(_named(choice), "--compression", choice) for choice in choices]


def _named(choice: str) -> str:
    return f"vfioflow {choice}"


def run(
    stage: Stage,
    most: int,
    rounds: int,
    *,
    contents: tuple[str, ...] = KINDS,
    wires: tuple[str, ...] = WIRES,
    fixed: tuple[str, ...] = FIXED,
    seconds: float = SECONDS,
) -> list[Cell]:
    """The grid, or a part of it; ``most``: bytes of the largest run."""
    wanted = [
        (content, wire)
        for content in contents
        for wire in wires
        if stage.wants(f"{content} {wire}")
    ]
    stage.expect(len(wanted) * rounds)
    cells = []
    for content in contents:
        with Sizes(content) as sizes:
            for name in [wire for kind, wire in wanted if kind == content]:
                wire = stage.wire(name)
                if wire is not None:
                    cell = Cell({"content": content, "wire": name}, tuple(map(_named, fixed)))
                    movers = ours(*fixed, AUTO)
                    chosen = _sizes(stage, cell, movers, wire, sizes, most, seconds)
                    _fill(stage, cell, movers, wire, sizes, chosen, rounds)
                    cells.append(cell)
    return cells


def run_peers(stage: Stage, size: int, rounds: int) -> list[Cell]:
    """vfioflow beside ``zstd | socat`` and QEMU, all over the same bytes into a memory file."""
    place = {**PEERS, "with": "peers"}
    wire = stage.wire(PEERS["wire"]) if stage.wants(" ".join(place.values())) else None
    if wire is None:
        return []
    stage.expect(rounds)
    pipeline = zstd_socat()
    qemu = Qemu("QEMU multifd zstd:1", multifd=True, zstd_level=1)
    movers: list[Mover] = [*ours("none", "zstd:1", AUTO), pipeline, qemu]
    cell = Cell(place, (pipeline.name,))
    with Content(PEERS["content"], size) as content:
        for _ in range(rounds):
            interleave(cell, movers, 1, stage.streams(content, MEMFD, MEMFD, wire), stage.say)
            stage.tick()
    return [cell]


class Sizes:
    """One kind of content in several sizes, each made when it is first asked for."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._made: dict[int, Content] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Sizes:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def get(self, size: int) -> Content:
        """The content of that size."""
        if size not in self._made:
            self._made[size] = self._stack.enter_context(Content(self._kind, size))
        return self._made[size]


def size_for(run: Run, most: int, seconds: float = SECONDS) -> int:
    """The bytes, a power of two, that take ``seconds`` to twice of it at the rate of ``run``."""
    size = _LEAST
    while size * 2 <= most and size / run.size * run.seconds < seconds:
        size *= 2
    return size


def _sizes(
    stage: Stage,
    cell: Cell,
    movers: list[Mover],
    wire: Wire,
    sizes: Sizes,
    most: int,
    seconds: float,
) -> dict[str, int]:
    """How many bytes each mover gets, by trials.  Those that fail are put into ``cell``."""
    chosen = {}
    for mover in movers:
        stage.say(f"{cell.title}: {mover.name}, size")
        size = _LEAST
        try:
            while True:
                trial = stage.streams(sizes.get(size), MEMFD, DEVNULL, wire)(mover, -1)
                # A run of milliseconds says little about the rate.
                if trial.seconds >= seconds / 4 or size * 4 > most:
                    break
                size *= 4
            chosen[mover.name] = size_for(trial, most, seconds)
        except ProgramFailed as error:
            cell.failures[mover.name] = f"failed: {error}"
    return chosen


def _fill(
    stage: Stage,
    cell: Cell,
    movers: list[Mover],
    wire: Wire,
    sizes: Sizes,
    chosen: dict[str, int],
    rounds: int,
) -> None:
    def measure(mover: Mover, number: int) -> Run:
        content = sizes.get(chosen[mover.name])
        return stage.streams(content, MEMFD, DEVNULL, wire)(mover, number)

    for _ in range(rounds):
        interleave(cell, movers, 1, measure, stage.say)
        stage.tick()

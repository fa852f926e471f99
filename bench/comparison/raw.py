"""The raw path: every mover over the same bytes, from each source to each sink, over each wire.

The yardstick is the best strategy of the C loop.  A short run of each comes first, and those that
are far behind are not run in the rounds: splicing TCP into a memory file takes ten times as long.
"""

from __future__ import annotations

from itertools import product

from comparison.content import Content
from comparison.ends import DEVNULL, MEMFD, PIPE
from comparison.movers import Mover, loops, peers, vfioflow
from comparison.qemu import qemus
from comparison.rounds import Cell, interleave
from comparison.stage import Stage
from comparison.wires import LOOPBACK, VETH, Wire

SOURCES = (MEMFD, PIPE)
SINKS = (DEVNULL, MEMFD)
WIRES = (LOOPBACK, VETH)
DEVICES = (1, 16)

PLAIN = "vfioflow"
DIGEST = "vfioflow, digest"
RECONNECT = "vfioflow, digest, window"

_BEHIND = 0.7
"""A strategy with less than this part of the best one's rate is not run again."""

_QUALIFYING = 8
"""Which part of the bytes the first, short run of a strategy moves."""


def ours() -> list[Mover]:
    """vfioflow without digests, with them, and keeping what may have to be sent again."""
    return [
        vfioflow(PLAIN),
        vfioflow(DIGEST, "--digest"),
        vfioflow(RECONNECT, "--digest", "--reconnect"),
    ]


def run(
    stage: Stage,
    size: int,
    rounds: int,
    *,
    sources: tuple[str, ...] = SOURCES,
    sinks: tuple[str, ...] = SINKS,
    wires: tuple[str, ...] = WIRES,
    devices: tuple[int, ...] = DEVICES,
    others: list[Mover] | None = None,
) -> list[Cell]:
    """The whole matrix, or the part of it that is asked for; ``others``: instead of all peers."""
    places = [
        {"source": source, "sink": sink, "wire": wire, "devices": count}
        for count, source, sink, wire in product(devices, sources, sinks, wires)
    ]
    rivals: list[Mover] = [*peers(), *qemus()] if others is None else others
    wanted = [place for place in places if stage.wants(" ".join(map(str, place.values())))]
    stage.expect(len(wanted) * rounds)
    cells = []
    for count in devices:
        mine = [place for place in wanted if place["devices"] == count]
        if not mine:
            continue
        with (
            Content("random", size, count) as content,
            Content("random", size // _QUALIFYING, count) as little,
        ):
            for place in mine:
                wire = stage.wire(str(place["wire"]))
                if wire is not None:
                    cells.append(_cell(stage, place, wire, content, little, rounds, rivals))
    return cells


def _cell(
    stage: Stage,
    place: dict[str, object],
    wire: Wire,
    content: Content,
    little: Content,
    rounds: int,
    rivals: list[Mover],
) -> Cell:
    source, sink = str(place["source"]), str(place["sink"])
    candidates = [mover for mover in loops(stage.loop) if mover.suits((source, sink))]
    trial = Cell({**place, "trial": "short"}, ())
    interleave(trial, candidates, 1, stage.streams(little, source, sink, wire), stage.say)
    fastest = max((run.rate for run in trial.runs), default=0.0)
    good = {run.mover for run in trial.runs if run.rate >= _BEHIND * fastest}
    cell = Cell(place, tuple(mover.name for mover in candidates if mover.name in good))
    for run in trial.runs:
        if run.mover not in good:
            cell.left_out[run.mover] = round(run.rate, 2)
    cell.failures |= trial.failures
    movers = [mover for mover in candidates if mover.name in good]
    movers += [mover for mover in (*ours(), *rivals) if mover.suits((source, sink))]
    for _ in range(rounds):
        interleave(cell, movers, 1, stage.streams(content, source, sink, wire), stage.say)
        stage.tick()
    return cell

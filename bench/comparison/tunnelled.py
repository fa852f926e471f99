"""QEMU's migration by itself and through vfioflow's tunnel, over shaped wires.

The guest, its RAM and the clock are those of :mod:`comparison.qemu`.  With the tunnel QEMU migrates to
and from a UNIX socket on either side; both tunnel processes are up and connected when the clock starts,
as both QEMUs are, and their CPU time counts from then on.  Between network namespaces the tunnel needs a
key, so each of its frames has a tag that the other side checks, besides the digest; QEMU's connections
have neither.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from comparison.content import Content
from comparison.ends import MEMFD
from comparison.movers import LIMIT, Mover
from comparison.programs import Program, ProgramFailed, Programs
from comparison.qemu import Qemu, Way, used
from comparison.rounds import Cell, interleave
from comparison.stage import Stage
from comparison.wires import Wire
from vfioflow.wire.security import write_psk

PLAIN = "QEMU"
CONTENT = "mix"
WIRES = ("veth 1", "veth 2.5", "veth 10")

_COMMAND = (sys.executable, "-m", "vfioflow", "tunnel")


@dataclass(frozen=True, slots=True)
class Tunnelled(Qemu):
    """QEMU, and the tunnel with these options of the sender."""

    options: tuple[str, ...] = ()

    def _way(self, place: Path, wire: Wire) -> Way:
        return Tunnel(place, wire, self.options)


class Tunnel(Way):
    """A tunnel between the sockets of two QEMUs."""

    def __init__(self, place: Path, wire: Wire, options: tuple[str, ...]) -> None:
        self.there, self.here = f"unix:{place}-in", f"unix:{place}-out"
        self._wire, self._options = wire, options
        self._key = place.with_name(f"{place.name}-key")
        self._programs = Programs(LIMIT)
        self._running: list[Program] = []

    def open(self) -> None:
        write_psk(self._key)
        key = ("--psk", str(self._key))
        words = [
            *_COMMAND,
            "receive",
            "--listen",
            f"tcp://{self._wire.host}:0",
            "--into",
            self.there,
        ]
        self._programs.__enter__()
        null = subprocess.DEVNULL
        receiver = self._programs.start(self._wire.receiving([*words, *key]), null, null)
        self._running.append(receiver)
        to = self._told(receiver, "listening on").split()[-1]
        words = [*_COMMAND, "send", "--from", self.here, "--to", to, *key, *self._options]
        sender = self._programs.start(self._wire.sending(words), null, null)
        self._running.append(sender)
        self._told(sender, "waiting for a connection")

    def _told(self, program: Program, words: str) -> str:
        while line := program.line():
            if words in line:
                return line
        program.finish()
        raise ProgramFailed(f"the tunnel did not say {words!r}")

    def finish(self) -> None:
        for program in self._running:
            program.finish()

    def close(self) -> None:
        if self._running:
            self._programs.__exit__(None, None, None)

    def cpu(self) -> float:
        # What is of a process that has ended was counted when it was waited for.
        return sum(program.cpu or used(program.pid) for program in self._running)


def movers() -> list[Mover]:
    """QEMU by itself first."""
    return [
        Qemu(PLAIN),
        Qemu("QEMU multifd", multifd=True),
        Qemu("QEMU multifd zstd:1", multifd=True, zstd_level=1),
        Tunnelled("vfioflow tunnel"),
        Tunnelled("vfioflow tunnel, 2 channels", options=("--channels", "2")),
        Tunnelled("vfioflow tunnel zstd:1", options=("--compression", "zstd:1")),
        Tunnelled("vfioflow tunnel auto", options=("--compression", "auto")),
    ]


def run(stage: Stage, size: int, rounds: int, wires: tuple[str, ...] = WIRES) -> list[Cell]:
    """A cell for each wire."""
    cells = []
    with Content(CONTENT, size) as content:
        for name in wires:
            cell = Cell({"content": CONTENT, "wire": name}, (PLAIN,))
            wire = stage.wire(name) if stage.wants(cell.title) else None
            if wire is None:
                continue
            stage.expect(rounds)
            for _ in range(rounds):
                measure = stage.streams(content, MEMFD, MEMFD, wire)
                interleave(cell, movers(), 1, measure, stage.say)
                stage.tick()
            cells.append(cell)
    return cells

"""Scale: real migrations of 1 to 64 devices with 64 MiB to 32 GiB of state in all.

Each is a ``vfioflow.migrate`` in one process and a ``vfioflow.listen`` in another (``migration.py``), with
digests, over loopback; the devices are pipes.  A second, tiny migration before it has the interpreters
warm.  Ratios are to the migration of one device, or of 1 GiB, in the same round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.table import Table

from comparison.content import MIB, Content
from comparison.movers import BENCH, LIMIT
from comparison.programs import ProgramFailed, Programs
from comparison.rounds import order
from comparison.stage import Stage
from comparison.summary import GIB

DEVICES = (1, 4, 16, 64)
SIZES = (64 * MIB, GIB, 4 * GIB, 32 * GIB)

BASE_DEVICES = 1
BASE_SIZE = GIB
"""With what the memory is compared."""

_FEED = 64 * MIB
"""What each device sends over and over."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one process held and took."""

    seconds: float
    cpu: float
    bytes: int
    peak_rss_mib: float
    threads: int
    objects_at_most: int
    """Memory blocks that Python held more than before, at most."""
    objects_left: int
    """The same after the end."""


@dataclass(frozen=True, slots=True)
class Session:
    """One migration."""

    devices: int
    size: int
    round: int
    source: Side
    target: Side

    @property
    def rate(self) -> float:
        """GiB/s from the call of ``migrate`` to its return."""
        return self.size / GIB / self.source.seconds

    @property
    def cpu_per_gib(self) -> float:
        """CPU seconds of both processes per GiB."""
        return (self.source.cpu + self.target.cpu) * GIB / self.size


@dataclass(frozen=True, slots=True)
class Line:
    """Medians over the rounds for one number of devices and one size."""

    devices: int
    size: int
    seconds: float
    rate: float
    rate_ratio: float | None
    """To one device with as much state."""
    cpu: float
    source_rss: float
    target_rss: float
    rss_ratio: float | None
    """The larger of the two sides' ratios to 1 GiB on as many devices."""
    threads: int
    objects_at_most: int
    objects_left: int


def migrate(loop: str, file: str, devices: int, size: int, number: int) -> Session:
    """One migration over loopback.  Raises ProgramFailed."""
    words = [sys.executable, str(BENCH / "migration.py")]
    where = [loop, "127.0.0.1", str(devices)]
    null = subprocess.DEVNULL
    with Programs(LIMIT) as programs:
        target = programs.start([*words, "receive", *where], null, null)
        port = target.line()
        source = programs.start([*words, "send", *where, port, str(size), file], null, null)
        source.finish()
        target.finish()
        sides = [Side(**json.loads(program.said[-1])) for program in (source, target)]
    if sides[0].bytes != size // devices * devices:
        raise ProgramFailed(f"{sides[0].bytes} bytes were moved of {size}")
    return Session(devices, size, number, *sides)


def run(
    stage: Stage, places: list[tuple[int, int]], rounds: int
) -> tuple[list[Session], dict[str, str]]:
    """Migrations of (devices, size), interleaved; and why some failed."""
    stage.expect(len(places) * rounds)
    sessions, failures = [], {}
    with Content("random", _FEED) as content:
        for number in range(rounds):
            for place in order(len(places), number):
                devices, size = places[place]
                title = f"{devices} devices, {size / GIB:g} GiB"
                stage.say(title)
                try:
                    sessions.append(migrate(stage.loop, content.path(0), devices, size, number))
                except ProgramFailed as error:
                    failures[title] = str(error)
                stage.tick()
    return sessions, failures


def places(most: int, base: int, wide: int) -> list[tuple[int, int]]:
    """All numbers of devices with ``base`` bytes, and all sizes up to ``most`` on ``wide`` devices."""
    sizes = sorted({*(size for size in SIZES if size <= most), base, most})
    return [*((count, base) for count in DEVICES), *((wide, s) for s in sizes if s != base)]


def summarize(sessions: list[Session]) -> list[Line]:
    """A line for each place, in the order of their first sessions."""
    by_round = {(s.devices, s.size, s.round): s for s in sessions}
    lines = []
    for devices, size in dict.fromkeys((s.devices, s.size) for s in sessions):
        mine = [s for s in sessions if (s.devices, s.size) == (devices, size)]
        rates = [
            s.rate / base.rate
            for s in mine
            if (base := by_round.get((BASE_DEVICES, size, s.round))) is not None
        ]
        memory = [
            max(
                s.source.peak_rss_mib / base.source.peak_rss_mib,
                s.target.peak_rss_mib / base.target.peak_rss_mib,
            )
            for s in mine
            if (base := by_round.get((devices, BASE_SIZE, s.round))) is not None
        ]
        lines.append(
            Line(
                devices=devices,
                size=size,
                seconds=median(s.source.seconds for s in mine),
                rate=median(s.rate for s in mine),
                rate_ratio=median(rates) if rates else None,
                cpu=median(s.cpu_per_gib for s in mine),
                source_rss=median(s.source.peak_rss_mib for s in mine),
                target_rss=median(s.target.peak_rss_mib for s in mine),
                rss_ratio=median(memory) if memory else None,
                threads=max(max(s.source.threads, s.target.threads) for s in mine),
                objects_at_most=max(
                    max(s.source.objects_at_most, s.target.objects_at_most) for s in mine
                ),
                objects_left=max(max(s.source.objects_left, s.target.objects_left) for s in mine),
            )
        )
    return lines


def table(lines: list[Line], failures: dict[str, str]) -> Table:
    """For people."""
    result = Table(title="Migrations over loopback", title_justify="left", caption_justify="left")
    headings = (
        "devices", "GiB", "s", "GiB/s", "to 1 device", "CPU s/GiB", "peak MiB, source", "target",
        "to 1 GiB", "threads", "objects, most", "left",
    )  # fmt: skip
    for heading in headings:
        result.add_column(heading, justify="right")
    for line in lines:
        result.add_row(
            str(line.devices),
            f"{line.size / GIB:g}",
            f"{line.seconds:.2f}",
            f"{line.rate:.2f}",
            "" if line.rate_ratio is None else f"{line.rate_ratio:.2f}",
            f"{line.cpu:.2f}",
            f"{line.source_rss:.0f}",
            f"{line.target_rss:.0f}",
            "" if line.rss_ratio is None else f"{line.rss_ratio:.2f}",
            str(line.threads),
            str(line.objects_at_most),
            str(line.objects_left),
        )
    result.caption = "\n".join(f"{title}: {why}" for title, why in failures.items()) or None
    return result


def as_json(sessions: list[Session], failures: dict[str, str]) -> dict[str, Any]:
    """Everything, the single runs included."""
    return {
        "rows": [asdict(line) for line in summarize(sessions)],
        "runs": [asdict(session) for session in sessions],
        "failures": failures,
    }

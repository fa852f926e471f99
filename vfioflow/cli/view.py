"""What is to be seen of a migration while it runs: gathered from events, drawn with rich."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vfioflow import events
from vfioflow.cli import units
from vfioflow.cli.console import complain, stderr
from vfioflow.devices.base import Device
from vfioflow.events import Event, Phase
from vfioflow.precopy import Decision

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

__all__ = ["Board", "Row", "Screen", "draw", "line"]

_RATE_WINDOW = 0.4
"""Seconds over which a device's rate is taken, so that the figure can be read."""
_FRAME = 0.1
_LINE = 1.0
_QUIET_FRAME = 1.0
"""Between frames while the virtual machine stands still: drawing takes a core from the drain."""

_DOWN = (Phase.STOP_COPY, Phase.HAND_OVER)


@dataclass(slots=True)
class Row:
    """One device."""

    name: str
    profile: str
    state: str
    moved: int = 0
    pending: int | None = None
    size: int = 0
    rate: float | None = None
    base: int = 0
    """What had moved when ``pending`` was last asked for."""
    mark: tuple[float, int] = (0.0, 0)

    @property
    def left(self) -> int | None:
        """What is pending less what has moved since it was asked for."""
        return None if self.pending is None else max(self.pending - (self.moved - self.base), 0)

    @property
    def whole(self) -> int:
        """The size of all that has to move, as far as it is known."""
        return max(self.size, self.moved + (self.left or 0))


@dataclass(slots=True)
class Board:
    """The state of a migration.  An observer; ``now`` is in seconds on any clock."""

    peer: str
    limit: float | None
    rows: dict[str, Row]
    phase: Phase = Phase.CONNECT
    since: float = 0.0
    iteration: int = 0
    bandwidth: float | None = None
    decision: Decision | None = None
    phases: list[Phase] = field(default_factory=list)

    @classmethod
    def of(cls, devices: Sequence[Device], peer: str, limit: float | None, now: float) -> Board:
        """For devices that have yet to move."""
        rows = {}
        for device in devices:
            info = device.info
            rows[info.name] = Row(info.name, info.profile or info.driver, str(device.state))
        return cls(peer, limit, rows, since=now)

    def update(self, event: Event, now: float) -> None:
        """Take in an event."""
        match event:
            case events.PhaseEntered(phase):
                self.phase = phase
                self.phases.append(phase)
            case events.StateChanged(device, _, end, _):
                if row := self.rows.get(device):
                    row.state = str(end)
            case events.RolledBack(device, state, _) if state is not None:
                if row := self.rows.get(device):
                    row.state = str(state)
            case events.Decided(iteration, _, bandwidth, decision):
                self.iteration, self.bandwidth, self.decision = iteration, bandwidth, decision
                for row in self.rows.values():
                    row.base = row.moved
            case events.Progress(_, progress):
                for one in progress:
                    self._progress(one, now)
            case _:
                pass

    def _progress(self, device: events.DeviceProgress, now: float) -> None:
        row = self.rows.get(device.device)
        if row is None:
            return
        row.moved = device.moved
        if device.pending != row.pending:
            row.pending = device.pending
            row.base = min(row.base, row.moved)
        row.size = row.whole
        then, moved = row.mark
        if then == 0.0:
            row.mark = (now, row.moved)
        elif now - then >= _RATE_WINDOW:
            row.rate = (row.moved - moved) / (now - then)
            row.mark = (now, row.moved)

    @property
    def moved(self) -> int:
        """Device bytes so far."""
        return sum(row.moved for row in self.rows.values())

    @property
    def pending(self) -> int | None:
        """What is left, None while no device has said."""
        known = [row.left for row in self.rows.values() if row.left is not None]
        return sum(known) if known else None

    @property
    def total_rate(self) -> float | None:
        """Of all devices together."""
        known = [row.rate for row in self.rows.values() if row.rate is not None]
        return sum(known) if known else None


def line(board: Board) -> str:
    """The migration in one line of text, for logs."""
    bandwidth = board.bandwidth if board.bandwidth is not None else board.total_rate
    parts = [f"phase={str(board.phase).replace(' ', '-')}"]
    if board.pending is not None:
        parts.append(f"iter={board.iteration}")
        parts.append(f"pending={units.size(board.pending, space='')}")
    else:
        parts.append(f"moved={units.size(board.moved, space='')}")
    if bandwidth is not None:
        parts.append(f"bw={units.rate(bandwidth, space='')}")
    if board.decision is not None and board.decision.predicted_downtime is not None:
        downtime = units.duration(board.decision.predicted_downtime * 1e3, space="")
        parts.append(f"est_downtime={downtime}")
    return " ".join(parts)


def draw(board: Board, now: float) -> RenderableType:
    """The migration as a picture of a few lines."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    from vfioflow.cli.bars import Bar

    head = Table.grid(Column(ratio=1), Column(justify="right"), expand=True)
    head.add_row(
        Text.assemble((f"{board.phase}  ", "bold cyan"), (board.peer, "dim")),
        Text(f"{now - board.since:.1f} s", style="dim"),
    )
    known = any(row.pending is not None for row in board.rows.values())
    body = Table.grid(
        Column(no_wrap=True),
        Column(no_wrap=True, style="dim"),
        Column(no_wrap=True, min_width=12),
        *([Column(ratio=1, min_width=8)] if known else []),
        Column(justify="right", no_wrap=True, min_width=9),
        Column(justify="right", no_wrap=True, min_width=11, style="dim"),
        *([Column(justify="right", no_wrap=True, min_width=9)] if known else []),
        padding=(0, 2, 0, 0),
        pad_edge=False,
        expand=known,
    )
    titles: list[Any] = ["device", "profile", "state", *([""] if known else []), "moved", "rate"]
    body.add_row(*(Text(t, "dim") for t in [*titles, *(["pending"] if known else [])]))
    for row in board.rows.values():
        cells: list[Any] = [row.name, row.profile, row.state]
        if known:
            share = row.moved / row.whole if row.whole else 0.0
            cells.append(Bar(0.0, share, "green" if share >= 1 else "cyan"))
        cells += [units.size(row.moved), units.rate(row.rate)]
        if known:
            cells.append(units.UNKNOWN if row.left is None else units.size(row.left))
        body.add_row(*cells)
    return Group(head, Text(), body, Text(), _foot(board))


def _foot(board: Board) -> RenderableType:
    from rich.text import Text

    if board.decision is None:
        return Text()
    decision = board.decision
    parts = [
        (f"iteration {board.iteration}", ""),
        (units.rate(board.bandwidth), ""),
        (f"threshold {units.size(decision.threshold)}", ""),
    ]
    predicted = decision.predicted_downtime
    if predicted is not None and board.limit is not None:
        fits = predicted <= board.limit
        parts.append(
            (
                f"downtime {units.duration(predicted * 1e3)}"
                f" of {units.duration(board.limit * 1e3)}",
                "green" if fits else "yellow",
            )
        )
    text = Text(overflow="ellipsis", no_wrap=True)
    for number, (part, style) in enumerate(parts):
        text.append(" · " if number else "", "dim")
        text.append(part, style)
    return text


class Screen:
    """Shows a migration on standard error: a live view on a terminal, else a line a second.

    An observer, and a context in which the live view stands.
    """

    def __init__(
        self, devices: Sequence[Device], peer: str, limit: float | None = None, *, quiet: bool
    ) -> None:
        self.board = Board.of(devices, peer, limit, time.monotonic())
        self._quiet = quiet
        self._live: Live | None = None
        self._drawn = self.board.since

    def __enter__(self) -> Screen:
        self.board.since = self._drawn = time.monotonic()
        console = stderr()
        if console.is_terminal and not self._quiet:
            from rich.live import Live

            self._live = Live(
                console=console, get_renderable=self._frame, auto_refresh=False, transient=True
            )
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _frame(self) -> RenderableType:
        from rich.constrain import Constrain
        from rich.padding import Padding

        return Constrain(Padding(draw(self.board, time.monotonic()), (1, 1, 0, 1)), 100)

    def __call__(self, event: Event) -> None:
        """Take in an event, and show it when it is time."""
        now = time.monotonic()
        self.board.update(event, now)
        if self._quiet:
            return
        if self._live is None:
            if isinstance(event, events.Progress) and now - self._drawn >= _LINE:
                self._drawn = now
                complain(line(self.board), kind="")
            return
        pause = _QUIET_FRAME if self.board.phase in _DOWN else _FRAME
        if now - self._drawn >= pause or isinstance(event, events.PhaseEntered):
            self._drawn = now
            self._live.refresh()

    def say(self, text: str) -> None:
        """Say something in between, above the live view."""
        if self._live is None:
            complain(text, kind="")
        else:
            self._live.console.print(f"vfioflow: {text}", markup=False)

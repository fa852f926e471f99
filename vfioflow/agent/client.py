"""What one client of the agent holds: devices, migrations, listeners and logs.  All end with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vfioflow.access import AccessQueue
from vfioflow.agent.asking import RemotePending, RemoteTrap
from vfioflow.agent.connection import Connection
from vfioflow.destination import Destination
from vfioflow.devices.base import Device
from vfioflow.devices.tracking import DirtySet
from vfioflow.errors import ConfigError, VfioflowError
from vfioflow.events import Event, Observer
from vfioflow.journal import Journal
from vfioflow.listener import Listener
from vfioflow.report import Report
from vfioflow.resolution import Revival
from vfioflow.source import Source
from vfioflow.threads import finish, in_thread
from vfioflow.watching.jsonlines import as_dict

__all__ = ["Client", "Log", "Migration", "Port"]

log = logging.getLogger("vfioflow")

T = TypeVar("T")

_MOST_ENDED = 64
"""Migrations that have ended, and of which a client may still ask."""


@dataclass(eq=False)
class Migration:
    """One side of a migration that goes on by itself."""

    name: str
    session: Source | Destination | Revival
    task: asyncio.Task[Report]
    devices: frozenset[str]
    pending: dict[str, RemotePending] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        """Where it stands."""
        report = self.session.report
        return {
            "migration": self.name,
            "session": report.session,
            "role": report.role,
            "phase": self.session.phase.value,
            "ended": self.task.done(),
            "outcome": report.outcome if self.task.done() else None,
            "error": report.error if self.task.done() else None,
        }


@dataclass(eq=False)
class Port:
    """A listener, which of the client's devices it takes state into, and who hears of a migration there."""

    name: str
    devices: frozenset[str]
    migration: str = ""
    """The one that runs there, or did last."""
    listener: Listener = field(init=False)


@dataclass(eq=False)
class Log:
    """A dirty log, of which devices, and who uses it now: one at a time."""

    written: DirtySet
    devices: frozenset[str]
    use: asyncio.Lock = field(default_factory=asyncio.Lock)


class Client:
    """One connection's things.  Names are its own: no other client sees them."""

    def __init__(self, journal: Journal | None, closing: Callable[[], bool]) -> None:
        self.journal = journal
        self.connection: Connection
        self.devices: dict[str, Device] = {}
        self.migrations: dict[str, Migration] = {}
        self.ports: dict[str, Port] = {}
        self.traps: dict[str, RemoteTrap] = {}
        """By migration, or by listener."""
        self.logs: dict[str, Log] = {}
        self._closing = closing
        self._numbers: dict[str, int] = {}
        self._adding: set[str] = set()

    def number(self, kind: str) -> str:
        """The next name of a kind: "m1"."""
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{kind}{self._numbers[kind]}"

    def check_open(self) -> None:
        """Raises ConfigError: the agent is ending, and begins nothing."""
        if self._closing():
            raise ConfigError("the agent is ending: it begins nothing new")

    # ----------------------------------------------------------------- devices

    async def add(self, name: str, make: Callable[[], Device]) -> Device:
        """Open a device, which may block.  Raises ConfigError, DeviceError."""
        self.check_open()
        if not name or name in self.devices or name in self._adding:
            raise ConfigError(f"a device needs a name of its own, not {name!r}")
        self._adding.add(name)
        try:
            opening = asyncio.ensure_future(in_thread(make, name=f"{name}-open"))
            try:
                device = await finish(opening)
            except asyncio.CancelledError:  # the client has gone meanwhile
                if opening.done() and not opening.cancelled() and not opening.exception():
                    opening.result().close()
                raise
        finally:
            self._adding.discard(name)
        self.devices[name] = device
        return device

    def chosen(self, names: Iterable[str]) -> list[Device]:
        """The devices of these names; of none, all.  Raises ConfigError: there is no such, or none at all."""
        names = list(names) or list(self.devices)
        if missing := [name for name in names if name not in self.devices]:
            raise ConfigError(f"there is no device {', '.join(missing)}; add it first")
        if not names:
            raise ConfigError("there is no device; add one first")
        return [self.devices[name] for name in names]

    def idle(self, names: Iterable[str]) -> list[Device]:
        """The same, of which none may be busy.  Raises ConfigError."""
        devices = self.chosen(names)
        for device in devices:
            if user := self._user(device.name):
                raise ConfigError(f"device {device.name} is used by {user}")
        return devices

    def _user(self, name: str) -> str:
        for migration in self.migrations.values():
            if name in migration.devices and not migration.task.done():
                return f"migration {migration.name}"
        for port in self.ports.values():
            if name in port.devices:
                return f"listener {port.name}"
        return ""

    async def remove(self, name: str) -> None:
        """Close a device.  Raises ConfigError: there is none, or it is busy."""
        [device] = self.idle([name])
        if users := [log for log, each in self.logs.items() if name in each.devices]:
            raise ConfigError(f"device {name} is used by {', '.join(users)}")
        del self.devices[name]
        await in_thread(device.close, name=f"{name}-close", or_here=True)

    # -------------------------------------------------------------- migrations

    def run(
        self,
        name: str,
        session: Source | Destination | Revival,
        devices: Sequence[Device],
        pending: Sequence[RemotePending] = (),
    ) -> Migration:
        """Let a session run; the client is told by ``migration.ended`` when it has ended."""
        task = asyncio.create_task(session.run(), name=f"vfioflow-{name}")
        migration = Migration(
            name,
            session,
            task,
            frozenset(device.name for device in devices),
            {part.name: part for part in pending},
        )
        self._forget()
        self.migrations[name] = migration
        task.add_done_callback(lambda _: self._ended(migration))
        return migration

    def _forget(self) -> None:
        """Of those that have ended the last ones are remembered."""
        ended = [name for name, each in self.migrations.items() if each.task.done()]
        for name in ended[: max(len(ended) - _MOST_ENDED, 0)]:
            del self.migrations[name]
            self.traps.pop(name, None)

    def _ended(self, migration: Migration) -> None:
        error = None if migration.task.cancelled() else migration.task.exception()
        if error is not None and not isinstance(error, VfioflowError):
            log.error("migration %s ended by a fault of the agent", migration.name, exc_info=error)
        self.connection.notify("migration.ended", migration.status(), must=True)

    def observer(self, migration: Callable[[], str], wanted: bool) -> Observer | None:
        """Tells the client of every event, if it wants to know."""
        if not wanted:
            return None

        def tell(event: Event) -> None:
            self.connection.notify("event", {"migration": migration(), **as_dict(event)})

        return tell

    def trap(self, migration: str) -> tuple[RemoteTrap, AccessQueue]:
        """The trap of a migration, and where what is trapped goes.  Raises ConfigError: nothing is, now."""
        port = next((p.name for p in self.ports.values() if p.migration == migration), "")
        trap = self.traps.get(migration) or self.traps.get(port)
        if trap is None or trap.queue is None:
            raise ConfigError(f"nothing is trapped for migration {migration!r}")
        return trap, trap.queue

    @staticmethod
    def found(things: dict[str, T], name: str, kind: str) -> T:
        """One of them.  Raises ConfigError: there is none of that name."""
        if name not in things:
            raise ConfigError(f"there is no {kind} {name!r}")
        return things[name]

    # --------------------------------------------------------------------- end

    async def end(self) -> None:
        """Cancel what runs, wait until it has ended by its own rules, and close everything."""
        for migration in self.migrations.values():
            migration.session.cancel()
        running = [m.task for m in self.migrations.values() if not m.task.done()]
        if running:
            await asyncio.wait(running)
        for port in list(self.ports.values()):
            await self.close_port(port)
        for each in self.logs.values():
            with suppress(VfioflowError):
                await in_thread(each.written.stop, name="log-stop", or_here=True)
        for device in self.devices.values():
            await in_thread(device.close, name=f"{device.name}-close", or_here=True)
        self.devices.clear()

    async def close_port(self, port: Port) -> None:
        """Listen there no more."""
        self.ports.pop(port.name, None)
        await port.listener.__aexit__(None, None, None)

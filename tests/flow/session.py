"""Both ends of a migration in one process, over a real socket, and what each of them saw."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vfioflow import (
    Hooks,
    PendingSource,
    Policy,
    Report,
    Security,
    SimDevice,
    Source,
    State,
    listen,
)
from vfioflow.access import Trap
from vfioflow.devices.sim import ledger
from vfioflow.events import BarrierPassed, Event, StateChanged

MIB = 1 << 20


def mixed_set(**common: object) -> list[SimDevice]:
    """Four kinds: with and without pre-copy, ENOMSG and 0, load in write and in the arc."""
    return [
        SimDevice("net0", profile="mlx5", state_size=6 * MIB, initial_bytes=4 * MIB, seed=1,
                  arc_seconds={}, load_seconds=0.0, **common),
        SimDevice("gpu0", profile="vgpu", state_size=9 * MIB, initial_bytes=8 * MIB, seed=2,
                  arc_seconds={}, load_seconds=0.0, **common),
        SimDevice("gpu1", profile="xe", state_size=3 * MIB, seed=3, arc_seconds={}, **common),
        SimDevice("tty0", profile="mtty", seed=4, **common),
    ]  # fmt: skip


@dataclass
class Outcome:
    """What came out of both ends."""

    source: Report
    destination: Report | None
    source_error: BaseException | None
    destination_error: BaseException | None
    order: list[tuple[str, str, object]] = field(default_factory=list)
    digests_match: bool | None = None

    def at(self, entry: tuple[str, str, object]) -> int:
        """Where in the common order an entry is."""
        return self.order.index(entry)


Watcher = Callable[[str, Event], None]


async def run(
    source: Sequence[SimDevice],
    destination: Sequence[SimDevice],
    *,
    policy: Policy | None = None,
    through: Callable[[str], contextlib.AbstractAsyncContextManager[str]] | None = None,
    watch: Watcher | None = None,
    cancel: Callable[[str, Event], bool] | None = None,
    cancel_side: str = "source",
    hooks: Hooks | None = None,
    source_hooks: Hooks | None = None,
    security: Security | None = None,
    source_security: Security | None = None,
    pending: Sequence[PendingSource] = (),
    began: Callable[[Source], None] | None = None,
    trap: Trap | None = None,
    trap_there: Trap | None = None,
) -> Outcome:
    """Migrate ``source`` onto ``destination``.  ``through`` puts something between (an address
    for an address); ``cancel`` cancels one side at an event of either; ``began`` gets the source
    before it runs."""
    order: list[tuple[str, str, object]] = []
    tasks: dict[str, asyncio.Task[Report]] = {}
    result = Outcome(Report(role="source", outcome="failed"), None, None, None, order)

    def observe(side: str) -> Callable[[Event], None]:
        def observer(event: Event) -> None:
            if isinstance(event, StateChanged):
                order.append((side, event.device, event.end))
            if isinstance(event, BarrierPassed):
                order.append((side, "barrier", event.name))
                if side == "destination" and event.name == "ready":
                    # Nobody runs on either side: the one moment to compare the true states.
                    mine = {d.name: d.true_digest() for d in destination}
                    result.digests_match = mine == {d.name: d.true_digest() for d in source}
            if watch is not None:
                watch(side, event)
            if cancel is not None and cancel(side, event):
                tasks[cancel_side].cancel()

        return observer

    policy = policy or Policy(downtime_limit=2.0)
    async with (
        contextlib.AsyncExitStack() as stack,
        listen(
            "tcp://127.0.0.1:0",
            destination,
            policy=policy,
            hooks=hooks,
            observer=observe("destination"),
            security=security,
            trap=trap_there,
        ) as listener,
    ):
        address = listener.address
        if through is not None:
            address = await stack.enter_async_context(through(address))
        sender = Source(
            source,
            address,
            policy=policy,
            hooks=source_hooks,
            pending=pending,
            observer=observe("source"),
            security=source_security,
            trap=trap,
        )
        if began is not None:
            began(sender)
        session: list[object] = []

        async def receive() -> Report:
            session.append(await listener.next_session())
            return await session[0].run()

        tasks["destination"] = asyncio.create_task(receive())
        tasks["source"] = asyncio.create_task(sender.run())
        await asyncio.wait([tasks["source"]], timeout=30)
        assert tasks["source"].done(), "the source hangs"
        if not session:  # the source never got as far as the listener
            tasks["destination"].cancel()
        await asyncio.wait([tasks["destination"]], timeout=30)
        assert tasks["destination"].done(), "the destination hangs"
    result.source = sender.report
    result.destination = session[0].report if session else None
    result.source_error = _error(tasks["source"])
    result.destination_error = _error(tasks["destination"]) if session else None
    return result


def _error(task: asyncio.Task[Report]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def migrate(source, destination, **options) -> Outcome:
    """Run both ends to their ends in a new event loop."""
    return asyncio.run(run(source, destination, **options))


def assert_source_runs(source: Sequence[SimDevice], before: dict[str, int] | None = None) -> None:
    """Every source device is RUNNING, whole, and no message was lost."""
    assert {d.name: d.state for d in source} == dict.fromkeys(
        [d.name for d in source], State.RUNNING
    )
    assert ledger(source).balanced
    if before is not None:
        assert {d.name: d.true_digest() for d in source} == before


def quiet_set(faulty=None, faults=()):
    """A set that dirties nothing, so that its digest must not change; one device may have faults."""
    kinds = {
        "net0": {"profile": "mlx5", "state_size": 3 * MIB, "initial_bytes": 2 * MIB},
        "gpu1": {"profile": "xe", "state_size": 2 * MIB},
        "qat0": {"profile": "qat"},
    }
    return [
        SimDevice(
            name,
            seed=7,
            dirty_rate=0,
            arc_seconds={},
            load_seconds=0,
            faults=faults if name == faulty else (),
            **options,
        )
        for name, options in kinds.items()
    ]


def assert_went_back(source, destination, before):
    assert_source_runs(source, before)
    assert {d.state for d in destination} == {State.RUNNING}

"""The source's side of a migration.  Reads from top to bottom, step by step."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TypedDict, TypeVar, Unpack

from vfioflow import barrier, events
from vfioflow._outlane import END
from vfioflow.access import Trap, Window, codec
from vfioflow.devices.base import Device
from vfioflow.errors import (
    ConfigError,
    HandoverInDoubt,
    IntegrityError,
    NoConvergence,
    PeerError,
    ProtocolError,
    ResourceError,
    TakenBack,
    VfioflowError,
)
from vfioflow.events import Observer, Phase, emit
from vfioflow.gate import Gate
from vfioflow.handover import Giving
from vfioflow.hooks import Hooks, SaveConfig, call, save_all
from vfioflow.journal import Journal
from vfioflow.outset import Outset
from vfioflow.pending import Part, PendingSource
from vfioflow.policy import Policy
from vfioflow.precopy import Arcs, Bandwidth, Verdict, source_seconds
from vfioflow.report import Clock, Report
from vfioflow.resolution import Comeback
from vfioflow.rounds import Lane, Rounds
from vfioflow.states import Flags, State, quiesced
from vfioflow.story import check_session
from vfioflow.threads import finish, in_thread, ready
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.security import Security

__all__ = ["Limits", "Source", "migrate"]

T = TypeVar("T")

CONFIG_LIMIT = 1_000_000
"""Bytes of config space of all devices together: they travel in one control message."""

_WITHOUT_END = 2**63


async def migrate(
    devices: Sequence[Device],
    to: str,
    *,
    policy: Policy | None = None,
    hooks: Hooks | None = None,
    pending: Sequence[PendingSource] = (),
    observer: Observer | None = None,
    journal: Journal | None = None,
    session: str = "",
    security: Security | None = None,
    trap: Trap | None = None,
) -> Report:
    """Move a virtual machine's set of devices to the destination listening at ``to``.

    Returns when the destination runs and the devices here are in STOP.

    Args:
        devices: the set, all RUNNING.
        to: "tcp://HOST:PORT".
        policy: limits and choices; the defaults suit a set that converges.
        hooks: stop and start of the vCPUs, and what else the stack does on the way.
        pending: what the stack moves itself, such as guest RAM, and what the decision to switch over
            is to take into account.
        observer: gets every event of :mod:`vfioflow.events`.
        journal: where to record what is decided, so that it outlives this process.
        session: the migration's name; default: a new one.  One that the journal knows is not
            begun again but settled, as :class:`vfioflow.resolution.Comeback` does.
        security: how the two sides know each other: a key or certificates; None: not at all.
        trap: the VMM's part in ``Policy.access_queue``; simulated devices have their own.

    Raises:
        ConfigError, AdmissionError, JournalError: nothing was touched, or every device is RUNNING here.
        DeviceError, PeerError, NoConvergence: every device is RUNNING here again.
        HandoverInDoubt: the connection was lost after COMMIT; the devices here stay stopped.
        asyncio.CancelledError: cancelled; every device is RUNNING here again, unless the
            hand-over was under way, which is finished first.
    """
    source = Source(
        devices,
        to,
        policy=policy,
        hooks=hooks,
        pending=pending,
        observer=observer,
        journal=journal,
        session=session,
        security=security,
        trap=trap,
    )
    return await source.run()


class Limits(TypedDict, total=False):
    """What may be changed while it runs; each as in :class:`vfioflow.Policy`."""

    downtime_limit: float
    max_bandwidth: int | None


class Source(Outset):
    """One migration, seen from the source.  ``report`` is there however it ends.

    While :meth:`run` is awaited, :meth:`change`, :meth:`hold`, :meth:`go_on` and :meth:`cancel` may be
    called from the event loop's thread.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        to: str,
        *,
        policy: Policy | None = None,
        hooks: Hooks | None = None,
        pending: Sequence[PendingSource] = (),
        observer: Observer | None = None,
        journal: Journal | None = None,
        session: str = "",
        security: Security | None = None,
        trap: Trap | None = None,
    ) -> None:
        self._address = Address.parse(to)
        self._guard = (security or Security()).for_source(self._address.host)
        policy = policy or Policy()
        report = Report(
            role="source",
            outcome="failed",
            session=check_session(session) if session else uuid.uuid4().hex,
            peer=str(self._address),
            downtime_limit_ms=policy.downtime_limit * 1e3,
        )
        super().__init__(devices, report, policy=policy, hooks=hooks or Hooks(), observer=observer)
        self._giving = Giving(journal, report.session, self._address, self._guard, policy)
        self._lanes = [Lane(device) for device in devices]
        self._parts = [Part(source) for source in pending]
        self._trap = trap
        self._gate = Gate(self._hooks.may_switch_over)
        self._held = {}
        self._bandwidth = Bandwidth()
        self._ended = False  # whether the destination may have had all that it needs
        self._journal_there = ""
        self._accesses: int | None = None

    def change(self, **limits: Unpack[Limits]) -> None:
        """Change ``downtime_limit`` (seconds) or ``max_bandwidth`` (bytes per second, None: no limit).

        Both hold from the next decision and the next frame on.  Raises ConfigError: a value is wrong,
        or so low a bandwidth that a frame of the size that was agreed on would look like a stall.
        """
        policy = replace(self._policy, **limits)
        if self._out is not None and policy.max_bandwidth != self._policy.max_bandwidth:
            self._out.limit(policy)
            self._bandwidth.forget()
        self._policy = policy
        self.report.policy = asdict(policy)
        self.report.downtime_limit_ms = policy.downtime_limit * 1e3
        emit(self._observer, events.LimitsChanged(policy.downtime_limit, policy.max_bandwidth))
        self._gate.turn()

    def hold(self) -> None:
        """Do not switch over before :meth:`go_on`; pre-copy goes on, and gives up for no limit meanwhile."""
        self._gate.hold()

    def go_on(self) -> None:
        """Switch over again as soon as it can."""
        self._gate.go_on()

    async def run(self) -> Report:
        """Migrate.  Once per object.  Raises as :func:`migrate` does."""
        try:
            with ExitStack() as held:
                return await self._run(held)
        finally:
            self._task = None

    async def _run(self, held: ExitStack) -> Report:
        begin = time.monotonic()
        self._begin()
        if await self._came_back():
            self._end()
            return self.report
        try:
            self._check_cancelled()
            held.enter_context(ready(len(self._lanes) + len(self._parts) + 1))
            await self._admit()
            await self._giving.begin(self._devices)
            await self._connect()
            await self._offer()
            await self._measure_wire()
            await self._precopy()
            await self._switch_over()
            await self._await_loaded()
            await finish(self._hand_over())
        except BaseException as caught:
            error = ResourceError.of(caught)
            if self.report.outcome == "completed":
                raise
            await finish(self._go_back(error))
            if self._committed and not isinstance(error, HandoverInDoubt):
                raise HandoverInDoubt(self.report.error) from error
            if error is not caught:
                raise error from caught
            raise
        finally:
            self.report.total_ms = (time.monotonic() - begin) * 1e3
            await finish(self._close())
            self._end()
        return self.report

    # ---------------------------------------------------------------- pre-copy

    async def _precopy(self) -> None:
        """Iterate until what is left fits the downtime limit."""
        await self._turn(Phase.PRE_COPY)
        assert self._probe is not None
        copying = [lane for lane in self._lanes if lane.can_precopy]
        rounds = Rounds(
            self._lanes,
            self._parts,
            policy=lambda: self._policy,
            gate=self._gate,
            control=self._peer,
            drive=self._drive,
            unsent=self._wire.unsent,
            probe=self._probe.measure,
            bandwidth=self._bandwidth,
            fixed_seconds=self._fixed_seconds(),
            observer=self._observer,
        )
        self._touched = True
        await self._cross("pre-copy", [(lane, State.PRE_COPY) for lane in copying])
        try:
            decision = await rounds.run()
        finally:
            self.report.iterations = rounds.iterations
        if decision.verdict is Verdict.GIVE_UP:
            raise NoConvergence(f"pre-copy does not converge: {decision.reason}")
        self.report.switchover_reason = decision.reason
        if decision.predicted_downtime is not None:
            self.report.predicted_downtime_ms = decision.predicted_downtime * 1e3

    def _fixed_seconds(self) -> float:
        """The part of the downtime that does not depend on how much is left, as far as it counts."""
        if not self.order.counts_changes:
            return 0.0
        return source_seconds(_arcs(self._lanes)) + self._load_seconds + 2 * self._round_trip

    # -------------------------------------------------------------- switchover

    async def _switch_over(self) -> None:
        """Stop the vCPUs, then barrier 1 and 2, then drain every stream to its end."""
        emit(self._observer, events.Preparing(tuple(lane.name for lane in self._lanes)))
        await self._turn(Phase.STOP_COPY)
        self._clock = Clock(self.report.steps_ms)
        self._vcpus_stopped = True
        self._stopped_at = time.monotonic()
        await call(self._hooks.stop_vcpus, "stop_vcpus")
        self._clock.lap("stop_vcpus")
        await self._peer.send(messages.Switchover())
        await self._cross(
            "quiesce",
            [
                (lane, quiesced(State.PRE_COPY if lane.can_precopy else State.RUNNING))
                for lane in self._lanes
                if lane.info.flags & Flags.P2P
            ],
        )
        self._clock.lap("quiesce")
        last = self._lanes
        if self._window is not None:
            await self._window.arm()
            self._clock.lap("arm")
            # These may write to the others until they stop, and the others can take it until then.
            await self._cross(
                "stop",
                [(x, State.STOP_COPY) for x in self._lanes if not x.info.flags & Flags.P2P],
            )
            last = [lane for lane in self._lanes if lane.info.flags & Flags.P2P]
            self._clock.lap("stop")
        await self._cross("stop-copy", [(lane, State.STOP_COPY) for lane in last])
        self._clock.lap("stop_copy")
        if self._window is not None:
            await self._send_accesses(self._window)
            self._clock.lap("accesses")
        if self._hooks.save_config is not None:
            await self._send_config(self._hooks.save_config)
            self._clock.lap("config")
        await self.order.drain(
            self._drive,
            [
                *(
                    partial(in_thread, self._drain, lane, name=f"{lane.name}-drain")
                    for lane in self._lanes
                ),
                *(part.complete for part in self._parts),
            ],
        )
        self._ended = True
        self._ending = True
        await self._drive([in_thread(self._wire.end, name="end")])
        self._ending = False
        self._clock.lap("drain")

    async def _send_accesses(self, window: Window) -> None:
        """What was queued until now, for all stand still; it stays here too, until they have run there."""
        data = await window.seal()
        self._accesses = codec.digest(data)
        self.report.accesses = len(window.queue)
        pieces = list(codec.parts(data))
        for piece in pieces:
            await self._peer.send(messages.Accesses(data=piece, last=piece is pieces[-1]))

    async def _send_config(self, hook: SaveConfig) -> None:
        """What the hook saves of each device; the data waits until the destination has it."""
        saved = await save_all(hook, [lane.name for lane in self._lanes])
        if (size := sum(map(len, saved.values()))) > CONFIG_LIMIT:
            raise ConfigError(f"save_config gave {size} bytes in all; at most {CONFIG_LIMIT}")
        await self._peer.send(messages.Config(devices=saved))
        while not isinstance(
            await self._peer.expect(
                messages.ConfigTaken,
                messages.SwitchoverAck,
                timeout=self._policy.stall_timeout,
                what="word that it has the config space",
            ),
            messages.ConfigTaken,
        ):
            pass  # an acknowledgement that nobody waited for

    def _drain(self, lane: Lane) -> None:
        if lane.pump(_WITHOUT_END, precopy=False) == END:
            if lane.can_precopy:
                lane.mark()
            lane.end()

    # --------------------------------------------------------------- hand-over

    async def _await_loaded(self) -> None:
        """LOADED of all devices; an acknowledgement that nobody waited for may come before it."""
        await self._turn(Phase.HAND_OVER)
        if self._hooks.before is not None or self._hooks.after is not None:
            self._clock.lap("hooks")
        # Longer than the destination waits for its own devices: it knows the reason.
        limit = 2 * self._policy.stall_timeout + self._load_seconds
        while True:
            message = await self._peer.expect(
                messages.Loaded, messages.SwitchoverAck, timeout=limit, what="word that it loaded"
            )
            if isinstance(message, messages.Loaded):
                break
        self._clock.lap("load")
        self._clock.split("load", validate=message.validate_seconds, ready=message.ready_seconds)
        self._journaled("load", message.journal_seconds)
        self._check(message)
        if self._window is not None:
            self._window.check()
        self._journal_there = message.journal

    async def _hand_over(self) -> None:
        """COMMIT, RUNNING; then the devices here are released.  Not to be interrupted."""
        seconds = await self._giving.commit(self._journal_there)
        self._committed = True
        emit(self._observer, events.Committed())
        try:
            running = await self._giving.deliver(self._peer)
        except TakenBack:
            self._committed = False
            raise
        emit(self._observer, events.Resumed())
        self._clock.lap("commit")
        self._clock.split(
            "commit", resume=running.resume_seconds, start_vcpus=running.start_vcpus_seconds
        )
        if self._window is not None:
            self._clock.split("commit", replay=running.replay_seconds)
        self._journaled("commit", seconds + running.journal_seconds)
        self.report.downtime_ms = sum(self.report.steps_ms.values())
        self.report.outcome = "completed"
        # Recorded first: a destination that hears goodbye may forget the session.
        if not await self._giving.released():
            with suppress(PeerError):
                await self._peer.send(messages.Goodbye())
        await self._release()
        await self._done()

    def _journaled(self, step: str, seconds: float) -> None:
        if seconds:
            self._clock.split(step, journal=seconds)

    def _check(self, loaded: messages.Loaded) -> None:
        """The destination must have taken just what was sent, of every device."""
        if loaded.accesses != self._accesses:
            raise IntegrityError(
                "the destination has not got the queued accesses as they were sent"
            )
        taken = {device.name: device for device in loaded.devices}
        for lane in self._lanes:
            device = taken.get(lane.name)
            if device is None:
                raise ProtocolError(f"the destination does not say that it loaded {lane.name}")
            if (device.size, device.digest) != (lane.sent, lane.stream.digest):
                raise IntegrityError(
                    f"device {lane.name}: {lane.sent} bytes were sent with digest"
                    f" {lane.stream.digest:08x}, {device.size} loaded with {device.digest:08x}"
                )

    async def _release(self) -> None:
        """STOP_COPY -> STOP, after the commit and so out of the downtime; it may be slow."""
        for lane in self._lanes:
            lane.close()
        try:
            await self._cross("release", [(lane, State.STOP) for lane in self._lanes])
        except (VfioflowError, OSError) as error:
            self.report.error = f"migrated, but a device here was not released: {error}"
        if self._window is not None and (late := self._window.close()):
            self.report.error = f"{self.report.error or 'migrated'}, but {late}"

    # ----------------------------------------------------------------- failure

    async def _go_back(self, error: BaseException) -> None:
        """Put everything back, whatever happened; after COMMIT, keep everything stopped."""
        failed = self._failed(error)
        await self._hang_up()
        if self._out is not None:
            self._out.stop()
        if not self._stuck:
            for lane in self._lanes:
                lane.close()
        if self._committed:
            self._in_doubt(
                self._reason(error),
                "The devices here stay stopped; see whether the destination runs before you"
                " start anything",
            )
            return
        told = self._told or self._control is None or await self._tell(self._control, failed)
        told = told or isinstance(error, TakenBack)
        if unsure := await self._giving.withdraw():
            self._committed = True
            self._in_doubt(error, f"The devices here stay stopped: {unsure}")
            return
        await self._on_the_way_back("before", error)
        if self._touched:
            trouble = await barrier.back_to_running(
                self._devices,
                timeout=self._policy.stall_timeout,
                observer=self._observer,
                between=self._window.put_back if self._window is not None else None,
            )
            self._add_trouble(trouble, error)
        if self._vcpus_stopped:
            try:
                await call(self._hooks.start_vcpus, "start_vcpus")
            except VfioflowError as failed_too:
                self.report.error = f"{self.report.error}; the vCPUs are stopped: {failed_too}"
                error.add_note(f"the vCPUs are stopped: {failed_too}")
        for part in self._parts:
            if trouble_there := await part.abort(self._policy.stall_timeout):
                self.report.error = f"{self.report.error}; {trouble_there}"
                error.add_note(trouble_there)
        await self._giving.back(self._devices, self.report.error or "")
        await self._on_the_way_back("after", error)
        if self._ended and not told and (alarm := await self._giving.discard()):
            error.add_note(alarm)

    async def _came_back(self) -> bool:
        """Settle the session, if the journal knows it."""
        try:
            if not await self._giving.find():
                return False
        except BaseException as error:  # a cancellation too leaves the entry to somebody else
            self._failed(error)
            await finish(self._close())
            raise
        policy, hooks, observer = self._policy, self._hooks, self._observer
        await Comeback(
            self.report, self._giving, self._devices, policy=policy, hooks=hooks, observer=observer
        ).run()
        return True

    async def _close(self) -> None:
        await self._hang_up()
        await self._fill_report()
        if self._out is not None:
            self._out.close(stuck=self._stuck)
        if self._control is not None:
            await self._control.close()
        self._giving.log.close()


def _arcs(lanes: Iterable[Lane]) -> Iterator[Arcs]:
    return ((lane.info.flags, lane.info.arc_seconds) for lane in lanes)

"""The destination's side of a migration.  Reads from top to bottom, step by step."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from vfioflow import admission, barrier, events, inventory
from vfioflow.access import Trap, Window, codec
from vfioflow.access.simulated import trap_of
from vfioflow.arrivals import Arrivals
from vfioflow.devices.base import Device
from vfioflow.errors import (
    AccessError,
    AdmissionError,
    ConfigError,
    DeviceError,
    HandoverInDoubt,
    JournalError,
    PeerLost,
    ProtocolError,
    RemoteError,
    ResourceError,
)
from vfioflow.events import Observer, Phase, emit
from vfioflow.hooks import Hooks, load_all
from vfioflow.journal import Journal
from vfioflow.lanes import Inbound, drive, last_words
from vfioflow.loader import Lane, Loader
from vfioflow.policy import Policy
from vfioflow.reconnect import Rejoin
from vfioflow.report import Report
from vfioflow.states import Flags, State
from vfioflow.takeover import Taking
from vfioflow.threads import finish, in_thread, ready
from vfioflow.wire import messages
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys

__all__ = ["Caller", "Destination"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A source that has greeted and offered."""

    control: Control
    session: str
    keys: Keys
    offer: messages.Offer


class Destination(Loader):
    """One migration, seen from the destination.  ``report`` is there however it ends."""

    def __init__(
        self,
        caller: Caller,
        devices: Sequence[Device],
        *,
        policy: Policy,
        hooks: Hooks,
        observer: Observer | None,
        journal: Journal | None,
        trap: Trap | None = None,
    ) -> None:
        self._trap = trap
        self._accesses = bytearray()
        self._all_accesses = asyncio.Event()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._control = control = caller.control
        control.patience = 2 * policy.stall_timeout
        self._keys = caller.keys
        self._offer = caller.offer
        report = Report(
            role="destination",
            outcome="failed",
            session=caller.session,
            peer=str(control.peer),
        )
        super().__init__(devices, report, policy=policy, hooks=hooks, observer=observer)
        self.taking = Taking(journal, caller.session, policy, give_up=control.give_up)
        self._lanes = []
        self._arrivals = Arrivals(caller.keys)
        self._switched = asyncio.Event()
        self._probe_wanted = 0
        self._loaded = False
        self._acknowledged = False
        self._config: dict[str, bytes] | None = None

    async def run(self) -> Report:
        """Take the devices over.  Once per object.  Raises as `Listener.receive` does."""
        try:
            with ExitStack() as held:
                return await self._run(held)
        finally:
            self._task = None

    async def _run(self, held: ExitStack) -> Report:
        begin = time.monotonic()
        self._begin()
        try:
            self._check_cancelled()
            held.enter_context(ready(len(self._devices) + 1))
            await self._admit(self._offer)
            await self._open_channels(self._offer)
            await self._load()
            loaded = await self._validate()
            await finish(self._hand_over(loaded))
        except BaseException as caught:
            if self._committed:
                raise
            error = ResourceError.of(caught)
            await finish(self._go_back(error))
            if self.report.outcome == "in-doubt":
                raise HandoverInDoubt(self.report.error) from error
            if error is not caught:
                raise error from caught
            raise
        finally:
            self.report.total_ms = (time.monotonic() - begin) * 1e3
            await finish(self._close())
            self._end()
        return self.report

    # ------------------------------------------------------------------ set-up

    async def _admit(self, offer: messages.Offer) -> None:
        """Is there a match for each, and may they move together?  Then all go to RESUMING."""
        await self._turn(Phase.SET_UP)
        offer.check()
        here = await inventory.look(self._devices, timeout=self._policy.stall_timeout)
        queue: Literal["off", "writes"] = "writes" if offer.access_queue else "off"
        around = admission.Circumstances(policy=replace(self._policy, access_queue=queue))
        verdict = admission.judge(inventory.offered(offer.devices), around, destination=here)
        try:
            if offer.access_queue:
                self._window = self._make_window(offer)
            if reasons := verdict.reasons():
                raise AdmissionError(reasons)
            await self.taking.begin(self.report.peer, self._devices)
        except AdmissionError as refused:
            await self._control.send(messages.Refuse(reasons=refused.reasons))
            raise
        by_name = {device.name: device for device in self._devices}
        self._lanes = [Lane(by_name[device.name]) for device in offer.devices]
        self._touched = True
        crossing = await self._cross("resuming", State.RESUMING)
        lanes = {lane.name: lane for lane in self._lanes}
        crossing.hand_out(lambda name, data_fd: lanes[name].adopt(data_fd))
        for lane in self._lanes:
            if lane.stream is None:
                advice = "it gave no data fd"
                raise DeviceError(lane.name, "entering RESUMING", errno.EBADF, advice)

    def _make_window(self, offer: messages.Offer) -> Window:
        names = {device.name for device in offer.devices}
        devices = [device for device in self._devices if device.name in names]
        trap = self._trap or trap_of(devices)
        if trap is None:
            why = "accesses to it are to be replayed, and there is no trap here: listen(trap=...)"
            without = [d.name for d in devices if not d.info.flags & Flags.P2P]
            raise AdmissionError(dict.fromkeys(without or sorted(names), why))
        return Window(trap, devices, self._policy)

    async def _open_channels(self, offer: messages.Offer) -> None:
        """ACCEPT; then the data connections arrive by way of the listener."""
        self._arrivals.want(offer.channels)
        await self._control.send(messages.Accept(load_seconds=self._expected_seconds()))
        sockets = await self._arrivals.collect(self._control.failure, self._policy.connect_timeout)
        self._in = Inbound(
            [lane.stream for lane in self._lanes if lane.stream is not None],
            sockets,
            chunk_size=offer.chunk_size,
            digests=offer.digests,
            signal_fd=self._signal,
            window=offer.window,
            keys=[self._keys.frames(number) for number in range(offer.channels)],
        )
        if offer.window:
            self._patience = min(offer.reconnect_seconds, self._policy.reconnect_limit)
            self._control.resumable = True
            self._rejoin = Rejoin(self._keys, self._control, self._in, limit=self._patience)
            self._rejoining = asyncio.create_task(self._rejoin.run(), name="vfioflow-rejoin")
        self._digests = offer.digests
        pages = all(lane.port is not None and lane.port.takes_pages for lane in self._lanes)
        await self._control.send(
            messages.Ready(splice=pages and not (offer.digests or offer.window or self._keys.keyed))
        )

    # -------------------------------------------------------------------- load

    async def _load(self) -> None:
        """Every stream, all at once, to its END; acknowledge the initial data on the way."""
        await self._turn(Phase.PRE_COPY)
        inbound = self._streams
        loop = asyncio.get_running_loop()
        loop.add_reader(self._signal, self._look)
        failure: asyncio.Future[None] = loop.create_future()
        self._control.failure.add_done_callback(lambda done: _pass_on(done, failure))
        listening = asyncio.create_task(self._follow(failure))
        futures = [
            in_thread(inbound.receive, number, name=f"channel-{number}")
            for number in range(len(inbound.channels))
        ]
        try:
            await drive(
                futures,
                stop=inbound.stop,
                failure=failure,
                busy=lambda: {f"device {x.name}": x.offset for x in inbound.lanes if x.busy},
                stall_timeout=self._policy.stall_timeout,
                stalled=lambda error: self._tell_early(self._control, error),
                tick=self._tick,
            )
            if all(lane.ended for lane in inbound.lanes):
                await self._await_switchover(failure)
                if self._window is not None:
                    await self._await(self._all_accesses, failure, "send the queued accesses")
                async with self._turning:
                    pass  # the hooks of the switchover have returned
                if failure.done():
                    failure.result()
        finally:
            self._stuck = not all(future.done() for future in futures)
            loop.remove_reader(self._signal)
            listening.cancel()
            await asyncio.wait([listening])
        for lane in inbound.lanes:
            if not lane.ended:
                await last_words(self._control.failure)
                raise PeerLost(
                    f"device {lane.name}: the source ended the connection"
                    f" after {lane.offset} bytes, before the stream's end"
                )

    def _tick(self) -> None:
        """Ten times a second while data flows."""
        self._progress()
        for lane, device in zip(self._streams.lanes, self._offer.devices, strict=True):
            most = self._policy.stream_limit(device.size or 0)
            if lane.offset > most:
                raise ProtocolError(
                    f"device {lane.name}: {lane.offset} bytes came, and at most {most} are taken of"
                    f" one that was offered with {device.size or 'no size'} (--stream-factor)"
                )

    async def _await_switchover(self, failure: asyncio.Future[None]) -> None:
        """All data is here; the word before it goes over another connection, and may be slower."""
        await self._await(self._switched, failure, "say that it switches over")

    async def _await(self, event: asyncio.Event, failure: asyncio.Future[None], what: str) -> None:
        limit = self._policy.stall_timeout
        heard = asyncio.create_task(event.wait())
        waited: set[asyncio.Future[Any]] = {heard, failure}
        try:
            await asyncio.wait(waited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard.cancel()
        if not event.is_set():
            if failure.done():
                failure.result()
            raise PeerLost(f"{self._control.peer} did not {what} in {limit:g} s")

    def _look(self) -> None:
        """A pump passed something: pad bytes, a mark, or an end."""
        os.eventfd_read(self._signal)
        if self._probe_wanted and self._streams.pad_bytes >= self._probe_wanted:
            self._probe_wanted = 0
            self._reply(messages.ProbeDone())
        copying = [lane for lane in self._lanes if lane.info.flags & Flags.PRE_COPY]
        if (
            not self._acknowledged
            and copying
            and all(lane.stream is not None and lane.stream.marks for lane in copying)
        ):
            self._acknowledged = True
            emit(self._observer, events.InitialLoaded())
            self._reply(messages.SwitchoverAck())

    def _reply(self, message: messages.Message) -> None:
        task = asyncio.create_task(self._control.send(message))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _follow(self, failure: asyncio.Future[None]) -> None:
        """What the source says while data flows."""
        probed = 0
        while True:
            message = await self._control.expect(
                messages.Probe,
                messages.Switchover,
                messages.Config,
                messages.Accesses,
                timeout=None,
                what="a phase",
            )
            try:
                if isinstance(message, messages.Switchover):
                    self._switched.set()
                    await self._turn(Phase.STOP_COPY)
                elif isinstance(message, messages.Config):
                    await self._take_config(message.devices)
                elif isinstance(message, messages.Accesses):
                    self._take_accesses(message)
                else:
                    probed += message.size
                    self._probe_wanted = probed
                    os.eventfd_write(self._signal, 1)
            except Exception as error:
                if not failure.done():
                    failure.set_exception(error)
                    failure.exception()  # seen
                return

    def _take_accesses(self, part: messages.Accesses) -> None:
        """A part of what the source queued; with the last they are all here."""
        if self._window is None or self._all_accesses.is_set():
            raise ProtocolError("accesses came that are none of this migration")
        if len(self._accesses) + len(part.data) > codec.MAX_BYTES:
            raise ProtocolError(f"more than {codec.MAX_BYTES} bytes of queued accesses came")
        self._accesses += part.data
        if part.last:
            held = codec.decode(bytes(self._accesses), self._window.devices)
            self._window.take(held)
            self._all_accesses.set()

    async def _take_config(self, devices: dict[str, bytes]) -> None:
        """Load what the source's hook saved, or keep it until the data is loaded."""
        hook = self._hooks.load_config
        if hook is None:
            raise ConfigError(
                "the source sends config space, and there is no load_config hook here"
            )
        if set(devices) != {lane.name for lane in self._lanes} or self._config is not None:
            raise ProtocolError("the config space is not that of the set, or comes twice")
        self._config = devices
        if not self._hooks.config_after_data:
            await load_all(hook, devices)
        await self._control.send(messages.ConfigTaken())

    async def _finish_config(self) -> None:
        """All data is loaded: the config space must be too."""
        hook = self._hooks.load_config
        if hook is None:
            return
        if self._config is None:
            raise ConfigError(
                "there is a load_config hook here, and the source sent no config space"
            )
        if self._hooks.config_after_data:
            await load_all(hook, self._config)

    # --------------------------------------------------------------- hand-over

    async def _validate(self) -> messages.Loaded:
        """Barrier 3: RESUMING -> STOP, where drivers check their load, then RUNNING_P2P."""
        await self._turn(Phase.HAND_OVER)
        for lane in self._lanes:
            lane.close()
        await self._finish_config()
        if self._window is not None:
            await self._window.arm()
        validated = await self._cross("validate", State.STOP)
        ready = await self._cross("ready", State.RUNNING_P2P)
        quiet = {True: "RUNNING_P2P", False: "STOP"}
        states = {lane.name: quiet[bool(lane.info.flags & Flags.P2P)] for lane in self._lanes}
        accesses = bytes(self._accesses)
        journal, seconds = await self.taking.loaded(states, accesses)
        return messages.Loaded(
            devices=[
                messages.LoadedDevice(name=s.name, size=s.offset, digest=s.digest)
                for s in self._streams.lanes
            ],
            validate_seconds=validated.seconds,
            ready_seconds=ready.seconds,
            journal=journal,
            journal_seconds=seconds,
            accesses=None if self._window is None else codec.digest(accesses),
        )

    async def _hand_over(self, loaded: messages.Loaded) -> None:
        """LOADED, COMMIT, and take over.

        Not to be interrupted: from LOADED on the source may commit at any time, so only its word
        (COMMIT, or that it gave up) decides what becomes of the devices here.
        """
        self._loaded = True
        await self.taking.word(self._control, loaded)
        await self.taking.committed()
        self._committed = True
        emit(self._observer, events.Committed())
        await self._take_over(self._devices, self._control)

    # ----------------------------------------------------------------- failure

    async def _go_back(self, error: BaseException) -> None:
        """Reset the devices, tell the source; between LOADED and COMMIT, keep them as they are."""
        failed = self._failed(error)
        reason = self._reason(error)
        if self._loaded and not isinstance(reason, RemoteError | JournalError):
            self._in_doubt(
                reason,
                "The devices here hold the state and stay stopped; see whether the source runs"
                " before you start anything",
            )
            return
        await self._hang_up()
        if self._in is not None:
            self._in.stop()
        if not self._stuck:
            for lane in self._lanes:
                lane.close()
        if not (self._loaded or self._told or isinstance(error, AdmissionError)):
            await self._tell(self._control, failed)
        await self._on_the_way_back("before", error)
        if self._touched:
            unsure = await self.taking.discard(failed.reason)
            if unsure and self._loaded and isinstance(reason, JournalError):
                # COMMITTED may be on the disk: whoever comes back must find the state.
                self._in_doubt(
                    reason, f"The devices here hold the state and stay stopped: {unsure}"
                )
                return
            trouble = await barrier.reset_all(
                self._devices, timeout=self._policy.stall_timeout, observer=self._observer
            )
            self._add_trouble(trouble, error)
            if self._window is not None:
                try:
                    await self._window.abandon()
                except AccessError as left:
                    self.report.error = f"{self.report.error}; {left}"
                    error.add_note(str(left))
            self.taking.discarded(failed.reason)
            if self._loaded:  # COMMIT was heard: the source may take its devices back
                await self._tell(self._control, messages.Discarded(reason=failed.reason))
        await self._on_the_way_back("after", error)

    async def _close(self) -> None:
        await self._hang_up()
        await self._fill_report()
        if self._in is not None:
            self._in.close(stuck=self._stuck)
        self._arrivals.close(given=self._in is not None)
        await self._control.close()
        self.taking.close()
        os.close(self._signal)


def _pass_on(done: asyncio.Future[None], to: asyncio.Future[None]) -> None:
    if to.done() or done.cancelled():
        return
    if error := done.exception():
        to.set_exception(error)
        to.exception()  # seen: nobody may be waiting any more
    else:
        to.set_result(None)

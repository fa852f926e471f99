"""How a source's session begins: the set is admitted, offered, and its connections are opened."""

from __future__ import annotations

import asyncio

from vfioflow import admission, inventory
from vfioflow.access import Trap, Window
from vfioflow.access.simulated import trap_of
from vfioflow.access.window import needs_one
from vfioflow.errors import AdmissionError, ConfigError
from vfioflow.events import Phase
from vfioflow.giver import Giver
from vfioflow.lanes import Outbound
from vfioflow.probe import Probe
from vfioflow.reconnect import Redial
from vfioflow.rounds import ask_sizes
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.greeting import call as call_peer
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble, Role, connect
from vfioflow.wire.security import Guard
from vfioflow.wire.trouble import printable

__all__ = ["Outset"]


class Outset(Giver):
    """A source's session until it knows its destination, and how fast the wire is."""

    _address: Address
    _guard: Guard
    _trap: Trap | None = None
    _keys: Keys | None = None
    _round_trip = 0.0
    """Seconds to the destination and back."""
    _load_seconds = 0.0
    """What the destination expects to need from the end of the data to RUNNING."""

    async def _admit(self) -> None:
        """Refuse what may not migrate, before anything is touched."""
        names = [lane.name for lane in self._lanes] + [part.name for part in self._parts]
        if twice := [part.name for part in self._parts if names.count(part.name) > 1]:
            raise AdmissionError(
                dict.fromkeys(twice, "a pending source needs a name that nothing else has")
            )
        if wrong := {
            lane.name: f"its name is {lane.device.name!r}, its info says {lane.name!r}"
            for lane in self._lanes
            if lane.device.name != lane.name
        }:
            raise AdmissionError(wrong)
        if self._policy.access_queue == "writes" and needs_one(self._devices):
            self._window = self._make_window()
        facts = await inventory.look(self._devices, timeout=self._policy.stall_timeout)
        around = admission.Circumstances(policy=self._policy)
        if reasons := admission.judge(facts, around).reasons():
            raise AdmissionError(reasons)

    def _make_window(self) -> Window:
        trap = self._trap or trap_of(self._devices)
        if trap is None:
            raise ConfigError(
                "access_queue='writes' needs a trap, which only the VMM has: migrate(trap=...)"
            )
        return Window(trap, self._devices, self._policy)

    async def _connect(self) -> None:
        """HELLO, both ways."""
        await self._turn(Phase.CONNECT)
        self._control, self._keys = await call_peer(
            self._address, self.report.session, self._guard, self._policy.connect_timeout
        )
        self._control.patience = 2 * self._policy.stall_timeout

    async def _offer(self) -> None:
        """OFFER the set; once it is accepted, open the data connections."""
        assert self._keys is not None
        await self._turn(Phase.SET_UP)
        control, policy = self._peer, self._policy
        channels = policy.channel_count(len(self._lanes))
        await self._call(lambda: ask_sizes(self._lanes), name="sizes")
        await control.send(
            messages.Offer(
                devices=[
                    messages.OfferedDevice(
                        name=lane.name,
                        driver=lane.info.driver,
                        profile=lane.info.profile,
                        flags=int(lane.info.flags),
                        size=lane.pending.stop_copy,
                        version=lane.info.version,
                        firmware=lane.info.firmware,
                        model=lane.info.model,
                    )
                    for lane in self._lanes
                ],
                channels=channels,
                chunk_size=policy.frame_size,
                digests=policy.digest,
                window=policy.window_size(channels),
                reconnect_seconds=policy.reconnect_timeout,
                access_queue=self._window is not None,
            )
        )
        answer = await control.expect(
            messages.Accept, messages.Refuse, timeout=2 * policy.stall_timeout, what="its verdict"
        )
        if isinstance(answer, messages.Refuse):
            said = answer.reasons.items()
            raise AdmissionError({printable(name): printable(why) for name, why in said})
        self._load_seconds = answer.load_seconds
        sockets = []
        try:
            for number in range(channels):
                token = self._keys.token(Role.DATA, number, 0)
                preamble = Preamble(Role.DATA, number, token)
                sockets.append(
                    await connect(self._address, preamble, policy.connect_timeout, self._guard)
                )
            ready = await control.expect(
                messages.Ready, timeout=policy.connect_timeout, what="word that it is ready"
            )
            names = [lane.name for lane in self._lanes]
            keys = [self._keys.frames(number) for number in range(channels)]
            self._out = Outbound(names, sockets, policy, splice=ready.splice, keys=keys)
        finally:
            if self._out is None:
                for sock in sockets:
                    sock.close()
        for lane, out in zip(self._lanes, self._out.lanes, strict=True):
            lane.out = out
        if policy.reconnect_timeout:
            control.resumable = True
            self._redial = Redial(
                self._address,
                self._guard,
                self._keys,
                control,
                self._out,
                patience=self._patience,
                observer=self._observer,
            )
            self._redialing = asyncio.create_task(self._redial.run(), name="vfioflow-redial")

    async def _measure_wire(self) -> None:
        """Let the first decision know the wire's round trip and rate already."""
        probe = self._probe = Probe(self._wire, self._peer, self._policy, self._drive)
        self._round_trip = await probe.round_trip()
        size, seconds = await probe.measure()
        self._bandwidth.assume(size / seconds)

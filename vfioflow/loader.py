"""What a destination's session works with: its lanes and its connections."""

from __future__ import annotations

import asyncio
import socket

from vfioflow import barrier, events, precopy
from vfioflow._fdio import Port
from vfioflow._inlane import InLane
from vfioflow.arrivals import Arrivals
from vfioflow.devices.base import Device
from vfioflow.events import emit
from vfioflow.lanes import Inbound
from vfioflow.reconnect import Rejoin
from vfioflow.report import DeviceReport
from vfioflow.states import Flags, State
from vfioflow.takeover import Taker
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble

__all__ = ["Lane", "Loader"]


class Lane:
    """A device and its stream."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.info = device.info
        self.port: Port | None = None
        self.stream: InLane | None = None

    @property
    def name(self) -> str:
        """The device's."""
        return self.info.name

    def adopt(self, data_fd: int) -> None:
        """Own the data fd that a state change handed out."""
        self.port = self.device.port(data_fd)
        self.stream = InLane(self.name, self.port)

    def close(self) -> None:
        """Close the data fd; only when no pump runs."""
        if self.port is not None:
            self.port.close()
            self.port = None


class Loader(Taker):
    """A destination's session, without the order of its steps."""

    _lanes: list[Lane]
    _arrivals: Arrivals
    _keys: Keys
    _digests = False
    _in: Inbound | None = None
    _rejoin: Rejoin | None = None
    _rejoining: asyncio.Task[None] | None = None

    def take_channel(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a data connection if it is this session's and still missing."""
        return self._arrivals.take(preamble, sock)

    async def take_again(self, preamble: Preamble, sock: socket.socket) -> bool:
        """Take a connection that broke and was opened again, if it is this session's.

        Owns the socket once it returns True.  Raises PeerError: it is gone already, or wrong.
        """
        return self._rejoin is not None and await self._rejoin.take(preamble, sock)

    def _expected_seconds(self) -> float:
        """From the end of the data to RUNNING, as far as the devices' arcs are known."""
        infos = [lane.info for lane in self._lanes]
        return precopy.destination_seconds((i.flags, i.arc_seconds) for i in infos)

    async def _hang_up(self) -> None:
        """From now on a connection that breaks stays so."""
        self._rejoin = None
        if self._rejoining is not None:
            self._rejoining.cancel()
            await asyncio.wait([self._rejoining])
            self._rejoining = None

    @property
    def _streams(self) -> Inbound:
        assert self._in is not None
        return self._in

    async def _cross(self, name: str, state: State) -> barrier.Crossing:
        """Take all devices to ``state``, except those whose flags do not have it."""
        return await self.order.cross(
            name,
            [
                (lane.device, state)
                for lane in self._lanes
                if state != State.RUNNING_P2P or lane.info.flags & Flags.P2P
            ],
            timeout=self._policy.stall_timeout,
            observer=self._observer,
        )

    def _progress(self) -> None:
        emit(
            self._observer,
            events.Progress(
                self._phase,
                tuple(
                    events.DeviceProgress(s.name, s.offset, s.wire_bytes, None)
                    for s in self._streams.lanes
                ),
            ),
        )

    async def _fill_report(self) -> None:
        report = self.report
        states = await barrier.states(self._devices, timeout=1.0)
        for lane in self._lanes:
            stream = lane.stream
            digests = stream is not None and self._in is not None and self._digests
            report.devices.append(
                DeviceReport(
                    name=lane.name,
                    profile=lane.info.profile or lane.info.driver,
                    bytes_wire=stream.wire_bytes if stream is not None else 0,
                    digest=f"{stream.digest:08x}" if stream is not None and digests else "",
                    digest_ok=True if stream is not None and stream.ended and digests else None,
                    final_state=states[lane.name],
                )
            )
            report.bytes_total += stream.offset if stream is not None else 0
        report.bytes_wire = sum(d.bytes_wire for d in report.devices)

"""A simulated device that behaves like a kernel one, on real file descriptors.

:class:`SimDevice` satisfies :class:`vfioflow.devices.base.Device`.  Its state can be of any
size, its stream is made and checked by threads without the GIL, and it knows by digest and by
the ledgers of its peer-to-peer messages whether a migration kept it whole.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from vfioflow import _sim
from vfioflow._simfabric import FabricCore
from vfioflow._simport import SimPort
from vfioflow.devices.base import DeviceInfo, PrecopyInfo
from vfioflow.devices.profile import Fault, Profile, profile, profile_names
from vfioflow.errors import ConfigError, DeviceError
from vfioflow.states import ARCS, SAVING, State, opens_data_fd, path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Fabric",
    "Fault",
    "LedgerReport",
    "Profile",
    "SimDevice",
    "ledger",
    "live",
    "profile",
    "profile_names",
]

_STREAM_KINDS = {"errno": 1, "short": 2, "hang": 3, "corrupt": 4}
_TAKE_OVER_SECONDS = 0.05
_LOAD_ARC = "RESUMING->STOP"

live = _sim.live


class SimDevice:
    """A simulated device in state RUNNING.

    Args:
        name: unique within its set; the same on source and destination.
        profile: whose behaviour it has, see :func:`profile_names`.
        state_size: bytes; None: the profile's.
        seed: of the content and of the choice of what is dirtied; 0 to 2**64-1.
        fabric: the peers it exchanges messages with.
        faults: what will go wrong.
        overrides: other values for fields of :class:`Profile`.

    Raises:
        ConfigError: an unknown profile or field, or a value that cannot be.
    """

    def __init__(
        self,
        name: str,
        *,
        profile: str = "generic",
        state_size: int | str | None = None,
        seed: int = 0,
        fabric: Fabric | None = None,
        faults: Sequence[Fault] = (),
        **overrides: Any,
    ) -> None:
        self._closed = True
        if not name:
            raise ConfigError("a device needs a name")
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed = {seed}: must be from 0 to 2**64-1")
        if state_size is not None:
            overrides["state_size"] = state_size
        self._name = name
        self._profile_name = profile
        self._profile = _profile_of(profile).override(overrides)
        self._flags = self._profile.migration_flags
        self._lock = threading.RLock()
        self._arc_faults = [f for f in faults if f.at not in ("read", "write")]
        for fault in self._arc_faults:
            start, end = (part.strip() for part in fault.at.split("->"))
            if (State[start], State[end]) not in ARCS[self._flags]:
                raise ConfigError(f"fault: a device with the flags {self._flags} has no {fault.at}")
        self._core = self._make_core(seed, faults)
        self._closed = False
        if fabric is not None:
            with ExitStack() as undo:
                undo.callback(self.close)
                fabric.add(self)
                undo.pop_all()

    def _make_core(self, seed: int, faults: Sequence[Fault]) -> _sim.SimCore:
        p = self._profile
        content, _, file = p.content.partition(":")
        try:
            return _sim.SimCore(
                self._name,
                p.driver,
                size=p.state_size,
                block=p.block_size,
                initial=p.initial_bytes,
                hot=p.dirtied_bytes,
                dirty_rate=float(p.dirty_rate),
                content=content,
                path=file if content == "file" else None,
                seed=seed,
                read_rate=float(p.read_rate),
                write_rate=float(p.write_rate),
                p2p_rate=float(p.p2p_rate),
                load_seconds=float(p.load_seconds),
                drained_errno=errno.ENOMSG if p.drained == "ENOMSG" else 0,
                info_starts_save=p.info_starts_save,
                load_in_write=p.load_in == "write",
                state=State.RUNNING,
                dirty_rates=p.dirty_rates,
                dirty_step=float(p.dirty_step),
                faults=[
                    (f.at == "write", _STREAM_KINDS[f.kind], f.code, f.once, f.position)
                    for f in faults
                    if f.at in ("read", "write")
                ],
            )
        except MemoryError:
            raise ConfigError(
                f"state_size = {p.state_size}: no memory for so many blocks"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"device {self._name}: {error}") from error

    def __enter__(self) -> SimDevice:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<SimDevice {self._name} {self._profile_name} {State(self._core.state)}>"

    @property
    def name(self) -> str:
        """Unique within its set; the same on source and destination."""
        return self._name

    @property
    def profile(self) -> Profile:
        """How the device behaves, overrides included."""
        return self._profile

    @property
    def info(self) -> DeviceInfo:
        """Static facts.  The time of the final load counts for RESUMING->STOP where it is there."""
        arcs = {arc: float(seconds) for arc, seconds in self._profile.arc_seconds.items()}
        if self._profile.load_in == "stop" and self._profile.load_seconds:
            arcs[_LOAD_ARC] = arcs.get(_LOAD_ARC, 0.0) + self._profile.load_seconds
        p = self._profile
        return DeviceInfo(
            self._name,
            p.driver,
            self._flags,
            self._profile_name,
            arcs,
            version=p.version,
            firmware=p.firmware,
            model=p.model,
            tracking=p.tracking,
            late_load=p.load_in == "stop",
        )

    @property
    def state(self) -> State:
        """The present state."""
        return State(self._core.state)

    def set_state(self, state: State) -> int:
        """Take the device to ``state``, arc by arc; the new data fd, or -1.

        Raises:
            IllegalTransition: refused before anything is touched.
            DeviceError: an arc failed; ``EINVAL`` for a load that is not whole or not right,
                for ERROR, and from ERROR; ``ENODEV`` when a reset or close ended the wait.
        """
        with self._lock:
            self._ensure_open(f"set_state({state})")
            start = self.state
            if State.ERROR in (start, state):
                raise DeviceError(self._name, f"{start} -> {state}", errno.EINVAL)
            released = self._core.released
            data_fd = -1
            with ExitStack() as undo:
                for stop in path(self._flags, start, state):
                    opened = self._arc(self.state, stop, released)
                    if opened >= 0:
                        data_fd = opened
                        undo.callback(os.close, data_fd)
                undo.pop_all()
            return data_fd

    def _arc(self, start: State, end: State, released: int) -> int:
        core, name = self._core, f"{start}->{end}"
        action = f"{start} -> {end}"
        core.tick()
        fault = next((f for f in self._arc_faults if f.at.replace(" ", "") == name), None)
        if fault is not None:
            if fault.once:
                self._arc_faults.remove(fault)
            if fault.kind == "hang":
                core.wait_arc(-1.0, released)
            self._leave_in(fault.left_in)
            code = errno.ENODEV if fault.kind == "hang" else fault.code
            raise DeviceError(self._name, action, code)
        seconds = float(self._profile.arc_seconds.get(name, 0.0))
        try:
            if start is State.RESUMING:
                if not core.flush(released):
                    raise DeviceError(self._name, action, errno.ENODEV)
                if self._profile.load_in == "stop":
                    seconds += self._profile.load_seconds
            if not core.wait_arc(seconds, released):
                raise DeviceError(self._name, action, errno.ENODEV)
            if start is State.RESUMING:
                core.load()
                core.end_session()
            if start in SAVING and end not in SAVING:
                core.end_session()
            if opens_data_fd(start, end):
                if end is State.RESUMING:
                    return core.open_load(end)
                return core.open_save(end)
            core.set_effective(end)
        except OSError as error:
            if isinstance(error, DeviceError):
                raise
            raise DeviceError(self._name, action, error.errno or errno.EIO) from error
        return -1

    def _leave_in(self, state: State | None) -> None:
        if state is not None:
            self._core.end_session()
            self._core.set_effective(state)

    def port(self, data_fd: int) -> SimPort:
        """The face through which a pump moves ``data_fd``.  Takes ownership of the fd.

        Raises DeviceError (EINVAL) when the device has no session; the fd is closed then.
        """
        try:
            return SimPort(data_fd, self._core)
        except OSError as error:
            raise DeviceError(self._name, "open port", error.errno or errno.EIO) from error

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        """Stream bytes, headers included, that are still to be read in PRE_COPY.

        Raises DeviceError: EINVAL outside PRE_COPY and PRE_COPY_P2P, ENOTTY while RESUMING.
        """
        try:
            initial, dirty = self._core.precopy_info(data_fd)
        except OSError as error:
            raise DeviceError(self._name, "precopy_info", error.errno or errno.EIO) from error
        return PrecopyInfo(initial, dirty)

    def stop_copy_size(self) -> int | None:
        """Stream bytes that STOP_COPY would hand out from here, with what PRE_COPY left unread."""
        if not self._profile.has_data_size:
            return None
        try:
            return self._core.stop_copy_size()
        except OSError as error:
            raise DeviceError(self._name, "stop_copy_size", error.errno or errno.EIO) from error

    def reset(self) -> None:
        """Back to RUNNING as a device just made; ends any session, hang and wait."""
        self._take_over()
        try:
            self._ensure_open("reset")
            self._core.end_session()
            self._core.fresh()
            self._core.set_effective(State.RUNNING)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Release the device: ends any session, hang and wait.  Safe to call twice."""
        if self._closed:
            return
        self._take_over()
        try:
            if not self._closed:
                self._closed = True
                self._core.close()
        finally:
            self._lock.release()

    def _take_over(self) -> None:
        # Again and again: another thread may begin to hang between a release and the lock.
        self._core.release()
        while not self._lock.acquire(timeout=_TAKE_OVER_SECONDS):
            self._core.release()

    def true_digest(self) -> int:
        """The device's own 64-bit digest over all that it holds, received or generated.

        Equal on source and destination exactly if the state arrived whole.  Takes as long as
        making the whole state; releases the GIL.
        """
        return self._core.true_digest()

    @property
    def core(self) -> _sim.SimCore:
        """The native part, for fabrics and tests."""
        return self._core

    def _ensure_open(self, action: str) -> None:
        if self._closed:
            raise DeviceError(self._name, action, errno.ENODEV, "the device is closed")


_profile_of = profile


class Fabric:
    """Devices of one process that send each other numbered peer-to-peer messages.

    At the begin and end of each member's arc, at each ``precopy_info`` and, up to
    ``p2p_rate``, while streams are made, every device that may initiate DMA sends one message
    to each of its peers.  A peer that may not receive loses it.  At most 64 devices; names
    are unique.  Raises ConfigError.
    """

    def __init__(self, devices: Iterable[SimDevice] = ()) -> None:
        self._core = FabricCore()
        for device in sorted(devices, key=lambda d: d.name):
            self.add(device)

    def add(self, device: SimDevice) -> None:
        """Connect one more device; a closed one leaves by itself.  Raises ConfigError."""
        try:
            device.core.join(self._core)
        except ValueError as error:
            raise ConfigError(f"device {device.name}: {error}") from None

    def tick(self) -> None:
        """Have every device that may send one message to each of its peers."""
        self._core.tick()


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """Whether every message that was sent has arrived exactly once.

    ``messages`` counts those sent; ``differences`` names each pair that does not agree.
    """

    messages: int
    differences: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """No message was lost or seen twice."""
        return not self.differences


def ledger(devices: Iterable[SimDevice]) -> LedgerReport:
    """Compare the ledgers of a set of devices that share a fabric.

    Call it while nothing sends: with the devices stopped, or between arcs without ``p2p_rate``.
    """
    members = sorted(devices, key=lambda d: d.name)
    books = {d.name: d.core.ledger() for d in members}
    nothing = (0, 0, 0, 0)
    total = 0
    differences = []
    for sender, receiver in permutations(books, 2):
        sent = books[sender].get(_sim.name_hash(receiver), nothing)[0]
        _, received, duplicates, _ = books[receiver].get(_sim.name_hash(sender), nothing)
        total += sent
        if received < sent:
            differences.append(f"{sender} -> {receiver}: {sent - received} of {sent} lost")
        if received > sent or duplicates:
            extra = max(duplicates, received - sent)
            differences.append(f"{sender} -> {receiver}: {extra} duplicated")
    return LedgerReport(total, tuple(differences))

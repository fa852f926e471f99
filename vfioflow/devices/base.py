"""What the engine asks of a device, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from vfioflow._fdio import Port
from vfioflow.states import Flags, State

__all__ = ["Device", "DeviceInfo", "PrecopyInfo"]


@dataclass(frozen=True, slots=True)
class PrecopyInfo:
    """The answer to ``VFIO_MIG_GET_PRECOPY_INFO``.

    ``initial_bytes`` should be moved before the device leaves PRE_COPY;
    ``dirty_bytes`` is what it has dirtied since.  Both are estimates, in bytes.  ``reinit``: the
    device has begun anew, and ``initial_bytes`` counts from there (only devices that were asked to).
    """

    initial_bytes: int
    dirty_bytes: int
    reinit: bool = False

    @property
    def pending_bytes(self) -> int:
        """All that the device would hand out now in PRE_COPY, in bytes."""
        return self.initial_bytes + self.dirty_bytes


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What is known of a device without touching its state.

    ``driver`` decides which device can take another's state.  ``arc_seconds`` maps
    arcs written ``"RESUMING->STOP"`` to the time that they are expected to take;
    it may be empty, then the downtime prediction leaves them out.  ``outlives``: somebody else holds
    the device open, so that its state is still there when this process has died.

    For admission, as far as it is known: ``version`` of the driver, ``firmware``, ``model`` (vendor and
    device id, or a mediated device's type), ``tracking`` (who tells which pages it writes), and
    ``late_load`` (the driver loads and checks only in RESUMING -> STOP).
    """

    name: str
    driver: str
    flags: Flags
    profile: str = ""
    arc_seconds: Mapping[str, float] = field(default_factory=dict)
    outlives: bool = False
    version: str = ""
    firmware: str = ""
    model: str = ""
    tracking: Literal["device", "iommu", "none", "unknown"] = "unknown"
    late_load: bool = False


@runtime_checkable
class Device(Protocol):
    """A migratable device.

    All methods are synchronous, may block for as long as the device takes, and may
    be called from any thread (the engine never calls two at once for one device,
    except :meth:`precopy_info` while a pump reads the data fd, and after a call that did not return
    within the policy's ``stall_timeout``).
    """

    @property
    def name(self) -> str:
        """Unique within its set; the same on source and destination."""

    @property
    def info(self) -> DeviceInfo:
        """Static facts; must not change the device's state."""

    @property
    def state(self) -> State:
        """The present state, asked from the device.  Raises DeviceError."""

    def set_state(self, state: State) -> int:
        """Take the device to ``state``, through the kernel's composed path.

        Returns the new data fd, which the caller owns and closes, or -1 where the
        change opens no session.  After an error the device may stand anywhere on the way, or in
        ERROR: ask :attr:`state`.  Raises DeviceError, IllegalTransition.
        """

    def port(self, data_fd: int) -> Port:
        """How a pump reads or writes ``data_fd``.  Takes ownership of the fd."""

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        """How much there is to move in PRE_COPY or PRE_COPY_P2P.  Raises DeviceError elsewhere."""

    def stop_copy_size(self) -> int | None:
        """What STOP_COPY would hand out now (an estimate, bytes); None where it is not known."""

    def reset(self) -> None:
        """Reset the device: RUNNING, empty, any session gone.  Raises DeviceError."""

    def close(self) -> None:
        """Release the device.  No method may be called afterwards."""

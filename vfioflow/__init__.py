"""Live migration of VFIO devices: an embeddable engine.

The two calls that most users need::

    key = vfioflow.Security.from_psk_file("migration.key")  # of both hosts; `vfioflow key` makes one
    report = await vfioflow.migrate(devices, "tcp://host:4747", security=key)

    async with vfioflow.listen("tcp://0.0.0.0:4747", devices, security=key) as listener:
        report = await listener.receive()
"""

from pathlib import Path

from vfioflow.devices.base import Device, DeviceInfo, PrecopyInfo
from vfioflow.devices.dirty import DirtyLog
from vfioflow.devices.host import HostDevice, discover
from vfioflow.devices.kernel import KernelDevice
from vfioflow.devices.sim import Fabric, Fault, SimDevice
from vfioflow.devices.tracking import DirtySet
from vfioflow.devices.vfio_user import VfioUserDevice
from vfioflow.errors import (
    AdmissionError,
    AuthenticationError,
    ConfigError,
    DeviceError,
    EndError,
    HandoverInDoubt,
    HookError,
    IllegalTransition,
    IntegrityError,
    JournalError,
    NoConvergence,
    PeerError,
    PeerLost,
    ProtocolError,
    RemoteError,
    ResourceError,
    StallError,
    StreamError,
    TakenBack,
    VfioflowError,
)
from vfioflow.hooks import Hooks
from vfioflow.journal import Journal
from vfioflow.listener import Listener, listen
from vfioflow.pending import PendingSource
from vfioflow.policy import Policy
from vfioflow.report import DeviceReport, Report
from vfioflow.source import Source, migrate
from vfioflow.states import Flags, State
from vfioflow.wire.security import Security

__all__ = [
    "AdmissionError",
    "AuthenticationError",
    "ConfigError",
    "Device",
    "DeviceError",
    "DeviceInfo",
    "DeviceReport",
    "DirtyLog",
    "DirtySet",
    "EndError",
    "Fabric",
    "Fault",
    "Flags",
    "HandoverInDoubt",
    "HookError",
    "Hooks",
    "HostDevice",
    "IllegalTransition",
    "IntegrityError",
    "Journal",
    "JournalError",
    "KernelDevice",
    "Listener",
    "NoConvergence",
    "PeerError",
    "PeerLost",
    "PendingSource",
    "Policy",
    "PrecopyInfo",
    "ProtocolError",
    "RemoteError",
    "ResourceError",
    "Report",
    "Security",
    "SimDevice",
    "Source",
    "StallError",
    "StreamError",
    "State",
    "TakenBack",
    "VfioUserDevice",
    "VfioflowError",
    "discover",
    "get_include",
    "listen",
    "migrate",
]


def get_include() -> list[str]:
    """The folders with which an outside ``.pyx`` can ``cimport vfioflow._fdio``.

    Give them to Cython as ``include_path`` and to the C compiler as ``include_dirs``.
    """
    package = Path(__file__).resolve().parent
    installed = package / "include"
    if installed.is_dir():
        return [str(installed)]
    sources = package.parent / "pyx"  # an editable install
    return [str(sources), str(sources / "lib")]

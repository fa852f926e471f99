"""Every error that vfioflow raises, and the exit code that the command line gives it.

An error says which device and which state it is about, what was done about it, and
what the user can do.  Where a builtin exception means the same thing, the class is
also that one, so that ``except OSError`` or ``except ValueError`` keeps working.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vfioflow.qemu_stream import Stream
    from vfioflow.states import State

__all__ = [
    "AccessError",
    "AdmissionError",
    "AuthenticationError",
    "ConfigError",
    "DeviceError",
    "EndError",
    "HandoverInDoubt",
    "HookError",
    "IllegalTransition",
    "IntegrityError",
    "JournalError",
    "NoConvergence",
    "PeerError",
    "PeerLost",
    "ProtocolError",
    "RemoteError",
    "ResourceError",
    "StallError",
    "StreamError",
    "TakenBack",
    "VfioflowError",
]


class VfioflowError(Exception):
    """The base of all errors of this package.  ``exit_code`` is what the commands exit with."""

    exit_code = 1


class ConfigError(VfioflowError, ValueError):
    """A setting, a devices file or an address is wrong.  Nothing was touched."""

    exit_code = 2


class AdmissionError(VfioflowError):
    """This set of devices may not migrate together, or not to this destination.

    ``reasons`` maps each device's name to the reason; nothing was touched.
    """

    exit_code = 3

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        super().__init__(
            "these devices may not migrate: "
            + "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        )


class DeviceError(VfioflowError, OSError):
    """A device failed.  Carries its name, what it was asked to do, and the errno."""

    exit_code = 4

    def __init__(self, device: str, action: str, code: int, advice: str = "") -> None:
        name = _errno.errorcode.get(code, str(code))
        text = f"device {device}: {action}: {name} ({os.strerror(code)})"
        super().__init__(code, f"{text}; {advice}" if advice else text)
        self.device = device
        self.action = action

    def __str__(self) -> str:
        return str(self.strerror)


class EndError(VfioflowError, OSError):
    """An end of a tunnel failed: its input or its output.  Carries which, in words, and the errno, or 0."""

    exit_code = 4

    def __init__(self, end: str, action: str, code: int) -> None:
        why = f": {_errno.errorcode.get(code, str(code))} ({os.strerror(code)})" if code else ""
        super().__init__(code, f"{end}: {action}{why}")
        self.end = end
        self.action = action

    def __str__(self) -> str:
        return str(self.strerror)


class AccessError(VfioflowError, RuntimeError):
    """An access to a device that stands still could not be kept, answered or replayed; names the device."""

    exit_code = 4

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device}: {reason}" if device else reason)
        self.device = device


class HookError(VfioflowError, RuntimeError):
    """A hook of the user's raised; what it raised is the ``__cause__``."""


class ResourceError(VfioflowError, OSError):
    """This host has no memory, threads or descriptors left, which ``errno`` tells apart.

    The devices run at the source, as after any other failure.
    """

    exit_code = 9

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, f"out of resources: {what}: {os.strerror(code)}")

    def __str__(self) -> str:
        return str(self.strerror)

    @classmethod
    def of(cls, error: BaseException) -> BaseException:
        """``error``, or a ResourceError in its place where that is what it means."""
        if isinstance(error, MemoryError):
            return cls(_errno.ENOMEM, str(error) or "memory")
        if isinstance(error, OSError) and not isinstance(error, VfioflowError):
            code = error.errno or 0
            if code in (_errno.EMFILE, _errno.ENFILE):
                return cls(code, "descriptors")
            if code in (_errno.ENOMEM, _errno.ENOBUFS):
                return cls(code, "memory")
        return error


class IllegalTransition(VfioflowError, ValueError):
    """The state machine has no such change.  Refused before the device was touched."""

    exit_code = 4

    def __init__(self, start: State, end: State, reason: str) -> None:
        self.start, self.end, self.reason = start, end, reason
        super().__init__(f"{start} -> {end} is refused: {reason}")


class PeerError(VfioflowError, ConnectionError):
    """The other side is not there, is not one of ours, or said something wrong."""

    exit_code = 5


class AuthenticationError(PeerError):
    """One side could not prove to the other who it is.

    Keys or certificates differ, are not good (any more), or only one side has any.
    """


class PeerLost(PeerError):
    """The connection ended, or could not be made."""


class ProtocolError(PeerError):
    """The other side broke the wire protocol, or is no vfioflow at all."""


class RemoteError(PeerError):
    """The other side reported that it failed, and why."""


class IntegrityError(PeerError):
    """What arrived is not what was sent: a digest or a length does not agree."""


class StallError(PeerError):
    """Nothing moved for longer than ``Policy.stall_timeout``."""


class StreamError(VfioflowError, ValueError):
    """A QEMU migration stream is none, damaged, cut short, or has something unknown in it.

    ``offset``: where, in bytes.  ``found``: what was read before, a :class:`vfioflow.qemu_stream.Stream`.
    """

    exit_code = 2

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"at byte {offset}: {what}")
        self.offset = offset
        self.found: Stream


class TakenBack(PeerError):
    """A session that was begun did not complete, and that is settled: the devices run at the source."""


class NoConvergence(VfioflowError):
    """Pre-copy could not bring the pending data under the threshold, and the policy says to stop.

    The devices run on at the source.
    """

    exit_code = 6


class HandoverInDoubt(VfioflowError):
    """The connection was lost between COMMIT and its answer.

    The source has given its devices up and keeps them stopped; whether the
    destination runs must be seen there.
    """

    exit_code = 7


class JournalError(VfioflowError, OSError):
    """The journal cannot be written or read, or a file of it is damaged.

    Carries the file or directory (``filename``) and the errno.  The devices were not touched, or
    run at the source; an error after the commit says otherwise.
    """

    exit_code = 8

    def __init__(self, path: Path, what: str, code: int, advice: str) -> None:
        super().__init__(code, f"journal: {path}: {what} ({os.strerror(code)}); {advice}")
        self.filename = str(path)

    def __str__(self) -> str:
        return str(self.strerror)

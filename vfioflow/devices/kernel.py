"""Devices of a real kernel: everything through Linux's VFIO uAPI."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

from vfioflow import _vfio
from vfioflow._fdio import Port
from vfioflow.devices.base import DeviceInfo, PrecopyInfo
from vfioflow.devices.host import HostDevice, discover, find
from vfioflow.devices.opening import may, open_cdev, open_group
from vfioflow.devices.quirks import Quirks, quirks_of
from vfioflow.errors import ConfigError, DeviceError
from vfioflow.states import Flags, State, path

__all__ = ["KernelDevice", "discover"]

log = logging.getLogger("vfioflow")

_UNKNOWN = {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}
"""What kernels and drivers that lack a feature answer."""
_CLOSE_SECONDS = 5.0
_CONFIG_LIMIT = 4096
"""The largest PCI config space, in bytes."""


class KernelDevice:
    """A VFIO device, by the file descriptor of the device.

    Closing it does not reset it: a device stays in the state in which it is left (so measured:
    a device closed in STOP_COPY was still in STOP_COPY when opened again), but its data fds die
    with it, unless somebody else, a VMM say, has the device's fd open too.

    Nobody else may change the device's migration state meanwhile.
    """

    def __init__(
        self,
        fd: int,
        *,
        name: str,
        host: HostDevice | None = None,
        driver: str = "",
        reinit: bool = False,
        keep: ExitStack | None = None,
        outlives: bool = False,
    ) -> None:
        """Use :meth:`open`, :meth:`from_fd` or :meth:`receive`.  Owns ``fd`` once it returns."""
        self._outlives = outlives
        self._name = name
        self._fd = fd
        self._host = host
        self._keep = keep or ExitStack()
        self._lock = threading.Lock()
        try:
            _vfio.device_info(fd)
        except OSError as error:
            code = error.errno or errno.EIO
            raise DeviceError(name, "open", code, "it is no fd of a VFIO device") from error
        try:
            self._flags = Flags(_vfio.migration_flags(fd) & 7)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise self._failed("ask for its migration flags", error) from error
            self._flags = Flags.NONE
        self._driver = driver or (host.driver if host is not None else "") or _driver_of(fd)
        self._quirks = quirks_of(self._driver)
        logs = _vfio.probe(fd, _vfio.FEATURE_DMA_LOGGING_START, sets=True)
        self._tracking: Literal["device", "unknown"] = "device" if logs else "unknown"
        self._reinit = False
        if reinit:
            try:
                _vfio.enable_precopy_info_v2(fd)
                self._reinit = True
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    raise self._failed("opt in to REINIT", error) from error

    # ----------------------------------------------------------------- ways in

    @classmethod
    def open(
        cls,
        which: str,
        *,
        name: str = "",
        how: Literal["auto", "cdev", "group"] = "auto",
        attach: bool = False,
        reinit: bool = False,
        sys: str | Path = "/sys",
        dev: str | Path = "/dev",
    ) -> Self:
        """Open a device of this host.

        Args:
            which: its PCI address, a mediated device's UUID, or its path in sysfs.
            name: what it is called in a migration; default: its name in sysfs.
            how: "cdev" (its own character device, and iommufd), "group" (group and container), or
                "auto": the first of the two that this host has.
            attach: with "cdev", also attach it to a new, empty address space of the iommufd, which
                a device that does DMA needs.
            reinit: opt in to a pre-copy that may begin anew (MIG_PRECOPY_INFOv2), where there is one.
            sys: where sysfs is mounted.
            dev: where the device files are.

        Raises:
            ConfigError: there is no such device, or no such way to it.
            DeviceError: it cannot be opened; names the file.
        """
        host = find(which, sys=sys, dev=dev)
        name = name or host.name
        if how not in ("auto", "cdev", "group"):
            raise ConfigError(f'how={how!r}: must be "auto", "cdev" or "group"')
        iommufd = Path(dev, "iommu")
        if how == "auto":
            how = "cdev" if host.cdev and may(host.cdev) and may(iommufd) else "group"
        with ExitStack() as opened:
            if how == "cdev":
                if not host.cdev:
                    raise ConfigError(
                        f"device {host.name} has no character device of its own; its kernel"
                        " lacks CONFIG_VFIO_DEVICE_CDEV, or its driver is no VFIO driver"
                    )
                fd = open_cdev(opened, name, host.cdev, iommufd, attach=attach)
            else:
                if not host.group:
                    reason = host.why_not or "it has no group"
                    raise ConfigError(f"device {host.name} cannot be opened by group: {reason}")
                fd = open_group(opened, name, host, Path(dev, "vfio", "vfio"))
            device = cls(fd, name=name, host=host, reinit=reinit)
            device._keep = opened.pop_all()
        return device

    @classmethod
    def from_fd(
        cls,
        fd: int,
        *,
        name: str,
        driver: str = "",
        reinit: bool = False,
        outlives: bool = True,
    ) -> Self:
        """A device whose fd somebody else opened: inherited, or duplicated from a VMM's.

        Takes the fd over, and closes it in :meth:`close`; on an error it stays the caller's.
        ``outlives``: whether that somebody keeps it open when this process dies; the journal is told.
        ``driver`` is needed where the kernel does not tell it (before about 6.18), for admission.
        """
        keep = ExitStack()
        device = cls(fd, name=name, driver=driver, reinit=reinit, keep=keep, outlives=outlives)
        os.set_inheritable(fd, False)
        keep.callback(os.close, fd)
        return device

    @classmethod
    def receive(
        cls,
        where: str | Path | socket.socket,
        *,
        name: str,
        driver: str = "",
        reinit: bool = False,
        timeout: float = 10.0,
    ) -> Self:
        """A device whose fd comes over a UNIX socket, as one message with one fd (SCM_RIGHTS).

        Args:
            where: a connected socket, which stays the caller's, or the path of one to connect to.
            name: what it is called in a migration.
            driver: as in :meth:`from_fd`.
            reinit: as in :meth:`open`.
            timeout: seconds to wait for it; with a path.
        """
        if not isinstance(where, socket.socket):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(timeout)
                try:
                    sock.connect(str(where))
                except OSError as error:
                    code = error.errno or errno.ETIMEDOUT
                    raise DeviceError(name, f"connect to {where}", code) from error
                return cls.receive(sock, name=name, driver=driver, reinit=reinit)
        try:
            _, fds, _, _ = socket.recv_fds(where, 4096, 16)
        except OSError as error:
            code = error.errno or errno.ETIMEDOUT
            raise DeviceError(name, "receive its fd", code) from error
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise DeviceError(
                name, "receive its fd", errno.EPROTO, f"the message has {len(fds)} fds, not one"
            )
        with ExitStack() as undo:
            undo.callback(os.close, fds[0])
            device = cls.from_fd(fds[0], name=name, driver=driver, reinit=reinit)
            undo.pop_all()
        return device

    # ------------------------------------------------------------------ facts

    def __repr__(self) -> str:
        return f"<KernelDevice {self._name} {self._driver or 'unknown driver'} fd {self._fd}>"

    @property
    def name(self) -> str:
        """Unique within its set; the same on source and destination."""
        return self._name

    @property
    def info(self) -> DeviceInfo:
        """Static facts; the times of its arcs as far as ``quirks.toml`` has them."""
        host = self._host
        ids = f"{host.vendor_id}:{host.device_id}" if host is not None and host.vendor_id else ""
        kind = host.mdev_type if host is not None else ""
        return DeviceInfo(
            self._name,
            self._driver or "unknown",
            self._flags,
            kind,
            self._quirks.arc_seconds,
            self._outlives,
            version=host.driver_version if host is not None else "",
            firmware=host.firmware_version if host is not None else "",
            model=kind or ids,
            tracking=self._tracking,
            late_load=bool(self._quirks.names) and self._quirks.load_in == "stop",
        )

    @property
    def quirks(self) -> Quirks:
        """What its driver does in its own way."""
        return self._quirks

    def describe(self) -> HostDevice | None:
        """What sysfs says of it; None for an fd whose device is not known."""
        return self._host

    def fileno(self) -> int:
        """The device's fd.  Raises DeviceError once closed."""
        self._ensure_open("fileno")
        return self._fd

    # ------------------------------------------------------------------- state

    @property
    def state(self) -> State:
        """The present state, asked from the device."""
        self._ensure_open("ask for its state")
        try:
            return State(_vfio.get_state(self._fd))
        except OSError as error:
            raise self._failed("ask for its state", error) from error

    def set_state(self, state: State) -> int:
        """Take the device to ``state``, through the kernel's composed path.

        Nothing that the device's flags do not allow reaches the kernel: Linux 6.12.95 spins for
        ever on STOP_COPY -> PRE_COPY.  Returns the new data fd, which the caller owns, or -1.

        Raises:
            IllegalTransition: refused before the kernel was asked.
            DeviceError: names the change, the errno, and where the device stands now.
        """
        with self._lock:
            start = self.state
            if not path(self._flags, start, state):
                return -1
            try:
                return _vfio.set_state(self._fd, state)
            except OSError as error:
                now = self._where()
                raise DeviceError(
                    self._name, f"{start} -> {state}", error.errno or errno.EIO, f"it is now {now}"
                ) from error

    def _where(self) -> str:
        try:
            now = State(_vfio.get_state(self._fd))
        except (OSError, ValueError) as error:
            return f"in a state that it does not tell ({error})"
        return f"in {now}" + (", which only a reset leaves" if now is State.ERROR else "")

    def port(self, data_fd: int) -> Port:
        """How a pump reads or writes ``data_fd``: plain reads and writes.  Takes the fd over."""
        try:
            return Port(data_fd)
        except OSError as error:
            raise self._failed("open port", error) from error

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        """How much there is to move in PRE_COPY or PRE_COPY_P2P.  Raises DeviceError elsewhere."""
        try:
            initial, dirty, reinit = _vfio.precopy_info(data_fd)
        except OSError as error:
            raise self._failed("precopy_info", error) from error
        # Without the opt-in drivers leave in the flags whatever the caller had there.
        return PrecopyInfo(initial, dirty, reinit and self._reinit)

    def stop_copy_size(self) -> int | None:
        """What STOP_COPY would hand out now (an estimate, bytes); None where it is not told."""
        self._ensure_open("stop_copy_size")
        try:
            return _vfio.data_size(self._fd)
        except OSError as error:
            if error.errno in _UNKNOWN:
                return None
            raise self._failed("stop_copy_size", error) from error

    def reset(self) -> None:
        """Reset the device: RUNNING, empty, any session gone.

        It loses what it holds: only for a destination that gives up, and for a device in ERROR or
        one that cannot be put back.
        """
        with self._lock:
            self._ensure_open("reset")
            try:
                _vfio.reset(self._fd)
            except OSError as error:
                raise self._failed("reset", error) from error

    # ------------------------------------------------------------------ regions

    def read_region(self, index: int, offset: int, size: int) -> bytes:
        """``size`` bytes of a region (0 to 5: the BARs; 7: the config space)."""
        start, length = self._region(index)
        if offset < 0 or size < 0 or offset + size > length:
            raise DeviceError(self._name, f"read region {index}", errno.EINVAL, "out of bounds")
        try:
            return _vfio.read_at(self._fd, start + offset, size)
        except OSError as error:
            raise self._failed(f"read region {index}", error) from error

    def write_region(self, index: int, offset: int, data: bytes) -> None:
        """Write into a region."""
        start, length = self._region(index)
        if offset < 0 or offset + len(data) > length:
            raise DeviceError(self._name, f"write region {index}", errno.EINVAL, "out of bounds")
        try:
            done = _vfio.write_at(self._fd, start + offset, data)
        except OSError as error:
            raise self._failed(f"write region {index}", error) from error
        if done != len(data):
            raise DeviceError(self._name, f"write region {index}", errno.EIO, "it took less")

    def _region(self, index: int) -> tuple[int, int]:
        self._ensure_open(f"region {index}")
        try:
            start, length, _ = _vfio.region_info(self._fd, index)
        except OSError as error:
            raise self._failed(f"region {index}", error) from error
        return start, length

    def save_config(self) -> bytes:
        """The device's PCI config space as it reads, for ``Hooks.save_config``."""
        _, length = self._region(_vfio.CONFIG_REGION)
        return self.read_region(_vfio.CONFIG_REGION, 0, min(length, _CONFIG_LIMIT))

    def load_config(self, data: bytes) -> None:
        """Write what :meth:`save_config` read, the command register last.

        What the driver does not let anybody write it leaves as it is.  Interrupts are the VMM's:
        it sets them up again from what it finds.
        """
        _, length = self._region(_vfio.CONFIG_REGION)
        if len(data) > length or len(data) < 64:
            raise DeviceError(
                self._name, "load_config", errno.EINVAL, f"{len(data)} bytes for {length}"
            )
        for offset in range(0, len(data) - 3, 4):
            if offset != 4:
                self.write_region(_vfio.CONFIG_REGION, offset, data[offset : offset + 4])
        self.write_region(_vfio.CONFIG_REGION, 4, data[4:6])

    # -------------------------------------------------------------------- end

    def close(self) -> None:
        """Close the device's fd, and nothing else.  Safe to call twice.

        While a state change hangs in the kernel the fd stays open: it would end up as another's.
        """
        if self._fd < 0:
            return
        if not self._lock.acquire(timeout=_CLOSE_SECONDS):
            log.warning("device %s: a state change hangs; its fd stays open", self._name)
            return
        try:
            self._fd = -1
            self._keep.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ensure_open(self, action: str) -> None:
        if self._fd < 0:
            raise DeviceError(self._name, action, errno.ENODEV, "the device is closed")

    def _failed(self, action: str, error: OSError) -> DeviceError:
        return DeviceError(self._name, action, error.errno or errno.EIO)


def _driver_of(fd: int) -> str:
    """The driver behind a device fd, where the kernel tells (in fdinfo, from about 6.18)."""
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "vfio-device-syspath":
            try:
                return Path(value.strip(), "driver").readlink().name
            except OSError:
                return ""
    return ""

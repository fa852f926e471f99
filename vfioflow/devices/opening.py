"""Ways to a VFIO device of this host: its character device with an iommufd, or its group with a container.

Each leaves what it opened to the caller's stack, and raises DeviceError with what to do about it.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from vfioflow import _vfio
from vfioflow.devices.host import HostDevice
from vfioflow.errors import DeviceError

__all__ = ["may", "open_cdev", "open_group"]


def may(path: str | Path) -> bool:
    """Whether this process may read and write it."""
    return os.access(path, os.R_OK | os.W_OK)


def open_path(opened: ExitStack, name: str, path: str | Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        code = error.errno or errno.EIO
        advice = {
            errno.EBUSY: "somebody else has it open",
            errno.EACCES: "its owner is root by default: see the udev rules in docs/kernel.md",
            errno.ENOENT: "this kernel does not offer it, or its module is not loaded",
        }
        raise DeviceError(name, f"open {path}", code, advice.get(code, "")) from error
    opened.callback(os.close, fd)
    return fd


def open_cdev(opened: ExitStack, name: str, cdev: str, iommufd: Path, *, attach: bool) -> int:
    """The device fd of a character device, bound to an iommufd; with ``attach``, in an address space."""
    owner = open_path(opened, name, iommufd)
    fd = open_path(opened, name, cdev)
    step = f"bind {cdev} to {iommufd}"
    try:
        _vfio.bind_iommufd(fd, owner)
        if attach:
            step = f"attach {cdev} to an address space"
            _vfio.attach_ioas(fd, _vfio.ioas_alloc(owner))
    except OSError as error:
        code = error.errno or errno.EIO
        busy = "somebody else has it open" if code in (errno.EINVAL, errno.EBUSY) else ""
        raise DeviceError(name, step, code, busy) from error
    return fd


def open_group(opened: ExitStack, name: str, host: HostDevice, container_path: Path) -> int:
    """The device fd out of the device's group, which is put into a container of its own."""
    container = open_path(opened, name, container_path)
    group = open_path(opened, name, host.group)
    step = f"use {container_path}"
    try:
        if not _vfio.check_container(container):
            raise DeviceError(name, step, errno.EOPNOTSUPP, "it has no type 1 IOMMU")
        if not _vfio.group_viable(group):
            raise DeviceError(
                name,
                f"use {host.group}",
                errno.EPERM,
                "other devices of its IOMMU group are bound to drivers that are not VFIO's",
            )
        step = f"put {host.group} into a container"
        _vfio.group_set_container(group, container)
        step = f"take the device from {host.group}"
        fd = _vfio.group_get_device(group, host.name.encode())
    except DeviceError:
        raise
    except OSError as error:
        raise DeviceError(name, step, error.errno or errno.EIO) from error
    opened.callback(os.close, fd)
    return fd

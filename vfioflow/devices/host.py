"""What VFIO devices there are on this host, read from sysfs.  Opens and changes nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vfioflow.errors import ConfigError

__all__ = ["HostDevice", "discover", "find"]

_NO_MIGRATION = {"vfio_pci", "vfio_platform", "vfio_amba", "nvgrace_gpu_vfio_pci", "ism_vfio_pci"}
"""Drivers of which it is known that they cannot migrate."""

_BUSES = ("pci", "mdev")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDevice:
    """A device that is bound to VFIO, or could be.

    ``group`` and ``cdev`` are the files to open, "" where there is none.  ``why_not`` says what
    keeps it from being migrated as it is, as far as sysfs and the files' permissions tell; "" if
    nothing is known against it.
    """

    name: str
    bus: str
    path: Path
    driver: str = ""
    driver_version: str = ""
    firmware_version: str = ""
    vendor_id: str = ""
    device_id: str = ""
    mdev_type: str = ""
    numa_node: int | None = None
    iommu_group: int | None = None
    group: str = ""
    cdev: str = ""
    why_not: str = ""

    @property
    def usable(self) -> bool:
        """Nothing is known that speaks against it."""
        return not self.why_not


def discover(*, sys: str | Path = "/sys", dev: str | Path = "/dev") -> list[HostDevice]:
    """Devices of VFIO drivers, mediated devices, and virtual functions of other drivers."""
    found = []
    for bus in _BUSES:
        folder = Path(sys, "bus", bus, "devices")
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            device = _describe(path, bus, Path(dev))
            bound = "vfio" in device.driver or (path / "vfio-dev").is_dir()
            if bus == "mdev" or bound or (path / "physfn").exists():
                found.append(device)
    return found


def find(which: str, *, sys: str | Path = "/sys", dev: str | Path = "/dev") -> HostDevice:
    """A device by its name in sysfs (a PCI address, with or without domain; an mdev's UUID) or path.

    Raises:
        ConfigError: there is none.
    """
    try:
        return _find(which, sys, dev)
    except OSError as error:  # a name that is too long, or a folder that may not be read
        raise ConfigError(f"{which!r} is no device: {error.strerror}") from None


def _find(which: str, sys: str | Path, dev: str | Path) -> HostDevice:
    if "/" in which:
        path = Path(which).resolve()
        names, buses = [path.name], [(path / "subsystem").resolve().name]
        if buses[0] not in _BUSES:
            buses = list(_BUSES)
    else:
        names, buses = [which.lower(), f"0000:{which.lower()}"], list(_BUSES)
    for bus in buses:
        for name in names:
            path = Path(sys, "bus", bus, "devices", name)
            if path.exists():
                return _describe(path, bus, Path(dev))
    raise ConfigError(
        f"there is no device {which!r}; give a PCI address, the UUID of a mediated device, or a"
        " path in sysfs"
    )


def _describe(path: Path, bus: str, dev: Path) -> HostDevice:
    driver = _link(path / "driver")
    iommu_group = _link(path / "iommu_group")
    group = dev / "vfio" / iommu_group if iommu_group else None
    if (
        group is not None
        and not group.exists()
        and (dev / "vfio" / f"noiommu-{iommu_group}").exists()
    ):
        group = dev / "vfio" / f"noiommu-{iommu_group}"
    numbers = [p.name for p in (path / "vfio-dev").glob("vfio*")]
    cdev = dev / "vfio" / "devices" / numbers[0] if numbers else None
    node = _text(path / "numa_node")
    return HostDevice(
        name=path.name,
        bus=bus,
        path=path.resolve(),
        driver=driver,
        driver_version=_text(path / "driver" / "module" / "version"),
        firmware_version=_firmware(path),
        vendor_id=_text(path / "vendor").removeprefix("0x"),
        device_id=_text(path / "device").removeprefix("0x"),
        mdev_type=_link(path / "mdev_type"),
        numa_node=int(node) if re.fullmatch(r"\d+", node) else None,
        iommu_group=int(iommu_group) if iommu_group.isdecimal() else None,
        group=str(group) if group is not None and group.exists() else "",
        cdev=str(cdev) if cdev is not None and cdev.exists() else "",
        why_not=_why_not(driver, group, cdev),
    )


def _why_not(driver: str, group: Path | None, cdev: Path | None) -> str:
    plain = driver.replace("-", "_")
    if not driver:
        return "it is bound to no driver"
    if plain in _NO_MIGRATION:
        return f"its driver {driver} does not support migration"
    files = [file for file in (cdev, group) if file is not None]
    if not files:
        return f"its driver {driver} is no VFIO driver, or the device has no IOMMU group"
    if not any(file.exists() for file in files):
        if "vfio" in driver:
            return f"neither of its files is there: {', '.join(map(str, files))}"
        return f"it is bound to {driver}, not to a VFIO driver"
    if not any(os.access(file, os.R_OK | os.W_OK) for file in files if file.exists()):
        return f"no permission to open {' or '.join(map(str, files))}"
    return ""


def _firmware(path: Path) -> str:
    """Where drivers show it: of the device itself or, for a virtual function, of its parent."""
    for owner in (path, path / "physfn"):
        for pattern in ("fw_version", "fw_ver", "firmware_version", "infiniband/*/fw_ver"):
            for file in sorted(owner.glob(pattern)):
                if text := _text(file):
                    return text
    return ""


def _link(path: Path) -> str:
    try:
        return path.readlink().name
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

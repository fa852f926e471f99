"""Discovery, over a tree that looks like sysfs."""

from __future__ import annotations

import os

import pytest

from vfioflow import ConfigError, Flags, KernelDevice, discover
from vfioflow.admission import judge
from vfioflow.devices.host import find
from vfioflow.inventory import of_host

UUID = "0f5d5a2e-4a9e-4c53-9b0d-7b1f4f0c8f10"


@pytest.fixture
def tree(tmp_path):
    """A virtual function under mlx5's VFIO driver, one under its network driver, one under plain
    vfio-pci, a disk, and a mediated device."""
    sys, dev = tmp_path / "sys", tmp_path / "dev"
    for group in ("12", "14", "20"):
        (dev / "vfio").mkdir(parents=True, exist_ok=True)
        (dev / "vfio" / group).touch()
    (dev / "vfio" / "devices").mkdir()
    (dev / "vfio" / "devices" / "vfio3").touch()

    def add(bus, name, driver, group="", **texts):
        path = sys / "devices" / name
        path.mkdir(parents=True)
        (sys / "bus" / bus / "devices").mkdir(parents=True, exist_ok=True)
        (sys / "bus" / bus / "devices" / name).symlink_to(path)
        (path / "subsystem").symlink_to(sys / "bus" / bus)
        if driver:
            module = sys / "module" / driver
            module.mkdir(parents=True, exist_ok=True)
            (module / "version").write_text("24.10\n")
            folder = sys / "bus" / bus / "drivers" / driver
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "module").exists():
                (folder / "module").symlink_to(module)
            (path / "driver").symlink_to(folder)
        if group:
            (path / "iommu_group").symlink_to(sys / "kernel" / "iommu_groups" / group)
        for file, text in texts.items():
            (path / file).write_text(f"{text}\n")
        return path

    parent = add("pci", "0000:3b:00.0", "mlx5_core", vendor="0x15b3")
    (parent / "infiniband" / "mlx5_0").mkdir(parents=True)
    (parent / "infiniband" / "mlx5_0" / "fw_ver").write_text("28.41.1000\n")
    good = add("pci", "0000:3b:00.2", "mlx5_vfio_pci", "12",
               vendor="0x15b3", device="0x101e", numa_node="1")  # fmt: skip
    (good / "vfio-dev" / "vfio3").mkdir(parents=True)
    (good / "physfn").symlink_to(parent)
    bound = add("pci", "0000:3b:00.3", "mlx5_core", "13", vendor="0x15b3", numa_node="-1")
    (bound / "physfn").symlink_to(parent)
    add("pci", "0000:3b:00.4", "vfio-pci", "14")
    add("pci", "0000:01:00.0", "nvme", "1")
    mdev = add("mdev", UUID, "mtty", "20")
    (mdev / "mdev_type").symlink_to(sys / "class" / "mtty" / "mtty-2")
    return sys, dev


def test_what_is_there(tree):
    sys, dev = tree
    found = {device.name: device for device in discover(sys=sys, dev=dev)}
    assert sorted(found) == ["0000:3b:00.2", "0000:3b:00.3", "0000:3b:00.4", UUID]
    good = found["0000:3b:00.2"]
    assert good.usable
    assert (good.driver, good.driver_version) == ("mlx5_vfio_pci", "24.10")
    assert good.firmware_version == "28.41.1000"
    assert (good.vendor_id, good.device_id) == ("15b3", "101e")
    assert (good.numa_node, good.iommu_group) == (1, 12)
    assert good.group == str(dev / "vfio" / "12")
    assert good.cdev == str(dev / "vfio" / "devices" / "vfio3")
    assert "mlx5_core, not to a VFIO driver" in found["0000:3b:00.3"].why_not
    assert found["0000:3b:00.3"].numa_node is None
    assert "does not support migration" in found["0000:3b:00.4"].why_not
    assert (found[UUID].bus, found[UUID].mdev_type) == ("mdev", "mtty-2")
    assert found[UUID].usable


def test_an_empty_host(tmp_path):
    assert discover(sys=tmp_path, dev=tmp_path) == []


def test_permissions(tree, monkeypatch):
    sys, dev = tree
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = {device.name: device for device in discover(sys=sys, dev=dev)}
    assert found["0000:3b:00.2"].why_not.startswith("no permission to open")


@pytest.mark.parametrize("which", ["0000:3b:00.2", "3b:00.2", "3B:00.2"])
def test_names(tree, which):
    sys, dev = tree
    assert find(which, sys=sys, dev=dev).name == "0000:3b:00.2"


def test_path(tree):
    sys, dev = tree
    path = sys / "bus" / "mdev" / "devices" / UUID
    assert find(str(path), sys=sys, dev=dev).bus == "mdev"


def test_nothing_of_the_name(tree):
    sys, dev = tree
    with pytest.raises(ConfigError, match="no device '0000:99"):
        find("0000:99:00.0", sys=sys, dev=dev)


def test_ways_that_are_not_there(tree):
    sys, dev = tree
    with pytest.raises(ConfigError, match="no character device of its own"):
        KernelDevice.open(UUID, how="cdev", sys=sys, dev=dev)
    with pytest.raises(ConfigError, match="not to a VFIO driver"):
        KernelDevice.open("3b:00.3", how="group", sys=sys, dev=dev)
    with pytest.raises(ConfigError, match="must be"):
        KernelDevice.open("3b:00.2", how="magic", sys=sys, dev=dev)


def test_the_facts_of_an_inventory_say_why_a_device_cannot_be_used(tree):
    sys, dev = tree
    facts = {device.name: device for device in of_host(discover(sys=sys, dev=dev))}
    bound = facts["0000:3b:00.3"]
    assert bound.why_not == "it is bound to mlx5_core, not to a VFIO driver"
    assert facts["0000:3b:00.4"].why_not == "its driver vfio-pci does not support migration"
    assert facts["0000:3b:00.2"].why_not  # its files are no devices
    assert {device.flags for device in facts.values()} == {Flags.NONE}
    verdict = judge([bound])
    assert verdict.reasons() == {
        "0000:3b:00.3": "it is bound to mlx5_core, not to a VFIO driver; see `vfioflow probe`"
    }

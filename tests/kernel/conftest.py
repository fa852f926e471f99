"""Tests against a real kernel's VFIO devices.  They run in the guest that rig/rig.py boots."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import uuid
from pathlib import Path

import pytest

from vfioflow import KernelDevice

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

if not os.environ.get("RIG_GUEST"):
    collect_ignore_glob = ["test_*.py"]

WAYS = ["group", "cdev"] if Path("/dev/iommu").exists() else ["group"]
COMPLAINTS = re.compile(r"WARNING: |BUG: |Oops|Call Trace|general protection|soft lockup|hung task")


@pytest.fixture(params=WAYS)
def how(request):
    """Each way to a device that this kernel has."""
    return request.param


@pytest.fixture(autouse=True)
def kernel_log(nothing_left):
    """The kernel has nothing to complain about."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    said = []
    yield said
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(os.read(log, 8192).decode(errors="replace"))
    os.close(log)
    assert [line for line in said if COMPLAINTS.search(line)] == []


@pytest.fixture
def mdev():
    """Makes mediated devices: mtty-1 and mtty-2 (one or two serial ports), mdpy-vga (cannot migrate)."""
    made = []

    def make(kind: str = "mtty-2") -> str:
        driver = kind.partition("-")[0]
        name = str(uuid.uuid4())
        types = Path(f"/sys/class/{driver}/{driver}/mdev_supported_types")
        (types / kind / "create").write_text(name)
        made.append(name)
        return name

    yield make
    for name in made:
        Path(f"/sys/bus/mdev/devices/{name}/remove").write_text("1")


@pytest.fixture
def open_device(mdev, how):
    """Makes a mediated device and opens it."""
    with contextlib.ExitStack() as stack:

        def make(kind: str = "mtty-2", name: str = "tty") -> KernelDevice:
            return stack.enter_context(KernelDevice.open(mdev(kind), name=name, how=how))

        yield make

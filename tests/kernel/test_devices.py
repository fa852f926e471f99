"""What a KernelDevice does on a real kernel."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from serial import fill, read_back

from vfioflow import (
    ConfigError,
    DeviceError,
    DirtyLog,
    Flags,
    IllegalTransition,
    KernelDevice,
    State,
    _vfio,
    discover,
)
from vfioflow.devices.config import load_devices
from vfioflow.inventory import of_host
from vfioflow.states import SAVING, opens_data_fd, path

ALL = Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY
STATES = [s for s in State if s is not State.ERROR]


def legal(start: State, end: State) -> bool:
    try:
        path(ALL, start, end)
    except IllegalTransition:
        return False
    return True


ALLOWED = [(a, b) for a in STATES for b in STATES if a != b and legal(a, b)]
REFUSED = [(a, b) for a in STATES for b in State if not legal(a, b)]


def read_all(fd: int) -> bytes:
    data = b""
    while part := os.read(fd, 4096):
        data += part
    return data


@pytest.fixture
def whole_state(open_device):
    """The whole stream of a device with something in it."""
    device = open_device(name="donor")
    fill(device, 1)
    fd = device.set_state(State.STOP_COPY)
    data = read_all(fd)
    os.close(fd)
    device.set_state(State.RUNNING)
    return data


def bring_to(device: KernelDevice, state: State, data: bytes) -> int:
    """From RUNNING; a RESUMING device gets all its data.  The data fd, or -1."""
    fd = device.set_state(state)
    if state is State.RESUMING:
        assert os.write(fd, data) == len(data)
    assert device.state == state
    return fd


def test_facts(open_device):
    device = open_device()
    assert device.info.flags == ALL
    assert (device.info.driver, device.info.profile) == ("mtty", "mtty-2")
    assert device.state == State.RUNNING
    assert device.stop_copy_size() == 96
    host = device.describe()
    assert (host.bus, host.mdev_type) == ("mdev", "mtty-2")
    assert host.usable
    assert host.iommu_group is not None
    assert host.name in {h.name for h in discover()}


@pytest.mark.parametrize(("start", "end"), ALLOWED, ids=lambda s: str(s))
def test_every_allowed_arc(open_device, whole_state, start, end):
    device = open_device()
    fds = [bring_to(device, start, whole_state)]
    fds.append(device.set_state(end))
    assert device.state == end
    chain = (start, *path(ALL, start, end))
    opened = any(opens_data_fd(a, b) for a, b in itertools.pairwise(chain))
    assert (fds[1] >= 0) == (opened and end in {*SAVING, State.RESUMING})
    for fd in fds:
        if fd >= 0:
            os.close(fd)


@pytest.mark.parametrize(("start", "end"), REFUSED, ids=lambda s: str(s))
def test_no_refused_pair_reaches_the_kernel(open_device, whole_state, monkeypatch, start, end):
    device = open_device()
    fd = bring_to(device, start, whole_state)
    asked = []
    monkeypatch.setattr(_vfio, "set_state", lambda *arguments: asked.append(arguments))
    with pytest.raises(IllegalTransition):
        device.set_state(end)
    assert asked == []
    assert device.state == start
    if fd >= 0:
        os.close(fd)


def test_stream(open_device):
    source, target = open_device(name="a"), open_device(name="b")
    expected = fill(source, 3)
    fd = source.set_state(State.PRE_COPY)
    assert source.precopy_info(fd).initial_bytes == 24
    head = read_all(fd)
    assert source.precopy_info(fd).pending_bytes == 0
    assert source.set_state(State.STOP_COPY) == -1
    with pytest.raises(DeviceError) as caught:
        source.precopy_info(fd)
    assert caught.value.errno == errno.EINVAL
    data = head + read_all(fd)
    os.close(fd)
    load = target.set_state(State.RESUMING)
    assert os.write(load, data[:-1]) == 95
    with pytest.raises(DeviceError, match=r"RESUMING -> STOP.*EINVAL.*now in RESUMING"):
        target.set_state(State.STOP)
    os.write(load, data[-1:])
    target.set_state(State.RUNNING)
    os.close(load)
    assert read_back(target) == expected


def test_reset_empties(open_device):
    device = open_device()
    fd = device.set_state(State.RESUMING)
    device.reset()
    assert device.state == State.RUNNING
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        os.write(fd, b"x" * 24)
    os.close(fd)


def test_closing_does_not_reset(mdev, how):
    name = mdev()
    with KernelDevice.open(name, how=how) as device:
        os.close(device.set_state(State.STOP_COPY))
    with KernelDevice.open(name, how=how) as device:
        assert device.state == State.STOP_COPY
        device.set_state(State.RUNNING)


def test_no_migration(open_device):
    device = open_device("mdpy-vga")
    assert device.info.flags == Flags.NONE
    assert device.stop_copy_size() is None
    with pytest.raises(DeviceError) as caught:
        _ = device.state
    assert caught.value.errno == errno.ENOTTY
    assert not DirtyLog(device).supported


def test_inherited(open_device):
    device = open_device()
    code = (
        "import sys; from vfioflow import KernelDevice, State;"
        "d = KernelDevice.from_fd(int(sys.argv[1]), name='x', driver='mtty');"
        "d.set_state(State.RUNNING_P2P); print(d.state, int(d.info.flags)); d.close()"
    )
    fd = device.fileno()
    out = subprocess.run(
        [sys.executable, "-c", code, str(fd)], pass_fds=[fd], capture_output=True, text=True
    )
    assert out.stdout.split() == ["RUNNING_P2P", "7"], out.stderr
    assert device.state == State.RUNNING_P2P


def test_received(open_device, tmp_path):
    device = open_device()
    where = tmp_path / "vmm"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(where))
        server.listen()

        def give() -> None:
            peer, _ = server.accept()
            with peer:
                socket.send_fds(peer, [b"vfio"], [device.fileno()])

        thread = threading.Thread(target=give)
        thread.start()
        with KernelDevice.receive(where, name="theirs", driver="mtty") as theirs:
            thread.join()
            assert theirs.fileno() != device.fileno()
            theirs.set_state(State.STOP)
    assert device.state == State.STOP


def test_dirty_log(open_device, how):
    device = open_device()
    with DirtyLog(device) as log:
        assert log.supported
        with pytest.raises(DeviceError, match="EINVAL"):
            log.start([])
        with pytest.raises(DeviceError, match="EINVAL"):
            log.start([(0, 1 << 20), (4096, 4096)])
        assert log.start([(0, 1 << 20), (1 << 30, 1 << 20)], 4096) == 4096
        if how == "cdev" or Path("/dev/iommu").exists():
            assert log.report(0, 1 << 20) == bytes(32)
        else:  # a kernel without iommufd is built without what walks a bitmap
            with pytest.raises(DeviceError, match="Operation not supported"):
                log.report(0, 1 << 20)


def test_config_space(open_device):
    source, target = open_device(name="a"), open_device(name="b")
    source.write_region(_vfio.CONFIG_REGION, 0x3C, b"\x0b")
    config = source.save_config()
    assert len(config) >= 64
    target.load_config(config)
    assert target.save_config()[0x3C] == 0x0B
    assert target.save_config()[:4] == config[:4]


def test_devices_file(mdev, how, tmp_path):
    name = mdev()
    file = tmp_path / "devices.toml"
    file.write_text(f'[[device]]\nname = "t"\nkind = "kernel"\ndevice = "{name}"\nhow = "{how}"\n')
    [device] = load_devices(file)
    assert (device.name, device.state) == ("t", State.RUNNING)
    with pytest.raises(DeviceError):  # it is taken
        KernelDevice.open(name, how=how)
    device.close()


def test_auto_and_what_is_not_there(mdev):
    with KernelDevice.open(mdev(), how="auto") as device:
        assert device.state == State.RUNNING
    with pytest.raises(ConfigError, match="no device"):
        KernelDevice.open("0000:ff:1f.7")


def test_cdev_where_there_is_none(mdev):
    if Path("/dev/iommu").exists():
        with KernelDevice.open(mdev(), how="cdev", attach=True) as device:
            assert device.state == State.RUNNING
    else:
        with pytest.raises(ConfigError, match="CONFIG_VFIO_DEVICE_CDEV"):
            KernelDevice.open(mdev(), how="cdev")


def test_reinit_by_opt_in(mdev, how):
    """Older kernels do not have it, and are not disturbed by the question."""
    with KernelDevice.open(mdev(), how=how, reinit=True) as device:
        fd = device.set_state(State.PRE_COPY)
        assert not device.precopy_info(fd).reinit
        os.close(fd)
        device.set_state(State.RUNNING)


def test_the_inventory_of_a_host(mdev):
    name = mdev()

    def mine():
        [facts] = [device for device in of_host(discover()) if device.name == name]
        return facts

    facts = mine()
    assert (facts.driver, facts.flags, facts.state) == ("mtty", ALL, "RUNNING")
    assert facts.why_not == ""
    assert facts.iommufd is Path("/dev/vfio/devices").exists()
    assert facts.stop_copy_bytes
    with closing(KernelDevice.open(name)):
        assert "somebody else has it open" in mine().why_not
    assert mine().why_not == ""

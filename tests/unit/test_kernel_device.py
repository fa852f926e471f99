"""KernelDevice over a stand-in for the ioctls: errors, the guard, sizes of structures."""

from __future__ import annotations

import ctypes
import errno
import os
import socket

import pytest

from vfioflow import (  # fmt: skip
    ConfigError,
    Device,
    DeviceError,
    DirtyLog,
    Flags,
    IllegalTransition,
    KernelDevice,
    State,
    _vfio,
)
from vfioflow.devices.config import load_devices
from vfioflow.devices.quirks import engine_answers, known_drivers, quirks_of
from vfioflow.states import FLAG_SETS, path

U32, U64, S32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32
LAYOUTS = {
    "vfio_device_feature": [U32, U32],
    "vfio_device_feature_mig_state": [U32, S32],
    "vfio_device_feature_dma_logging_control": [U64, U32, U32, U64],
    "vfio_device_feature_dma_logging_range": [U64, U64],
    "vfio_device_feature_dma_logging_report": [U64, U64, U64, U64],
    "vfio_precopy_info": [U32, U32, U64, U64],
    "vfio_device_bind_iommufd": [U32, U32, S32, U32],
    "vfio_device_attach_iommufd_pt": [U32, U32, U32],
    "iommu_ioas_alloc": [U32, U32, U32],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_are_those_of_the_uapi(name):
    fields = [(f"f{number}", kind) for number, kind in enumerate(LAYOUTS[name])]
    layout = type(name, (ctypes.Structure,), {"_fields_": fields})
    assert _vfio.SIZES[name] == ctypes.sizeof(layout)


def test_every_size_is_compared():
    assert _vfio.SIZES.keys() == LAYOUTS.keys()


def test_numbers_of_the_ioctls():
    base = (ord(";") << 8) + 100
    assert {
        "VFIO_DEVICE_FEATURE": base + 17,
        "VFIO_DEVICE_RESET": base + 11,
        "VFIO_DEVICE_BIND_IOMMUFD": base + 18,
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT": base + 19,
        "VFIO_MIG_GET_PRECOPY_INFO": base + 21,
        "IOMMU_IOAS_ALLOC": (ord(";") << 8) + 0x81,
    } == _vfio.REQUESTS


class Kernel:
    """The ioctls of one device."""

    def __init__(self, monkeypatch, flags: Flags = FLAG_SETS[3]) -> None:
        self.state, self.flags = State.RUNNING, flags
        self.fail: dict[str, int] = {}
        self.left_in: State | None = None
        self.asked: list[State] = []
        self.resets = 0
        for name in (
            "device_info",
            "migration_flags",
            "get_state",
            "set_state",
            "reset",
            "data_size",
            "enable_precopy_info_v2",
            "precopy_info",
        ):
            monkeypatch.setattr(_vfio, name, self._call(name))

    def _call(self, name):
        def call(fd, *arguments):
            if code := self.fail.get(name):
                if self.left_in is not None:
                    self.state = self.left_in
                raise OSError(code, os.strerror(code))
            return getattr(self, f"_{name}")(*arguments)

        return call

    def _device_info(self):
        return 0, 9, 5

    def _migration_flags(self):
        return int(self.flags)

    def _get_state(self):
        return int(self.state)

    def _set_state(self, state):
        self.asked.append(State(state))
        self.state = State(state)
        return -1

    def _reset(self):
        self.resets += 1
        self.state = State.RUNNING

    def _data_size(self):
        return 96

    def _enable_precopy_info_v2(self):
        pass

    def _precopy_info(self):
        return 24, 0, True


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


@pytest.fixture
def fd():
    """An fd that a device takes over."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


@pytest.fixture
def device(kernel, fd, nothing_left):
    with KernelDevice.from_fd(fd, name="vf0", driver="mlx5_vfio_pci") as opened:
        yield opened
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


def test_it_is_a_device(device):
    assert isinstance(device, Device)
    assert (device.info.name, device.info.driver) == ("vf0", "mlx5_vfio_pci")
    assert device.info.flags == FLAG_SETS[3]
    assert device.quirks.drained == "ENOMSG"


def pairs(allowed):
    found = []
    for flags in FLAG_SETS:
        for start in State:
            for end in State:
                try:
                    fine = bool(path(flags, start, end))
                except IllegalTransition:
                    fine = False
                else:
                    if not fine:
                        continue
                if fine == allowed:
                    found.append((flags, start, end))
    return found


@pytest.mark.parametrize(("flags", "start", "end"), pairs(allowed=False), ids=str)
def test_a_refused_pair_never_reaches_the_kernel(monkeypatch, fd, flags, start, end):
    kernel = Kernel(monkeypatch, flags)
    kernel.state = start
    with KernelDevice.from_fd(fd, name="vf0") as device, pytest.raises(IllegalTransition):
        device.set_state(end)
    assert kernel.asked == []
    assert kernel.state == start


def test_the_arc_on_which_a_kernel_spins_is_among_the_refused():
    assert (FLAG_SETS[3], State.STOP_COPY, State.PRE_COPY) in pairs(allowed=False)
    assert (FLAG_SETS[3], State.STOP_COPY, State.PRE_COPY_P2P) in pairs(allowed=False)


def test_an_allowed_pair_is_one_call(monkeypatch, fd):
    kernel = Kernel(monkeypatch)
    with KernelDevice.from_fd(fd, name="vf0") as device:
        device.set_state(State.STOP_COPY)
        device.set_state(State.STOP_COPY)  # it is there already
    assert kernel.asked == [State.STOP_COPY]


@pytest.mark.parametrize("left_in", [State.RUNNING, State.RUNNING_P2P, State.ERROR])
def test_a_failure_says_where_the_device_is_now(device, kernel, left_in):
    kernel.fail["set_state"] = errno.EIO
    kernel.left_in = left_in
    with pytest.raises(DeviceError) as caught:
        device.set_state(State.STOP_COPY)
    error = caught.value
    assert (error.device, error.errno) == ("vf0", errno.EIO)
    assert "RUNNING -> STOP_COPY" in str(error)
    assert f"now in {left_in}" in str(error)
    assert device.state == left_in


def test_only_a_reset_leaves_error(device, kernel):
    kernel.state = State.ERROR
    with pytest.raises(IllegalTransition, match="reset"):
        device.set_state(State.RUNNING)
    device.reset()
    assert (device.state, kernel.resets) == (State.RUNNING, 1)


def test_a_failure_and_no_state_either(device, kernel):
    kernel.fail["set_state"] = errno.EIO
    set_state = _vfio.get_state
    calls = []

    def once(fd):
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENODEV, "gone")
        return set_state(fd)

    _vfio.get_state = once
    try:
        with pytest.raises(DeviceError, match="does not tell"):
            device.set_state(State.STOP)
    finally:
        _vfio.get_state = set_state


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EINVAL])
def test_no_data_size(device, kernel, code):
    assert device.stop_copy_size() == 96
    kernel.fail["data_size"] = code
    assert device.stop_copy_size() is None
    kernel.fail["data_size"] = errno.EIO
    with pytest.raises(DeviceError):
        device.stop_copy_size()


@pytest.mark.parametrize(("asked", "code", "seen"), [
    (False, 0, False), (True, 0, True), (True, errno.ENOTTY, False),
])  # fmt: skip
def test_reinit_only_where_it_was_asked_for(monkeypatch, fd, asked, code, seen):
    kernel = Kernel(monkeypatch)
    kernel.fail["enable_precopy_info_v2"] = code
    with KernelDevice.from_fd(fd, name="vf0", reinit=asked) as device:
        assert device.precopy_info(-1).reinit is seen


def test_no_migration(monkeypatch, fd):
    kernel = Kernel(monkeypatch)
    kernel.fail["migration_flags"] = errno.ENOTTY
    with KernelDevice.from_fd(fd, name="vf0") as device:
        assert device.info.flags == Flags.NONE


def test_not_a_device_at_all(fd):
    with pytest.raises(DeviceError, match="no fd of a VFIO device"):
        KernelDevice.from_fd(fd, name="vf0")
    os.close(fd)  # still ours


def test_after_close(kernel, fd):
    device = KernelDevice.from_fd(fd, name="vf0")
    device.close()
    device.close()
    for use in (
        lambda: device.state,
        lambda: device.set_state(State.STOP),
        lambda: device.reset(),
        lambda: device.stop_copy_size(),
        lambda: device.fileno(),
    ):
        with pytest.raises(DeviceError, match="closed"):
            use()


def test_received(kernel, fd, nothing_left):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(theirs, [b"x"], [fd])
        with KernelDevice.receive(ours, name="vf0") as device:
            assert not os.get_inheritable(device.fileno())
        for fds in ([], [fd, fd]):
            socket.send_fds(theirs, [b"x"], fds)
            with pytest.raises(DeviceError, match=f"has {len(fds)} fds"):
                KernelDevice.receive(ours, name="vf0")
    os.close(fd)


def test_nobody_listens(tmp_path):
    with pytest.raises(DeviceError, match="ENOENT"):
        KernelDevice.receive(tmp_path / "none", name="vf0")


def test_dirty_log(device, monkeypatch):
    seen = []
    monkeypatch.setattr(
        _vfio, "logging_start", lambda fd, ranges, size: seen.append(ranges) or 8192
    )
    monkeypatch.setattr(_vfio, "logging_stop", lambda fd: seen.append("stop"))

    def report(fd, iova, length, size, bitmap):
        assert (iova, length, size, len(bitmap)) == (0, 8192 * 65, 8192, 16)
        assert bytes(bitmap) == bytes(16)
        bitmap[8] = 1

    monkeypatch.setattr(_vfio, "logging_report", report)
    with DirtyLog(device) as log:
        with pytest.raises(DeviceError, match="start the log"):
            log.report(0, 4096)
        assert log.start([(0, 1 << 20)]) == 8192
        assert log.report(0, 8192 * 65) == bytes(8) + b"\1" + bytes(7)
    assert seen == [[(0, 1 << 20)], "stop"]


def test_a_bitmap_that_is_too_small_never_reaches_the_kernel():
    with pytest.raises(ValueError, match="too small"):
        _vfio.logging_report(-1, 0, 4096 * 65, 4096, bytearray(8))
    with pytest.raises(ValueError, match="page size"):
        _vfio.logging_report(-1, 0, 4096, 0, bytearray(8))


@pytest.mark.parametrize("call", [
    lambda: _vfio.get_state(-1), lambda: _vfio.set_state(-1, 2), lambda: _vfio.migration_flags(-1),
    lambda: _vfio.data_size(-1), lambda: _vfio.precopy_info(-1), lambda: _vfio.reset(-1),
    lambda: _vfio.logging_start(-1, [(0, 4096)], 4096), lambda: _vfio.logging_stop(-1),
    lambda: _vfio.logging_report(-1, 0, 4096, 4096, bytearray(8)),
    lambda: _vfio.device_info(-1), lambda: _vfio.region_info(-1, 0),
    lambda: _vfio.read_at(-1, 0, 1), lambda: _vfio.write_at(-1, 0, b"x"),
    lambda: _vfio.group_viable(-1), lambda: _vfio.group_set_container(-1, -1),
    lambda: _vfio.group_get_device(-1, b"x"), lambda: _vfio.bind_iommufd(-1, -1),
    lambda: _vfio.ioas_alloc(-1), lambda: _vfio.attach_ioas(-1, 0),
    lambda: _vfio.enable_precopy_info_v2(-1),
])  # fmt: skip
def test_every_call_raises_for_its_errno(call):
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
        call()
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(("line", "text"), [
    ('', "needs a device"),
    ('device = 7', "must be a text"),
    ('device = "x"\nprofile = "mlx5"', "unknown key 'profile'"),
    ('device = "no-such-device"', "no device 'no-such-device'"),
    ('device = "no-such-device"\nhow = "magic"', "no device"),
])  # fmt: skip
def test_devices_file(tmp_path, line, text):
    file = tmp_path / "devices.toml"
    file.write_text(f'[[device]]\nname = "a"\nkind = "kernel"\n{line}\n')
    with pytest.raises(ConfigError, match=text):
        load_devices(file)


def test_quirks():
    assert quirks_of("hisi-acc-vfio-pci").drained == "0"
    assert quirks_of("mtty").keeps_bad_data
    assert quirks_of("unheard-of").names == ()
    names = [name for quirks in known_drivers() for name in quirks.names]
    assert len(names) == len(set(names)) >= 7
    for quirks in known_drivers():
        assert quirks.source
    # What the engine does about it is said of every quirk.
    assert engine_answers().keys() == set(quirks_of("mtty").__slots__) - {"names", "source"}
    assert all(engine_answers().values())

"""A device behind a server: its states, its errors, its resets, and connections that are made again."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct

import pytest
from server import Fault

from vfioflow.devices.base import Device, PrecopyInfo
from vfioflow.devices.config import load_devices
from vfioflow.devices.vfio_user import VfioUserDevice, VfioUserLog
from vfioflow.devices.vfio_user.device import Settings
from vfioflow.errors import ConfigError, DeviceError, IllegalTransition
from vfioflow.states import Flags, State


def walk(device: VfioUserDevice, *states: State) -> None:
    for state in states:
        fd = device.set_state(state)
        if fd >= 0:
            os.close(fd)


def drain(device: VfioUserDevice, port) -> bytes:
    found, buffer = b"", bytearray(1 << 20)
    while True:
        try:
            size = port.readinto(buffer)
        except BlockingIOError:
            continue
        if not size:
            return found
        found += buffer[:size]


def save(device: VfioUserDevice) -> bytes:
    """Its whole stream, by way of PRE_COPY where it can."""
    copying = Flags.PRE_COPY in device.info.flags
    port = device.port(device.set_state(State.PRE_COPY if copying else State.STOP_COPY))
    found = drain(device, port)
    if copying:
        assert device.set_state(State.STOP_COPY) == -1
        found += drain(device, port)
    port.close()
    return found


def load(device: VfioUserDevice, stream: bytes) -> None:
    port = device.port(device.set_state(State.RESUMING))
    while stream:
        try:
            stream = stream[port.write(stream) :]
        except BlockingIOError:
            continue
    port.close()


def test_what_is_told_of_it(server, connect):
    device = connect(server())
    assert isinstance(device, Device)
    info = device.info
    assert (info.name, info.driver, info.flags) == ("dev", "vfio-user", Flags(5))
    assert (info.outlives, info.model, info.tracking) == (True, "1af4:1041", "device")
    assert device.state is State.RUNNING
    assert device.stop_copy_size() is None


def test_what_is_set_for_it(server, connect):
    device = connect(server(), name="nic0", driver="spdk-nvme", outlives=False)
    assert (device.name, device.info.driver, device.info.outlives) == ("nic0", "spdk-nvme", False)


def test_a_server_that_tells_its_size(server, connect):
    assert connect(server(size_feature=True, device={"size": 12345})).stop_copy_size() == 12345


def test_without_pre_copy(server, connect):
    device = connect(server(device={"flags": 1}))
    assert device.info.flags == Flags.STOP_COPY
    with pytest.raises(IllegalTransition, match="no PRE_COPY"):
        device.set_state(State.PRE_COPY)


def test_without_migration(server, connect):
    device = connect(server(device={"flags": 0}))
    assert device.info.flags == Flags.NONE
    with pytest.raises(DeviceError, match="ask for its state"):
        _ = device.state


@pytest.mark.parametrize("flags", [1, 5])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("short", [0, 777])
def test_from_one_to_the_other(server, connect, flags, padded, short):
    one = server("a", padded=padded, device={"flags": flags, "short": short, "size": 300_000})
    two = server("b", device={"flags": flags, "seed": 2, "size": 300_000})
    source, destination = connect(one), connect(two)
    load(destination, save(source))
    walk(destination, State.STOP)
    assert two.device.digest() == one.device.digest()
    walk(destination, State.RUNNING)
    walk(source, State.STOP)
    assert (one.short_bodies, two.short_bodies) == (0, 0)
    assert two.device.arcs == ["2->1", "1->4", "4->1", "1->2"]


@pytest.mark.parametrize("limit", [1, 4096, 100_000])
def test_no_message_has_more_data_than_both_sides_take(server, connect, limit):
    one, two = (server(name, limit=limit, device={"size": 20_000}) for name in "ab")
    load(connect(two, read_size=1 << 20, write_size=1 << 20), save(connect(one)))
    reads, writes = one.log.count(17), two.log.count(18)
    assert min(reads, writes) >= 20_000 // limit
    assert two.device.whole


def test_a_server_that_takes_no_data(server, connect):
    with pytest.raises(DeviceError, match="takes messages without data"):
        connect(server(limit=0))


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ([1, 0, None], "speaks version 1.0, not 0.x"),
        ([0, 9, None], "answers version 0.9; 0.2 is the newest"),
        ([0, 2, "nonsense\0"], "capabilities are wrong"),
        ([0, 2, '{"capabilities": []}\0'], "capabilities are wrong"),
    ],
)
def test_versions_that_are_not_spoken_here(server, connect, version, reason):
    with pytest.raises(DeviceError, match=reason) as caught:
        connect(server(version=version))
    assert (caught.value.device, caught.value.errno) == ("dev", errno.EPROTONOSUPPORT)
    assert "agree on a version" in str(caught.value)


@pytest.mark.parametrize("version", [[0, 0, None], [0, 1, "{}\0"]])
def test_older_versions_and_no_capabilities(server, connect, version):
    assert connect(server(version=version)).client.minor == version[1]


def test_nobody_is_there(tmp_path):
    with pytest.raises(DeviceError, match="is its server running"):
        VfioUserDevice.connect(tmp_path / "none.sock")
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    with pytest.raises(DeviceError, match="left its socket behind"):
        VfioUserDevice.connect(stale)
    with pytest.raises(DeviceError, match="ENAMETOOLONG"):
        VfioUserDevice.connect("x" * 200)
    with pytest.raises(ConfigError, match="null"):
        VfioUserDevice.connect("a\0b", name="nic0")


def test_somebody_else_is_there_first(server, connect):
    made = server()
    connect(made)
    with pytest.raises(DeviceError, match=r"agree on a version: ETIMEDOUT .* within 0.05 s"):
        connect(made, timeout=0.05)


def test_by_a_socket(stack, server):
    made = server()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(made.path)
    device = VfioUserDevice.from_socket(sock, name="nic0")
    stack.callback(device.close)
    assert device.state is State.RUNNING
    device.client.line.shut(errno.EIO, "it broke")
    with pytest.raises(DeviceError, match="it broke"):
        _ = device.state


# ------------------------------------------------------------- changes of state


def test_an_arc_that_fails_says_where_the_device_is(server, connect):
    made = server(device={"fail": {"1->3": [errno.EBUSY, 1]}})
    device = connect(made)
    with pytest.raises(DeviceError, match=r"RUNNING -> STOP_COPY: EBUSY .* it is now in STOP"):
        device.set_state(State.STOP_COPY)
    walk(device, State.RUNNING)


def test_an_arc_that_ends_in_error(server, connect):
    device = connect(server(device={"fail": {"2->6": [errno.EIO, 0]}}))
    with pytest.raises(DeviceError, match="ERROR, which only a reset leaves"):
        device.set_state(State.PRE_COPY)
    with pytest.raises(IllegalTransition, match="only a device reset"):
        device.set_state(State.RUNNING)
    device.reset()
    assert device.state is State.RUNNING


@pytest.mark.parametrize("end", [State.PRE_COPY, State.RUNNING_P2P, State.ERROR])
def test_what_the_flags_do_not_allow_is_not_asked_for(server, connect, end):
    made = server()
    device = connect(made)
    walk(device, State.STOP_COPY)
    before = len(made.device.arcs)
    with pytest.raises(IllegalTransition):
        device.set_state(end)
    assert made.device.arcs[before:] == []


def test_a_state_that_does_not_exist(server, connect):
    made = server()
    device = connect(made)
    made.faults.append(Fault(16, 1, "state", 11))
    with pytest.raises(DeviceError, match=r"ask for its state: EPROTO .* 11 is no state"):
        _ = device.state
    assert device.state is State.RUNNING


def test_a_load_that_is_not_whole(server, connect):
    made = server()
    device = connect(made)
    load(device, b"DATA")
    with pytest.raises(DeviceError, match=r"RESUMING -> STOP: EINVAL .* it is now in RESUMING"):
        device.set_state(State.STOP)
    device.reset()
    assert device.state is State.RUNNING


def test_no_port_without_a_session(server, connect):
    device = connect(server())
    read, write = os.pipe()
    with pytest.raises(DeviceError, match="it has no session"):
        device.port(read)
    os.close(write)
    with pytest.raises(DeviceError, match="not in PRE_COPY"):
        device.precopy_info(-1)


def test_what_is_left_is_judged_by_what_was_read(server, connect):
    device = connect(server(device={"size": 1 << 20, "initial": 1 << 19, "passes": 0}))
    port = device.port(device.set_state(State.PRE_COPY))
    assert device.precopy_info(-1) == PrecopyInfo(256 * 1024, 0)
    moved = len(drain(device, port))
    assert moved > 1 << 19
    assert device.precopy_info(-1) == PrecopyInfo(0, moved)
    assert drain(device, port) == b""
    assert device.precopy_info(-1) == PrecopyInfo(0, 0)
    port.close()


# --------------------------------------------------------------------- resets


@pytest.mark.parametrize(
    ("way", "arcs"),
    [
        ([], []),
        ([State.PRE_COPY], ["2->6", "6->2"]),
        ([State.STOP_COPY], ["2->1", "1->3", "3->1", "1->2"]),
        ([State.STOP], ["2->1", "1->2"]),
        ([State.RESUMING], ["2->1", "1->4", "4->1", "1->2"]),
    ],
)
def test_a_reset_of_what_is_its_own(server, connect, way, arcs):
    made = server()
    device = connect(made)
    walk(device, *way)
    device.reset()
    assert device.state is State.RUNNING
    assert made.device.arcs == arcs
    assert made.device.content == bytes(made.device.size)


def test_what_was_loaded_never_runs_on_the_way_to_a_reset(server, connect):
    one, two = server("a"), server("b")
    load(device := connect(two), save(connect(one)))
    walk(device, State.STOP)
    device.reset()
    assert device.state is State.RUNNING
    # Reset in RESUMING, where it is allowed and the device stands still.
    assert two.device.arcs == ["2->1", "1->4", "4->1", "1->4", "4->1", "1->2"]
    assert two.device.content == bytes(two.device.size)


def test_a_stopped_device_of_which_nothing_is_known_does_not_run_before_its_reset(server, connect):
    made = server()
    made.device.go(1)
    device = connect(made)
    device.reset()
    assert device.state is State.RUNNING
    assert made.device.arcs == ["2->1", "1->4", "4->1", "1->2"]


def test_a_reset_that_fails(server, connect):
    made = server(faults=[[13, 1, "error", errno.EIO]])
    with pytest.raises(DeviceError, match="reset: EIO"):
        connect(made).reset()


# ------------------------------------------------------------ broken connections


def test_a_connection_is_made_again(server, connect):
    made = server()
    device = connect(made)
    walk(device, State.PRE_COPY)
    made.faults.append(Fault(16, 1, "close"))
    assert device.state is State.PRE_COPY  # the server has kept it
    assert made.clients == 2
    walk(device, State.RUNNING)


def test_a_server_that_hangs_with_this_client_is_connected_to_again(server, connect):
    made = server()
    device = connect(made, timeout=0.2)
    made.faults.append(Fault(16, 1, "hang"))
    assert device.state is State.RUNNING
    assert made.clients == 2


def test_a_server_that_has_ended(server, connect):
    made = server()
    device = connect(made)
    made.stop()
    with pytest.raises(DeviceError, match="left its socket behind") as caught:
        _ = device.state
    assert caught.value.__notes__ == [
        "the connection was lost before: the server closed the connection"
    ]


def test_a_stream_does_not_survive_its_connection(server, connect):
    made = server()
    device = connect(made)
    port = device.port(device.set_state(State.PRE_COPY))
    made.faults.append(Fault(17, 2, "close"))
    with pytest.raises(ConnectionResetError):
        drain(device, port)
    assert device.state is State.PRE_COPY
    with pytest.raises(DeviceError, match=r"PRE_COPY -> STOP_COPY: ECONNRESET"):
        device.set_state(State.STOP_COPY)
    walk(device, State.RUNNING)
    port.close()


def test_what_was_loaded_and_lost_is_not_run(server, connect):
    one, two = server("a"), server("b", keeps=False)
    load(device := connect(two), save(connect(one)))
    walk(device, State.STOP)
    two.faults.append(Fault(16, 1, "close"))
    with pytest.raises(DeviceError, match=r"left in STOP and is in RUNNING: what was loaded"):
        device.set_state(State.RUNNING)
    assert two.clients == 2
    device.reset()
    walk(device, State.STOP, State.RUNNING)


def test_what_was_loaded_and_kept_is_run(server, connect):
    one, two = server("a"), server("b")
    load(device := connect(two), save(connect(one)))
    walk(device, State.STOP)
    two.faults.append(Fault(16, 1, "close"))
    walk(device, State.RUNNING)
    assert two.device.digest() == one.device.digest()


def test_closed(server, connect):
    device = connect(server())
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="the device is closed"):
        _ = device.state


def test_closing_ends_a_change_of_state_that_hangs(server, connect, background):
    made = server(faults=[[16, 5, "hang"]])
    device = connect(made)
    changing = background(device.set_state, State.STOP)
    assert made.hit.wait(30)
    device.close()
    with pytest.raises(DeviceError, match=r"RUNNING -> STOP: ENODEV .* the device is closed"):
        changing()


# ------------------------------------------------------------------------- DMA


@pytest.fixture
def memory(stack):
    fd = os.memfd_create("guest")
    stack.callback(os.close, fd)
    os.truncate(fd, 1 << 20)
    return fd


def test_the_log_of_what_it_writes(server, connect, memory):
    made = server()
    device = connect(made)
    half = 1 << 19
    device.map_dma(0x10000, half, memory)
    device.map_dma(0x10000 + half, half, memory, half)
    with VfioUserLog(device) as log:
        assert log.supported
        assert log.start([(0x10000, 1 << 20)]) == 4096
        made.dma(0x10000 + 5 * 4096, b"five")
        made.dma(0x10000 + half + 3 * 4096, b"more")
        bits = int.from_bytes(log.report(0x10000, 1 << 20), "little")
        assert bits == 1 << 5 | 1 << (half // 4096 + 3)
        assert log.report(0x10000, half) == bytes(16)
    assert made.logging is None
    with mmap.mmap(memory, 1 << 20) as seen:
        assert seen[5 * 4096 : 5 * 4096 + 4] == b"five"
        assert seen[half + 3 * 4096 : half + 3 * 4096 + 4] == b"more"
    device.unmap_dma(0x10000, half)
    with pytest.raises(DeviceError, match="unmap memory: ENOENT"):
        device.unmap_dma(0x10000, half)


def test_logs_that_cannot_be(server, connect, memory):
    made = server()
    device = connect(made)
    log = VfioUserLog(device)
    log.stop()
    with pytest.raises(DeviceError, match="no power of two"):
        log.start([], 3000)
    with pytest.raises(DeviceError, match="start the log"):
        log.report(0, 4096)
    log.start([])
    with pytest.raises(DeviceError, match="report DMA of 4096 bytes from 0x0: EINVAL"):
        log.report(0, 4096)
    with pytest.raises(DeviceError, match="pages of 4096 bytes, not of 2048"):
        log.report(0, 4096, 2048)  # a real server never comes back from such
    made.faults.append(Fault(16, 1, "close"))
    assert device.state is State.RUNNING
    with pytest.raises(DeviceError, match="and the log with it"):
        log.report(0, 4096)


# ------------------------------------------------------------- the devices file


def test_by_a_devices_file(stack, server, tmp_path):
    made = server()
    file = tmp_path / "devices.toml"
    file.write_text(
        f'[[device]]\nname = "nic0"\nkind = "vfio-user"\nsocket = "{made.path}"\n'
        'driver = "spdk"\noutlives = false\ntimeout = 2.5\nin_flight = 2\n'
        'read_size = "1MiB"\nwrite_size = 4096\n'
    )
    [device] = load_devices(file)
    stack.callback(device.close)
    assert device.info.driver == "spdk"
    assert not device.info.outlives
    assert device._settings == Settings(2.5, 2, 1 << 20, 4096)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "needs a socket"),
        ("socket = 1", "socket = 1: must be a text"),
        ('socket = ""', "socket = '': must be a text"),
        ('socket = "a"\ndevice = "b"', "unknown key 'device'; valid are socket, driver"),
        ('socket = "a"\noutlives = 1', "outlives = 1: must be true or false"),
        ('socket = "a"\nin_flight = true', "in_flight = True: must be a number"),
        ('socket = "a"\nin_flight = 0', "in_flight = 0: must be from 1 to 16"),
        ('socket = "a"\nin_flight = 1.5', "in_flight = 1.5: must be a number"),
        ('socket = "a"\ntimeout = 0', "timeout = 0: must be above 0"),
        ('socket = "a"\ntimeout = inf', "timeout = inf: must be"),
        ('socket = "a"\nread_size = "1 mile"', "is not a size"),
        ('socket = "a"\nwrite_size = "1GiB"', "write_size = 1073741824: must be"),
    ],
)
def test_wrong_entries_of_a_devices_file(tmp_path, line, reason):
    file = tmp_path / "devices.toml"
    file.write_text(f'[[device]]\nname = "nic0"\nkind = "vfio-user"\n{line}\n')
    with pytest.raises(ConfigError, match="device nic0: ") as caught:
        load_devices(file)
    assert reason in str(caught.value)


def test_the_first_message_is_what_the_specification_says(stack, background, tmp_path):
    path = tmp_path / "dev.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        opened = background(VfioUserDevice.connect, path, settings=Settings(timeout=0.2))
        with listener.accept()[0] as client:
            number, command, size, flags, error = struct.unpack("=HHIII", client.recv(16))
            body = client.recv(1 << 16)
            assert (number, command, flags, error) == (0, 1, 0, 0)
            assert size == 16 + len(body)
            assert body[-1] == 0
            with pytest.raises(DeviceError, match=r"within 0\.2 s"):
                opened()

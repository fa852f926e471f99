"""The streams of simulated devices: what they hand out, and what they refuse to load."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vfioflow.devices.sim import SimDevice, profile_names
from vfioflow.states import State

Refused = Callable[[Callable[[], object]], int]
CONTENTS = ["zeros", "structured", "fp16", "random", "mix"]


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_moves_whole(name: str, hand: Any) -> None:
    size = "20MiB" if name in ("xe", "vgpu", "mlx5", "generic") else None
    with (
        SimDevice("d", profile=name, state_size=size, seed=3) as source,
        SimDevice("d", profile=name, state_size=size, seed=4) as target,
    ):
        stream = hand.save(source)
        assert target.true_digest() != source.true_digest()
        hand.load(target, stream)
        assert target.true_digest() == source.true_digest()
        # The destination is a source of its own, with the content that it was given.
        with SimDevice("d", profile=name, state_size=size, seed=5) as third:
            hand.load(third, hand.save(target))
            assert third.true_digest() == target.true_digest()


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", [1, 15, 65536, 65537, 300000])
def test_contents_and_sizes(content: str, size: int, hand: Any) -> None:
    kind = {"state_size": size, "content": content, "initial_bytes": size // 2}
    with SimDevice("d", seed=1, **kind) as source, SimDevice("d", seed=2, **kind) as target:
        hand.load(target, hand.save(source))
        assert target.true_digest() == source.true_digest()


def test_a_file_as_content(tmp_path: Path, hand: Any, refused: Refused) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(200000))
    other = tmp_path / "other"
    other.write_bytes(os.urandom(200000))
    kind = {"state_size": 400000, "content": f"file:{path}"}
    with SimDevice("d", **kind) as source, SimDevice("d", **kind) as target:
        stream = hand.save(source)
        assert path.read_bytes()[16:60000] in stream
        hand.load(target, stream)
        assert target.true_digest() == source.true_digest()
    with SimDevice("d", state_size=400000, content=f"file:{other}") as wrong:
        assert refused(lambda: hand.load(wrong, stream)) == errno.EINVAL


@pytest.mark.parametrize("size", [1, 13, 4096])
def test_segmentation_does_not_matter(size: int, hand: Any, load_in: str) -> None:
    kind: dict[str, Any] = {"profile": "mtty", "load_in": load_in}
    with SimDevice("d", seed=1, **kind) as source, SimDevice("d", seed=2, **kind) as target:
        port = source.port(source.set_state(State.STOP_COPY))
        stream, end = hand.drain(port, size)
        port.close()
        assert end == 0
        port = target.port(target.set_state(State.RESUMING))
        hand.send(port, stream, size)
        target.set_state(State.RUNNING)
        port.close()
        source.set_state(State.STOP)
        assert target.true_digest() == source.true_digest()


def test_bare_fds_move_a_device(hand: Any) -> None:
    kind: dict[str, Any] = {"state_size": "3MiB", "initial_bytes": "1MiB"}
    with SimDevice("d", seed=1, **kind) as source, SimDevice("d", seed=2, **kind) as target:
        into = target.set_state(State.RESUMING)
        out = source.set_state(State.PRE_COPY)
        while os.splice(out, into, 1 << 20):
            pass
        assert source.precopy_info(out).pending_bytes == 0
        assert source.set_state(State.STOP_COPY) == -1
        while os.splice(out, into, 1 << 20):
            pass
        assert os.read(out, 10) == b""
        os.close(into)
        target.set_state(State.STOP)
        assert target.true_digest() == source.true_digest()
        os.close(out)


@pytest.mark.parametrize(("drained", "code"), [("ENOMSG", errno.ENOMSG), ("0", 0)])
def test_what_a_drained_device_says(drained: str, code: int, hand: Any) -> None:
    with SimDevice("d", state_size="1MiB", initial_bytes="256KiB", drained=drained) as device:
        whole = device.stop_copy_size()
        port = device.port(device.set_state(State.PRE_COPY))
        info = device.precopy_info(port.fileno())
        assert (info.initial_bytes, info.dirty_bytes) == (32 + 32 + 4 * (65536 + 32), 0)
        first = hand.read(port, 1000)
        assert device.precopy_info(port.fileno()).initial_bytes == info.initial_bytes - len(first)
        stream, end = hand.drain(port)
        assert end == code
        assert len(first) + len(stream) == info.initial_bytes
        assert device.precopy_info(port.fileno()).pending_bytes == 0
        assert hand.drain(port) == (b"", code)
        assert device.set_state(State.PRE_COPY_P2P) == -1
        assert hand.drain(port) == (b"", code)
        rest = device.stop_copy_size()
        assert rest is not None
        assert device.set_state(State.STOP_COPY) == -1
        assert device.stop_copy_size() == rest
        tail, end = hand.drain(port)
        assert (len(tail), end) == (rest, 0)
        assert hand.drain(port) == (b"", 0)
        assert device.stop_copy_size() == 0
        assert whole == len(first) + len(stream) + len(tail)
        port.close()


def test_precopy_info_while_another_thread_reads(hand: Any, background: Callable[..., Any]) -> None:
    with SimDevice("d", state_size="32MiB", initial_bytes="32MiB") as device:
        port = device.port(device.set_state(State.PRE_COPY))
        left = whole = device.precopy_info(port.fileno()).initial_bytes
        reading = background(lambda: hand.drain(port, 100000))
        while left:
            info = device.precopy_info(port.fileno())
            assert info.initial_bytes <= left
            assert info.dirty_bytes == 0
            left = info.initial_bytes
        stream, _ = reading.result()
        assert len(stream) == whole
        port.close()


def test_precopy_info_outside_precopy(refused: Refused, hand: Any) -> None:
    with SimDevice("d", profile="mtty") as device:
        assert refused(lambda: device.precopy_info(0)) == errno.EINVAL
        fd = device.set_state(State.STOP_COPY)
        assert refused(lambda: device.precopy_info(fd)) == errno.EINVAL
        os.close(fd)
        fd = device.set_state(State.RESUMING)
        assert refused(lambda: device.precopy_info(fd)) == errno.ENOTTY
        os.close(fd)


def test_only_asking_starts_the_next_save(hand: Any) -> None:
    with SimDevice(
        "d", state_size="1MiB", initial_bytes="512KiB", dirty_rate="16GiB", info_starts_save=True
    ) as device:
        port = device.port(device.set_state(State.PRE_COPY))
        assert hand.drain(port)[1] == errno.ENOMSG
        # However often it reads: nothing, although the device dirties all the time.
        for _ in range(1000):
            assert hand.drain(port) == (b"", errno.ENOMSG)
        while not (info := device.precopy_info(port.fileno())).dirty_bytes:
            pass
        again, _ = hand.drain(port)
        assert info.initial_bytes == 0
        assert len(again) >= info.dirty_bytes
        assert len(again) % (65536 + 32) == 0
        port.close()


def test_dirty_data_comes_by_itself(hand: Any) -> None:
    with SimDevice("d", state_size="1MiB", initial_bytes="512KiB", dirty_rate="64MiB") as device:
        fd = device.set_state(State.PRE_COPY)
        moved = 0
        while moved < 4 << 20:
            moved += len(os.read(fd, 1 << 20))
        assert device.set_state(State.PRE_COPY_P2P) == -1
        port = device.port(fd)
        # Quiet from here: the rest comes to an end.
        while device.precopy_info(port.fileno()).pending_bytes:
            hand.drain(port)
        assert hand.drain(port) == (b"", errno.ENOMSG)
        port.close()


def test_a_dirtying_device_moves_whole(hand: Any) -> None:
    kind: dict[str, Any] = {"profile": "mlx5", "state_size": "8MiB", "dirty_rate": "8GiB"}
    with SimDevice("d", seed=1, **kind) as source, SimDevice("d", seed=2, **kind) as target:
        out = source.port(source.set_state(State.PRE_COPY))
        into = target.port(target.set_state(State.RESUMING))
        sent = 0
        for _ in range(20):
            part, end = hand.drain(out)
            assert end == errno.ENOMSG
            hand.send(into, part)
            sent += len(part)
            source.precopy_info(out.fileno())
        assert sent > 8 << 20
        source.set_state(State.STOP_COPY)
        hand.send(into, hand.drain(out)[0])
        target.set_state(State.STOP)
        assert target.true_digest() == source.true_digest()
        out.close()
        into.close()


def test_a_return_to_running_starts_over(hand: Any, refused: Refused) -> None:
    with (
        SimDevice("d", state_size="1MiB", dirty_rate="1GiB") as source,
        SimDevice("d", state_size="1MiB") as target,
    ):
        first = source.port(source.set_state(State.PRE_COPY))
        hand.drain(first)
        source.set_state(State.RUNNING)
        assert refused(lambda: first.read(10)) == errno.ENODEV
        first.close()
        hand.load(target, hand.save(source))
        assert target.true_digest() == source.true_digest()


def test_a_port_dies_with_its_session(refused: Refused, hand: Any) -> None:
    with SimDevice("d", profile="mtty") as device:
        old = device.port(device.set_state(State.PRE_COPY))
        assert hand.read(old, 4)
        device.set_state(State.RUNNING)
        assert refused(lambda: old.read(4)) == errno.ENODEV
        new = device.port(device.set_state(State.PRE_COPY))
        assert refused(lambda: old.read(4)) == errno.ENODEV
        assert hand.read(new, 4)
        device.reset()
        assert refused(lambda: new.read(4)) == errno.ENODEV
        into = device.port(device.set_state(State.RESUMING))
        assert into.write(b"\x31") == 1
        device.reset()
        assert refused(lambda: into.write(b"x")) == errno.ENODEV
        for port in (old, new, into):
            port.close()


def test_a_port_needs_a_session(refused: Refused) -> None:
    with SimDevice("d", profile="mtty") as device:
        spare = os.open("/dev/null", os.O_RDONLY)
        assert refused(lambda: device.port(spare)) == errno.EINVAL
        # The port owned the fd all the same.
        assert refused(lambda: os.fstat(spare)) == errno.EBADF


def test_a_reader_that_goes_away_stops_the_stream() -> None:
    with SimDevice("d", state_size="64MiB") as device:
        fd = device.set_state(State.STOP_COPY)
        os.read(fd, 100)
        os.close(fd)
        device.set_state(State.RUNNING)
        assert device.state is State.RUNNING


def test_a_full_pipe_does_not_hold_a_change_up() -> None:
    with SimDevice("d", state_size="64MiB") as device:
        fd = device.set_state(State.STOP_COPY)
        device.set_state(State.RUNNING)
        os.close(fd)


def test_rates_pace_without_changing_anything(hand: Any) -> None:
    kind: dict[str, Any] = {"state_size": "1MiB", "read_rate": "64MiB", "write_rate": "64MiB"}
    with SimDevice("d", seed=1, **kind) as source, SimDevice("d", seed=2, **kind) as target:
        hand.load(target, hand.save(source))
        assert target.true_digest() == source.true_digest()


def test_a_slow_rate_is_cut_short() -> None:
    with SimDevice("d", state_size="1MiB", read_rate=1, write_rate=1) as device:
        fd = device.set_state(State.STOP_COPY)
        device.set_state(State.RUNNING)
        os.close(fd)
        fd = device.set_state(State.RESUMING)
        os.write(fd, b"\x31MSV")
        device.reset()
        os.close(fd)


# What must not load.


@pytest.mark.parametrize("load_seconds", [0.02])
def test_a_load_takes_its_time_and_works(load_seconds: float, hand: Any, load_in: str) -> None:
    stream = b"".join(hand.mtty())
    kind: dict[str, Any] = {"load_seconds": load_seconds, "load_in": load_in}
    with SimDevice("d", profile="mtty", **kind) as target:
        hand.load(target, stream, State.RUNNING)
        assert target.state is State.RUNNING
        assert ("RESUMING->STOP" in target.info.arc_seconds) == (load_in == "stop")


def test_reset_forgets_what_was_loaded(hand: Any) -> None:
    with SimDevice("d", profile="mtty", seed=2) as target:
        fresh = target.true_digest()
        hand.load(target, b"".join(hand.mtty()))
        assert target.true_digest() != fresh
        target.reset()
        assert target.true_digest() == fresh


def test_a_size_that_is_not_known() -> None:
    with SimDevice("d", profile="mtty", has_data_size=False) as device:
        assert device.stop_copy_size() is None


def test_a_huge_state_costs_little_memory() -> None:
    with SimDevice("d", state_size="32GiB") as device:
        fd = device.set_state(State.STOP_COPY)
        assert device.stop_copy_size() == (32 << 30) + 524288 * 32 + 64 + 48
        assert len(os.read(fd, 1 << 16)) == 1 << 16
        os.close(fd)


def test_failing_to_open_a_session_leaves_the_device_as_it_was(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with SimDevice("d", profile="mtty") as device:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert refused(lambda: device.set_state(State.PRE_COPY)) == errno.EAGAIN
            assert device.state is State.RUNNING
        os.close(device.set_state(State.PRE_COPY))

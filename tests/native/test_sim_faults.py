"""Streams that simulated devices must refuse, and the faults that they can be told to have."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import Any

import pytest

from vfioflow.devices.sim import Fault, SimDevice
from vfioflow.states import State

Refused = Callable[[Callable[[], object]], int]


def test_missing_bytes_can_be_added(hand: Any, refused: Refused, load_in: str) -> None:
    kind: dict[str, Any] = {"profile": "mtty", "load_in": load_in}
    with SimDevice("d", seed=1, **kind) as source, SimDevice("d", seed=2, **kind) as target:
        stream = hand.save(source)
        port = target.port(target.set_state(State.RESUMING))
        for cut in (1, 40, len(stream) - 1):
            hand.send(port, stream[:cut] if cut == 1 else b"")
            if cut > 1:
                hand.send(port, stream[{40: 1}.get(cut, 40) : cut])
            assert refused(lambda: target.set_state(State.STOP)) == errno.EINVAL
            assert target.state is State.RESUMING
        hand.send(port, stream[-1:])
        target.set_state(State.STOP)
        assert target.true_digest() == source.true_digest()
        port.close()


@pytest.mark.parametrize("at", ["read", "write"])
def test_a_flipped_bit_anywhere_is_caught(
    at: str, hand: Any, refused: Refused, load_in: str
) -> None:
    with SimDevice("d", profile="mtty") as source:
        length = len(hand.save(source))
    for offset in range(length):
        fault = [Fault(at, "corrupt", offset=offset)]
        with (
            SimDevice("d", profile="mtty", faults=fault if at == "read" else []) as source,
            SimDevice(
                "d", profile="mtty", load_in=load_in, faults=fault if at == "write" else []
            ) as target,
        ):
            stream = hand.save(source)
            into = target.set_state(State.RESUMING)
            os.write(into, stream)
            assert refused(lambda d=target: d.set_state(State.STOP)) == errno.EINVAL, offset
            assert target.state is State.RESUMING
            os.close(into)
            target.reset()
            if at == "read":
                continue
            # The fault has struck its once.
            hand.load(target, stream)
            assert target.true_digest() == source.true_digest()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda r: [*r[:1], *r[2:]], errno.EINVAL),
        (lambda r: [r[0], r[2], r[1], *r[3:]], errno.EINVAL),
        (lambda r: [*r[:2], *r[1:]], errno.EINVAL),
        (lambda r: r[1:], errno.EFAULT),
        (lambda r: [r[0], *r], errno.EFAULT),
        (lambda r: [*r, b"x"], errno.ENOMEM),
        (lambda r: [*r, *r], errno.ENOMEM),
        (lambda r: [b"\0" * 100, *r], errno.EFAULT),
    ],
    ids=["dropped", "swapped", "repeated", "no-setup", "two-setups", "surplus", "twice", "garbage"],
)
def test_a_wrong_stream_is_refused(
    wrong: Callable[[list[bytes]], list[bytes]], code: int, hand: Any, refused: Refused
) -> None:
    stream = b"".join(wrong(hand.mtty()))
    with SimDevice("d", profile="mtty", load_in="write") as target:
        port = target.port(target.set_state(State.RESUMING))
        assert refused(lambda: hand.send(port, stream)) == code
        assert refused(lambda: port.write(b"more")) == code
        assert refused(lambda: target.set_state(State.STOP)) == errno.EINVAL
        port.close()
    with SimDevice("d", profile="mtty", load_in="stop") as target:
        fd = target.set_state(State.RESUMING)
        os.write(fd, stream)
        assert refused(lambda: target.set_state(State.STOP)) == errno.EINVAL
        port = target.port(fd)
        assert refused(lambda: port.write(b"more")) == code
        target.reset()
        assert target.state is State.RUNNING
        port.close()


@pytest.mark.parametrize("other", [{"driver": "another"}, {"state_size": 120}])
def test_another_type_of_device_is_refused(
    other: dict[str, Any], hand: Any, refused: Refused
) -> None:
    stream = b"".join(hand.mtty())
    with SimDevice("d", **{"profile": "mtty", "load_in": "write", **other}) as target:
        assert refused(lambda: hand.load(target, stream)) == errno.EFAULT


# Faults of the port.


def test_an_errno_strikes_at_its_offset(hand: Any) -> None:
    fault = Fault("read", "errno", errno="EIO", offset=1000)
    with SimDevice("d", state_size="1MiB", faults=[fault]) as device:
        port = device.port(device.set_state(State.STOP_COPY))
        stream, end = hand.drain(port)
        assert (len(stream), end) == (1000, errno.EIO)
        rest, end = hand.drain(port)
        assert end == 0
        assert len(hand.records(stream + rest)) == 18
        port.close()


def test_an_errno_that_stays(hand: Any) -> None:
    fault = Fault("read", "errno", errno="EIO", offset=7, once=False)
    with SimDevice("d", profile="mtty", faults=[fault]) as device:
        port = device.port(device.set_state(State.STOP_COPY))
        assert hand.drain(port)[1] == errno.EIO
        for _ in range(3):
            assert hand.drain(port) == (b"", errno.EIO)
        port.close()


def test_an_errno_while_writing(hand: Any, refused: Refused, load_in: str) -> None:
    stream = b"".join(hand.mtty())
    fault = Fault("write", "errno", errno="ENOSPC", offset=50)
    with SimDevice("d", profile="mtty", load_in=load_in, faults=[fault]) as target:
        port = target.port(target.set_state(State.RESUMING))
        assert port.write(stream) == 50
        assert refused(lambda: port.write(stream[50:])) == errno.ENOSPC
        hand.send(port, stream[50:])
        target.set_state(State.STOP)
        port.close()


def test_short_transfers(hand: Any) -> None:
    read = Fault("read", "short", offset=100)
    write = Fault("write", "short", offset=60)
    with (
        SimDevice("d", profile="mtty", seed=1, faults=[read]) as source,
        SimDevice("d", profile="mtty", seed=2, faults=[write]) as target,
    ):
        port = source.port(source.set_state(State.STOP_COPY))
        select.select([port], [], [])
        stream = port.read(1000)
        assert len(stream) == 100
        piece = port.read(30)
        assert len(piece) == 10
        stream += piece + hand.drain(port)[0]
        port.close()
        port = target.port(target.set_state(State.RESUMING))
        assert port.write(stream) == 60
        assert port.write(stream[60:120]) == 20
        hand.send(port, stream[80:])
        target.set_state(State.STOP)
        port.close()
        assert target.true_digest() == source.true_digest()


def test_a_short_transfer_of_one_byte_is_none_of_nothing() -> None:
    """Nothing would be the stream's end."""
    fault = Fault("read", "short", offset=100)
    with SimDevice("d", profile="mtty", seed=1, faults=[fault]) as source:
        port = source.port(source.set_state(State.STOP_COPY))
        select.select([port], [], [])
        assert len(port.read(1000)) == 100
        assert len(port.read(1)) == 1
        port.close()


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_hang_while_reading_is_ended(end: str, refused: Refused) -> None:
    fault = Fault("read", "hang", offset=500)
    with SimDevice("d", state_size="1MiB", faults=[fault]) as device:
        port = device.port(device.set_state(State.STOP_COPY))
        got = b""
        while len(got) < 500:
            select.select([port], [], [])
            got += port.read(1 << 20)
        assert len(got) == 500
        assert refused(lambda: port.read(10)) == errno.EAGAIN
        getattr(device, end)()
        assert refused(lambda: port.read(10)) == errno.ENODEV
        port.close()


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_hang_while_loading_is_ended(
    end: str, hand: Any, background: Callable[..., Any], load_in: str
) -> None:
    stream = b"".join(hand.mtty())
    fault = Fault("write", "hang", offset=100)
    with SimDevice("d", profile="mtty", load_in=load_in, faults=[fault]) as device:
        port = device.port(device.set_state(State.RESUMING))
        if load_in == "write":
            hung = background(lambda: port.write(stream))
        else:
            port.write(stream)
            hung = background(lambda: device.set_state(State.STOP))
        while not device.core.waiting:
            pass
        getattr(device, end)()
        error = hung.result()
        assert isinstance(error, OSError)
        assert error.errno == errno.ENODEV
        port.close()

"""Peer-to-peer messages across a migration: balanced with the barriers, lost without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from vfioflow.devices.sim import Fabric, SimDevice, ledger
from vfioflow.errors import ConfigError
from vfioflow.states import Flags, State, can_initiate_dma, can_receive_dma, path, quiesced

NAMES = ("gpu0", "net0", "net1")
Make = Callable[..., list[SimDevice]]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def devices(count: int = 2, **more: Any) -> list[SimDevice]:
            kind: dict[str, Any] = {"profile": "generic", "state_size": "1MiB", **more}
            found = [stack.enter_context(SimDevice(name, **kind)) for name in NAMES[:count]]
            Fabric(found)
            return found

        yield devices


@pytest.mark.parametrize("state", State)
def test_who_sends_and_who_receives(state: State, make: Make) -> None:
    first, second = make()
    fabric = first.core
    first.core.set_effective(state)
    before = ledger([first, second]).messages, len(ledger([first, second]).differences)
    lost = 0
    fabric.tick()
    after = ledger([first, second])
    assert after.messages - before[0] == 1 + can_initiate_dma(state)
    fabric.tick()
    lost = 0 if can_receive_dma(state) else 1
    assert len(ledger([first, second]).differences) == lost


def start(sources: list[SimDevice], targets: list[SimDevice]) -> list[tuple[Any, Any]]:
    """Every device in PRE_COPY where it can, every other side in RESUMING, and their ports."""
    pairs = []
    for source, target in zip(sources, targets, strict=True):
        into = target.port(target.set_state(State.RESUMING))
        out = None
        if Flags.PRE_COPY in source.info.flags:
            out = source.port(source.set_state(State.PRE_COPY))
        pairs.append((out, into))
    return pairs


def finish(
    hand: Any, sources: list[SimDevice], targets: list[SimDevice], pairs: list[tuple[Any, Any]]
) -> None:
    for source, (out, into) in zip(sources, pairs, strict=True):
        port = out or source.port(source.set_state(State.STOP_COPY))
        source.set_state(State.STOP_COPY)
        hand.send(into, hand.drain(port)[0])
        port.close()
    for target, (_, into) in zip(targets, pairs, strict=True):
        target.set_state(State.STOP)
        into.close()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("flags", [("STOP_COPY", "P2P"), ("STOP_COPY", "P2P", "PRE_COPY")])
def test_barriers_keep_every_message(
    count: int, flags: tuple[str, ...], make: Make, hand: Any
) -> None:
    sources, targets = make(count, flags=flags), make(count, flags=flags)
    pairs = start(sources, targets)
    for source in sources:
        source.set_state(quiesced(source.state))
    quiet = ledger(sources)
    assert quiet.balanced
    assert quiet.messages > 0
    finish(hand, sources, targets, pairs)
    assert ledger(sources) == quiet
    assert ledger(targets) == quiet
    for target in targets:
        target.set_state(State.RUNNING_P2P)
    for target in targets:
        target.set_state(State.RUNNING)
    moved = ledger(targets)
    assert moved.balanced
    # The numbering goes on where it stood at the source.
    assert moved.messages > quiet.messages


@pytest.mark.parametrize("count", [2, 3])
def test_stopping_one_after_the_other_loses(count: int, make: Make, hand: Any) -> None:
    sources, targets = make(count), make(count)
    pairs = start(sources, targets)
    finish(hand, sources, targets, pairs)
    report = ledger(sources)
    assert not report.balanced
    assert any("lost" in text and "-> gpu0" in text for text in report.differences)
    assert not ledger(targets).balanced


@pytest.mark.parametrize("count", [2, 3])
def test_starting_one_after_the_other_loses(count: int, make: Make, hand: Any) -> None:
    sources, targets = make(count), make(count)
    pairs = start(sources, targets)
    for source in sources:
        source.set_state(quiesced(source.state))
    finish(hand, sources, targets, pairs)
    assert ledger(targets).balanced
    for target in targets:
        target.set_state(State.RUNNING)
    report = ledger(targets)
    assert not report.balanced
    assert any(text.startswith("gpu0 -> net0: ") for text in report.differences)


def test_an_aborted_migration_keeps_every_message(make: Make, hand: Any) -> None:
    sources = make(3)
    ports = [s.port(s.set_state(State.PRE_COPY)) for s in sources]
    for source in sources:
        source.set_state(State.PRE_COPY_P2P)
    for source in sources:
        source.set_state(State.RUNNING_P2P)
    for source in sources:
        source.set_state(State.RUNNING)
    assert ledger(sources).balanced
    for port in ports:
        port.close()


def test_a_state_loaded_twice_duplicates(make: Make, hand: Any) -> None:
    """One device that starts from an old state repeats numbers that its peer has seen."""
    sources = make(2)
    for source in sources:
        source.set_state(State.RUNNING_P2P)
    port = sources[0].port(sources[0].set_state(State.STOP_COPY))
    old = hand.drain(port)[0]
    port.close()
    sources[0].set_state(State.RUNNING)
    sources[0].set_state(State.RUNNING_P2P)
    port = sources[0].port(sources[0].set_state(State.RESUMING))
    hand.send(port, old)
    for state in (State.RUNNING_P2P, State.RUNNING):
        sources[0].set_state(state)
    port.close()
    assert ledger(sources).differences[0].startswith("gpu0 -> net0: ")
    assert "duplicated" in ledger(sources).differences[0]


def test_messages_flow_while_a_stream_is_made(make: Make, hand: Any) -> None:
    counts = []
    for rate in (0.0, 1e9):
        first, second = make(p2p_rate=rate)
        port = first.port(first.set_state(State.PRE_COPY))
        hand.drain(port)
        second.set_state(State.RUNNING_P2P)
        first.set_state(State.PRE_COPY_P2P)
        report = ledger([first, second])
        assert report.balanced
        counts.append(report.messages)
        port.close()
    assert counts[1] > counts[0]


def test_a_device_that_is_reset_forgets(make: Make) -> None:
    first, second = make()
    first.set_state(State.RUNNING_P2P)
    second.set_state(State.RUNNING_P2P)
    assert ledger([first, second]).balanced
    first.reset()
    assert not ledger([first, second]).balanced


def test_a_closed_device_leaves(make: Make) -> None:
    first, second = make()
    sent = ledger([first, second]).messages
    second.close()
    first.set_state(State.RUNNING_P2P)
    assert ledger([first]).messages == 0
    assert ledger([first, second]).messages == sent


def test_who_may_join() -> None:
    fabric = Fabric()
    with ExitStack() as stack:
        kind: dict[str, Any] = {"profile": "mtty"}
        first = stack.enter_context(SimDevice("a", fabric=fabric, **kind))
        with pytest.raises(ConfigError, match="device a: the fabric has a device of that name"):
            SimDevice("a", fabric=fabric, **kind)
        with pytest.raises(ConfigError, match="in a fabric already"):
            Fabric([first])
        for i in range(63):
            stack.enter_context(SimDevice(f"b{i}", fabric=fabric, **kind))
        with pytest.raises(ConfigError, match="room for 64 devices"):
            SimDevice("c", fabric=fabric, **kind)
        fabric.tick()
        assert path(first.info.flags, State.RUNNING, State.RUNNING_P2P) == (State.RUNNING_P2P,)
        first.set_state(State.RUNNING_P2P)

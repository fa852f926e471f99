"""What outlives the engine's process of a set of devices and its virtual machine: one file.

Every change replaces the file as a whole; so whoever looks after a kill -9 finds it as it was.  The
blocks of a device are a function of its seed and of each block's version, so that anybody can tell
whether a device is whole.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vfioflow.states import Flags, State, can_initiate_dma, can_receive_dma

BLOCK = 4096
_encoder = msgspec.msgpack.Encoder()

Step = Callable[[str, State, State, str], None]
"""Told of each arc of a device: name, start, end, "before" or "after"."""


def packed(value: object) -> bytes:
    data = bytearray()
    _encoder.encode_into(value, data)  # encode() crashes when memory runs out (msgspec 0.22)
    return bytes(data)


class Kept(msgspec.Struct, kw_only=True):
    """What stays of a device."""

    flags: int
    state: int
    home: int
    """The seed of its own content."""
    seed: int
    """The seed of the content that it has."""
    versions: list[int]
    data: bytes
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    loaded: str = ""
    """The digest of the state that it took last, until a reset."""
    resets: int = 0

    def digest(self) -> str:
        """Stands for all that migrates."""
        told = packed([self.seed, self.versions, self.sent, self.received])
        return hashlib.sha1(told + self.data).hexdigest()

    def whole(self) -> bool:
        """Whether each block is what its version says."""
        return self.data == content(self.seed, self.versions)


class Store(msgspec.Struct, kw_only=True):
    """What stays of a side."""

    vcpus: bool
    devices: dict[str, Kept]

    def balanced(self) -> list[str]:
        """The pairs whose peer-to-peer messages do not agree."""
        return [
            f"{a} -> {b}: {one.sent.get(b, 0)} sent, {two.received.get(a, 0)} received"
            for a, one in self.devices.items()
            for b, two in self.devices.items()
            if a != b and one.sent.get(b, 0) != two.received.get(a, 0)
        ]


def look(directory: Path) -> Store:
    """What a side left."""
    return msgspec.msgpack.decode((directory / "set").read_bytes(), type=Store)


def block(seed: int, index: int, version: int) -> bytes:
    return hashlib.shake_128(f"{seed} {index} {version}".encode()).digest(BLOCK)


def content(seed: int, versions: Sequence[int]) -> bytes:
    return b"".join(block(seed, i, v) for i, v in enumerate(versions))


class DurableSet:
    """The devices of one side.  ``step`` may end the process; what was saved before it stays."""

    def __init__(self, directory: Path, *, step: Step = lambda *_: None) -> None:
        self.directory = directory
        self.step = step
        self.lock = threading.RLock()
        self.store = (
            look(directory) if (directory / "set").exists() else Store(vcpus=False, devices={})
        )

    def add(self, name: str, *, flags: Flags, blocks: int, seed: int) -> None:
        """A device that is new, RUNNING, with content of its own."""
        versions = [0] * blocks
        self.store.devices[name] = Kept(
            flags=int(flags),
            state=int(State.RUNNING),
            home=seed,
            seed=seed,
            versions=versions,
            data=content(seed, versions),
        )

    def set_vcpus(self, running: bool) -> None:
        """Start or stop the virtual machine."""
        with self.lock:
            self.store.vcpus = running
            self.save()

    def save(self) -> None:
        """Replace the file."""
        with self.lock:
            new = self.directory / f"set.{os.getpid()}"
            new.write_bytes(packed(self.store))
            new.replace(self.directory / "set")

    def tick(self) -> None:
        """Every device that may send one message to each of its peers; one that may not take it loses it."""
        for name, device in self.store.devices.items():
            if not can_initiate_dma(State(device.state)):
                continue
            for peer, other in self.store.devices.items():
                if peer != name:
                    device.sent[peer] = device.sent.get(peer, 0) + 1
                    if can_receive_dma(State(other.state)):
                        other.received[name] = other.received.get(name, 0) + 1

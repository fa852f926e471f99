"""What is moved: the contents of simulated devices, in files that live in memory only."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType

from vfioflow._simstate import block_bytes, get_tile

KINDS = ("zeros", "structured", "fp16", "random", "mix")

BLOCK = 65536
"""Bytes in a block of a simulated device."""

MIB = 1 << 20


class Content:
    """The states of ``devices`` devices, ``size`` bytes together; each one is a memory file.

    A device's bytes follow from its number, so that every program moves the same.
    """

    def __init__(self, kind: str, size: int, devices: int = 1) -> None:
        self.kind = kind
        self.device_size = size // devices
        self.size = self.device_size * devices
        self.files: list[int] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for number in range(devices):
                self.files.append(os.memfd_create(f"{kind}-{number}", os.MFD_CLOEXEC))
                _fill(self.files[-1], kind, self.device_size, number)
            undo.pop_all()

    def __enter__(self) -> Content:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        while self.files:
            os.close(self.files.pop())

    def path(self, device: int) -> str:
        """Where any process of this machine can open a device's bytes, while this object lives."""
        return path_of(self.files[device])

    def differs(self, device: int, fd: int) -> str | None:
        """Why ``fd`` does not hold the device's bytes: its size, or one of 64 samples."""
        size = os.fstat(fd).st_size
        if size != self.device_size:
            return f"device {device}: {size} bytes arrived of {self.device_size}"
        step = max(self.device_size // 64 // BLOCK, 1) * BLOCK
        for at in range(0, self.device_size, step):
            if os.pread(fd, BLOCK, at) != os.pread(self.files[device], BLOCK, at):
                return f"device {device}: other bytes arrived at {at}"
        return None


def path_of(fd: int) -> str:
    """The path under which other processes can open a file descriptor of this one."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def _fill(fd: int, kind: str, size: int, seed: int) -> None:
    tile = get_tile(kind, seed, size, BLOCK)
    blocks = (size + BLOCK - 1) // BLOCK
    for first in range(0, blocks, 64):
        last = min(first + 64, blocks)
        data = b"".join(block_bytes(tile, size, i, 0) for i in range(first, last))
        while data:
            data = data[os.write(fd, data) :]


def warm(size: int) -> None:
    """Touch memory once before it is measured: a virtual machine's first use of a page is slow."""
    fd = os.memfd_create("warm", os.MFD_CLOEXEC)
    try:
        for _ in range(size // MIB):
            os.write(fd, bytes(MIB))
    finally:
        os.close(fd)

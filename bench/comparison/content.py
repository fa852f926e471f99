"""What is moved: the contents of simulated devices, in files that live in memory only."""

from __future__ import annotations

import os
from contextlib import ExitStack

from vfioflow._simstate import block_bytes, get_tile

KINDS = ("zeros", "structured", "fp16", "random", "mix")

BLOCK = 65536
"""Bytes in a block of a simulated device."""

MIB = 1 << 20

_SPOILT = b"\xa5" * MIB


class Content:
    """The states of ``devices`` devices, ``size`` bytes together; each one is a memory file.

    A device's bytes follow from its number, so that every program moves the same.
    """

    def __init__(self, kind: str, size: int, devices: int = 1) -> None:
        self.kind = kind
        self.device_size = size // devices
        self.size = self.device_size * devices
        self.files: list[int] = []
        self._landings: list[int] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for number in range(devices):
                self.files.append(os.memfd_create(f"{kind}-{number}", os.MFD_CLOEXEC))
                _fill(self.files[-1], kind, self.device_size, number)
            undo.pop_all()

    def __enter__(self) -> Content:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        for files in (self.files, self._landings):
            while files:
                os.close(files.pop())

    def path(self, device: int) -> str:
        """Where any process of this machine can open a device's bytes, while this object lives."""
        return path_of(self.files[device])

    def landing(self, device: int) -> str:
        """The path of a memory file as large as the device's, whose memory is there already.

        All runs write into the same: what a page costs when it is used for the first time, or
        again after the hypervisor took it back, differs by a factor of seven from run to run.
        """
        while len(self._landings) <= device:
            self._landings.append(os.memfd_create("sink", os.MFD_CLOEXEC))
            for at in range(0, self.device_size, MIB):
                os.pwrite(self._landings[-1], _SPOILT[: self.device_size - at], at)
        return path_of(self._landings[device])

    def spoil(self) -> None:
        """Make the places that :meth:`wrong` looks at differ from what is going to arrive."""
        for fd in self._landings:
            for at in self._samples():
                os.pwrite(fd, _SPOILT[: min(BLOCK, self.device_size - at)], at)

    def wrong(self) -> str | None:
        """Where what landed since :meth:`spoil` is not the content, by 65 samples; or None."""
        for device, (sent, landed) in enumerate(zip(self.files, self._landings, strict=True)):
            if os.fstat(landed).st_size != self.device_size:
                return f"device {device}: {os.fstat(landed).st_size} bytes of {self.device_size}"
            for at in self._samples():
                if os.pread(sent, BLOCK, at) != os.pread(landed, BLOCK, at):
                    return f"device {device}: other bytes arrived at {at}"
        return None

    def _samples(self) -> list[int]:
        step = max(self.device_size // 64 // BLOCK, 1) * BLOCK
        last = (self.device_size - 1) // BLOCK * BLOCK
        return [*range(0, last, step), last]


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

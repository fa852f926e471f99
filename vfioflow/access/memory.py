"""A mapping whose stores can be held back: by userfaultfd's write protection (userfaultfd(2)).

A store to a protected page stops the thread that makes it, until the protection is taken away; then the
store is made.  So none is lost, and none is queued: what it would have written cannot be seen.  The kernel
does that for every thread of the process that owns the mapping; whoever arms may be another process, to
which the descriptor was handed over, as a VMM does with a device process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from fcntl import ioctl
from typing import Self

from vfioflow.errors import ConfigError

__all__ = ["HeldMemory"]

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_REGISTER_MODE_WP = 1 << 1
_WP_ON = 1 << 0
_FEATURE_WP = 1 << 0
_FEATURE_WP_SHMEM = 1 << 12
_USER_MODE_ONLY = 1
_EVENT = struct.Struct("<B7xQQQ")
_PAGEFAULT = 0x12


class HeldMemory:
    """Holds stores to ``memory``, a shared mapping of whole pages, of this process.

    ``with HeldMemory(memory) as held:`` then, here or where :attr:`fd` was handed to, :meth:`arm`
    and :meth:`disarm`.  The thread that is held must not keep the one that disarms from running: not
    under one interpreter's lock.

    Raises ConfigError: this kernel, or this user, cannot (Linux 5.19; root, or
    ``vm.unprivileged_userfaultfd``).
    """

    def __init__(self, memory: mmap.mmap) -> None:
        view = ctypes.c_char.from_buffer(memory)
        self.start, self.size = ctypes.addressof(view), len(memory)
        del view
        self.fd = _open()
        try:
            wanted = _FEATURE_WP | _FEATURE_WP_SHMEM
            ioctl(self.fd, _UFFDIO_API, bytearray(struct.pack("=QQQ", _API, wanted, 0)))
            registration = struct.pack("=QQQQ", self.start, self.size, _REGISTER_MODE_WP, 0)
            ioctl(self.fd, _UFFDIO_REGISTER, bytearray(registration))
        except OSError as error:
            os.close(self.fd)
            raise ConfigError(f"stores to this memory cannot be held: {error.strerror}") from None

    @classmethod
    def received(cls, fd: int, start: int, size: int) -> Self:
        """The same in another process, to which these three were handed over."""
        held = cls.__new__(cls)
        held.fd, held.start, held.size = fd, start, size
        return held

    def arm(self) -> None:
        """When it returns, no store reaches the memory: each thread that tries is held."""
        self._protect(_WP_ON)

    def disarm(self) -> None:
        """Let those who were held make their stores, and everybody else."""
        self._protect(0)

    def held(self) -> list[int]:
        """Where stores were tried since last asked: offsets, in bytes, of the first in each page."""
        found: list[int] = []
        while True:
            try:
                event = os.read(self.fd, _EVENT.size)
            except BlockingIOError:
                return found
            kind, _, address, _ = _EVENT.unpack(event)
            if kind == _PAGEFAULT:
                found.append(address - self.start)

    def close(self) -> None:
        """Give it up; who is held goes on."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _protect(self, mode: int) -> None:
        try:
            ioctl(
                self.fd,
                _UFFDIO_WRITEPROTECT,
                bytearray(struct.pack("=QQQ", self.start, self.size, mode)),
            )
        except OSError as error:
            raise ConfigError(f"stores to this memory cannot be held: {error.strerror}") from None


def _open() -> int:
    number = _SYS_USERFAULTFD.get(os.uname().machine)
    if number is None:
        raise ConfigError(f"userfaultfd is not known here for {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    for more in (0, _USER_MODE_ONLY):
        fd = int(libc.syscall(number, flags | more))
        if fd >= 0:
            return fd
    why = os.strerror(ctypes.get_errno())
    raise ConfigError(f"no userfaultfd: {why}; it needs root, or vm.unprivileged_userfaultfd = 1")

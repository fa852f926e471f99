"""Devices that outlive the engine's process, as those whose descriptors a VMM holds.

They live in a :class:`~tests.chaos.store.DurableSet`.  Only the data fds end with the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from vfioflow import DeviceError, DeviceInfo, PrecopyInfo
from vfioflow._fdio import Port
from vfioflow.devices.profile import Fault
from vfioflow.states import (
    SAVING,
    Flags,
    State,
    can_initiate_dma,
    opens_data_fd,
    path,
)

from .drain import PIPE, Drain
from .store import BLOCK, DurableSet, block, content, packed

_RECORD = struct.Struct("<4sIII")
"""Magic, index, version, length."""
_SETUP, _BLOCK, _TRAILER = b"dSET", b"dBLK", b"dEND"


class DurableDevice:
    """One of a :class:`DurableSet`; the engine's handle to it.

    Args:
        group: the set.
        name: of the device.
        dirty: blocks that it writes whenever it is looked at while it runs.
        initial: blocks that PRE_COPY offers at once.
        pipe: whether its data fd is a pipe, where its flags allow that; else a file.
        strict: whether a load with wrong content is refused; else only one that is not whole.
        faults: of its arcs.
    """

    def __init__(
        self,
        group: DurableSet,
        name: str,
        *,
        dirty: int = 0,
        initial: int = 0,
        pipe: bool = False,
        strict: bool = True,
        faults: Sequence[Fault] = (),
    ) -> None:
        self.name = name
        self._group = group
        self._kept = group.store.devices[name]
        self._flags = Flags(self._kept.flags)
        self.info = DeviceInfo(name, "durable", self._flags, outlives=True)
        self._dirty, self._initial = dirty, initial
        self._pipe = pipe and not self._flags & Flags.PRE_COPY
        self._strict = strict
        self._faults = list(faults)
        self._stream = -1
        self._drain: Drain | None = None
        self._unsent: set[int] = set()
        self._records = 0
        self._sum = 0
        self._written = 0
        self._initial_end = 0
        self._one = threading.Lock()
        """Held by a state change, as the kernel does it."""
        self._let_go = threading.Condition()
        self._released = 0
        self._written_blocks = 0

    @property
    def state(self) -> State:
        return State(self._kept.state)

    def set_state(self, state: State) -> int:
        with self._one:
            start = self.state
            if State.ERROR in (start, state):
                raise DeviceError(self.name, f"{start} -> {state}", errno.EINVAL)
            released = self._released
            with ExitStack() as undo:
                data_fd = -1
                for stop in path(self._flags, start, state):
                    now = self.state
                    try:
                        opened = self._arc(now, stop, released)
                    except (OSError, RuntimeError) as error:  # no descriptor, or no thread
                        if isinstance(error, DeviceError):
                            raise
                        code = getattr(error, "errno", None) or errno.EAGAIN
                        raise DeviceError(self.name, f"{now} -> {stop}", code) from error
                    if opened >= 0:
                        data_fd = opened
                        undo.callback(os.close, data_fd)
                undo.pop_all()
                return data_fd

    def _arc(self, start: State, end: State, released: int) -> int:
        group, name = self._group, f"{start}->{end}"
        with group.lock:
            self._run()
            group.save()
        group.step(self.name, start, end, "before")
        self._strike(start, end, name, released)
        if self._released != released:
            raise DeviceError(self.name, f"{start} -> {end}", errno.ENODEV)
        with group.lock:
            opened = self._change(start, end)
            self._kept.state = int(end)
            try:
                self._run()
                group.save()
            except OSError:
                if opened >= 0:
                    os.close(opened)
                raise
        group.step(self.name, start, end, "after")
        return opened

    def _strike(self, start: State, end: State, name: str, released: int) -> None:
        fault = next((f for f in self._faults if f.at.replace(" ", "") == name), None)
        if fault is None:
            return
        if fault.once:
            self._faults.remove(fault)
        if fault.kind == "hang":
            with self._let_go:
                self._let_go.wait_for(lambda: self._released != released)
        if fault.left_in is not None:
            with self._group.lock:
                self._end_session()
                self._kept.state = int(fault.left_in)
                self._group.save()
        code = errno.ENODEV if fault.kind == "hang" else fault.code
        raise DeviceError(self.name, f"{start} -> {end}", code)

    def _change(self, start: State, end: State) -> int:
        if start is State.RESUMING:
            self._load()
        if start in SAVING and end not in SAVING:
            self._end_session()
        if opens_data_fd(start, end):
            return self._open_load() if end is State.RESUMING else self._open_save(end)
        if end is State.STOP_COPY:
            self._finish()
        return -1

    def _run(self) -> None:
        """What happens in the meantime: messages, and blocks that a running device writes."""
        self._group.tick()
        if can_initiate_dma(self.state):
            kept = self._kept
            for _ in range(self._dirty):
                index = self._written_blocks * 7 % len(kept.versions)
                self._written_blocks += 1
                kept.versions[index] += 1
                data = bytearray(kept.data)
                data[index * BLOCK : (index + 1) * BLOCK] = block(
                    kept.seed, index, kept.versions[index]
                )
                kept.data = bytes(data)
                self._unsent.add(index)

    # ------------------------------------------------------------------ saving

    def _open_save(self, end: State) -> int:
        self._records = self._sum = self._written = 0
        self._unsent = set(range(len(self._kept.versions)))
        if self._pipe:
            data_fd, self._stream = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.fcntl(self._stream, fcntl.F_SETPIPE_SZ, PIPE)
        else:
            self._stream = os.memfd_create("durable-save")
            data_fd = self._open_again(os.O_RDONLY)
        about = packed([self._kept.seed, len(self._kept.versions)])
        self._put(_SETUP, 0, 0, about)
        if end is State.STOP_COPY:
            self._finish()
        else:
            self._put_blocks(range(min(self._initial, len(self._kept.versions))))
        self._initial_end = self._written
        return data_fd

    def _put(self, magic: bytes, index: int, version: int, payload: bytes) -> None:
        record = _RECORD.pack(magic, index, version, len(payload)) + payload
        if magic != _TRAILER:
            self._sum = zlib.crc32(record, self._sum)
            self._records += 1
        if os.write(self._stream, record) != len(record):
            raise DeviceError(self.name, "saving", errno.ENOSPC)
        self._written += len(record)

    def _put_blocks(self, indices: Sequence[int]) -> None:
        kept = self._kept
        for index in indices:
            self._put(_BLOCK, index, kept.versions[index], kept.data[index * BLOCK :][:BLOCK])
            self._unsent.discard(index)

    def _finish(self) -> None:
        """The rest of the stream; nothing changes any more."""
        self._put_blocks(sorted(self._unsent))
        kept = self._kept
        told = packed([self._records, self._sum, kept.sent, kept.received])
        self._put(_TRAILER, 0, 0, told)
        if self._pipe:
            self._end_session()

    def _end_session(self) -> None:
        if self._drain is not None:
            self._drain.close()
            self._drain = None
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        with self._group.lock:
            if self.state not in (State.PRE_COPY, State.PRE_COPY_P2P):
                raise DeviceError(self.name, "precopy_info", errno.EINVAL)
            self._run()
            self._put_blocks(sorted(i for i in self._unsent if i < self._initial))
            self._group.save()
            at = os.lseek(data_fd, 0, os.SEEK_CUR)
            return PrecopyInfo(
                max(self._initial_end - at, 0), self._written - max(self._initial_end, at)
            )

    def stop_copy_size(self) -> int | None:
        with self._group.lock:
            blocks = len(self._unsent if self.state in SAVING else self._kept.versions)
            return self._written + blocks * (BLOCK + _RECORD.size)

    # ----------------------------------------------------------------- loading

    def _open_load(self) -> int:
        if self._pipe:
            self._stream, data_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._drain = Drain(self._stream)
            except (OSError, RuntimeError):
                os.close(data_fd)
                self._end_session()
                raise
        else:
            self._stream = os.memfd_create("durable-load")
            data_fd = self._open_again(os.O_WRONLY)
        return data_fd

    def _open_again(self, how: int) -> int:
        """The file of the session, with a position of its own."""
        try:
            return os.open(f"/proc/self/fd/{self._stream}", how | os.O_CLOEXEC)
        except OSError:
            self._end_session()
            raise

    def _taken(self) -> bytes:
        if self._stream < 0:
            return b""
        if not self._pipe:
            return os.pread(self._stream, os.fstat(self._stream).st_size, 0)
        assert self._drain is not None
        return self._drain.end()

    def _load(self) -> None:
        """Take the state that was written, if it is one."""
        data = self._taken()
        try:
            self._take(data)
        except (struct.error, ValueError, LookupError) as error:
            raise DeviceError(self.name, "RESUMING -> STOP", errno.EINVAL, str(error)) from error
        self._end_session()

    def _take(self, data: bytes) -> None:
        at = total = records = 0
        seed, count = 0, -1
        blocks: dict[int, tuple[int, bytes]] = {}
        while at < len(data):
            magic, index, version, length = _RECORD.unpack_from(data, at)
            payload = data[at + _RECORD.size :][:length]
            if len(payload) != length:
                raise ValueError("cut off")
            if magic == _TRAILER:
                break
            total = zlib.crc32(data[at : at + _RECORD.size + length], total)
            records += 1
            if magic == _SETUP and count < 0:
                seed, count = msgspec.msgpack.decode(payload, type=tuple[int, int])
            elif magic == _BLOCK and 0 <= index < count and length == BLOCK:
                blocks[index] = version, payload
            else:
                raise ValueError("not a record")
            at += _RECORD.size + length
        else:
            raise ValueError("no end")
        if at + _RECORD.size + length != len(data) or len(blocks) != count:
            raise ValueError("not whole")
        told, check, sent, received = msgspec.msgpack.decode(
            payload, type=tuple[int, int, dict[str, int], dict[str, int]]
        )
        if told != records or (self._strict and check != total):
            raise ValueError("wrong")
        kept = self._kept
        if count != len(kept.versions):
            raise ValueError("of another size")
        kept.seed = seed
        kept.versions = [blocks[i][0] for i in range(count)]
        kept.data = b"".join(blocks[i][1] for i in range(count))
        kept.sent, kept.received = sent, received
        kept.loaded = kept.digest()

    # ------------------------------------------------------------------- other

    def port(self, data_fd: int) -> Port:
        return Port(data_fd)

    def reset(self) -> None:
        self._release()
        with self._one, self._group.lock:
            self._end_session()
            kept = self._kept
            kept.state = int(State.RUNNING)
            kept.seed, kept.versions = kept.home, [0] * len(kept.versions)
            kept.data = content(kept.seed, kept.versions)
            kept.sent, kept.received = {}, {}
            kept.loaded = ""
            kept.resets += 1
            self._group.save()

    def close(self) -> None:
        self._release()
        with self._group.lock:
            self._end_session()

    def _release(self) -> None:
        with self._let_go:
            self._released += 1
            self._let_go.notify_all()

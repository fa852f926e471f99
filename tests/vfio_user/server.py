"""A vfio-user server with one device, written after the specification; it misbehaves on demand.

In a thread of a test (`Server(path).start()`), or as a process: ``python server.py SOCKET [OPTIONS]``, these
as JSON.
The process says "ready" on its output, then takes one JSON list a line, ``["digest"]`` or ``["attribute",
VALUE]``, and answers each with one line.  It shares no code with the client.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import mmap
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field

HEADER = struct.Struct("=HHIII")
BLOCK = 64 * 1024
RECORD = struct.Struct("<4sQQ")
REPLY, ERROR = 1, 0x21
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18

ERROR_STATE, STOP, RUNNING, STOP_COPY, RESUMING, _, PRE_COPY = range(7)
SAVING = {STOP_COPY, PRE_COPY}
ARCS = {
    (RUNNING, STOP), (STOP, RUNNING), (STOP, STOP_COPY), (STOP_COPY, STOP), (STOP, RESUMING),
    (RESUMING, STOP),
}  # fmt: skip
PRE_COPY_ARCS = {(RUNNING, PRE_COPY), (PRE_COPY, RUNNING), (PRE_COPY, STOP_COPY)}


class Refused(Exception):
    """Answered with an errno; `payload`: some servers send one with it."""

    def __init__(self, code: int, payload: bytes = b"") -> None:
        self.code, self.payload = code, payload


class Left(Exception):
    """The client has."""


@dataclass
class Device:
    """Its content is made of a seed, and changes while it runs.  `short`: most bytes that a read gives."""

    size: int = 1 << 20
    seed: int = 1
    flags: int = 5
    initial: int = 512 * 1024
    dirties: int = 2
    """Blocks that are written to each time that pre-copy has nothing left, `passes` times."""
    passes: int = 3
    short: int = 0
    fail: dict[str, list[int]] = field(default_factory=dict)
    """Arcs that fail, as "6->3": the errno, and the state that it ends in."""

    def __post_init__(self) -> None:
        self.content = bytearray(hashlib.shake_256(str(self.seed).encode()).digest(self.size))
        self.initial = min(self.initial, self.size)
        self.state = RUNNING
        self.queue: deque[memoryview] = deque()
        self.dirty: set[int] = set()
        self.sent = 0
        self.written = 0
        self.start_load()
        self.arcs: list[str] = []

    def content_of_zeros(self) -> None:
        self.content = bytearray(self.size)

    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    # ------------------------------------------------------------ states

    def go(self, end: int) -> None:
        for start, stop in self.route(end):
            arc = f"{start}->{stop}"
            if arc in self.fail:
                code, left = self.fail.pop(arc)
                self.state = left
                raise Refused(code)
            self.arc(start, stop)
            self.arcs.append(arc)
            self.state = stop

    def route(self, end: int) -> list[tuple[int, int]]:
        """The shortest way that has no saving state in between, unless both ends are such."""
        arcs = ARCS | (PRE_COPY_ARCS if self.flags & 4 else set())
        known = {state for arc in arcs for state in arc}
        if self.state == end:
            return []
        if self.state not in known or end not in known:
            raise Refused(errno.EINVAL)
        queue, seen = deque([[self.state]]), {self.state}
        while queue:
            way = queue.popleft()
            for nxt in sorted(b for a, b in arcs if a == way[-1]):
                if nxt == end:
                    return list(itertools.pairwise([*way, end]))
                if nxt not in seen and nxt not in SAVING:
                    seen.add(nxt)
                    queue.append([*way, nxt])
        raise Refused(errno.EINVAL)

    def arc(self, start: int, stop: int) -> None:
        if stop == PRE_COPY:
            self.queue.clear()
            self.left = self.passes
            self.dirty = set(range(0, self.initial, BLOCK))
        elif stop == STOP_COPY:
            if start == STOP:
                self.queue.clear()
                self.queue += self.record(0, self.size)
            else:
                for offset in sorted(self.dirty):
                    self.queue += self.record(offset, BLOCK)
                self.queue += self.record(self.initial, self.size - self.initial)
            end = RECORD.pack(b"END!", 0, 32) + hashlib.sha256(self.content).digest()
            self.queue.append(memoryview(end))
        elif stop == RESUMING:
            self.start_load()
        elif start == RESUMING and not self.whole:
            raise Refused(errno.EINVAL)

    def record(self, offset: int, size: int) -> list[memoryview]:
        size = min(size, self.size - offset)
        if size <= 0:
            return []
        head = memoryview(RECORD.pack(b"DATA", offset, size))
        return [head, memoryview(self.content)[offset : offset + size]]

    def reset(self) -> None:
        self.queue.clear()
        if self.state == ERROR_STATE:
            self.state = RUNNING
        self.start_load()
        self.whole = True  # nothing of a load is left that could be wrong
        self.content = bytearray(self.size)

    # ------------------------------------------------------------ data

    def read(self, size: int) -> list[memoryview]:
        """Up to `size` bytes, in pieces; nothing: none are left (for now)."""
        if self.state not in SAVING:
            raise Refused(errno.EINVAL)
        if self.state == PRE_COPY and not self.queue:
            self.save_dirty()
        want = min(size, self.short) if self.short else size
        found = []
        while want and self.queue:
            part = self.queue.popleft()
            if len(part) > want:
                self.queue.appendleft(part[want:])
                part = part[:want]
            found.append(part)
            want -= len(part)
        self.sent += sum(map(len, found))
        return found

    def save_dirty(self) -> None:
        for offset in sorted(self.dirty):
            head, data = self.record(offset, BLOCK)
            self.queue += [head, memoryview(bytes(data))]  # it may change before it is read
        empty = not self.dirty
        self.dirty.clear()
        if empty and self.left:
            self.left -= 1
            for number in range(min(self.dirties, -(-self.size // BLOCK))):
                at = number * BLOCK
                self.content[at] = (self.content[at] + 1) % 256
                self.dirty.add(at)

    def write(self, data: memoryview) -> None:
        if self.state != RESUMING:
            raise Refused(errno.EINVAL)
        self.written += len(data)
        while data:
            data = self.take(data)

    def take(self, data: memoryview) -> memoryview:
        """The next part of a stream: some of a record's head, or of its data.  What is left behind it."""
        if self.at is None:
            need = RECORD.size - len(self.head)
            self.head += data[:need]
            if len(self.head) == RECORD.size:
                kind, offset, size = RECORD.unpack(self.head)
                if kind not in (b"DATA", b"END!") or offset + size > self.size:
                    raise Refused(errno.EINVAL)
                self.at = [kind, offset, size]
                self.head.clear()
            return data[need:]
        kind, offset, size = self.at
        part = data[:size]
        if kind == b"DATA":
            self.content[offset : offset + len(part)] = part
        else:
            self.end += part
            self.whole = self.end == hashlib.sha256(self.content).digest()
        self.at = [kind, offset + len(part), size - len(part)] if len(part) < size else None
        return data[len(part) :]

    def start_load(self) -> None:
        self.head, self.end, self.at, self.whole = bytearray(), bytearray(), None, False


@dataclass
class Fault:
    """What goes wrong with the `nth` request of a `command` from now on; see Server.misbehave."""

    command: int
    nth: int
    how: str
    value: int = 0


class Server:
    """Listens at `path`, and serves one client after the other.

    `padded`: as libvfio-user, replies with data are as long as was asked.  `limit`: its
    max_data_xfer_size.  `size_feature`: it has MIG_DATA_SIZE.  `strict`: STOP and STOP_COPY allow little.
    `keeps`: whether the state outlives a client.  `version`: what it answers, JSON as text or None.
    `faults`: lists of what makes a Fault.
    """

    def __init__(
        self,
        path: str,
        *,
        device: dict | None = None,
        padded: bool = True,
        limit: int = 1 << 20,
        size_feature: bool = False,
        strict: bool = True,
        keeps: bool = True,
        version: list | None = None,
        faults: tuple | list = (),
        delay: float = 0.0,
    ) -> None:
        self.device = Device(**(device or {}))
        self.padded, self.limit, self.size_feature = padded, limit, size_feature
        self.strict, self.keeps, self.version = strict, keeps, version
        self.faults = [Fault(*fault) for fault in faults]
        self.delay = delay
        self.log: list[int] = []
        self.short_bodies = 0
        self.hit = threading.Event()
        self.clients = 0
        self.maps: dict[int, tuple[int, mmap.mmap]] = {}
        self.logging: tuple[int, set[int]] | None = None
        self.held: list[bytes] = []
        self.theirs = 1 << 20
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(1)
        self.wake, self.stopped = socket.socketpair()
        self.thread = threading.Thread(target=self.serve, name="server", daemon=True)

    # ------------------------------------------------------------ life

    def start(self) -> Server:
        self.thread.start()
        return self

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.wake.shutdown(socket.SHUT_RDWR)
        if self.thread.is_alive():
            self.thread.join(10)
            assert not self.thread.is_alive()
        for sock in (self.listener, self.wake, self.stopped):
            sock.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def serve(self) -> None:
        while self.until(self.listener):
            self.client, _ = self.listener.accept()
            self.clients += 1
            try:
                while self.until(self.client):
                    self.one()
            except (Left, ConnectionError):
                pass
            finally:
                self.client.close()
                for _, memory in self.maps.values():
                    memory.close()
                self.maps, self.logging, self.held = {}, None, []
                if not self.keeps:
                    self.device.queue.clear()
                    self.device.state = RUNNING

    def until(self, sock: socket.socket) -> bool:
        """Wait until a socket has something; False: the server is to stop."""
        return sock in select.select([sock, self.stopped], [], [])[0] and self.stopped.fileno() >= 0

    # ------------------------------------------------------------ messages

    def one(self) -> None:
        head, fds, _, _ = socket.recv_fds(self.client, HEADER.size, 8)
        if len(head) < HEADER.size:
            raise Left
        number, command, size, flags, _ = HEADER.unpack(head)
        if flags & 0xF == REPLY:
            self.client.recv(size - HEADER.size)
            return None
        if size < HEADER.size or size > (1 << 20) + 4096:
            return self.reply(number, command, code=errno.EINVAL)
        # One recv, as libvfio-user: a body in pieces is taken for one that is too short.
        body = memoryview(self.client.recv(size - HEADER.size) if size > HEADER.size else b"")
        if len(body) < size - HEADER.size:
            self.short_bodies += 1
            return self.reply(number, command, code=errno.EINVAL)
        self.log.append(command)
        fault = next((f for f in self.faults if f.command == command), None)
        if fault is not None:
            fault.nth -= 1
            if fault.nth == 0:
                self.faults.remove(fault)
                return self.misbehave(fault, number, command, body)
        try:
            self.reply(number, command, self.do(command, body, fds))
        except Refused as refused:
            self.reply(number, command, [memoryview(refused.payload)], code=refused.code)

    def reply(
        self, number: int, command: int, parts: list = (), *, code: int | None = None
    ) -> None:
        size = HEADER.size + sum(map(len, parts))
        flags = REPLY if code is None else ERROR
        self.send([HEADER.pack(number, command, size, flags, code or 0), *parts])

    def send(self, parts: list) -> None:
        parts = [*self.held, *parts]
        self.held = []
        left = sum(map(len, parts))
        while left:
            sent = self.client.sendmsg(parts)
            left -= sent
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = memoryview(parts[0])[sent:]

    def misbehave(self, fault: Fault, number: int, command: int, body: memoryview) -> None:
        how, value = fault.how, fault.value
        self.hit.set()
        if how == "error":
            return self.reply(number, command, [b"payload!"], code=value)
        if how == "bare error":
            return self.reply(number, command, code=value)
        if how == "close":
            raise Left
        if how == "exit":
            os._exit(1)
        if how == "hang":  # until the client has left
            while self.until(self.client) and self.client.recv(1 << 16):
                pass
            raise Left
        if how == "command":  # one of its own first, which must be answered
            self.send([HEADER.pack(9, 11, 32, 0, 0), struct.pack("=QQ", 4096, 8)])
        if how == "quiet command":
            self.send([HEADER.pack(9, 12, 40, 1 << 4, 0), struct.pack("=QQ", 4096, 8), bytes(8)])
        try:
            parts = self.do(command, body, [])
        except Refused as refused:
            return self.reply(number, command, code=refused.code)
        if how in ("command", "quiet command"):
            return self.reply(number, command, parts)
        whole = b"".join(
            [HEADER.pack(number, command, 16 + sum(map(len, parts)), REPLY, 0), *parts]
        )
        if how == "swap":  # the reply to the next one comes first
            self.until(self.client)
            self.late = whole
            self.one()
            return self.send([whole])
        if how == "half":
            self.send([whole[: max(1, len(whole) // 2)]])
            raise Left
        if how == "half and hang":
            self.send([whole[: max(1, len(whole) // 2)]])
            return self.misbehave(Fault(command, 0, "hang"), number, command, body)
        at, form = {
            "id": (0, "=H"),
            "reply command": (2, "=H"),
            "size": (4, "=I"),
            "flags": (8, "=I"),
            "argsz": (16, "=I"),
            "data size": (20, "=I"),
            "state": (24, "=I"),
            "version": (16, "=HH"),
        }[how]
        changed = bytearray(whole)
        values = [value >> 16, value & 0xFFFF] if how == "version" else [value]
        struct.pack_into(form, changed, at, *values)
        return self.send([bytes(changed)])

    # ------------------------------------------------------------ requests

    def do(self, command: int, body: memoryview, fds: list[int]) -> list:
        try:
            state = self.device.state
            least = {STOP: (1, 9, 10, 16), STOP_COPY: (1, 16, 17)}
            if self.strict and command not in least.get(state, (command,)):
                raise Refused(errno.EINVAL)
            work = {
                1: self.agree, 4: self.info, 9: self.region, 13: self.reset, 16: self.feature,
                17: self.read, 18: self.write, 3: self.unmap,
            }  # fmt: skip
            if command == 2:
                return self.map(body, fds)
            if command not in work:
                raise Refused(errno.EINVAL)
            return work[command](body)
        finally:
            for fd in fds:
                os.close(fd)

    def agree(self, body: memoryview) -> list:
        major, minor = struct.unpack_from("=HH", body)
        text = bytes(body[4:])
        if major != 0 or not text.endswith(b"\0"):
            raise Refused(errno.EINVAL)
        self.theirs = json.loads(text[:-1])["capabilities"].get("max_data_xfer_size", 1 << 20)
        if self.version is not None:
            major, minor, said = self.version
            return [struct.pack("=HH", major, minor), b"" if said is None else said.encode()]
        said = {"max_msg_fds": 8, "max_data_xfer_size": self.limit, "migration": {"pgsize": 4096}}
        return [
            struct.pack("=HH", 0, min(minor, 2)),
            json.dumps({"capabilities": said}).encode() + b"\0",
        ]

    def info(self, body: memoryview) -> list:
        return [struct.pack("=IIII", 16, 3, 9, 5)]

    def region(self, body: memoryview) -> list:
        offset, index, count = struct.unpack_from("=QII", body)
        config = bytes.fromhex("f41a4110") + bytes(252)
        if index != 7 or offset + count > len(config):
            raise Refused(errno.EINVAL)
        return [bytes(body[:16]), config[offset : offset + count]]

    def reset(self, body: memoryview) -> list:
        self.device.reset()
        return []

    def feature(self, body: memoryview) -> list:
        _, flags = struct.unpack_from("=II", body)
        number, data = flags & 0xFFFF, body[8:]
        can = {1: GET, 2: GET | SET, 6: SET, 7: SET, 8: GET} | (
            {9: GET} if self.size_feature else {}
        )
        wanted = flags & (GET | SET)
        if number not in can or wanted & ~can[number] or not wanted or not self.device.flags:
            raise Refused(errno.EINVAL)
        if flags & PROBE:
            return [bytes(body)]
        if flags & SET:
            if number == 2:
                try:
                    self.device.go(struct.unpack_from("=I", data)[0])
                except Refused as refused:
                    raise Refused(refused.code, bytes(body)) from None
            elif number == 6:
                self.logging = (struct.unpack_from("=Q", data)[0], set())
            else:
                self.logging = None
            return [bytes(body)]
        answer = {1: self.flags, 2: self.state, 8: self.report, 9: self.size}[number](data)
        return [struct.pack("=II", 8 + len(answer), flags), answer]

    def flags(self, data: memoryview) -> bytes:
        return struct.pack("=Q", self.device.flags)

    def state(self, data: memoryview) -> bytes:
        return struct.pack("=Ii", self.device.state, -1)

    def size(self, data: memoryview) -> bytes:
        return struct.pack("=Q", self.device.size)

    def report(self, data: memoryview) -> bytes:
        iova, length, page = struct.unpack_from("=QQQ", data)
        if self.logging is None or page != self.logging[0] or iova not in self.maps:
            raise Refused(errno.EINVAL)
        if length > self.maps[iova][0]:
            raise Refused(errno.EINVAL)
        bits = 0
        for dirty in list(self.logging[1]):
            if iova <= dirty < iova + length:
                bits |= 1 << ((dirty - iova) // page)
                self.logging[1].remove(dirty)
        words = (-(-length // page) + 63) // 64
        return bytes(data[:24]) + bits.to_bytes(8 * words, "little")

    def map(self, body: memoryview, fds: list[int]) -> list:
        _, _, offset, iova, size = struct.unpack_from("=IIQQQ", body)
        if len(fds) != 1 or iova in self.maps:
            raise Refused(errno.EINVAL)
        self.maps[iova] = size, mmap.mmap(fds[0], size, offset=offset)
        return []

    def unmap(self, body: memoryview) -> list:
        _, _, iova, size = struct.unpack_from("=IIQQ", body)
        if iova not in self.maps or self.maps[iova][0] != size:
            raise Refused(errno.ENOENT)
        self.maps.pop(iova)[1].close()
        return [bytes(body)]

    def dma(self, address: int, data: bytes) -> None:
        """The device writes to memory."""
        for iova, (size, memory) in self.maps.items():
            if iova <= address < iova + size:
                memory[address - iova : address - iova + len(data)] = data
                if self.logging is not None:
                    page = self.logging[0]
                    self.logging[1].add(address // page * page)

    def read(self, body: memoryview) -> list:
        _, size = struct.unpack_from("=II", body)
        if size > min(self.theirs, self.limit):
            raise Refused(errno.EINVAL)
        if self.delay:
            time.sleep(self.delay)  # a device that is slow to save, for the benchmark
        parts = self.device.read(size)
        n = sum(map(len, parts))
        padding = [bytes(size - n)] if self.padded and n < size else []
        return [struct.pack("=II", 8 + n, n), *parts, *padding]

    def write(self, body: memoryview) -> list:
        argsz, size = struct.unpack_from("=II", body)
        if len(body) - 8 < size or argsz < 8 + size or size > min(self.theirs, self.limit):
            raise Refused(errno.EINVAL)
        self.device.write(body[8 : 8 + size])
        return []

    # ------------------------------------------------------------ as a process

    def asked(self, name: str, *values: object) -> object:
        """One line of the process's input."""
        if name == "fault":
            self.faults.append(Fault(*values))
            return None
        if values:
            return setattr(self.device, name, *values)
        found = (
            getattr(self.device, name, None) if hasattr(self.device, name) else getattr(self, name)
        )
        return found() if callable(found) else found


def main() -> None:
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    with Server(sys.argv[1], **options) as server:
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(server.asked(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""The wire between both ends: a proxy that can do to connections whatever a network can."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable

from .schedule import Strike
from .units import Units, forge

_MOST = 65536
"""Bytes read at once, and kept for a receiver that does not take them."""

_QUIET = 0.05
"""Seconds without a byte after which a held connection goes on: what it waits for will not come."""

_KEPT_ALIVE = 2.5
"""Seconds after which a silent connection is found dead, as TCP's keep-alive does it in thirty."""

_RESET = struct.pack("ii", 1, 0)


class Flow:
    """One direction of a connection."""

    def __init__(self, line: Line, toward: str, taken: socket.socket, given: socket.socket) -> None:
        self.line, self.toward = line, toward
        self.taken, self.given = taken, given
        self.out = bytearray()
        self.seen = 0
        self.passed = 0
        self.ended = False
        self.told_end = False
        self.muted = False
        self.until = 0.0
        """When it goes on, on the wire's clock."""
        self.behind: tuple[int, int] | None = None
        """It goes on when that connection has passed so many bytes."""
        self.pieces = (0, 0)
        """Pass on pieces of so many bytes, so often."""
        self.counts: dict[str, int] = {}
        self.last = b""
        self.units: Units | None = None
        self.swapped: bytes | None = None


class Line:
    """A connection from the source, and the one that goes on to the destination."""

    def __init__(self, number: int, near: socket.socket, far: socket.socket) -> None:
        self.number = number
        self.near, self.far = near, far
        self.flows = (
            Flow(self, "destination", near, far),
            Flow(self, "source", far, near),
        )
        self.open = True
        self.dead_at: float | None = None

    def close(self, reset: bool) -> None:
        self.open = False
        for sock in (self.near, self.far):
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()


class Wire:
    """The proxy.  ``strikes`` are those that it sees by itself; ``process`` does those that are not its own.

    :meth:`step` does what can be done, and waits for at most so many seconds.
    """

    def __init__(
        self, strikes: list[Strike], process: Callable[[Strike], None], *, tagged: bool
    ) -> None:
        self._tagged = tagged
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.target: tuple[str, int] | None = None
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._waiting = [s for s in strikes if s.at.what in ("bytes", "unit")]
        self._process = process
        self.lines: list[Line] = []
        self._strangers: list[socket.socket] = []
        self._refuse = 0
        self._moved = time.monotonic()
        self.struck: list[Strike] = []
        self.made = 0

    def close(self) -> None:
        self._listening.close()
        for line in self.lines:
            if line.open:
                line.close(False)
        for sock in self._strangers:
            sock.close()

    def heal(self) -> None:
        """From now on nothing goes wrong; connections that are there end."""
        self._waiting.clear()
        self._refuse = 0
        for line in self.lines:
            if line.open:
                line.close(True)

    # ----------------------------------------------------------------- faults

    def strike(self, strike: Strike, flow: Flow | None = None) -> None:
        """Do what a strike says; ``flow`` is where it was due."""
        self.struck.append(strike)
        if strike.kind not in ("cut", "break", "mute", "stall", "dribble", "reorder", "stranger"):
            self._process(strike)
            return
        if strike.kind == "stranger":
            self._stranger(strike.how)
            return
        lines = [flow.line] if flow is not None and not strike.every else list(self.lines)
        for line in lines:
            if not line.open:
                continue
            if strike.kind in ("cut", "break"):
                for each in line.flows:
                    self._write(each, len(each.out), forced=True)
                line.close(strike.how == "reset")
                continue
            for each in line.flows:
                if flow is not None and not strike.every and each is not flow:
                    continue
                if strike.kind == "mute":
                    each.muted = True
                    line.dead_at = time.monotonic() + _KEPT_ALIVE
                elif strike.kind == "stall":
                    each.until = time.monotonic() + strike.seconds
                elif strike.kind == "dribble":
                    each.pieces = (strike.amount, 300)
                elif strike.kind == "reorder":
                    other = self.lines[(line.number + 1) % len(self.lines)]
                    ahead = sum(f.passed for f in other.flows) + strike.amount
                    each.behind = (other.number, ahead)
        if strike.kind in ("cut", "break"):
            self._refuse = strike.amount

    def _stranger(self, how: str) -> None:
        if self.target is None:
            return
        try:
            sock = socket.create_connection(self.target, timeout=1)
        except OSError:
            return
        hello = b"VFIOFLOW\x02\x00"
        said = {
            "garbage": b"GET / HTTP/1.1\r\n\r\n" + bytes(40),
            "silent": b"",
            "closes": hello,
            "data": hello + b"\x02\x00\x00\x00\x00\x00" + bytes(16),
            "again": hello + b"\x02\x01\x00\x00\x00\x00" + bytes(range(16)),
            "old": b"VFIOFLOW\x01\x00" + bytes(22),
        }[how]
        sock.sendall(said)
        if how == "closes":
            sock.close()
        else:
            self._strangers.append(sock)

    # -------------------------------------------------------------- the bytes

    def _due(self, flow: Flow, start: int, end: int) -> Strike | None:
        for strike in self._waiting:
            at = strike.at
            if (
                at.what == "bytes"
                and at.line == flow.line.number
                and at.toward == flow.toward
                and start <= at.count < end
            ):
                return strike
        return None

    def _take(self, flow: Flow, data: bytes) -> None:
        """Bytes have come for a flow."""
        wanted = any(
            s.at.what == "unit" and s.at.line == flow.line.number and s.at.toward == flow.toward
            for s in self._waiting
        )
        if flow.units is None and (wanted and flow.seen == 0):
            data_line = flow.line.number > 0 and not self._is_control(data)
            flow.units = Units(data_line, flow.toward, tagged=self._tagged)
        while data and flow.line.open:
            strike = self._due(flow, flow.seen, flow.seen + len(data))
            if strike is None:
                flow.seen += len(data)
                self._give(flow, data)
                return
            self._waiting.remove(strike)
            before = data[: strike.at.count - flow.seen]
            data = data[len(before) :]
            flow.seen += len(before)
            self._give(flow, before)
            data = self._spoil(flow, strike, data)

    @staticmethod
    def _is_control(data: bytes) -> bool:
        return len(data) > 10 and data[10] == 1

    def _spoil(self, flow: Flow, strike: Strike, data: bytes) -> bytes:
        """A strike at a byte: what goes on instead of ``data``."""
        if strike.kind == "flip":
            self.struck.append(strike)
            return bytes([data[0] ^ 1 << strike.amount % 8]) + data[1:]
        if strike.kind == "drop":
            self.struck.append(strike)
            flow.seen += min(len(data), strike.amount)
            return data[strike.amount :]
        if strike.kind == "repeat":
            self.struck.append(strike)
            self._give(flow, flow.last[-strike.amount :])
            return data
        self.strike(strike, flow)
        return data

    def _give(self, flow: Flow, data: bytes) -> None:
        """Bytes on their way, whole or unit by unit."""
        if not data:
            return
        flow.last = (flow.last + data)[-256:]
        if flow.units is None:
            flow.out += data
            return
        for name, unit in flow.units.feed(data):
            self._give_unit(flow, name, unit)
            if not flow.line.open:
                return

    def _give_unit(self, flow: Flow, name: str, unit: bytes) -> None:
        if name == "sign of life":  # when one comes is up to the clock, so nothing counts by them
            flow.out += unit
            return
        strike = self._due_unit(flow, name)
        for each in (name, "any"):
            flow.counts[each] = flow.counts.get(each, 0) + 1
        if flow.swapped is not None:
            unit, flow.swapped = unit + flow.swapped, None
        if strike is None:
            flow.out += unit
            return
        self._waiting.remove(strike)
        kind, half = strike.kind, len(unit) // 2
        if kind in ("flip", "drop", "repeat", "swap", "forge"):
            self.struck.append(strike)
            if kind == "flip":
                at = strike.amount // 8 % len(unit)
                unit = unit[:at] + bytes([unit[at] ^ 1 << strike.amount % 8]) + unit[at + 1 :]
            elif kind == "drop":
                unit = b"" if strike.how == "whole" else unit[:half] + unit[half + strike.amount :]
            elif kind == "repeat":
                unit = unit * 2 if strike.how == "whole" else unit + unit[-strike.amount :]
            elif kind == "forge":
                unit = forge(unit, strike.how)
            else:
                flow.swapped, unit = unit, b""
            flow.out += unit
            return
        first = {"before": 0, "inside": half, "after": len(unit)}[strike.at.part]
        flow.out += unit[:first]
        self._write(flow, len(flow.out), forced=True)
        self.strike(strike, flow)
        if flow.line.open:
            flow.out += unit[first:]

    def _due_unit(self, flow: Flow, name: str) -> Strike | None:
        for strike in self._waiting:
            at = strike.at
            if (
                at.what == "unit"
                and at.line == flow.line.number
                and at.toward == flow.toward
                and at.name in (name, "any")
                and at.count == flow.counts.get(at.name, 0)
            ):
                return strike
        return None

    # ------------------------------------------------------------ the sockets

    def step(self, timeout: float, others: dict[int, Callable[[], None]]) -> None:
        """One round; ``others`` are descriptors to look at besides, and what to do then."""
        now = time.monotonic()
        wanted: dict[int, int] = {self._listening.fileno(): select.POLLIN}
        for fd in others:
            wanted[fd] = select.POLLIN
        by_fd: dict[int, list[tuple[Flow, int]]] = {}
        for line in self.lines:
            if line.open and line.dead_at is not None:
                timeout = min(timeout, line.dead_at - now)
                if timeout <= 0:
                    line.close(True)
            if not line.open:
                continue
            for flow in line.flows:
                wait = self._held(flow, now)
                if wait:
                    timeout = min(timeout, wait)
                if not flow.ended and not flow.muted and len(flow.out) < _MOST:
                    self._want(wanted, by_fd, flow.taken, flow, select.POLLIN)
                if flow.out and not wait and not flow.muted:
                    self._want(wanted, by_fd, flow.given, flow, select.POLLOUT)
        poll = select.poll()
        for fd, mask in wanted.items():
            poll.register(fd, mask)
        for fd, event in poll.poll(max(timeout, 0) * 1e3):
            if fd in others:
                others[fd]()
            elif fd == self._listening.fileno():
                self._accept()
            else:
                for flow, mask in by_fd[fd]:
                    if flow.line.open and event & (mask | select.POLLHUP | select.POLLERR):
                        self._serve(flow, mask)

    @staticmethod
    def _want(
        wanted: dict[int, int],
        by_fd: dict[int, list[tuple[Flow, int]]],
        sock: socket.socket,
        flow: Flow,
        mask: int,
    ) -> None:
        fd = sock.fileno()
        wanted[fd] = wanted.get(fd, 0) | mask
        by_fd.setdefault(fd, []).append((flow, mask))

    def _held(self, flow: Flow, now: float) -> float:
        """Seconds until it is worth looking at a flow that is held; 0: it is not."""
        if flow.until > now:
            return flow.until - now
        if flow.behind is not None:
            other, count = flow.behind
            passed = sum(f.passed for f in self.lines[other].flows)
            quiet = now - self._moved
            if passed < count and quiet < _QUIET and self.lines[other].open:
                return max(_QUIET - quiet, 0.001)
            flow.behind = None
        return 0.0

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        if self._refuse:
            self._refuse -= 1
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()
            return
        self.made += 1
        try:
            if self.target is None:
                raise ConnectionRefusedError
            far = socket.create_connection(self.target, timeout=1)
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()
            return
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines.append(Line(len(self.lines), near, far))

    def _serve(self, flow: Flow, mask: int) -> None:
        if mask == select.POLLOUT:
            size, times = flow.pieces
            if times:
                flow.pieces = (size, times - 1)
                self._write(flow, size)
            else:
                self._write(flow, len(flow.out))
            return
        try:
            data = flow.taken.recv(_MOST)
        except BlockingIOError:
            return
        except OSError:
            flow.line.close(True)
            return
        self._moved = time.monotonic()
        if data:
            self._take(flow, data)
        else:
            flow.ended = True
            if flow.units is not None:
                flow.out += flow.units.rest()
            if flow.swapped is not None:
                flow.out += flow.swapped
                flow.swapped = None
        self._end(flow)

    def _write(self, flow: Flow, size: int, *, forced: bool = False) -> None:
        """Pass bytes on, as many as the socket takes."""
        if not flow.line.open or (forced and (flow.muted or self._held(flow, time.monotonic()))):
            return
        try:
            sent = flow.given.send(flow.out[:size]) if flow.out else 0
        except BlockingIOError:
            return
        except OSError:
            if not forced:
                flow.line.close(True)
            return
        self._moved = time.monotonic()
        flow.passed += sent
        del flow.out[:sent]
        self._end(flow)

    @staticmethod
    def _end(flow: Flow) -> None:
        """One side has said its last; once both have, the connection is done."""
        if not flow.line.open or not flow.ended or flow.out or flow.told_end:
            return
        flow.told_end = True
        try:
            flow.given.shutdown(socket.SHUT_WR)
        except OSError:
            flow.line.close(True)
            return
        if all(each.told_end for each in flow.line.flows):
            flow.line.close(False)

"""Who moves the bytes: each program with its two sides, and the clock that is the same for all.

The clock starts when all pairs are connected and their interpreters up: one process for all devices
(vfioflow) begins then, and processes per device wait for that at a gate.  Programs of others know no
gate; with them it starts with the first sender, and the starts of the others, about 2 ms each, are
within.  Pipes are full by then.  It stops when the last receiver says that it is done, or ends.  CPU
seconds are those of both sides.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from comparison.content import MIB
from comparison.ends import Ends
from comparison.programs import Program, ProgramFailed, Programs
from comparison.wires import Side, Wire

BENCH = Path(__file__).parents[1]
NULL = subprocess.DEVNULL

LIMIT = 120.0
"""Seconds after which a run is given up."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one run took: seconds on the clock, CPU seconds of both sides, bytes on the wire."""

    seconds: float
    cpu: float
    wire: int


class Mover(Protocol):
    """A program that can move bytes between :class:`Ends` over a :class:`Wire`."""

    @property
    def name(self) -> str:
        """How it is called in results."""

    def missing(self) -> str | None:
        """Why it cannot be run here, or None."""

    def suits(self, ends: tuple[str, str]) -> bool:
        """Whether it can move from such a source to such a sink."""

    def move(self, ends: Ends, wire: Wire) -> Moved:
        """Move everything.  Raises ProgramFailed."""


@dataclass(frozen=True, slots=True)
class Announcing:
    """A program of this project: its receiver says its port, "ready", and its CPU time.

    ``words send HOST PORT ...`` and ``words receive HOST ...``.  Either one process per device, with the
    device at standard input or output, and a gate as the sender's last word; or ``together``: one for
    all, told the descriptors.
    """

    name: str
    words: tuple[str, ...]
    send: tuple[str, ...] = ()
    receive: tuple[str, ...] = ()
    together: bool = False
    sources: tuple[str, ...] = ()
    """The sources it can read; empty: all."""

    def missing(self) -> str | None:
        return None

    def suits(self, ends: tuple[str, str]) -> bool:
        return not self.sources or ends[0] in self.sources

    def move(self, ends: Ends, wire: Wire) -> Moved:
        before = wire.sent()
        gate, door = os.pipe2(os.O_CLOEXEC)
        with Programs(LIMIT) as programs, os.fdopen(door, "wb") as held:
            receivers = self._receivers(programs, ends.outputs, wire)
            ports = [receiver.line() for receiver in receivers]
            senders = self._senders(programs, ends.inputs, ports, gate, wire)
            os.close(gate)
            for receiver in receivers:
                if receiver.line() != "ready":
                    receiver.finish()
                    raise ProgramFailed(f"{self.name}: the receiver was never ready")
            ends.handed_over()
            start = time.perf_counter()
            held.close()
            cpu = sum(receiver.value("cpu") for receiver in receivers)
            seconds = time.perf_counter() - start
            cpu += sum(sender.value("cpu") for sender in senders)
            for program in (*senders, *receivers):
                program.finish()
            sent = wire.sent() - before
            if self.together and wire.shared:
                sent = int(senders[0].value("wire"))
        ends.settle()
        return Moved(seconds, cpu, sent)

    def _receivers(self, programs: Programs, fds: list[int], wire: Wire) -> list[Program]:
        words = [*self.words, "receive", wire.host, *self.receive]
        if self.together:
            return [programs.start(wire.receiving([*words, *_all(fds)]), NULL, NULL, fds)]
        return [programs.start(wire.receiving(words), NULL, fd) for fd in fds]

    def _senders(
        self, programs: Programs, fds: list[int], ports: list[str], gate: int, wire: Wire
    ) -> list[Program]:
        words = [*self.words, "send", wire.host]
        if self.together:
            words += [*ports, *self.send, *_all(fds)]
            return [programs.start(wire.sending(words), NULL, NULL, fds)]
        return [
            programs.start(wire.sending([*words, port, *self.send, str(gate)]), fd, NULL, [gate])
            for port, fd in zip(ports, fds, strict=True)
        ]


def _all(fds: list[int]) -> list[str]:
    return ["--fds", ",".join(map(str, fds))]


@dataclass(frozen=True, slots=True)
class Piped:
    """A pipeline at each side that ends, or begins, with a program that does TCP.

    The words HOST and PORT are replaced.  One pipeline per device.
    """

    name: str
    send: tuple[tuple[str, ...], ...]
    receive: tuple[tuple[str, ...], ...]

    def missing(self) -> str | None:
        tools = sorted({words[0] for words in (*self.send, *self.receive)})
        lost = [tool for tool in tools if shutil.which(tool) is None]
        return f"{' and '.join(lost)} not installed" if lost else None

    def suits(self, ends: tuple[str, str]) -> bool:
        return True

    def move(self, ends: Ends, wire: Wire) -> Moved:
        before = wire.sent()
        with Programs(LIMIT) as programs:
            receivers, senders, ports = [], [], []
            for fd in ends.outputs:
                ports.append(free_port())
                words = _fill_in(self.receive, wire.host, ports[-1])
                receivers += _pipeline(programs, words, wire.receiving, NULL, fd)
                _await_port(receivers, ports[-1])
            start = time.perf_counter()
            for port, fd in zip(ports, ends.inputs, strict=True):
                words = _fill_in(self.send, wire.host, port)
                senders += _pipeline(programs, words, wire.sending, fd, NULL)
            ends.handed_over()
            for receiver in receivers:
                receiver.finish()
            seconds = time.perf_counter() - start
            for sender in senders:
                sender.finish()
            cpu = sum(program.cpu for program in (*senders, *receivers))
        ends.settle()
        return Moved(seconds, cpu, wire.sent() - before)


def _fill_in(pipeline: tuple[tuple[str, ...], ...], host: str, port: int) -> list[list[str]]:
    return [
        [word.replace("HOST", host).replace("PORT", str(port)) for word in words]
        for words in pipeline
    ]


def _pipeline(
    programs: Programs, pipeline: list[list[str]], at: Side, stdin: int, stdout: int
) -> list[Program]:
    started = []
    for number, words in enumerate(pipeline):
        last = number == len(pipeline) - 1
        outlet, mouth = (-1, stdout) if last else os.pipe2(os.O_CLOEXEC)
        started.append(programs.start(at(words), stdin, mouth))
        if number:
            os.close(stdin)
        if not last:
            os.close(mouth)
        stdin = outlet
    return started


_ports = count(20000)


def free_port() -> int:
    """A port that nobody listens on, below those that connections get, and each only once.

    In the namespaces of a veth nobody listens anyway; but a port that was used a minute ago is
    refused to a program that does not ask for its reuse.
    """
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def _await_port(programs: list[Program], port: int) -> None:
    """Return when one of the programs' network namespaces has a socket that listens on ``port``."""
    wanted = f":{port:04X}"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for program in programs:
            for table in ("tcp", "tcp6"):
                with suppress(OSError):
                    for line in Path(f"/proc/{program.pid}/net/{table}").read_text().splitlines():
                        fields = line.split()
                        if fields[1].endswith(wanted) and fields[3] == "0A":
                            return
        # /proc tells nobody when it changes, and to connect would take the sender's place.
        time.sleep(0.002)
    for program in programs:
        program.interrupt()
        program.finish()
    raise ProgramFailed(f"nobody listens on port {port}")


def build_loop(folder: Path) -> str:
    """Compile the C loop; its path."""
    out = folder / "loop"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-Wall", "-pthread", "-o", out, BENCH / "loop.c"], check=True)
    return str(out)


def loops(loop: str) -> list[Mover]:
    """The C loop by strategy: how the sender reads and how the receiver writes."""
    return [
        Announcing(
            f"C {send}/{receive}",
            (loop,),
            (send,),
            (receive,),
            sources=("memfd",) if send == "sendfile" else (),
        )
        for send in ("read", "splice", "sendfile")
        for receive in ("write", "fill", "splice")
    ]


def vfioflow(name: str, *options: str, receive: tuple[str, ...] | None = None) -> Announcing:
    """The pumps of this project with the options of ``lane.py``, the same at both sides."""
    words = (sys.executable, str(BENCH / "lane.py"))
    return Announcing(name, words, options, options if receive is None else receive, together=True)


def peers() -> list[Mover]:
    """Other programs that move bytes as they are."""
    socat = ("socat", "-u", "-b", str(MIB))
    mbuffer = ("mbuffer", "-q", "-s", "1M", "-m", "64M")
    plain = (sys.executable, str(BENCH / "plain.py"))
    return [
        Piped(
            "socat",
            ((*socat, "STDIN", "TCP:HOST:PORT"),),
            ((*socat, "TCP-LISTEN:PORT,reuseaddr", "STDOUT"),),
        ),
        Piped("mbuffer", ((*mbuffer, "-O", "HOST:PORT"),), ((*mbuffer, "-I", "PORT"),)),
        Announcing("asyncio", plain),
    ]


def zstd_socat() -> Piped:
    """What people type: zstd with two threads into socat."""
    socat = ("socat", "-u", "-b", str(MIB))
    return Piped(
        "zstd -1 -T2 | socat",
        (("zstd", "-1", "-T2", "-c", "-q"), (*socat, "STDIN", "TCP:HOST:PORT")),
        ((*socat, "TCP-LISTEN:PORT,reuseaddr", "STDOUT"), ("zstd", "-d", "-c", "-q")),
    )

"""What lies between the two sides: TCP over loopback, or a veth pair between two network namespaces.

The namespaces are made here and removed whatever happens; those of a run that was killed are
removed by the next.  Namespaces need root and Debian's iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

LOOPBACK = "loopback"
VETH = "veth"

_PREFIX = "vfioflow-bench-"
_NAMESPACES = Path("/run/netns")
_SHAPING = ("burst", "1mb", "latency", "5ms")


Side = Callable[[list[str]], list[str]]
"""Makes of a program's words the command that runs at one side of a wire."""


class Wire(Protocol):
    """Where programs run, and the address at which the receivers are reached."""

    host: str
    shared: bool
    """Whether ``sent`` may count what others send."""

    def sending(self, words: list[str]) -> list[str]:
        """``words`` as a command that runs at the senders' side."""

    def receiving(self, words: list[str]) -> list[str]:
        """``words`` as a command that runs at the receivers' side."""

    def sent(self) -> int:
        """Bytes that went out at the senders' side so far, with the protocols' headers."""


class Loopback:
    """TCP to 127.0.0.1, which ``sent`` counts together with whatever else the machine sends there."""

    host = "127.0.0.1"
    shared = True

    def sending(self, words: list[str]) -> list[str]:
        return words

    def receiving(self, words: list[str]) -> list[str]:
        return words

    def sent(self) -> int:
        return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


class Veth:
    """A veth pair between two network namespaces that exist while this context is entered."""

    host = "192.0.2.2"
    shared = False
    _source = "192.0.2.1"

    def __init__(self) -> None:
        self.spaces = tuple(f"{_PREFIX}{os.getpid()}-{side}" for side in ("source", "target"))

    def __enter__(self) -> Veth:
        sweep()
        here, there = self.spaces
        with ExitStack() as undo:
            undo.callback(self._remove)
            for space in self.spaces:
                _ip("netns", "add", space)
            _ip("link", "add", "out", "netns", here, "type", "veth",
                "peer", "name", "in", "netns", there)  # fmt: skip
            for space, device, address in ((here, "out", self._source), (there, "in", self.host)):
                _ip("-n", space, "address", "add", f"{address}/24", "dev", device)
                _ip("-n", space, "link", "set", device, "up")
                _ip("-n", space, "link", "set", "lo", "up")
            undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for space in self.spaces:
            if (_NAMESPACES / space).exists():
                _ip("netns", "delete", space)

    def shape(self, gigabits: float | None) -> None:
        """Let at most so many Gbit/s out of the senders' side; None: as many as it can."""
        tc = ["tc", "-n", self.spaces[0], "qdisc"]
        if gigabits is None:
            subprocess.run([*tc, "delete", "dev", "out", "root"], capture_output=True)
            return
        rate = f"{gigabits * 1000:.0f}mbit"
        _run([*tc, "replace", "dev", "out", "root", "tbf", "rate", rate, *_SHAPING])

    def sending(self, words: list[str]) -> list[str]:
        return [*_inside(self.spaces[0]), *words]

    def receiving(self, words: list[str]) -> list[str]:
        return [*_inside(self.spaces[1]), *words]

    def sent(self) -> int:
        shown = _ip("-n", self.spaces[0], "-json", "-stats", "link", "show", "dev", "out")
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


class Wires:
    """The wires of a run by name: "loopback", "veth", "veth 2.5" (Gbit/s).  A context manager.

    ``why_not`` says why there is no veth, or is None.
    """

    def __init__(self) -> None:
        self.why_not = why_no_veth()
        self._veth: Veth | None = None

    def __enter__(self) -> Wires:
        if self.why_not is None:
            self._veth = Veth()
            try:
                self._veth.__enter__()
            except subprocess.CalledProcessError as error:  # as in a container without the right
                self._veth, self.why_not = None, f"no veth: {error.stderr.strip()}"
        return self

    def __exit__(self, *error: object) -> None:
        if self._veth is not None:
            self._veth.__exit__(*error)

    def get(self, name: str) -> Wire | None:
        """The wire of that name, shaped as it says; None when it is a veth and there is none."""
        if name == LOOPBACK:
            return Loopback()
        if self._veth is not None:
            rate = rate_of(name)
            self._veth.shape(rate)
        return self._veth


def rate_of(name: str) -> float | None:
    """The Gbit/s that a wire's name says, or None where it is not shaped."""
    _, _, rate = name.partition(" ")
    return float(rate) if rate else None


def why_no_veth() -> str | None:
    """Why this process cannot make network namespaces, or None."""
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            return f"no veth: {tool} is not installed (Debian: {package})"
    if os.geteuid() != 0:
        return "no veth: network namespaces need root"
    return None


def sweep() -> None:
    """Remove the namespaces that a killed run left behind."""
    for space in _NAMESPACES.glob(f"{_PREFIX}*"):
        owner = space.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            _ip("netns", "delete", space.name)


def _inside(space: str) -> list[str]:
    return ["nsenter", f"--net={_NAMESPACES / space}"]


def _ip(*words: str) -> str:
    return _run(["ip", *words])


def _run(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout

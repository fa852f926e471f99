"""What a scenario's wire is made of: loopback, two network namespaces, or the way to another host.

The namespaces have no names.  A process keeps each of them, and ends when its standard input does,
so the kernel takes them away whatever this process dies of.  They take root, and the programs of
Debian's iproute2 and util-linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from vfioflow.errors import ConfigError
from vfioflow.lab.scenario import Wire
from vfioflow.wire.address import Address

__all__ = ["Laid", "laid", "why_no_namespaces"]

_HERE, _THERE = "192.0.2.1", "192.0.2.2"
_KEEPER = ["unshare", "--net", "sh", "-c", "echo; exec cat >&2"]

_BURST_SECONDS, _LEAST_BURST = 0.001, 256 * 1024
"""What may pass at once in a shaped wire: a millisecond's worth, in bytes at least so many."""

_QUEUE_SECONDS = 0.02
"""How long a packet may wait in the shaper before it is dropped."""


@dataclass(frozen=True)
class Laid:
    """A wire that is there.  ``notes`` say what of the scenario's it is not.

    ``sending`` and ``receiving`` go before the words of a command that is to run at that side.
    """

    kind: str
    host: str
    """Where the destination listens."""
    port: int = 0
    sending: tuple[str, ...] = ()
    receiving: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def remote(self) -> bool:
        """Whether the destination is another host's."""
        return self.kind == "host"

    @property
    def isolated(self) -> bool:
        """Whether nobody else can reach it, although it is no loopback."""
        return self.kind == "namespaces"


@contextmanager
def laid(wire: Wire) -> Iterator[Laid]:
    """Lay a wire, which is taken away afterwards.

    Raises ConfigError: it cannot be made here.
    """
    why_not = why_no_namespaces()
    kind = wire.kind
    if kind == "auto":
        kind = "namespaces" if wire.shaped and why_not is None else "loopback"
    if kind == "host":
        address = Address.parse(wire.address)
        yield Laid(kind, address.host, address.port)
    elif kind == "loopback":
        notes = [f"{why_not}; over loopback instead, as fast as it is"] if wire.shaped else []
        yield Laid(kind, "127.0.0.1", notes=notes)
    elif why_not is not None:
        raise ConfigError(
            f'wire: {why_not}; kind = "auto" takes loopback where they cannot be made'
        )
    else:
        with _namespaces(wire) as made:
            yield made


def why_no_namespaces() -> str | None:
    """Why this process cannot make network namespaces, or None."""
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            return f"no network namespaces: {tool} is not installed (Debian: {package})"
    if os.geteuid() != 0:
        return "no network namespaces: they need root"
    return None


@contextmanager
def _namespaces(wire: Wire) -> Iterator[Laid]:
    with ExitStack() as undo:
        here, there = (undo.enter_context(_keeper()) for _ in range(2))
        inside = {pid: ("nsenter", f"--net=/proc/{pid}/ns/net") for pid in (here, there)}
        _run(*inside[here], "ip", "link", "add", "out", "type", "veth",
             "peer", "name", "in", "netns", str(there))  # fmt: skip
        for pid, device, address in ((here, "out", _HERE), (there, "in", _THERE)):
            _run(*inside[pid], "ip", "address", "add", f"{address}/24", "dev", device)
            for each in (device, "lo"):
                _run(*inside[pid], "ip", "link", "set", each, "up")
        made = Laid("namespaces", _THERE, sending=inside[here], receiving=inside[there])
        _shape(wire, made)
        yield made


@contextmanager
def _keeper() -> Iterator[int]:
    """A process in a network namespace of its own; its process id."""
    with subprocess.Popen(
        _KEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            if not keeper.stdout.readline():
                raise ConfigError("wire: no network namespaces: this process may not make them")
            yield keeper.pid
        finally:
            keeper.stdin.close()


def _shape(wire: Wire, made: Laid) -> None:
    """Hold the veth pair to the wire's rate, latency and loss."""
    parent = ["root"]
    if wire.rate is not None:
        burst = max(int(wire.rate * _BURST_SECONDS), _LEAST_BURST)
        queue = f"{_QUEUE_SECONDS * 1e3:.0f}ms"
        _run(*made.sending, "tc", "qdisc", "add", "dev", "out", *parent, "handle", "1:", "tbf",
             "rate", f"{wire.rate * 8}bit", "burst", str(burst), "latency", queue)  # fmt: skip
        parent = ["parent", "1:1"]
    if not (wire.latency or wire.loss):
        return
    delay = ["netem", "limit", "100000", "delay", f"{wire.latency * 1e6:.0f}us"]
    loss = ["loss", f"{wire.loss * 100:.6f}%"] if wire.loss else []
    try:
        _run(*made.sending, "tc", "qdisc", "add", "dev", "out", *parent, *delay, *loss)
        _run(*made.receiving, "tc", "qdisc", "add", "dev", "in", "root", *delay)
    except ConfigError as error:
        made.notes.append(f"no latency and no loss: this kernel has no netem ({error})")


def _run(*words: str) -> None:
    """Run a command.  Raises ConfigError with what it says."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise ConfigError(f"wire: {' '.join(words[2:])}: {said[0]}")

"""An agent as a process, and clients of it: the example in docs/, which can also go away."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples" / "agent"

_spec = importlib.util.spec_from_file_location("agent_client", EXAMPLES / "client.py")
client = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(client)


class Peer(client.Agent):
    """A client that keeps what it is told, and lets a test wait for it."""

    def __init__(self, path, hooks=None):
        self.told = []
        self._more = threading.Condition()
        super().__init__(path, hooks, self._tell)

    def _tell(self, method, params):
        with self._more:
            self.told.append((method, params))
            self._more.notify_all()

    def wait_for(self, good):
        with self._more:
            assert self._more.wait_for(lambda: any(good(*each) for each in self.told), timeout=20)
            return next(each for each in self.told if good(*each))

    def send(self, message):
        """Ask, and do not wait."""
        self._send(message)

    def answer(self, number):
        """What was answered to a message that was sent."""
        with self._here:
            assert self._here.wait_for(lambda: number in self._answers, timeout=20)
            return self._answers.pop(number)["result"]

    def kill(self):
        """As a client that is gone from one moment to the next."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()


class Running:
    def __init__(self, path, command):
        self.path = str(path)
        self.command = command
        self.process = command.process

    def open_fds(self):
        folder = Path(f"/proc/{self.process.pid}/fd")
        with contextlib.suppress(FileNotFoundError):
            return sorted(re.sub(r"\d", "", str(each.readlink())) for each in folder.iterdir())

    @contextlib.contextmanager
    def client(self, hooks=None):
        peer = Peer(self.path, hooks)
        try:
            yield peer
        finally:
            peer.close()

    @contextlib.contextmanager
    def pair(self, *, here=None, there=None, **options):
        """Two clients, one device each; the destination listens."""
        with self.client(here) as source, self.client(there) as destination:
            for peer in (source, destination):
                simulated = {"profile": "mlx5", "state_size": 8 << 20, "initial_bytes": 1 << 20}
                peer.call("device.add", name="net0", simulated=simulated | {"dirty_rate": 0})
            options |= {"hooks": names(there)}
            port = destination.call("destination.listen", address="tcp://127.0.0.1:0", **options)
            yield source, destination, port


def names(hooks):
    return [name.removeprefix("hook.") for name in hooks or {} if name.startswith("hook.")]


def start(source, destination, port, **options):
    sent = source.call("source.start", to=port["address"], **options)["migration"]
    taken = destination.call("destination.accept", listener=port["listener"])["migration"]
    return sent, taken


def ends(peer, migration):
    return peer.call("migration.wait", migration=migration)


def states(peer):
    return [device["state"] for device in peer.call("device.list")["devices"]]

"""Servers to talk to: whole ones, in a thread or a process, and one that the test plays itself."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server import HEADER, Server

from vfioflow._vfio_user import Line
from vfioflow.devices.vfio_user import VfioUserDevice
from vfioflow.devices.vfio_user.device import Settings


@pytest.fixture
def stack(nothing_left):
    """Closes what the test opened, in reverse order; nothing may be left over."""
    with contextlib.ExitStack() as stack:
        yield stack
        gc.collect()


class Process:
    """A server as a process of its own."""

    def __init__(self, path: Path, options: dict) -> None:
        self.path = path
        script = Path(__file__).with_name("server.py")
        self.process = subprocess.Popen(
            [sys.executable, script, path, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, *line: object) -> object:
        """``("digest",)``, ``("state",)``, ``("fault", command, nth, how, value)``, ..."""
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def process(stack, tmp_path):
    """Starts servers, each as a process."""

    def start(name: str, **options) -> Process:
        server = Process(tmp_path / f"{name}.sock", options)
        stack.callback(server.stop)
        return server

    return start


@pytest.fixture
def server(stack, tmp_path):
    """Starts servers in threads."""

    def start(name: str = "dev", **options) -> Server:
        made = stack.enter_context(Server(str(tmp_path / f"{name}.sock"), **options))
        made.path = str(tmp_path / f"{name}.sock")
        return made

    return start


@pytest.fixture
def connect(stack):
    """Connects to a server."""

    def device(server, *, timeout: float = 30.0, **options) -> VfioUserDevice:
        how = {key: options.pop(key) for key in ("name", "driver", "outlives") if key in options}
        settings = Settings(timeout=timeout, **{"read_size": 256 * 1024, **options})
        made = VfioUserDevice.connect(str(server.path), settings=settings, **how)
        stack.callback(made.close)
        return made

    return device


class Far:
    """The server's end of a connection, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(30)

    def request(self) -> tuple[int, int, bytes]:
        """The next request: its id, its command, its payload."""
        number, command, size, flags, error = HEADER.unpack(self.all(HEADER.size))
        assert (flags, error) == (0, 0)
        return number, command, self.all(size - HEADER.size)

    def all(self, size: int) -> bytes:
        """So many bytes."""
        found = bytearray()
        while len(found) < size:
            part = self.sock.recv(size - len(found))
            assert part, "the client has left"
            found += part
        return bytes(found)

    def say(self, number, command, payload=b"", *, flags=1, error=0, size=None) -> None:
        """A message; by default a reply without an error."""
        size = HEADER.size + len(payload) if size is None else size
        self.sock.sendall(HEADER.pack(number, command, size, flags, error) + payload)

    def data(self, number: int, data: bytes, pad: int = 0) -> None:
        """The reply to a MIG_DATA_READ."""
        head = struct.pack("=II", 8 + len(data), len(data))
        self.say(number, 17, head + data + bytes(pad))

    def waiting(self) -> bool:
        """Whether a request is there."""
        self.sock.setblocking(False)
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self.sock.settimeout(30)


@pytest.fixture
def pair(stack) -> tuple[Line, Far]:
    """A connection, and its other end."""
    near, far = socket.socketpair()
    stack.callback(far.close)
    line = Line(near.detach(), 30.0)
    stack.callback(line.shut, 19, "the test ends")
    return line, Far(far)


@pytest.fixture
def background(stack):
    """Calls in threads; the result, or the exception, by calling what is returned."""

    def start(function: Callable, *args: object, **options: object) -> Callable[[], object]:
        outcome: list[object] = []

        def run() -> None:
            try:
                outcome.append(function(*args, **options))
            except Exception as error:  # raised where the result is asked for
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        stack.callback(thread.join)

        def result() -> object:
            thread.join(60)
            assert not thread.is_alive()
            if isinstance(outcome[0], Exception):
                raise outcome[0]
            return outcome[0]

        return result

    return start

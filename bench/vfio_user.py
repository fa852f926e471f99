"""How fast migration data comes from a vfio-user server: ``python bench/vfio_user.py [MiB]``.

The server is the tests' own, a process in Python; it hands out what is already in its memory.  "port" reads
into one buffer that is thrown away.  "lane" is what a source does: digests, frames, and a TCP connection over
loopback to a process that throws away what arrives.  "busy server": it takes a millisecond before each
reply.  "the same without a protocol": a process that sends as large pieces on a UNIX socket, no more.
The last column is the server's own processor time for a GiB, by "port".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._fdio import Cancel
from vfioflow._outlane import END, OutLane
from vfioflow._vfio_user_data import DataPort
from vfioflow._waits import Limiter
from vfioflow.devices.vfio_user import VfioUserDevice
from vfioflow.devices.vfio_user.device import Settings
from vfioflow.states import State

CHUNK = 1 << 20
SERVER = Path(__file__).parents[1] / "tests" / "vfio_user" / "server.py"
IN_FLIGHT = (1, 2, 4, 8)
KIB = 1024
READ_SIZES = (64 * KIB, 256 * KIB, 1024 * KIB)
ROUNDS = 3


def by_port(port: DataPort) -> None:
    """Read to the end."""
    buffer = bytearray(CHUNK)
    while True:
        try:
            if not port.readinto(buffer):
                return
        except BlockingIOError:
            continue


def _throw_away(sock: socket.socket) -> None:
    buffer = bytearray(CHUNK)
    while sock.recv_into(buffer):
        pass


def by_lane(port: DataPort) -> None:
    """Pump to the end, to a process that reads what a destination would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    reader = multiprocessing.get_context("fork").Process(target=_read, args=(near, far))
    reader.start()
    far.close()
    with near:
        lane = OutLane(
            "bench", 0, [Channel(near)], Pool(CHUNK, 1), Cancel(), Limiter(), digests=True
        )
        assert lane.pump(port, 1 << 60, precopy=False) == END
    reader.join()


def _read(near: socket.socket, far: socket.socket) -> None:
    near.close()
    _throw_away(far)


def processor_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    path: str, server: int, size: int, how: Callable[[DataPort], None], **settings: int
) -> tuple[float, float]:
    """The best of some rounds: bytes a second, and the server's seconds a GiB in it."""
    best = (0.0, 0.0)
    for _ in range(ROUNDS):
        with VfioUserDevice.connect(path, settings=Settings(**settings)) as device:
            port = device.port(device.set_state(State.STOP_COPY))
            used, begin = processor_seconds(server), time.perf_counter()
            how(port)
            seconds = time.perf_counter() - begin
            used = processor_seconds(server) - used
            port.close()
            device.set_state(State.RUNNING)
        best = max(best, (size / seconds, used / size * (1 << 30)))
    return best


def _send(sock: socket.socket, size: int, piece: int) -> None:
    data = memoryview(bytes(piece))
    for _ in range(size // piece):
        sock.sendall(data)
    sock.close()


def without_protocol(size: int, piece: int) -> float:
    """Bytes a second from a process that only sends."""
    best = 0.0
    for _ in range(ROUNDS):
        near, far = socket.socketpair()
        sender = multiprocessing.get_context("fork").Process(target=_send, args=(far, size, piece))
        begin = time.perf_counter()
        sender.start()
        far.close()
        with near:
            _throw_away(near)
        best = max(best, size / (time.perf_counter() - begin))
        sender.join()
    return best


def start(path: str, size: int, delay: float = 0.0) -> subprocess.Popen[str]:
    """A server with so much to hand out."""
    options = {"device": {"size": size, "initial": 0}, "delay": delay}
    server = subprocess.Popen(
        [sys.executable, SERVER, path, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def main() -> None:
    """Print a table, MiB a second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("mib", type=int, nargs="?", default=512, help="MiB to hand out (512)")
    size = parser.parse_args().mib << 20
    print(f"{size >> 20} MiB, {os.cpu_count()} CPUs; MiB a second, best of {ROUNDS}")
    print("read size  under way   port   lane   busy server, lane   server's CPU")
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("quick", "busy")]
        quick, busy = start(paths[0], size), start(paths[1], size // 4, 0.001)
        for read_size in READ_SIZES:
            for count in IN_FLIGHT:
                settings = {"read_size": read_size, "in_flight": count}
                port, cost = measure(paths[0], quick.pid, size, by_port, **settings)
                lane, _ = measure(paths[0], quick.pid, size, by_lane, **settings)
                slow, _ = measure(paths[1], busy.pid, size // 4, by_lane, **settings)
                rates = [f"{rate / (1 << 20):6.0f}" for rate in (port, lane, slow)]
                print(
                    f"{read_size // KIB:5} KiB {count:8}   {rates[0]} {rates[1]}"
                    f" {rates[2]:>14} {cost:15.2f} s/GiB"
                )
            bare = without_protocol(size, read_size) / (1 << 20)
            print(f"{read_size // KIB:5} KiB   the same without a protocol: {bare:.0f}")
        for server in (quick, busy):
            server.communicate()


if __name__ == "__main__":
    main()

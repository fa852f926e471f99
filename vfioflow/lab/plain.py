"""What a wire carries by itself: bytes from one socket to another, without vfioflow.

Two processes: ``python -m vfioflow.lab.plain take HOST`` prints its port, and takes what comes over
one connection after the other until its standard input ends; ``give HOST PORT`` prints the bytes per
second of the best of a few tries.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

__all__ = ["give", "take"]

_TRIES, _SECONDS = 3, 0.4
_PIECE = 1 << 20


def take(host: str) -> None:
    """Until standard input ends."""
    with socket.create_server((host, 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        threading.Thread(target=_serve, args=[listening], daemon=True).start()
        while os.read(0, 4096):
            pass


def _serve(listening: socket.socket) -> None:
    buffer = bytearray(_PIECE)
    while True:
        connection, _ = listening.accept()
        with connection:
            while connection.recv_into(buffer):
                pass
            connection.sendall(b"!")  # all of it is here


def give(host: str, port: int) -> float:
    """Bytes per second from the first byte until the other side has the last."""
    return max(_try(host, port) for _ in range(_TRIES))


def _try(host: str, port: int) -> float:
    piece = bytes(_PIECE)
    with socket.create_connection((host, port)) as connection:
        begin = time.monotonic()
        sent = 0
        while time.monotonic() - begin < _SECONDS:
            sent += connection.send(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return sent / (time.monotonic() - begin)


if __name__ == "__main__":
    if sys.argv[1] == "take":
        take(sys.argv[2])
    else:
        print(give(sys.argv[2], int(sys.argv[3])))

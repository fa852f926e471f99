"""One lane of vfioflow between the same ends as ``loop.c``, for the comparison.

``python lane.py send PORT [--digest]`` moves standard input to the wire;
``python lane.py receive [--digest]`` prints a port and moves the wire to standard output.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

from vfioflow._buffers import Pool
from vfioflow._channel import Channel, Limiter
from vfioflow._fdio import Cancel, Port
from vfioflow._inlane import InLane, Receiver
from vfioflow._outlane import END, OutLane

CHUNK = 1 << 20


def send(port: int, *, digests: bool) -> None:
    """Standard input to 127.0.0.1:``port``, to its end."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        cancel, pool = Cancel(), Pool(CHUNK, 1)
        lane = OutLane("bench", 0, [Channel(sock)], pool, cancel, Limiter(), digests=digests)
        assert lane.pump(Port(os.dup(0)), 2**63, precopy=False) == END
        lane.end()


def receive(*, digests: bool) -> None:
    """One connection to standard output; says its port, and "ready", on standard error."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], file=sys.stderr, flush=True)
        sock, _ = listening.accept()
    with sock:
        lane = InLane("bench", Port(os.dup(1)))
        signal = os.eventfd(0)
        receiver = Receiver([lane], Pool(CHUNK, 2), Cancel(), signal, digests=digests)
        channel = Channel(sock)
        print("ready", file=sys.stderr, flush=True)
        assert receiver.receive(channel)
        assert lane.ended


if __name__ == "__main__":
    for fd in (0, 1):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)
        except OSError:
            continue  # not a pipe
    if sys.argv[1] == "send":
        send(int(sys.argv[2]), digests="--digest" in sys.argv)
    else:
        receive(digests="--digest" in sys.argv)

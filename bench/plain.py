"""Python's asyncio as a mover, for the comparison: ``sock_sendall`` and ``sock_recv_into``.

``python plain.py send HOST PORT [GATE]`` moves standard input to the wire, once the descriptor GATE is at
its end; ``python plain.py receive HOST`` says its port and "ready" on standard error and moves the wire
to standard output.  Both end with the CPU seconds that they took since they were connected.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

CHUNK = 1 << 20


async def send(host: str, port: int, gate: int | None) -> float:
    """Standard input to a connection; the CPU time when it began."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(CHUNK))
    with socket.create_connection((host, port)) as sock:
        sock.setblocking(False)
        if gate is not None:
            os.read(gate, 1)
        began = time.process_time()
        while count := os.readv(0, [buffer]):
            await loop.sock_sendall(sock, buffer[:count])
    return began


async def receive(host: str) -> float:
    """A connection to standard output; the CPU time when it began."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(CHUNK))
    with socket.create_server((host, 0)) as listening:
        print(listening.getsockname()[1], file=sys.stderr, flush=True)
        sock, _ = listening.accept()
    with sock:
        sock.setblocking(False)
        print("ready", file=sys.stderr, flush=True)
        began = time.process_time()
        while count := await loop.sock_recv_into(sock, buffer):
            part = buffer[:count]
            while part:
                part = part[os.write(1, part) :]
    return began


if __name__ == "__main__":
    if sys.argv[1] == "send":
        door = int(sys.argv[4]) if len(sys.argv) > 4 else None
        start = asyncio.run(send(sys.argv[2], int(sys.argv[3]), door))
    else:
        start = asyncio.run(receive(sys.argv[2]))
    print(f"cpu {time.process_time() - start:.6f}", file=sys.stderr)

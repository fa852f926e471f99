"""Lanes of vfioflow between the same ends as ``loop.c``, for the comparisons.

``lane.py send HOST PORT`` moves standard input, or each of ``--fds``, to the wire;
``lane.py receive HOST`` moves the wire to standard output, or to each of ``--fds``.  Both say on standard
error what ``loop`` says: the port, "ready" once connected, and at the end ``cpu SECONDS``, without the
start of the interpreter; the sender also ``wire BYTES``.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import resource
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vfioflow._fdio import Port
from vfioflow._inlane import InLane
from vfioflow._outlane import END
from vfioflow.lanes import Inbound, Outbound
from vfioflow.policy import Policy
from vfioflow.wire.address import Address
from vfioflow.wire.tls import Tls

MIB = 1 << 20


def cpu() -> float:
    """Processor seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def together(calls: list[Callable[[], object]]) -> None:
    """Run all calls at once, each on a thread, to the end."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


def protected(sockets: list[socket.socket], options: argparse.Namespace) -> list[socket.socket]:
    """The same connections, by TLS if that was asked for."""
    if options.tls is None:
        return sockets
    sending = options.side == "send"
    tls = Tls.client(options.tls, options.host) if sending else Tls.server(options.tls, None)

    async def one(sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        peer = Address.of(sock, peer=True)
        made = await (tls.connect(sock, peer) if sending else tls.accept(sock, peer, b""))
        made.setblocking(True)
        return made

    async def each() -> list[socket.socket]:
        return await asyncio.gather(*map(one, sockets))

    return asyncio.run(each())


def keys(options: argparse.Namespace, channels: int) -> list[bytes]:
    """One for each channel, if that was asked for."""
    return [bytes([number]) * 32 for number in range(channels)] if options.key else []


def send(options: argparse.Namespace, policy: Policy) -> None:
    """Each fd to the peer, to its end."""
    sockets = [
        socket.create_connection((options.host, options.port))
        for _ in range(policy.channel_count(len(options.fds)))
    ]
    sockets = protected(sockets, options)
    splice = sockets[0].recv(1) == b"1"
    out = Outbound(
        [f"lane {fd}" for fd in options.fds],
        sockets,
        policy,
        splice=splice,
        keys=keys(options, len(sockets)),
    )
    ports = [Port(os.dup(fd)) for fd in options.fds]
    before = cpu()

    def pump(lane, port) -> None:
        assert lane.pump(port, 2**63, precopy=False) == END
        lane.end()

    together([partial(pump, *ends) for ends in zip(out.lanes, ports, strict=True)])
    out.end()
    for sock in sockets:
        while sock.recv(4096):
            pass  # acknowledgements, until the peer has loaded everything
    print(f"cpu {cpu() - before:.6f}", file=sys.stderr)
    print(f"wire {sum(lane.wire_bytes for lane in out.lanes)}", file=sys.stderr)
    out.close(stuck=False)


def receive(options: argparse.Namespace, policy: Policy) -> None:
    """What the peer sends, to each fd."""
    with socket.create_server((options.host, 0), backlog=64) as listening:
        print(listening.getsockname()[1], file=sys.stderr, flush=True)
        sockets = [listening.accept()[0] for _ in range(policy.channel_count(len(options.fds)))]
    sockets = protected(sockets, options)
    ports = [Port(os.dup(fd)) for fd in options.fds]
    splice = not policy.digest and all(port.takes_pages for port in ports)
    sockets[0].send(b"1" if splice else b"0")
    lanes = [InLane(f"lane {fd}", port) for fd, port in zip(options.fds, ports, strict=True)]
    signal = os.eventfd(0)
    inbound = Inbound(
        lanes,
        sockets,
        chunk_size=policy.frame_size,
        digests=policy.digest,
        signal_fd=signal,
        window=policy.window_size(len(sockets)),
        keys=keys(options, len(sockets)),
    )
    print("ready", file=sys.stderr, flush=True)
    before = cpu()
    together([partial(inbound.receiver.receive, channel) for channel in inbound.channels])
    assert all(lane.ended for lane in lanes)
    print(f"cpu {cpu() - before:.6f}", file=sys.stderr)
    inbound.close(stuck=False)
    os.close(signal)


def main() -> None:
    """Run one side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("send", "receive"))
    parser.add_argument("host")
    parser.add_argument("port", type=int, nargs="?")
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--reconnect", action="store_true", help="keep what may have to come again")
    parser.add_argument("--key", action="store_true", help="tags with a key")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="TLS with these certificates")
    parser.add_argument("--compression", default="none")
    parser.add_argument("--threads", type=int, default=0, help="compressors (0: one per processor)")
    parser.add_argument("--channels", type=int, default=0, help="0: as many as the policy takes")
    parser.add_argument("--chunk", type=int, default=MIB, help="bytes")
    parser.add_argument("--fds", type=lambda text: [int(word) for word in text.split(",")])
    options = parser.parse_args()
    policy = Policy(
        digest=options.digest,
        reconnect_timeout=10.0 if options.reconnect else 0.0,
        compression=options.compression,
        compression_threads=options.threads,
        channels=options.channels,
        chunk_size=options.chunk,
    )
    if options.fds is None:
        options.fds = [0 if options.side == "send" else 1]
    for fd in options.fds:
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MIB)
        except OSError:
            continue  # not a pipe
    (send if options.side == "send" else receive)(options, policy)


if __name__ == "__main__":
    main()

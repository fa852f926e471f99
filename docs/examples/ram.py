"""Guest RAM in a memfd migrates next to devices.  Both sides are in this process, to be tried at once:

    python docs/examples/ram.py

A thread plays the vCPU: it writes to RAM all the time, and marks what it wrote as KVM's dirty log would.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import socket
import struct
import threading

from vfioflow import DirtySet, Hooks, Policy, Report, SimDevice, listen, migrate
from vfioflow.events import Phase

PAGE, SIZE = 4096, 64 << 20
PAGES = SIZE // PAGE
HEAD = struct.Struct("<QQ")  # a page's number and how many follow; none: the end


class Guest:
    """RAM and a vCPU."""

    def __init__(self) -> None:
        fd = os.memfd_create("guest-ram")
        os.ftruncate(fd, SIZE)
        self.ram = mmap.mmap(fd, SIZE)
        os.close(fd)
        self.dirty = set(range(PAGES))  # nothing was sent yet
        self.lock = threading.Lock()
        self._halt = threading.Event()
        self._vcpu: threading.Thread | None = None

    def page(self, number: int) -> bytes:
        return self.ram[number * PAGE : (number + 1) * PAGE]

    def start(self) -> None:
        """Let the vCPU run."""
        self._halt.clear()
        self._vcpu = threading.Thread(target=self._run, daemon=True)
        self._vcpu.start()

    def stop(self) -> None:
        """Returns when it has written for the last time."""
        self._halt.set()
        if self._vcpu is not None:
            self._vcpu.join()

    def _run(self) -> None:
        while not self._halt.wait(0.001):
            page = random.randrange(PAGES)
            with self.lock:
                self.ram[page * PAGE : page * PAGE + 8] = random.randbytes(8)
                self.dirty.add(page)


class Ram:
    """The source's RAM, as a pending source: `vfioflow` asks how much is left, and when to move it."""

    name = "ram"

    def __init__(self, guest: Guest, devices: DirtySet, wire: socket.socket) -> None:
        self.moved = 0
        self._guest = guest
        self._devices = devices
        self._wire = wire

    def estimate(self) -> int:
        return len(self._guest.dirty) * PAGE

    def exact(self) -> int:
        self._sync()
        return self.estimate()

    def iterate(self, budget: int) -> None:
        self._sync()
        self._send(budget // PAGE + 1)

    def complete(self) -> None:
        self._sync()  # no device writes any more: this is the last of it
        self._send(PAGES)
        self._wire.sendall(HEAD.pack(0, 0))
        if self._wire.recv(1) != b"k":
            raise ConnectionError("the destination has not got all of the RAM")

    def abort(self) -> None:
        self._wire.shutdown(socket.SHUT_RDWR)

    def _sync(self) -> None:
        """What the devices wrote counts as what the vCPU wrote."""
        written = int.from_bytes(self._devices.report(0, SIZE), "little")
        with self._guest.lock:
            self._guest.dirty.update(n for n in range(written.bit_length()) if written >> n & 1)

    def _send(self, most: int) -> None:
        """Send at most so many pages, those in a row together."""
        with self._guest.lock:
            pages = sorted(self._guest.dirty)[:most]
            self._guest.dirty.difference_update(pages)
        begin = 0
        for n, page in enumerate(pages):
            if n + 1 == len(pages) or pages[n + 1] != page + 1 or n - begin == 255:
                first, count = pages[begin], n + 1 - begin
                self._wire.sendall(HEAD.pack(first, count))
                self._wire.sendall(
                    memoryview(self._guest.ram)[first * PAGE : (first + count) * PAGE]
                )
                self.moved += count * PAGE
                begin = n + 1


def take(ram: mmap.mmap, wire: socket.socket) -> None:
    """The destination's side of it: write the pages where they belong, until the end."""
    with wire.makefile("rb") as stream:
        while len(head := stream.read(HEAD.size)) == HEAD.size:
            first, count = HEAD.unpack(head)
            if not count:
                wire.sendall(b"k")
                return
            if first + count > PAGES:
                raise ValueError(f"{count} pages from {first} are outside of RAM")
            part = memoryview(ram)[first * PAGE : (first + count) * PAGE]
            if stream.readinto(part) != len(part):
                raise EOFError("the source ended in the middle of a page")


async def move(here: Guest, there: Guest, devices: tuple[SimDevice, SimDevice]) -> Report:
    source, target = devices
    wire, far = socket.socketpair()  # in earnest: a connection between the two hosts
    taking = threading.Thread(target=take, args=(there.ram, far))
    taking.start()

    def resume() -> None:
        taking.join()
        there.start()

    with wire, far, DirtySet([source]) as written:

        def before(phase: Phase) -> None:
            if phase is Phase.PRE_COPY:
                written.start([(0, SIZE)], PAGE)

        async with listen(
            "tcp://127.0.0.1:0", [target], hooks=Hooks(start_vcpus=resume)
        ) as listener:
            receiving = asyncio.create_task(listener.receive())
            report = await migrate(
                [source],
                listener.address,
                policy=Policy(downtime_limit=0.5),
                hooks=Hooks(before=before, stop_vcpus=here.stop, start_vcpus=here.start),
                pending=[Ram(here, written, wire)],
            )
            await receiving
    return report


def main() -> None:
    here, there = Guest(), Guest()
    there.dirty.clear()  # from now on: what its vCPU writes there
    here.start()
    devices = [
        SimDevice("net0", profile="mlx5", tracking="device", state_size=32 << 20) for _ in "ab"
    ]
    report = asyncio.run(move(here, there, (devices[0], devices[1])))
    there.stop()
    differ = {n for n in range(PAGES) if here.page(n) != there.page(n)}
    assert differ == there.dirty, "RAM differs elsewhere than where the vCPU wrote over there"
    [ram], [net0] = report.pending, report.devices
    print(
        f"RAM: {ram.bytes_precopy >> 20} MiB while it ran, {ram.bytes_stopcopy >> 10} KiB while it"
        f" stood still; {net0.name}: {net0.bytes_total >> 20} MiB; {report.downtime_ms:.0f} ms"
    )
    for device in devices:
        device.close()


main()

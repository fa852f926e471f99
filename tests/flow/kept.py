"""Devices whose state outlives the process, kept in files; and one side of a migration onto them.

As a program, a side that kills itself where it is told to:

    python kept.py source|destination DIRECTORY JOURNAL ADDRESS SESSION [POINT]

A point is "before STEP" or "after STEP" of the journal, "event NAME" of a barrier or phase, or
"hook".  The source prints how it ended as JSON; the destination does so for each session, until
standard input ends.
"""

import asyncio
import errno
import json
import os
import signal
import sys
from pathlib import Path

from vfioflow import (
    DeviceError,
    DeviceInfo,
    Hooks,
    Journal,
    Policy,
    PrecopyInfo,
    Source,
    State,
    VfioflowError,
    listen,
)
from vfioflow._fdio import Port
from vfioflow.events import BarrierPassed, PhaseEntered
from vfioflow.journal import Entry
from vfioflow.states import FLAG_SETS, SAVING, path

NAMES = ("nic0", "disk0")
SIZE = 1 << 16


def replace(file, text):
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(file)


class KeptDevice:
    """A device without pre-copy; its state and its content are a file of ``directory``."""

    def __init__(self, directory, name, *, outlives=True):
        self.name = name
        self.info = DeviceInfo(name, "kept", FLAG_SETS[1], outlives=outlives)
        self._file = Path(directory, name)
        self._stream = -1

    @classmethod
    def make(cls, directory, name, content):
        """A new one, RUNNING."""
        replace(Path(directory, name), json.dumps(["RUNNING", content]))
        return cls(directory, name)

    @property
    def state(self):
        return State[json.loads(self._file.read_text())[0]]

    @property
    def content(self):
        return json.loads(self._file.read_text())[1]

    def _keep(self, state, content):
        replace(self._file, json.dumps([state.name, content]))

    def set_state(self, state):
        data_fd = -1
        for stop in path(self.info.flags, self.state, state):
            data_fd = self._arc(self.state, stop)
        return data_fd

    def _arc(self, start, end):
        content, data_fd = self.content, -1
        if start is State.RESUMING:
            content = os.pread(self._stream, 2 * SIZE, 0).decode() if self._stream >= 0 else ""
            if len(content) != SIZE:
                raise DeviceError(self.name, f"{start} -> {end}", errno.EINVAL)
        if start in (*SAVING, State.RESUMING):
            self._end()
        if end in (State.STOP_COPY, State.RESUMING):
            self._stream = os.memfd_create("kept")
            if end is State.STOP_COPY:
                os.write(self._stream, content.encode())
            data_fd = os.open(f"/proc/self/fd/{self._stream}", os.O_RDWR | os.O_CLOEXEC)
        self._keep(end, content)
        return data_fd

    def _end(self):
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1

    def port(self, data_fd):
        return Port(data_fd)

    def precopy_info(self, data_fd):
        return PrecopyInfo(0, 0)

    def stop_copy_size(self):
        return SIZE

    def reset(self):
        self._end()
        self._keep(State.RUNNING, "")

    def close(self):
        self._end()


class Machine:
    """What is in the directory of one side: devices, and whether the vCPUs run."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.devices = [KeptDevice(directory, name) for name in NAMES]

    @classmethod
    def make(cls, directory, *, content=""):
        Path(directory).mkdir()
        for name in NAMES:
            KeptDevice.make(directory, name, content and name[0] * SIZE)
        machine = cls(directory)
        machine.run_vcpus(bool(content))
        return machine

    def run_vcpus(self, run):
        replace(self.directory / "vcpus", str(int(run)))

    @property
    def states(self):
        return {device.name: device.state.name for device in self.devices}

    @property
    def runs(self):
        """Whether the virtual machine runs here: vCPUs, and every device with its content."""
        return (self.directory / "vcpus").read_text() == "1" and all(
            d.state is State.RUNNING and d.content == d.name[0] * SIZE for d in self.devices
        )

    def close(self):
        for device in self.devices:
            device.close()


class Side:
    def __init__(self, directory, journal, address, session, point=""):
        self.machine = Machine(directory)
        self.journal = Journal(journal)
        self.address, self.session, self.point = address, session, point
        self.policy = Policy(downtime_limit=30.0, resolve_timeout=20.0)
        record, side = Entry.record, self

        def deadly(entry, step, **about):
            side.reach(f"before {step}")
            record(entry, step, **about)
            side.reach(f"after {step}")

        Entry.record = deadly

    def reach(self, point):
        if point == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def see(self, event):
        if isinstance(event, BarrierPassed):
            self.reach(f"event {event.name}")
        if isinstance(event, PhaseEntered):
            self.reach(f"event {event.phase}")

    def start_vcpus(self):
        self.machine.run_vcpus(True)
        self.reach("hook")

    @property
    def options(self):
        hooks = Hooks(
            stop_vcpus=lambda: self.machine.run_vcpus(False), start_vcpus=self.start_vcpus
        )
        return {
            "policy": self.policy, "hooks": hooks, "observer": self.see, "journal": self.journal
        }  # fmt: skip

    async def send(self):
        source = Source(self.machine.devices, self.address, session=self.session, **self.options)
        await told(source)

    async def receive(self):
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(0, lambda: os.read(0, 1) or (loop.remove_reader(0), end.set()))
        async with listen(self.address, self.machine.devices, **self.options) as listener:
            print("listening", flush=True)
            ended = asyncio.create_task(end.wait())
            while not end.is_set():
                session = asyncio.create_task(listener.next_session())
                await asyncio.wait({session, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not session.done():
                    session.cancel()
                    await asyncio.wait({session})
                    break
                await told(session.result())
        loop.remove_reader(0)


async def told(session):
    kind = ""
    try:
        await session.run()
    except VfioflowError as error:
        kind = type(error).__name__
    report = session.report
    print(json.dumps({"outcome": report.outcome, "error": report.error, "kind": kind}), flush=True)


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    side = Side(*words)
    asyncio.run(side.send() if role == "source" else side.receive())
    side.machine.close()

"""The two sides of a run.

As a process, ``python -m vfioflow.lab.side``: the job is a line of standard input, and when that
ends, so does the process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from typing import Literal

import msgspec

from vfioflow.devices.profile import Profile
from vfioflow.devices.sim import Fabric, SimDevice
from vfioflow.errors import VfioflowError
from vfioflow.lab.qemu_order import QemuOrder, qemu_policy
from vfioflow.lab.scenario import Scenario
from vfioflow.listener import listen
from vfioflow.order import Order
from vfioflow.report import Report
from vfioflow.resolution import Revival
from vfioflow.session import Session
from vfioflow.source import Source
from vfioflow.wire.security import Guard, Security

__all__ = ["Job", "Keys", "OrderName", "give", "opened", "serve", "session_name"]

OrderName = Literal["vfioflow", "qemu"]

_ORDERS: dict[str, Order] = {"vfioflow": Order(), "qemu": QemuOrder()}


class Keys(msgspec.Struct, frozen=True):
    """How to know the other host: files, as the options of these names say."""

    psk: str = ""
    tls: str = ""
    tls_hostname: str = ""


class Job(msgspec.Struct, kw_only=True):
    """What one process is to do.

    The destination listens at ``address``, prints where, and takes any number of sessions; the source
    runs one with the destination at ``address``, and prints its report.
    """

    role: Literal["source", "destination"]
    scenario: Scenario
    address: str
    session: str = ""
    order: OrderName = "vfioflow"
    isolated: bool = False
    """Destination: whether nobody else can reach the address, although it is no loopback."""
    keys: Keys = Keys()


def session_name(order: OrderName, number: int, run: str) -> str:
    """A session's name: the destination takes the order from it."""
    return f"bench-{order}-{run}-{number}"


class _Alone(Security):
    """In a network namespace that holds nobody else, who comes needs no key."""

    def for_destination(self, *, loopback: bool) -> Guard:
        return Guard()


def security_of(job: Job) -> Security:
    """How the two sides of a job know each other.  Raises ConfigError."""
    keys = job.keys
    if keys.psk:
        return Security.from_psk_file(keys.psk)
    if keys.tls:
        return Security.from_tls_dir(keys.tls, hostname=keys.tls_hostname or None)
    return _Alone() if job.isolated else Security()


@contextmanager
def opened(scenario: Scenario) -> Iterator[Sequence[SimDevice]]:
    """The scenario's devices, which can reach each other; closed afterwards."""
    with ExitStack() as stack:
        devices = []
        for one in scenario.devices:
            like = {f.name: getattr(one.profile, f.name) for f in fields(Profile)}
            device = SimDevice(one.name, profile=one.profile_name, seed=one.seed, **like)
            devices.append(stack.enter_context(device))
        Fabric(devices)
        yield devices


async def give(job: Job) -> tuple[Report, int]:
    """The source's side of one run; its report and exit code, however it ended."""
    scenario = job.scenario
    policy = qemu_policy(scenario.policy) if job.order == "qemu" else scenario.policy
    with opened(scenario) as devices:
        source = Source(
            devices, job.address, policy=policy, session=job.session, security=security_of(job)
        )
        source.order = _ORDERS[job.order]
        try:
            await source.run()
        except VfioflowError as error:
            return source.report, error.exit_code
        return source.report, 0


async def serve(
    scenario: Scenario,
    address: str,
    security: Security,
    listening: Callable[[str], None],
    ended: Callable[[Report], None] = lambda _: None,
) -> None:
    """The destination's side of run after run, until it is cancelled.

    ``listening`` hears the address, ``ended`` each session's report.  Raises ConfigError.
    """
    policy = scenario.policy
    with opened(scenario) as devices:
        async with listen(address, devices, policy=policy, security=security) as listener:
            listening(str(listener.address))
            while True:
                session = await listener.next_session()
                assert not isinstance(session, Revival)  # only a journal has those
                for device in devices:
                    device.reset()
                _take_order(session)
                with suppress(VfioflowError):  # the report says so, and the source has one too
                    await session.run()
                ended(session.report)


def _take_order(session: Session) -> None:
    words = session.report.session.split("-")
    session.order = _ORDERS[words[1] if words[0] == "bench" and words[1] in _ORDERS else "vfioflow"]


async def _main(job: Job) -> int:
    _cancel_at_eof()
    if job.role == "source":
        report, code = await give(job)
        print(report.to_json())
        return code

    def say(text: str) -> None:
        print(text, flush=True)

    await serve(job.scenario, job.address, security_of(job), say)
    return 0


def _cancel_at_eof() -> None:
    """Whoever started this process is gone: end."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            task.cancel()

    loop.add_reader(0, look)


def main() -> int:
    """Do the job that standard input says."""
    import uvloop

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_main(job))
    except asyncio.CancelledError:
        return 130
    except VfioflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

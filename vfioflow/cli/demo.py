"""``vfioflow demo``: a whole migration between two processes of this host."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vfioflow.cli.console import is_quiet, put, verbosity, verbosity_flags
from vfioflow.cli.observing import observing_options
from vfioflow.cli.options import devices_option, journal_options, json_option, policy_options
from vfioflow.errors import PeerLost
from vfioflow.events import Phase
from vfioflow.threads import finish
from vfioflow.wire.address import Address

if TYPE_CHECKING:
    from vfioflow.cli.observing import Watchers
    from vfioflow.cli.render import Check
    from vfioflow.journal import Journal
    from vfioflow.policy import Policy
    from vfioflow.report import Report

__all__ = ["Child", "command"]

log = logging.getLogger("vfioflow")

_LOGGED = re.compile(r"vfioflow: (debug|info|warning|error): (.*)")

_END_SECONDS = 10.0
"""For the destination to end by itself, and then again once it is asked to."""


@click.command("demo", short_help="Migrate four simulated devices between two processes here.")
@devices_option(required=False)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32),
    default=0,
    metavar="N",
    help="Shifts the seed of every device: other contents, otherwise the same.",
)
@journal_options
@policy_options(precopy_timeout="5s", on_no_convergence="switchover")
@observing_options
@json_option
@verbosity
def command(
    devices_file: str | None,
    seed: int,
    journal: Journal | None,
    policy: Policy,
    watchers: Watchers,
    as_json: bool,
) -> int:
    """Migrate four simulated devices from this process to another one.

    Shows the pre-copy rounds as they happen, then what moved, how long the virtual machine
    would have stood still, and on what that time was spent.

    \b
    vfioflow demo
    vfioflow demo --downtime-limit 150ms --compression zstd:1
    vfioflow demo --json | jq .downtime_ms
    """
    from vfioflow.cli.session import failing_as_json

    with (
        failing_as_json("source", as_json),
        as_file(files("vfioflow.cli").joinpath("demo.toml")) as own,
    ):
        file = Path(devices_file) if devices_file else own
        return _demo(file, seed, journal, policy, watchers, as_json)


def _demo(
    devices_file: Path,
    seed: int,
    journal: Journal | None,
    policy: Policy,
    watchers: Watchers,
    as_json: bool,
) -> int:
    from vfioflow.cli.session import attempt, conclude, never_began, open_devices, run, to_json
    from vfioflow.cli.view import Screen
    from vfioflow.source import Source

    flags = verbosity_flags()
    with open_devices(devices_file, seed=seed) as devices:
        screen = Screen(devices, "another process", policy.downtime_limit, quiet=is_quiet())

        async def main() -> int:
            child = Child(devices_file, policy, flags, journal)
            try:
                async with child:
                    screen.board.peer = child.address
                    with watchers.beside(screen) as observer, screen:
                        source = Source(
                            devices,
                            child.address,
                            policy=policy,
                            observer=observer,
                            journal=journal,
                        )
                        ended = await attempt(source)
                    child.patient = Phase.SET_UP in screen.board.phases
            except asyncio.CancelledError:
                ended = never_began("source", "")
            checks = _checks(child.report) if ended.report.outcome == "completed" else []
            _follow(ended.report, child.report)
            if as_json:
                put(to_json(ended.report, destination=child.report))
            elif ended.report.outcome == "completed":
                _show(ended.report, checks)
            code = conclude(ended)
            return code or (0 if all(check.good for check in checks) else 1)

        return run(main, screen.say)


def _follow(report: Report, destination: dict[str, Any] | None) -> None:
    """The demo shows a device where it ended up: at the destination, once that has it."""
    if report.outcome == "completed" and destination is not None:
        states = {device["name"]: device["final_state"] for device in destination["devices"]}
        for device in report.devices:
            device.final_state = states.get(device.name, device.final_state)


def _show(report: Report, checks: Sequence[Check]) -> None:
    from vfioflow.cli.render import show

    show(report, checks)


def _checks(destination: dict[str, Any] | None) -> list[Check]:
    """What the destination found when the devices ran there."""
    from vfioflow.cli.render import Check

    if destination is None:
        return [Check("destination", False, "ended without a report")]
    devices = destination["devices"]
    bad = [d["name"] for d in devices if d["final_state"] != "RUNNING" or d["digest_ok"] is False]
    text = f"all {len(devices)} devices found their state whole, and run at the destination"
    found = [Check("content", not bad, f"{', '.join(bad)} did not arrive well" if bad else text)]
    if p2p := destination.get("p2p"):
        found.append(Check("peer-to-peer", p2p["balanced"], p2p["text"]))
    return found


class Child:
    """The destination: ``vfioflow receive`` on a listening socket that it inherits.

    In a session of its own, so that the terminal's Ctrl-C reaches it only through this process;
    it ends when this process does, whatever that dies of.  ``report`` is its own, once it ended.
    """

    def __init__(
        self,
        devices_file: Path,
        policy: Policy,
        flags: Sequence[str],
        journal: Journal | None = None,
    ) -> None:
        self._devices_file = devices_file
        self._policy = policy
        self._flags = flags
        self._journal = ["--no-journal"]
        if journal is not None:
            self._journal = ["--journal", str(journal.directory)]
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[bytes] | None = None
        self._lines: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._last_words = "it said nothing"
        self.address = ""
        self.patient = False
        """Whether to let it end by itself: it has a session, and so a report of its own."""
        self.report: dict[str, Any] | None = None

    async def __aenter__(self) -> Child:
        async with AsyncExitStack() as undo:
            undo.push_async_exit(self.__aexit__)
            await finish(self._start())
            assert self._lines is not None
            listening = asyncio.ensure_future(self._listening.wait())
            await asyncio.wait({listening, self._lines}, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
            if not self._listening.is_set():
                raise PeerLost(f"the destination's process ended: {self._last_words}")
            undo.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await finish(self._end())

    async def _start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.address = str(Address.of(listening))
            fd = listening.fileno()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "vfioflow", *self._flags, "receive", "--json", "--until-eof"),
                *("--devices", str(self._devices_file), "--listen", f"fd://{fd}"),
                *("--connect-timeout", f"{self._policy.connect_timeout}"),
                *("--stall-timeout", f"{self._policy.stall_timeout}"),
                *("--resolve-timeout", f"{self._policy.resolve_timeout}"),
                *self._journal,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(fd,),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._output = asyncio.create_task(self._process.stdout.read())
        self._lines = asyncio.create_task(self._follow(self._process))

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what it logs."""
        assert process.stderr is not None
        async for raw in process.stderr:
            text = raw.decode(errors="replace").rstrip()
            match = _LOGGED.fullmatch(text)
            if match is not None and match[1] != "error":
                log.log(logging.getLevelNamesMapping()[match[1].upper()], "there: %s", match[2])
            elif text.startswith("vfioflow: listening on "):
                self._listening.set()
            elif text:
                self._last_words = text
                log.debug("there: %s", text)

    async def _end(self) -> None:
        process, output, lines = self._process, self._output, self._lines
        if process is None or output is None or lines is None:
            return
        assert process.stdin is not None
        if not self.patient:
            process.stdin.close()
        for end in (process.stdin.close, process.kill):
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await process.wait()
                break
            except TimeoutError:
                end()
        await process.wait()
        process.stdin.close()
        await lines
        if text := await output:
            self.report = json.loads(text)

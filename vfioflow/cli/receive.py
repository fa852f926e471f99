"""``vfioflow receive``: the destination's side."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import complain, is_quiet, put, verbosity
from vfioflow.cli.observing import observing_options
from vfioflow.cli.options import (
    devices_option,
    journal_options,
    json_option,
    policy_options,
    security_options,
)

if TYPE_CHECKING:
    from vfioflow.cli.observing import Watchers
    from vfioflow.cli.options import Names
    from vfioflow.cli.render import Check
    from vfioflow.cli.session import Ended
    from vfioflow.devices.base import Device
    from vfioflow.journal import Journal
    from vfioflow.listener import Listener
    from vfioflow.policy import Policy
    from vfioflow.report import Report

__all__ = ["command", "p2p_check"]

log = logging.getLogger("vfioflow")


@click.command("receive", short_help="Wait for one migration and take its devices over.")
@devices_option()
@click.option(
    "--listen",
    "where",
    metavar="tcp://HOST:PORT",
    required=True,
    help="Address to wait at; port 0 takes a free one, which is then printed.",
)
@security_options("destination")
@journal_options
@policy_options(
    "connect_timeout", "stall_timeout", "resolve_timeout", "stream_factor", "reconnect_limit"
)
@observing_options
@json_option
@click.option("--until-eof", is_flag=True, hidden=True)
@verbosity
def command(
    devices_file: str,
    where: str,
    security: Names,
    journal: Journal | None,
    policy: Policy,
    watchers: Watchers,
    as_json: bool,
    until_eof: bool,
) -> int:
    """Wait for one `vfioflow send` and take its devices over into those in FILE.toml.

    \b
    vfioflow receive --devices devices.toml --listen tcp://0.0.0.0:4747 --psk migration.key

    An address that other hosts can reach needs --psk or --tls.

    Each device that is sent goes into the one of the same name. Connections that are not
    vfioflow's are refused with a warning, and the wait goes on. Everything else, as limits and
    compression, is decided by the sender.

    Started again with the same journal after a crash, it carries on what was committed, and
    answers a source that comes back.
    """
    from vfioflow.cli.session import (
        attempt,
        conclude,
        failing_as_json,
        never_began,
        open_devices,
        run,
        to_json,
    )
    from vfioflow.cli.view import Screen
    from vfioflow.errors import PeerError
    from vfioflow.listener import listen

    async def receive(listener: Listener, screen: Screen) -> Ended:
        """One migration; a caller that is gone before its offer was none."""
        while True:
            try:
                session = await listener.next_session()
            except asyncio.CancelledError:
                return never_began("destination", "")
            screen.board.peer = session.report.peer
            with screen:
                ended = await attempt(session)
            if not isinstance(ended.error, PeerError) or ended.report.devices:
                return ended
            log.warning("no migration from %s: %s", session.report.peer, ended.error)

    with failing_as_json("destination", as_json):
        known = security.read()
    with failing_as_json("destination", as_json), open_devices(devices_file) as devices:
        screen = Screen(devices, where, quiet=is_quiet())

        async def main() -> int:
            if until_eof:
                _cancel_at_eof()
            with watchers.beside(screen) as observer:
                async with listen(
                    where,
                    devices,
                    policy=policy,
                    observer=observer,
                    journal=journal,
                    security=known,
                ) as listener:
                    complain(f"listening on {listener.address}", kind="")
                    ended = await receive(listener, screen)
            check = p2p_check(devices) if ended.report.outcome == "completed" else None
            if as_json:
                more = {} if check is None else {"p2p": _as_dict(check)}
                put(to_json(ended.report, **more))
            elif ended.report.outcome == "completed" and not ended.report.bytes_total:
                put(f"Session {ended.report.session} is settled: its devices run here.")
            elif ended.report.outcome == "completed":
                _show(ended.report, check)
            return conclude(ended)

        return run(main, screen.say)


def _show(report: Report, check: Check | None) -> None:
    from vfioflow.cli.render import show

    show(report, [] if check is None else [check])


def p2p_check(devices: Sequence[Device]) -> Check | None:
    """Whether simulated devices sent each other nothing that was lost or came twice."""
    from vfioflow.cli.render import Check
    from vfioflow.devices.sim import SimDevice, ledger

    simulated = [device for device in devices if isinstance(device, SimDevice)]
    if len(simulated) < 2:
        return None
    found = ledger(simulated)
    if not found.balanced:
        return Check("peer-to-peer", False, "; ".join(found.differences))
    return Check(
        "peer-to-peer",
        True,
        f"{found.messages} messages between the devices, each arrived exactly once",
    )


def _as_dict(check: Check) -> dict[str, object]:
    return {"balanced": check.good, "text": check.text}


def _cancel_at_eof() -> None:
    """End as on SIGTERM when standard input does: whoever started this process is gone."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            task.cancel()

    loop.add_reader(0, look)

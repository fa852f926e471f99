"""``vfioflow send``: the source's side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import is_quiet, put, verbosity
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
    from vfioflow.journal import Journal
    from vfioflow.policy import Policy

__all__ = ["command"]


@click.command("send", short_help="Migrate devices to a waiting `vfioflow receive`.")
@devices_option()
@click.option(
    "--to", metavar="tcp://HOST:PORT", required=True, help="Where `vfioflow receive` listens."
)
@click.option(
    "--session",
    default="",
    metavar="ID",
    help="The migration's name. One that the journal knows is not begun again but settled: the"
    " devices run here, or the destination is asked what became of it.  [default: a new one]",
)
@security_options("source")
@journal_options
@policy_options()
@observing_options
@json_option
@verbosity
def command(
    devices_file: str,
    to: str,
    session: str,
    security: Names,
    journal: Journal | None,
    policy: Policy,
    watchers: Watchers,
    as_json: bool,
) -> int:
    """Migrate the devices in FILE.toml to a waiting `vfioflow receive`.

    \b
    vfioflow send --devices devices.toml --to tcp://10.0.0.2:4747 --psk migration.key

    Ctrl-C takes everything back: the devices run on here. After a crash, the same command with
    --session settles where they are to run.
    """
    from vfioflow.cli.session import attempt, conclude, failing_as_json, open_devices, run, to_json
    from vfioflow.cli.view import Screen
    from vfioflow.source import Source

    with failing_as_json("source", as_json):
        known = security.read()
    with failing_as_json("source", as_json), open_devices(devices_file) as devices:
        screen = Screen(devices, to, policy.downtime_limit, quiet=is_quiet())

        async def main() -> int:
            with watchers.beside(screen) as observer, screen:
                source = Source(
                    devices,
                    to,
                    policy=policy,
                    observer=observer,
                    journal=journal,
                    session=session,
                    security=known,
                )
                ended = await attempt(source)
            if as_json:
                put(to_json(ended.report))
            elif ended.report.outcome == "completed" and ended.report.downtime_ms is None:
                put(f"Session {ended.report.session} is settled: the destination runs.")
            elif ended.report.outcome == "completed":
                from vfioflow.cli.render import show

                show(ended.report)
            return conclude(ended)

        return run(main, screen.say)

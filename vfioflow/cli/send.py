"""``vfioflow send``: the source's side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import is_quiet, put, verbosity
from vfioflow.cli.options import devices_option, json_option, policy_options, security_options

if TYPE_CHECKING:
    from vfioflow.cli.options import Names
    from vfioflow.policy import Policy

__all__ = ["command"]


@click.command("send", short_help="Migrate devices to a waiting `vfioflow receive`.")
@devices_option()
@click.option(
    "--to", metavar="tcp://HOST:PORT", required=True, help="Where `vfioflow receive` listens."
)
@security_options("source")
@policy_options()
@json_option
@verbosity
def command(devices_file: str, to: str, security: Names, policy: Policy, as_json: bool) -> int:
    """Migrate the devices in FILE.toml to a waiting `vfioflow receive`.

    \b
    vfioflow send --devices devices.toml --to tcp://10.0.0.2:4747 --psk migration.key

    Ctrl-C takes everything back: the devices run on here.
    """
    from vfioflow.cli.session import attempt, conclude, failing_as_json, open_devices, run, to_json
    from vfioflow.cli.view import Screen
    from vfioflow.source import Source

    with failing_as_json("source", as_json):
        known = security.read()
    with failing_as_json("source", as_json), open_devices(devices_file) as devices:
        screen = Screen(devices, to, policy.downtime_limit, quiet=is_quiet())

        async def main() -> int:
            with screen:
                source = Source(devices, to, policy=policy, observer=screen, security=known)
                ended = await attempt(source)
            if as_json:
                put(to_json(ended.report))
            elif ended.report.outcome == "completed":
                from vfioflow.cli.render import show

                show(ended.report)
            return conclude(ended)

        return run(main, screen.say)

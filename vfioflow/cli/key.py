"""``vfioflow key``: a pre-shared key."""

from __future__ import annotations

import click

from vfioflow.cli.console import verbosity

__all__ = ["command"]


@click.command("key", short_help="Make a key that two hosts know each other by.")
@click.argument("file", type=click.Path(dir_okay=False))
@verbosity
def command(file: str) -> int:
    """Write a new random key into FILE, which must not be there yet, readable by its owner only.

    \b
    vfioflow key migration.key
    scp -p migration.key other-host:

    Both sides are then given it: `vfioflow receive --psk migration.key`, and the same for `send`.
    """
    from vfioflow.wire.security import write_psk

    write_psk(file)
    return 0

"""``vfioflow agent``: the engine behind a UNIX socket."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import complain, verbosity
from vfioflow.cli.options import journal_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from vfioflow.journal import Journal

    _Int: TypeAlias = click.ParamType[int]
else:
    _Int = click.ParamType

__all__ = ["command"]


class _Mode(_Int):
    name = "mode"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            mode = int(str(value), 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is no mode: write it in octal, such as 660", param, ctx)
        return mode


@click.command("agent", short_help="Serve VMMs in other languages on a UNIX socket.")
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    type=click.Path(dir_okay=False),
    help="Where to listen. Not needed where systemd hands the socket over.",
)
@click.option(
    "--mode", type=_Mode(), default="600", show_default=True, help="Of the socket, in octal."
)
@click.option(
    "--group", default="", metavar="GROUP", help="Of the socket.  [default: this process's]"
)
@click.option(
    "--allow-user",
    "users",
    multiple=True,
    metavar="USER",
    help="Who may use it, besides root and who runs it; may be given again.",
)
@click.option(
    "--allow-group",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="The same for a group's members.",
)
@journal_options
@verbosity
def command(
    path: str | None,
    mode: int,
    group: str,
    users: Sequence[str],
    groups: Sequence[str],
    journal: Journal | None,
) -> int:
    """Serve programs of this host, such as VMMs, on a UNIX socket: JSON-RPC 2.0, a message a line.

    \b
    vfioflow agent --socket /run/vfioflow/agent.sock
    vfioflow agent --socket /run/vfioflow/agent.sock --mode 660 --group kvm --allow-group kvm

    A client hands over its devices' descriptors, or names devices; it starts, holds and cancels
    migrations of either side, and answers for its vCPUs and its RAM. docs/agent.md has every method,
    and clients in C and in Python.

    Who may connect is decided twice: by the socket's mode, and by who the kernel says is there.

    On SIGTERM nothing new begins. What can be taken back is: the devices run on here. What is in the
    hand-over is finished. Then it ends with code 0.
    """
    from vfioflow.cli.session import run
    from vfioflow.errors import ConfigError

    try:
        from vfioflow.agent import Agent
    except ImportError as error:
        raise ConfigError(
            f"the agent needs the extra of this name: pip install 'vfioflow[agent]' ({error})"
        ) from None
    from vfioflow.agent.gateway import Gate, handed_over, listening, notify

    gate = Gate.of(tuple(users), tuple(groups))
    with ExitStack() as stack:
        sock = handed_over()
        if sock is not None:
            stack.enter_context(sock)
        elif path is None:
            raise click.UsageError("--socket is missing")
        else:
            sock = stack.enter_context(listening(path, mode=mode, group=group))
        where = sock.getsockname()

        async def main() -> int:
            complain(f"serving on {where}", kind="")
            notify("READY=1")
            with suppress(asyncio.CancelledError):
                await Agent(sock, gate=gate, journal=journal).run()
            notify("STOPPING=1")
            return 0

        return run(main, lambda text: complain(text, kind=""))

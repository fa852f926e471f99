"""``vfioflow tunnel``: one stream of bytes, such as QEMU's own migration, over vfioflow's connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Literal, Protocol

import click

from vfioflow.cli.console import complain, is_quiet, put, verbosity
from vfioflow.cli.options import policy_options, security_options
from vfioflow.errors import VfioflowError

if TYPE_CHECKING:
    from vfioflow.cli.options import Names
    from vfioflow.policy import Policy
    from vfioflow.tunnel import Receiver, Sender, Summary

__all__ = ["command"]

_ABOUT = {
    "max_bandwidth": "Most bytes per second on the wire: 1GiB, or 10Gbit.",
    "compression_threads": "Threads that compress; 0 is one per processor, at most 8.",
    "channels": "Data connections, over which the stream spreads. More help where one TCP connection does"
    " not fill the link; 0 is one.",
    "chunk_size": "Most bytes of the stream in one frame, 4KiB to 64MiB.",
    "digest": "Whether the stream carries a running CRC32C that the other side checks before it goes on.",
    "reconnect_timeout": "Time to try to open a connection again that broke, and go on where it was; 0"
    " ends the tunnel at once. Costs a copy of every byte.",
    "stall_timeout": "Time that bytes may lie ready for the wire or the output and not move. An input that"
    " has nothing to say is waited for without limit.",
    "connect_timeout": "Time for a connection, for each answer while both set up, and for the output's reader"
    " to be there.",
}


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a summary, and nothing else, as one JSON object on standard output (standard error, where the"
    " stream goes to the other); also when the tunnel fails.",
)


@click.group("tunnel", short_help="Move one stream of bytes, such as QEMU's own migration.")
def command() -> None:
    """Move one stream of bytes over vfioflow's connections: channels, compression, keys, reconnects.

    QEMU as it is migrates through it. On the destination:

    \b
    qemu-system-x86_64 ... -incoming \\
      "exec:vfioflow tunnel receive --listen tcp://0.0.0.0:4747 --into - --psk migration.key"

    and on the source, in QEMU's monitor:

    \b
    migrate "exec:vfioflow tunnel send --from - --to tcp://10.0.0.2:4747 --psk migration.key"

    Or by UNIX sockets, which carry QEMU's return path too (see `vfioflow tunnel send --help`).
    """


@command.command("send", short_help="Take a stream in, and send it.")
@click.option(
    "--from",
    "source",
    metavar="-|fd:N|unix:PATH|PATH",
    required=True,
    help="Where the stream comes from: standard input, a descriptor that was handed over, a UNIX socket that"
    " is made here and takes one connection, or a file or FIFO.",
)
@click.option(
    "--to", metavar="tcp://HOST:PORT", required=True, help="Where `tunnel receive` listens."
)
@security_options("source")
@policy_options(
    "max_bandwidth",
    "compression",
    "compression_threads",
    "channels",
    "chunk_size",
    "digest",
    "connect_timeout",
    "stall_timeout",
    "reconnect_timeout",
    "window",
    words=_ABOUT,
)
@json_option
@verbosity
def send_command(source: str, to: str, security: Names, policy: Policy, as_json: bool) -> int:
    """Send a stream to a waiting `vfioflow tunnel receive`.

    With QEMU by a UNIX socket, start this first, and let QEMU connect:

    \b
    vfioflow tunnel send --from unix:/run/vm.out --to tcp://10.0.0.2:4747 \\
      --psk migration.key --compression auto --channels 2
    (qemu) migrate unix:/run/vm.out

    Exits with 0 when all of the stream, and its end, is in the output on the other side. Whatever goes wrong
    before closes the input, which fails QEMU's migration: the guest goes on here.
    """
    from vfioflow.tunnel import Sender

    @asynccontextmanager
    async def side() -> AsyncIterator[Sender]:
        sender = Sender(source, to, policy=policy, security=security.read())
        sender.announce = lambda: complain(f"waiting for a connection to {source}", kind="")
        yield sender

    return _run("source", side, as_json=as_json, out=put)


@command.command("receive", short_help="Receive a stream, and put it out.")
@click.option(
    "--listen",
    "where",
    metavar="tcp://HOST:PORT",
    required=True,
    help="Address to wait at; port 0 takes a free one, which is then printed.",
)
@click.option(
    "--into",
    metavar="-|fd:N|unix:PATH|PATH",
    required=True,
    help="Where the stream goes: standard output, a descriptor that was handed over, a UNIX socket where"
    " somebody listens, a FIFO or device, or a file, which has its name only when it is whole.",
)
@security_options("destination")
@policy_options("connect_timeout", "stall_timeout", "reconnect_limit", words=_ABOUT)
@json_option
@verbosity
def receive_command(where: str, into: str, security: Names, policy: Policy, as_json: bool) -> int:
    """Wait for one `vfioflow tunnel send`, and put its stream out.

    With QEMU by a UNIX socket, start QEMU first:

    \b
    qemu-system-x86_64 ... -incoming unix:/run/vm.in
    vfioflow tunnel receive --listen tcp://0.0.0.0:4747 --into unix:/run/vm.in --psk migration.key

    An address that other hosts can reach needs --psk or --tls.

    A stream that fails ends without its own end, as if cut: QEMU then says that its load failed, and exits.
    With --into - the summary of --json goes to standard error.
    """
    from vfioflow.tunnel import TunnelListener

    @asynccontextmanager
    async def side() -> AsyncIterator[Receiver]:
        listener = TunnelListener(where, into, policy=policy, security=security.read())
        async with listener:
            complain(f"listening on {listener.address}", kind="")
            yield await listener.next_session()

    return _run("destination", side, as_json=as_json, out=_to_stderr if into == "-" else put)


class _Side(Protocol):
    summary: Summary

    async def run(self) -> Summary: ...


def _run(
    role: Literal["source", "destination"],
    side: Callable[[], AbstractAsyncContextManager[_Side]],
    *,
    as_json: bool,
    out: Callable[[str], None],
) -> int:
    """Run one side to its end, whichever that is, and say how it ended; the exit code."""
    from vfioflow.cli import session
    from vfioflow.tunnel import Summary

    async def main() -> int:
        summary = Summary(role=role)
        code = 0
        try:
            async with side() as opened:
                summary = opened.summary
                await opened.run()
        except VfioflowError as error:
            summary.error, code = str(error), error.exit_code
        except asyncio.CancelledError:
            summary.outcome, summary.error = "cancelled", "interrupted"
            code = session.INTERRUPTED
        if as_json:
            out(summary.to_json())
        if code:
            complain(str(summary.error), kind="" if summary.outcome == "cancelled" else "error: ")
        elif not is_quiet():
            complain(_account(summary), kind="")
        return code

    return session.run(main, lambda _: complain("still ending; this must finish", kind=""))


def _account(summary: Summary) -> str:
    """A stream that arrived, in one line."""
    from vfioflow.cli.units import duration, rate, size

    per_second = summary.bytes / summary.seconds if summary.seconds else None
    text = (
        f"{'sent' if summary.role == 'source' else 'received'} {size(summary.bytes)}"
        f" in {duration(summary.seconds * 1e3)}, {rate(per_second)}; {size(summary.bytes_wire)} on the wire"
    )
    if summary.bytes_back:
        text += f", {size(summary.bytes_back)} back"
    if summary.reconnects:
        text += f", {summary.reconnects} connections opened again"
    return text


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)

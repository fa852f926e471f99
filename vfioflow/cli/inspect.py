"""``vfioflow inspect``: what is in a QEMU migration stream."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import put, verbosity
from vfioflow.errors import ConfigError, StreamError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from vfioflow.qemu_stream import Section, Stream

__all__ = ["command"]


@click.command("inspect", short_help="List what is in a QEMU migration stream.")
@click.argument("stream", type=click.Path(allow_dash=True), metavar="STREAM")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print what was found, and nothing else, as one JSON object on standard output; also when the stream"
    " is cut short.",
)
@verbosity
def command(stream: str, as_json: bool) -> int:
    """List the sections of a QEMU migration stream in a file (- is standard input), and their sizes.

    \b
    (qemu) migrate "exec:cat > vm.stream"
    vfioflow inspect vm.stream

    Shows how much of a migration is guest memory, and how much each VFIO device's: before the virtual machine
    stood still, since, and its config space. Reads once from front to back, whatever the size.

    A section has no length. Memory and VFIO data say where they end; for every other device the next section
    is looked for, and the stream's own description of itself, if it has one, says whether that was right.
    What does not agree, or cannot be known, stands below the table. What travelled by multifd is not in the
    stream.
    """
    from vfioflow.qemu_stream import read_stream

    with ExitStack() as held:
        if stream == "-":
            read = sys.stdin.buffer.read
        else:
            try:
                read = held.enter_context(Path(stream).open("rb")).read
            except OSError as error:
                raise ConfigError(f"{stream}: {error.strerror}") from None
        failure = None
        try:
            found = read_stream(read)
        except OSError as error:
            raise ConfigError(f"{stream}: {error.strerror}") from None
        except StreamError as error:
            failure, found = error, error.found
    if as_json:
        put(_as_json(found, failure))
    elif found.sections or failure is None:
        from vfioflow.cli.render import out

        out(_page(found))
    if failure is not None:
        raise failure
    return 0


def _as_json(stream: Stream, failure: StreamError | None) -> str:
    import msgspec

    found = msgspec.to_builtins(stream)
    found["totals"] = {kind: stream.total(kind) for kind in ("ram", "vfio", "device")}
    found["totals"]["around"] = stream.around
    found["error"] = None if failure is None else str(failure)
    return msgspec.json.encode(found).decode()


def _page(stream: Stream) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from vfioflow.cli import units

    headline = Text(stream.machine or "A machine without a name", "bold")
    headline.append(f"  {units.size(stream.bytes)}", "not bold")
    if not stream.complete:
        headline.append(", cut short", "not bold red")
    if stream.commands:
        told = ", ".join(
            c.name.lower().replace("_", " ") + (f" x{c.count}" if c.count > 1 else "")
            for c in stream.commands
        )
        headline.append(f"; it also said {told}", "not bold dim")
    parts: list[RenderableType] = [headline, Text(), _totals(stream), Text(), _sections(stream)]
    if stream.notes:
        parts += [Text(), *(Text(note, "yellow") for note in stream.notes)]
    return Padding(Group(*parts), (1, 1))


def _totals(stream: Stream) -> Table:
    from rich.table import Column, Table

    from vfioflow.cli import units

    table = Table("", Column(justify="right"), Column(justify="right"), box=None, show_header=False)
    vfio = sum(section.kind == "vfio" for section in stream.sections)
    devices = sum(section.kind == "device" for section in stream.sections)
    for title, size in (
        ("guest memory", stream.total("ram")),
        (f"VFIO devices ({vfio})", stream.total("vfio")),
        (f"other devices ({devices})", stream.total("device")),
        ("headers, commands, description", stream.around),
    ):
        table.add_row(title, units.size(size), f"{size / max(stream.bytes, 1):.1%}")
    return table


def _sections(stream: Stream) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    from vfioflow.cli import units

    table = Table(
        Column("section", no_wrap=True),
        Column("pieces", justify="right"),
        Column("size", justify="right", no_wrap=True),
        Column("what"),
        box=None,
        header_style="dim",
        pad_edge=False,
    )
    for section in stream.sections:
        name = section.name if not section.instance else f"{section.name} ({section.instance})"
        style = "bold" if section.kind != "device" else ""
        table.add_row(
            Text(name, style), str(section.pieces), units.size(section.bytes), _what(section)
        )
    return table


def _what(section: Section) -> str:
    from vfioflow.cli import units

    if section.ram is not None:
        ram = section.ram
        said = [f"{units.size(sum(ram.blocks.values()))} in {_count(len(ram.blocks), 'block')}"]
        said.append(f"{_count(ram.pages, 'page')} sent, {ram.zero_pages} of zeros")
        if ram.packed_pages:
            said.append(f"{ram.packed_pages} as {units.size(ram.packed_bytes)}")
        return "; ".join(said)
    if section.vfio is None:
        agrees = section.described == section.bytes
        return "" if agrees else "size not confirmed"
    vfio = section.vfio
    said = ["setup"] if vfio.setup else []
    said.append(f"pre-copy {units.size(vfio.precopy_bytes)}")
    said.append(f"stop-copy {units.size(vfio.stopcopy_bytes)}")
    said[-1] += f" in {_count(vfio.data_blocks, 'block')} of data"
    if vfio.config_bytes is not None:
        said.append(f"config {units.size(vfio.config_bytes)}")
    if vfio.initial_data_sent:
        said.append("initial data sent")
    if vfio.config_load_ready:
        said.append("config load ready")
    return ", ".join(said)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")

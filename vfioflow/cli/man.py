"""``vfioflow man``: the help of every command as a manual page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click

from vfioflow.cli.console import put
from vfioflow.errors import ConfigError

__all__ = ["command", "page"]


@click.command("man", short_help="Print a manual page.")
@click.argument("name", required=False, metavar="[COMMAND]...", nargs=-1)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the pages of all commands there.",
)
@click.pass_context
def command(ctx: click.Context, name: tuple[str, ...], into: Path | None) -> int:
    """Print the manual page of COMMAND, or of vfioflow itself, for man(1).

    \b
    vfioflow man agent | man -l -
    vfioflow man --into /usr/local/share/man/man1
    """
    where = click.Context(ctx.find_root().command, info_name="vfioflow")
    if into is not None:
        _write_all(where, into)
        return 0
    for part in name:
        found = None
        if isinstance(where.command, click.Group):
            found = where.command.get_command(where, part)
        if found is None:
            raise click.UsageError(f"there is no command {' '.join(name)}")
        where = click.Context(found, info_name=part, parent=where)
    put(page(where).rstrip("\n"))
    return 0


def _write_all(ctx: click.Context, into: Path) -> None:
    where = into / f"{ctx.command_path.replace(' ', '-')}.1"
    try:
        into.mkdir(parents=True, exist_ok=True)
        where.write_text(page(ctx), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    for name, child in _children(ctx):
        _write_all(click.Context(child, info_name=name, parent=ctx), into)


def _children(ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
    group = ctx.command
    if isinstance(group, click.Group):
        for name in group.list_commands(ctx):
            child = group.get_command(ctx, name)
            if child is not None and not child.hidden:
                yield name, child


def page(ctx: click.Context) -> str:
    """The page of a command, in the man macros of roff (man(7))."""
    command = ctx.command
    title = ctx.command_path.replace(" ", "-")
    what = (command.get_short_help_str(200)).rstrip(".")
    lines = [
        f'.TH "{title.upper()}" "1" "" "vfioflow {version("vfioflow")}" "vfioflow"',
        ".SH NAME",
        rf"{_text(title)} \- {_text(what)}",
        ".SH SYNOPSIS",
        f".B {_text(ctx.command_path)}",
        _text(" ".join(command.collect_usage_pieces(ctx))),
        ".SH DESCRIPTION",
        *_prose(command.help or ""),
        ".SH OPTIONS",
    ]
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is not None:
            lines += [".TP", rf"\fB{_text(record[0])}\fR", _text(record[1])]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for name, child in _children(ctx):
            about = _text(child.get_short_help_str(200))
            lines += [".TP", rf"\fB{_text(f'{title}-{name}')}\fR(1)", about]
    if command.epilog:
        lines += [".SH NOTES", *_prose(command.epilog)]
    return "\n".join(lines) + "\n"


def _prose(text: str) -> Iterator[str]:
    r"""Paragraphs; one that click's \b is before stays as it is."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield ".PP"
        if paragraph.startswith("\b\n"):
            yield from (".nf", *map(_text, paragraph[2:].split("\n")), ".fi")
        else:
            yield from map(_text, paragraph.split("\n"))


def _text(text: str) -> str:
    r"""With what roff would take for its own made plain; ``\&`` keeps a line from being a request."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain

"""Standard error: messages, logging, and how much of either."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["complain", "is_quiet", "put", "stderr", "verbosity", "verbosity_flags"]

_KEY = "vfioflow.verbosity"
_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}


@cache
def stderr() -> Console:
    """The one console that live views, messages and logs share."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def put(text: str) -> None:
    """Write to standard output.

    A report that cannot be written changes nothing of what was done, nor of the exit code that says so.
    """
    try:
        click.echo(text)
    except OSError as error:
        complain(f"cannot write to standard output: {error.strerror}", kind="warning: ")
        # What is still buffered would fail again when the interpreter ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def complain(message: str, notes: Iterable[str] = (), *, kind: str = "error: ") -> None:
    """Say what went wrong in one line, and what there is to know about it in lines below."""
    click.echo(f"vfioflow: {kind}{message}", err=True)
    for note in notes:
        click.echo(f"  {note}", err=True)


def verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command -v and -q, which count together before and after a command's name."""
    verbose = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        is_eager=True,
        callback=_add_verbosity,
        help="Log what happens; -vv every event and decision too.",
    )
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_quiet,
        help="No progress and no warnings: only the result, and errors.",
    )
    decorated: Callable[..., Any] = verbose(quiet(command))
    return decorated


def is_quiet() -> bool:
    """Whether the user asked for silence."""
    return _level() < 0


def verbosity_flags() -> list[str]:
    """What gives another vfioflow the same verbosity."""
    level = _level()
    return ["-q"] if level < 0 else ["-v"] * level


def _level() -> int:
    return int(click.get_current_context().meta.get(_KEY, 0))


def _set_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_KEY] = -1
    _configure_logging(ctx)


def _add_verbosity(ctx: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        ctx.meta[_KEY] = max(ctx.meta.get(_KEY, 0), 0) + value
    _configure_logging(ctx)


class _Lowercase(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


class _Plain(logging.Handler):
    """Lines for files and pipes.  Looks standard error up anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Lowercase("vfioflow: %(level)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def _configure_logging(ctx: click.Context) -> None:
    level = ctx.meta.get(_KEY, 0)
    log = logging.getLogger("vfioflow")
    log.setLevel({-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(level, logging.DEBUG))
    log.propagate = False
    if not log.handlers:
        log.addHandler(_Either())


class _Either(logging.Handler):
    """Rich on a terminal, above a live view if there is one; plain lines elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._handler: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._handler is None:
            self._handler = _rich() if sys.stderr.isatty() else _Plain()
        self._handler.emit(record)


def _rich() -> logging.Handler:
    from rich.logging import RichHandler

    return RichHandler(console=stderr(), show_path=False, log_time_format="%H:%M:%S")

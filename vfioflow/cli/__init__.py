"""The command line: one module per command, imported when it is asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from vfioflow.cli.console import complain, verbosity
from vfioflow.errors import VfioflowError

__all__ = ["cli", "main"]

_COMMANDS = (
    "demo",
    "probe",
    "plan",
    "record",
    "evacuate",
    "send",
    "receive",
    "agent",
    "bench",
    "tune",
    "report",
    "resolve",
    "tunnel",
    "inspect",
    "key",
    "completion",
    "man",
)

_EPILOG = """\
\b
Exit codes:
  0    migrated
  1    internal error
  2    usage, or a devices file or address that is wrong
  3    refused: these devices may not migrate (together, or there)
  4    a device failed, or the input or output of a tunnel
  5    the other side is not there, failed, or said something wrong
  6    pre-copy does not converge within the downtime limit
  7    the hand-over is in doubt: see which side runs before starting anything
  8    the journal cannot be written or read
  130  interrupted; the devices were put back

After 3, 4, 5, 6, 8 and 130 every device runs at the source, unless the message says otherwise.
"""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"vfioflow.cli.{cmd_name}").command
        return command

    def main(
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; what goes wrong by a user's doing ends in one clear line and a code."""
        try:
            result = super().main(
                args, prog_name or "vfioflow", complete_var, standalone_mode=False, **extra
            )
            code = result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = error.exit_code
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "vfioflow"
            complain(error.format_message(), [f"see {where} --help"])
            code = error.exit_code
        except click.ClickException as error:
            complain(error.format_message())
            code = error.exit_code
        except click.Abort:
            complain("interrupted before anything was touched", kind="")
            code = 130
        except VfioflowError as error:
            complain(str(error), getattr(error, "__notes__", ()))
            code = error.exit_code
        if standalone_mode:
            sys.exit(code)
        return code


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vfioflow", message="vfioflow %(version)s")
@verbosity
def cli() -> None:
    """Move VFIO devices to another host while their virtual machine runs.

    Start with `vfioflow demo`: it migrates four simulated devices between two processes here.
    Between two terminals or hosts, start `vfioflow receive` on one and `vfioflow send` on the
    other.
    """


def main() -> None:
    """The console script."""
    _open_standard_files()
    cli(prog_name="vfioflow")


def _open_standard_files() -> None:
    """A daemon may start with descriptors 0 to 2 closed: no socket of ours must get their numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)

"""``vfioflow completion``: what makes a shell complete the commands."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("completion", short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print the script that makes SHELL complete vfioflow's commands and options.

    \b
    bash:  vfioflow completion bash > ~/.local/share/bash-completion/completions/vfioflow
    zsh:   vfioflow completion zsh > "${fpath[1]}/_vfioflow"
    fish:  vfioflow completion fish > ~/.config/fish/completions/vfioflow.fish

    For this session only:  eval "$(vfioflow completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "vfioflow", "_VFIOFLOW_COMPLETE").source()
    click.echo(script)
    return 0

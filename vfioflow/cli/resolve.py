"""``vfioflow resolve``: what is known of sessions that broke off, and a person's decision."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vfioflow.cli.console import complain, put, verbosity
from vfioflow.cli.options import devices_option, journal_directory_option

if TYPE_CHECKING:
    from vfioflow.byhand import Choice
    from vfioflow.devices.base import Device
    from vfioflow.journal import Journal
from vfioflow.story import Role, Story

__all__ = ["command"]


@click.command("resolve", short_help="See sessions that broke off, and decide one by hand.")
@click.argument("session", required=False)
@click.option("--run", "choice", flag_value="run", help="The devices on this side are to run.")
@click.option(
    "--discard", "choice", flag_value="discard", help="The devices on this side never run."
)
@click.option(
    "--role",
    type=click.Choice(["source", "destination"]),
    help="Which side this is, where the journal has the session of both.",
)
@devices_option(required=False, default="only record it, and move no device")
@journal_directory_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what is known as JSON.")
@verbosity
def command(
    session: str | None,
    choice: Choice | None,
    role: Role | None,
    devices_file: str | None,
    journal_directory: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Print what the journal knows of SESSION; with --run or --discard, decide what becomes of it.

    \b
    vfioflow resolve                       sessions that have yet to end
    vfioflow resolve SESSION               what is known of one
    vfioflow resolve SESSION --run --devices devices.toml

    First let the sides settle it themselves: `vfioflow send --session SESSION` at the source,
    with `vfioflow receive` at the destination. Decide by hand only where the other side is gone for
    good, and make sure that it stays gone.
    """
    from vfioflow.journal import Journal, default_directory

    journal = Journal(journal_directory or default_directory())
    if session is None:
        if choice is not None:
            raise click.UsageError("which SESSION?")
        _list(journal, as_json)
        return 0
    if choice is not None and as_json and not yes:
        raise click.UsageError("--json with --run or --discard needs --yes: nothing can be asked")
    story = _find(journal, session, role)
    with ExitStack() as stack:
        devices: Sequence[Device] = ()
        if devices_file is not None:
            from vfioflow.cli.session import open_devices

            devices = stack.enter_context(open_devices(devices_file))
        return asyncio.run(_resolve(journal, story, choice, devices, yes, as_json))


async def _resolve(
    journal: Journal,
    story: Story,
    choice: Choice | None,
    devices: Sequence[Device],
    yes: bool,
    as_json: bool,
) -> int:
    from vfioflow import barrier
    from vfioflow.byhand import consequence, decide, objection
    from vfioflow.errors import ConfigError
    from vfioflow.policy import Policy

    mine = [device for device in devices if device.name in story.devices]
    missing = story.devices.keys() - {device.name for device in mine} if devices else set()
    if choice is not None and missing:
        raise ConfigError(f"not among the devices here: {', '.join(sorted(missing))}")
    policy = Policy()
    found = await barrier.states(mine, timeout=policy.stall_timeout) if devices else None
    held = journal.is_held(story)
    if not as_json:
        _show(story, found, held)
    if choice is None:
        if as_json:
            put(json.dumps(_as_dict(story, found, held)))
        return 0
    if why := objection(story, choice, found):
        raise ConfigError(f"session {story.session} cannot be decided so: {why}")
    if not story.pending and not story.choice:
        if as_json:
            put(json.dumps(_as_dict(story, found, held)))
        else:
            complain(f"it has ended so already, {story.step}: there is nothing to decide", kind="")
        return 0
    if not as_json:
        complain(consequence(story, choice), kind="")
    if not yes:
        what = "run here" if choice == "run" else "never run here"
        click.confirm(f"Session {story.session} is to {what}?", abort=True, err=True)
    entry = journal.open(story.session, story.role)
    if entry is None:
        raise ConfigError(f"session {story.session} is gone")
    with entry:
        if why := objection(entry, choice, found):
            raise ConfigError(f"session {story.session} cannot be decided so: {why}")
        trouble = await decide(journal, entry, choice, mine, policy)
        found = await barrier.states(mine, timeout=policy.stall_timeout) if devices else None
        if as_json:
            put(json.dumps(_as_dict(entry, found, False)))
        elif devices:
            for name, state in (found or {}).items():
                put(f"{name}  {state}")
    for name, how in trouble.items():
        complain(f"device {name}: {how}", kind="warning: ")
    if not as_json:
        moved = "" if devices else "; no device was moved"
        complain(f"recorded: session {story.session} {_decided(choice)}{moved}", kind="")
    return 4 if any(not how.startswith("reset after") for how in trouble.values()) else 0


def _decided(choice: Choice) -> str:
    return "runs here" if choice == "run" else "does not run here"


def _find(journal: Journal, session: str, role: Role | None) -> Story:
    from vfioflow.errors import ConfigError

    roles: tuple[Role, ...] = ("source", "destination") if role is None else (role,)
    found = [story for each in roles if (story := journal.find(session, each)) is not None]
    if not found:
        raise ConfigError(f"{journal.directory} knows no session {session}")
    if len(found) > 1:
        raise click.UsageError("the journal has both sides of this session: say which, --role")
    return found[0]


# -------------------------------------------------------------------- printing


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def _as_dict(story: Story, found: Mapping[str, str] | None, held: bool) -> dict[str, Any]:
    return {
        "session": story.session,
        "role": story.role,
        "peer": story.peer,
        "step": str(story.step),
        "pending": story.pending,
        "held": held,
        "torn": story.torn,
        "file": str(story.path),
        "steps": [
            {"step": str(r.step), "time": _when(r.time)}
            | ({"choice": r.choice} if r.choice else {})
            | ({"reason": r.reason} if r.reason else {})
            for r in story.records
        ],
        "devices": [
            {"name": name, "outlives": outlives}
            | ({} if found is None else {"state": found.get(name, "not here")})
            for name, outlives in story.devices.items()
        ],
    }


def _list(journal: Journal, as_json: bool) -> None:
    stories = journal.pending()
    if as_json:
        put(json.dumps([_as_dict(s, None, journal.is_held(s)) for s in stories]))
        return
    if not stories:
        put(f"{journal.directory}: no session has yet to end")
        return
    rows = [
        (
            story.session,
            story.role,
            str(story.step),
            _when(story.records[-1].time),
            story.peer,
            ", ".join(story.devices)
            + (" (a process is at work)" if journal.is_held(story) else ""),
        )
        for story in stories
    ]
    _table([("session", "role", "step", "since", "peer", "devices"), *rows])


def _show(story: Story, found: Mapping[str, str] | None, held: bool) -> None:
    put(f"session {story.session}, {story.role}, with {story.peer}")
    if held:
        put("a process is at work on it")
    put("")
    _table(
        [
            (str(r.step), _when(r.time), r.choice or r.reason)
            for r in story.records
        ]
    )  # fmt: skip
    put("")
    if found is None:
        put(f"devices: {', '.join(story.devices)} (with --devices: their present states)")
        return
    from vfioflow.resolution import what_is_found

    for line in what_is_found(story, found):
        put(line)


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        put("  ".join(cells).rstrip())

"""``vfioflow record``: watch devices without migrating them, and write profiles of them."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vfioflow.cli.console import complain, is_quiet, put, verbosity
from vfioflow.cli.options import DURATION
from vfioflow.cli.units import duration, rate, size
from vfioflow.errors import ConfigError

if TYPE_CHECKING:
    from vfioflow.devices.base import Device
    from vfioflow.lab.fitting import Fitted
    from vfioflow.lab.observed import Observed

__all__ = ["command"]


@click.command("record", short_help="Watch devices in pre-copy, and write profiles of them.")
@click.argument("what", metavar="DEVICE|DEVICES.toml")
@click.option(
    "--for",
    "seconds",
    type=DURATION,
    default=10.0,
    metavar="TIME",
    help="How long to watch, once the initial data is read.  [default: 10s]",
)
@click.option(
    "--to-file",
    "file",
    type=click.Path(dir_okay=False),
    required=True,
    metavar="PROFILE.toml",
    help="Where the profiles go, one table for each device.",
)
@click.option(
    "--stop-copy",
    is_flag=True,
    help="Also stop the devices for as long as it takes to read the rest of their state, and time each"
    " step. Whatever uses them must bear that.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all that was seen as one JSON object.")
@verbosity
def command(what: str, seconds: float, file: str, stop_copy: bool, as_json: bool) -> int:
    """Watch devices without migrating them, and write profiles that behave like them.

    \b
    vfioflow record devices.toml --for 10s --to-file profile.toml
    vfioflow record 0000:3b:00.2 --for 10s --to-file nic.toml --stop-copy

    DEVICE is a PCI address or a mediated device's UUID of this host, or the path of a vfio-user
    socket. The devices go to PRE_COPY, their data is read and thrown away, what becomes dirty is
    looked at ten times a second, and they go back to RUNNING; so they do after Ctrl-C and after an
    error. A devices file and a scenario take the result as profile = "profile.toml".
    """
    from vfioflow.cli.session import INTERRUPTED, run
    from vfioflow.lab.fitting import fit
    from vfioflow.lab.profile_file import as_toml
    from vfioflow.lab.recorder import Recorder

    if seconds <= 0:
        raise click.UsageError("--for: must be more than 0")
    _try_to_write(file)
    with _opened(what) as devices:

        async def main() -> int:
            names = ", ".join(device.name for device in devices)
            _say(f"watching {names} for {seconds:g} s, after their initial data")
            recorder = Recorder(devices, timeout=30.0)
            try:
                seen = await recorder.run(seconds=seconds, stop_copy=stop_copy)
            except asyncio.CancelledError as error:
                notes = getattr(error, "__notes__", ())
                where = "see below" if notes else "every device is RUNNING again"
                complain(f"interrupted: {where}; nothing was written", notes, kind="")
                return INTERRUPTED
            fitted = [fit(each) for each in seen]
            how = f"recorded from {{}} in {seconds:g} s of pre-copy"
            how += " and a stop" if stop_copy else ""
            _write(file, "\n".join(as_toml([f], how.format(f.profile.driver)) for f in fitted))
            if as_json:
                put(json.dumps([_plain(*each) for each in zip(seen, fitted, strict=True)]))
            else:
                put("\n".join(_words(*each) for each in zip(seen, fitted, strict=True)))
                if stop_copy:
                    stood = duration(recorder.interrupted * 1e3)
                    put(f"The devices did not run for {stood}, and run again.")
                put(f'The profile is in {file}: use it as profile = "{_use(file, fitted)}".')
            return 0

        return run(main, _say)


def _say(text: str) -> None:
    if not is_quiet():
        complain(text, kind="")


@contextmanager
def _opened(what: str) -> Iterator[Sequence[Device]]:
    from vfioflow.cli.session import open_devices
    from vfioflow.devices.kernel import KernelDevice
    from vfioflow.devices.vfio_user import VfioUserDevice

    if what.endswith(".toml"):
        with open_devices(what) as devices:
            yield devices
        return
    path = Path(what)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with closing(VfioUserDevice.connect(what, name=path.stem)) as socket:
            yield [socket]
    else:
        with closing(KernelDevice.open(what)) as device:
            yield [device]


def _try_to_write(file: str) -> None:
    """Found out before a device is touched."""
    there = Path(file).exists()
    try:
        Path(file).open("a").close()
        if not there:
            Path(file).unlink()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None


def _use(file: str, fitted: Sequence[Fitted]) -> str:
    return file if len(fitted) == 1 else f"{file}:{fitted[0].name}"


def _words(seen: Observed, fitted: Fitted) -> str:
    p = fitted.profile
    parts = [f"{size(p.state_size)} of state, {size(p.initial_bytes)} of it offered in pre-copy"]
    if p.dirty_rate:
        course = f", in {len(p.dirty_rates)} steps" if p.dirty_rates else ""
        within = f" of {size(p.dirty_set)}" if p.dirty_set >= 0 else ""
        parts.append(f"dirties {rate(p.dirty_rate)}{within}{course}")
    if p.read_rate:
        parts.append(f"hands out {rate(p.read_rate)}")
    if seen.packing.raw:
        parts.append(f"zstd leaves {seen.packing.ratio:.2f} of it ({p.content})")
    lines = [f"{fitted.name} ({p.driver}):", *(f"  {part}" for part in parts)]
    arcs = seen.arcs.items()
    lines += [f"  {arc.replace('->', ' -> ')}: {duration(took * 1e3)}" for arc, took in arcs]
    lines += [f"  note: {note}" for note in fitted.notes]
    return "\n".join(lines)


def _plain(seen: Observed, fitted: Fitted) -> dict[str, Any]:
    import msgspec

    return {
        "name": seen.name,
        "driver": seen.info.driver,
        "flags": str(seen.info.flags).split("|"),
        "told": seen.told,
        "watched": msgspec.to_builtins(seen.watched),
        "stopped": msgspec.to_builtins(seen.stopped),
        "arcs": dict(seen.arcs),
        "compression": seen.packing.ratio,
        "profile": msgspec.to_builtins(fitted.profile),
        "measured": sorted(fitted.measured),
        "base": fitted.base,
        "notes": list(fitted.notes),
    }

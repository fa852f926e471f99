"""``vfioflow probe``: which devices there are, and what each can do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from vfioflow.cli.console import put, verbosity
from vfioflow.cli.options import devices_option, json_option

if TYPE_CHECKING:
    from vfioflow.admission import Facts

__all__ = ["command", "known"]


@click.command("probe", short_help="List VFIO devices, and what each can do.")
@devices_option(required=False, default="the devices of this host")
@json_option
@verbosity
def command(devices_file: str | None, as_json: bool) -> int:
    """List the VFIO devices of this host, or those of FILE.toml, and what each can do.

    \b
    vfioflow probe
    vfioflow probe --devices devices.toml

    Each is asked for its migration flags, its size now, and its state; none is changed. A device of
    this host is opened for that, so one that a virtual machine has open says only so.

    \b
    moves        its driver has STOP_COPY, so that it can migrate at all
    P2P          it can be kept from DMA to others before it stops: what a set of several needs
    pre-copy     part of its state moves while the virtual machine runs
    dirty        who tells which pages of guest memory it writes
    """
    from vfioflow.admission.plain import facts_as_dict
    from vfioflow.cli.render import out
    from vfioflow.cli.verdict import inventory

    devices = known(devices_file)
    notes = {device.name: _notes(device) for device in devices}
    if as_json:
        put(json.dumps([facts_as_dict(d) | {"quirks": list(notes[d.name])} for d in devices]))
    else:
        out(inventory(devices, notes))
    return 0


def known(devices_file: str | None) -> list[Facts]:
    """The facts of the devices in a file, else of this host's."""
    from vfioflow import inventory
    from vfioflow.devices.host import discover

    if devices_file is None:
        return inventory.of_host(discover())
    from vfioflow.cli.session import open_devices
    from vfioflow.policy import Policy

    with open_devices(devices_file) as devices:
        limit = Policy().stall_timeout
        return asyncio.run(inventory.look(devices, timeout=limit, sized=True))


def _notes(device: Facts) -> Sequence[str]:
    """What its driver does in its own way, and a user may want to know."""
    from vfioflow.devices.quirks import quirks_of

    quirks = quirks_of(device.driver)
    notes = []
    if device.iommufd is not None:
        notes.append("opened through an iommufd" if device.iommufd else "opened by its group")
    if not quirks.names:
        return notes
    if quirks.load_in == "stop":
        notes.append("loads in RESUMING -> STOP")
    notes += [f"{arc.replace('->', ' -> ')} is slow" for arc in quirks.slow_arcs]
    if not quirks.data_size:
        notes.append("does not tell its size")
    return notes

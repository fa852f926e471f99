"""How near a replay comes to what was recorded: simulated devices, their recordings, recordings of those.

python bench/replay.py --seconds 4
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import fields

from rich.console import Console
from rich.table import Table

from vfioflow import SimDevice
from vfioflow.devices.profile import Profile
from vfioflow.lab.fitting import fit
from vfioflow.lab.recorder import record

MIB = 1 << 20
COURSE = {"dirty_rates": (0.0, 64e6, 10e6, 40e6), "dirty_step": 0.5}
DEVICES = {
    "mlx5": {"profile": "mlx5"},
    "mlx5, uneven": {"profile": "mlx5", **COURSE},
    "mlx5, slow": {"profile": "mlx5", "read_rate": 200 * MIB},
    "vgpu, 512 MiB": {"profile": "vgpu", "state_size": 512 * MIB},
    "generic, 64 MiB/s": {"dirty_rate": 64 * MIB},
    "virtio": {"profile": "virtio"},
    "xe, 256 MiB": {"profile": "xe", "state_size": 256 * MIB},
}


def watched(options, seconds):
    with SimDevice("d", **options) as device:
        [seen] = asyncio.run(record([device], seconds=seconds, stop_copy=True))
    return seen, fit(seen)


def course(profile):
    """The mean rate in each half second of the first two."""
    rates, step = profile.dirty_rates or (profile.dirty_rate,), profile.dirty_step
    return [rates[int(n * 0.01 / step) % len(rates)] for n in range(200)]


def figures(seen, fitted):
    """Name, and what was seen."""
    p = fitted.profile
    yield "stream, bytes", seen.told
    yield "in pre-copy, bytes", 0 if seen.watched is None else seen.watched.initial
    yield "dirties, MiB/s", p.dirty_rate / MIB
    yield "in a set of, MiB", p.dirtied_bytes / MIB if p.dirty_rate else 0.0
    yield "hands out, MiB/s", p.read_rate / MIB
    yield "zstd leaves", seen.packing.ratio
    for arc, took in seen.arcs.items():
        if took >= 0.001:
            yield f"{arc}, ms", took * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    seconds = parser.parse_args().seconds
    table = Table("device", "", "recorded", "replayed", "difference", box=None)
    for name, options in DEVICES.items():
        first, fitted = watched(options, seconds)
        again = {f.name: getattr(fitted.profile, f.name) for f in fields(Profile)}
        second, refitted = watched(again, seconds)
        later = dict(figures(second, refitted))
        for what, value in figures(first, fitted):
            other = later.get(what, 0)
            off = (other - value) / value if value else 0.0
            shown = [
                f"{each:,}" if isinstance(each, int) else f"{each:.2f}" for each in (value, other)
            ]
            table.add_row(name, what, *shown, f"{off:+.1%}" if off else "0")
            name = ""
        if fitted.profile.dirty_rates:
            pairs = zip(course(fitted.profile), course(refitted.profile), strict=True)
            apart = sum(abs(a - b) for a, b in pairs) / 200 / fitted.profile.dirty_rate
            table.add_row("", "course, mean distance", "", "", f"{apart:.1%} of the mean")
    Console().print(table)


if __name__ == "__main__":
    main()

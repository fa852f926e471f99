"""The schedule of a run: a pure function of its seed."""

from __future__ import annotations

import random
from typing import Any

from vfioflow.devices.profile import Fault
from vfioflow.states import FLAG_SETS, Flags, State

from .schedule import HARMLESS, SIDES, At, DeviceFault, DeviceSpec, Schedule, Strike

WIRE = ("cut", "mute", "stall", "dribble", "reorder", "flip", "drop", "repeat", "swap", "forge")

_WEIGHTS = {
    "none": 3,
    "cut": 12,
    "break": 8,
    "mute": 3,
    "stall": 3,
    "dribble": 4,
    "reorder": 5,
    "flip": 10,
    "drop": 6,
    "repeat": 6,
    "swap": 3,
    "forge": 2,
    "stranger": 3,
    "kill": 14,
    "freeze": 7,
    "cancel": 5,
    "hook": 3,
    "device arc errno": 10,
    "device arc hang": 3,
    "device stream errno": 5,
    "device stream short": 2,
    "device stream hang": 2,
    "device stream corrupt": 3,
    "descriptors": 5,
    "memory": 5,
    "journal full": 3,
    "journal lost": 3,
    "journal unwritable": 1,
}
KINDS = tuple(_WEIGHTS)

_KIND_SETS = {
    "sim": {
        "net0": {"profile": "mlx5", "state_size": 160_000, "initial_bytes": 100_000},
        "disk0": {"profile": "virtio", "state_size": 90_000, "initial_bytes": 50_000},
        "gpu0": {"profile": "vgpu", "state_size": 300_000, "initial_bytes": 200_000},
        "xe0": {"profile": "xe", "state_size": 120_000},
        "qat0": {"profile": "qat"},
        "pds0": {"profile": "pds"},
        "tty0": {"profile": "mtty"},
    }
}
_NAMES = ("net0", "disk0", "gpu0", "xe0", "qat0")

_EVENTS = {
    "source": (
        "phase connect", "phase set up", "phase pre-copy", "barrier pre-copy", "initial sent",
        "initial loaded", "decided", "phase stop-copy", "barrier quiesce", "barrier stop-copy",
        "phase hand over", "phase done", "barrier release", "hook stop_vcpus",
    ),
    "destination": (
        "phase connect", "phase set up", "barrier resuming", "phase pre-copy", "initial loaded",
        "phase stop-copy", "phase hand over", "barrier validate", "barrier ready",
        "barrier resume", "hook start_vcpus", "phase done",
    ),
}  # fmt: skip
_LATE = {
    "source": ("phase stop-copy", "barrier stop-copy", "phase hand over", "phase done"),
    "destination": (
        "phase hand over", "barrier validate", "barrier ready", "barrier resume", "phase done",
    ),
}  # fmt: skip

_RECORDS = {
    "source": ("BEGUN", "COMMITTED", "RELEASED", "BACK"),
    "destination": ("BEGUN", "LOADED", "COMMITTED", "RUNNING", "DISCARDED", "TOLD"),
}

_TO_DESTINATION = ("preamble", "hello", "offer", "probe", "switchover", "commit", "goodbye")
_TO_SOURCE = (
    "preamble", "hello", "accept", "ready", "probe-done", "switchover-ack", "loaded", "running",
)  # fmt: skip
_FRAMES = ("raw", "zstd", "zero", "mark", "end", "close", "pad")


def schedule(seed: int) -> Schedule:
    """The run of a seed."""
    rng = random.Random(f"vfioflow chaos {seed}")
    first = rng.choices(KINDS, list(_WEIGHTS.values()))[0]
    kinds = [first]
    if first != "none" and rng.random() < 0.2:
        kinds.append(rng.choices(KINDS[1:], list(_WEIGHTS.values())[1:])[0])
    journal = rng.random() < 0.6 or any(k.startswith("journal") for k in kinds)
    sim_only = any(k.startswith("device stream") for k in kinds)
    durable = not sim_only and ("kill" in kinds or rng.random() < 0.4)
    devices = _durable_devices(rng) if durable else _sim_devices(rng)
    policy = _policy(rng, kinds)
    if not durable and len(devices) > 1:
        devices = _some_without_p2p(seed, devices, policy)
    if "break" in kinds and "reconnect_timeout" not in policy:
        policy.update(_reconnecting(rng, HARMLESS.issuperset(kinds)))
    if {"drop", "repeat", "swap"} & set(kinds) and rng.random() < 0.4:
        policy["digest"] = False
    channels = policy["channels"] or len(devices)
    strikes: list[Strike] = []
    faults: list[DeviceFault] = []
    for kind in kinds:
        if kind.startswith("device"):
            faults.append(_device_fault(rng, kind, devices, durable))
        elif kind != "none":
            strikes.append(_strike(rng, kind, channels, len(devices), journal))
    psk = rng.random() < 0.25
    return Schedule(seed, durable, journal, psk, devices, policy, tuple(strikes), tuple(faults))


def _policy(rng: random.Random, kinds: list[str]) -> dict[str, Any]:
    harmless = HARMLESS.issuperset(kinds)
    policy: dict[str, Any] = {
        "downtime_limit": 5.0,
        "max_iterations": 1_000_000,
        "precopy_timeout": 60.0 if harmless else 3.0,
        "channels": rng.choice((0, 1, 1, 2, 3, 4)),
        "chunk_size": rng.choice((4096, 4096, 16384, 65536)),
        "compression": rng.choice(("none", "none", "none", "zstd:1", "auto")),
        "compression_threads": 1,
        "digest": rng.random() < 0.85,
        "switchover_ack": rng.random() < 0.8,
        # Nobody waits for these where nothing goes wrong; a busy machine must not look like a fault.
        "connect_timeout": 20.0 if harmless else 0.7,
        "stall_timeout": 20.0 if harmless else 0.7,
        "resolve_timeout": 20.0 if harmless else rng.choice((0.0, 0.6, 0.6)),
    }
    if rng.random() < 0.4:
        policy.update(_reconnecting(rng, harmless))
    return policy


def _reconnecting(rng: random.Random, harmless: bool) -> dict[str, Any]:
    return {
        "reconnect_timeout": 20.0 if harmless else 0.6,
        "reconnect_stop_copy": rng.choice(("wait", "go-back")),
        "window": rng.choice((1, 65536, 1 << 20)),
    }


def _sim_devices(rng: random.Random) -> tuple[DeviceSpec, ...]:
    kinds = _KIND_SETS["sim"]
    if rng.random() < 0.05:
        return (DeviceSpec("acc0", {"profile": "hisi_acc", "seed": 9, "arc_seconds": {}}),)
    names = rng.sample(sorted(kinds), rng.choice((1, 2, 3, 3, 4)))
    quiet = rng.random() < 0.5
    found = []
    for number, name in enumerate(names):
        options = dict(kinds[name], seed=rng.randrange(1 << 32), arc_seconds={}, load_seconds=0.0)
        options["content"] = rng.choice(("zeros", "structured", "random", "mix"))
        options["dirty_rate"] = 0 if quiet or number % 2 else 200_000
        options["p2p_rate"] = rng.choice((0, 1000))
        found.append(DeviceSpec(name, options))
    return tuple(found)


def _some_without_p2p(
    seed: int, devices: tuple[DeviceSpec, ...], policy: dict[str, Any]
) -> tuple[DeviceSpec, ...]:
    """In a part of the runs: devices to which accesses are queued.  Has its own dice."""
    rng = random.Random(f"vfioflow chaos access {seed}")
    if rng.random() < 0.6:
        return devices
    policy["access_queue"] = "writes"
    without = rng.sample([d.name for d in devices], rng.randint(1, len(devices)))
    found = []
    for device in devices:
        options = dict(device.options, p2p_rate=rng.choice((0, 1000, 20_000)))
        if device.name in without:
            flags = _flags(device) & ~Flags.P2P
            options["flags"] = [flag.name for flag in Flags if flag and flag in flags]
        found.append(DeviceSpec(device.name, options))
    return tuple(found)


def _durable_devices(rng: random.Random) -> tuple[DeviceSpec, ...]:
    count = rng.choice((1, 2, 2, 3))
    found = []
    for name in _NAMES[:count]:
        flags = rng.choice(FLAG_SETS if count == 1 else FLAG_SETS[1::2])
        blocks = rng.randint(2, 30)
        options: dict[str, Any] = {
            "flags": int(flags),
            "blocks": blocks,
            "seed": rng.randrange(1 << 32),
        }
        if flags & Flags.PRE_COPY:
            options["initial"] = rng.randint(1, blocks)
            options["dirty"] = rng.choice((0, 1, 3))
        options["pipe"] = rng.random() < 0.5
        options["strict"] = rng.random() < 0.5
        found.append(DeviceSpec(name, options))
    return tuple(found)


def _strike(rng: random.Random, kind: str, channels: int, devices: int, journal: bool) -> Strike:
    if kind in WIRE:
        return _wire_strike(rng, kind, channels, devices)
    if kind == "break":
        return _break(rng, channels)
    side = rng.choice(SIDES)
    if kind == "kill":
        how = rng.choice(("", "restart"))
        return Strike(kind, _any_point(rng, channels, devices, side, journal), side, how=how)
    if kind == "freeze":
        return Strike(
            kind,
            _any_point(rng, channels, devices, side, journal),
            side,
            seconds=rng.choice((0.0, 0.0, 0.1)),
        )
    if kind == "cancel":
        where = rng.choice(SIDES)
        return Strike(kind, At("event", side=where, name=rng.choice(_EVENTS[where])), side)
    if kind == "hook":
        how = rng.choice(("stop_vcpus", "start_vcpus")) if side == "source" else "start_vcpus"
        return Strike(kind, At("event", side=side, name=f"hook {how}"), side, how=how)
    if kind == "stranger":
        how = rng.choice(("garbage", "silent", "closes", "data", "again", "old"))
        return Strike(kind, At("event", side=side, name=rng.choice(_EVENTS[side])), how=how)
    if kind == "journal unwritable":
        return Strike(kind, At("event", side=side, name="start"), side)
    if kind.startswith("journal"):
        return Strike(
            kind, At("record", side=side, name=rng.choice(_RECORDS[side]), part="before"), side
        )
    at = At("event", side=side, name=rng.choice((*_EVENTS[side], "start", "start", "start")))
    amount = rng.randint(0, 24) if kind == "descriptors" else rng.randint(0, 48)
    return Strike(kind, at, side, amount=amount)


def _break(rng: random.Random, channels: int) -> Strike:
    """A cut where both sides know already that it can be mended."""
    every = rng.random() < 0.3
    toward = rng.choice(SIDES)
    part = rng.choice(("before", "inside", "after"))
    chance = rng.random()
    if chance < 0.25:
        side = rng.choice(SIDES)
        events = _EVENTS[side]
        first = "phase pre-copy" if side == "source" else "initial loaded"
        at = At("event", side=side, name=rng.choice(events[events.index(first) :]))
        every = True
    elif chance < 0.6:
        names = ("probe", "switchover", "commit", "goodbye")
        if toward == "source":
            names = ("probe-done", "switchover-ack", "loaded", "running")
        at = At("unit", toward=toward, name=rng.choice(names), part=part)
    else:
        at = At(
            "unit",
            line=rng.randint(1, channels),
            toward="destination",
            name=rng.choice((*_FRAMES, "raw", "raw", "zstd")),
            count=rng.choice((0, 0, 1, 2, 5, 9)),
            part=part,
        )
    amount = rng.choice((0, 0, 1, 3))
    return Strike("break", at, every=every, amount=amount, how=rng.choice(("reset", "close")))


def _any_point(rng: random.Random, channels: int, devices: int, side: str, journal: bool) -> At:
    if journal and rng.random() < 0.35:
        part = rng.choice(("before", "after"))
        return At("record", side=side, name=rng.choice(_RECORDS[side]), part=part)
    chance = rng.random()
    if chance < 0.3:
        return At(
            "arc",
            side=side,
            count=rng.randint(0, 7 * devices),
            part=rng.choice(("before", "after")),
        )
    if chance < 0.6:
        return At("event", side=side, name=rng.choice((*_EVENTS[side], *_LATE[side])))
    if chance < 0.85:
        return _control_unit(rng)
    return _bytes(rng, channels, devices)


def _control_unit(rng: random.Random) -> At:
    toward = rng.choice(SIDES)
    names = _TO_DESTINATION if toward == "destination" else _TO_SOURCE
    late = ("commit", "switchover") if toward == "destination" else ("loaded", "running")
    return At(
        "unit",
        line=0,
        toward=toward,
        name=rng.choice((*names, *late)),
        part=rng.choice(("before", "inside", "after")),
    )


def _bytes(rng: random.Random, channels: int, devices: int) -> At:
    line = rng.randint(0, channels)
    if line == 0:
        return At("bytes", line=0, toward=rng.choice(SIDES), count=rng.randint(0, 700))
    most = 64 * 1024 + 120_000 * devices
    return At("bytes", line=line, toward="destination", count=int(most ** rng.uniform(0, 1.0)))


def _frame(rng: random.Random, channels: int) -> At:
    return At(
        "unit",
        line=rng.randint(1, channels),
        toward="destination",
        name=rng.choice((*_FRAMES, "raw", "raw", "any", "any", "any")),
        count=rng.choice((0, 0, 1, 2, 3, 5, 9, 17)),
        part=rng.choice(("before", "inside", "after")),
    )


def _wire_strike(rng: random.Random, kind: str, channels: int, devices: int) -> Strike:
    every = rng.random() < 0.4
    if kind == "forge":
        # What the destination says that it took; the source must believe only what it sent.
        at = At("unit", line=0, toward="source", name="loaded", part="inside")
        return Strike(kind, at, how=rng.choice(("digest", "size")))
    if kind in ("drop", "repeat", "swap") and (kind == "swap" or rng.random() < 0.7):
        at = _frame(rng, channels) if rng.random() < 0.8 else _control_unit(rng)
        return Strike(kind, at, how="whole")
    chance = rng.random()
    if chance < 0.2 and kind in ("cut", "mute", "stall"):
        side = rng.choice(SIDES)
        at = At("event", side=side, name=rng.choice((*_EVENTS[side], *_LATE[side])))
        every = True
    elif chance < 0.5:
        at = _control_unit(rng)
    elif chance < 0.75:
        at = _frame(rng, channels)
    else:
        at = _bytes(rng, channels, devices)
    amount = {
        "cut": rng.choice((0, 0, 0, 1, 3, 1000)),
        "flip": rng.randrange(1 << 16),
        "drop": rng.randint(1, 64),
        "repeat": rng.randint(1, 64),
        "dribble": rng.randint(1, 200),
        "reorder": rng.randint(0, 20_000),
    }.get(kind, 0)
    seconds = rng.choice((0.02, 0.1, 0.3)) if kind == "stall" else 0.0
    how = rng.choice(("reset", "close")) if kind == "cut" else ""
    if kind in ("stall", "dribble", "reorder") and at.what == "unit":
        at = At("unit", at.line, at.toward, at.side, at.name, at.count, "before")
    return Strike(kind, at, every=every, amount=amount, seconds=seconds, how=how)


_SOURCE_ARCS = (
    "RUNNING->PRE_COPY", "PRE_COPY->PRE_COPY_P2P", "PRE_COPY_P2P->STOP_COPY",
    "RUNNING->RUNNING_P2P", "RUNNING_P2P->STOP", "STOP->STOP_COPY", "STOP_COPY->STOP",
    "STOP->RUNNING_P2P", "RUNNING_P2P->RUNNING", "PRE_COPY->RUNNING", "PRE_COPY->STOP_COPY",
    "RUNNING->STOP", "STOP->RUNNING",
)  # fmt: skip
_DESTINATION_ARCS = (
    "RUNNING->RUNNING_P2P", "RUNNING_P2P->STOP", "STOP->RESUMING", "RESUMING->STOP",
    "STOP->RUNNING_P2P", "RUNNING_P2P->RUNNING", "RUNNING->STOP", "STOP->RUNNING",
)  # fmt: skip


def _device_fault(
    rng: random.Random, kind: str, devices: tuple[DeviceSpec, ...], durable: bool
) -> DeviceFault:
    from vfioflow.states import ARCS

    side = rng.choice(SIDES)
    device = rng.choice(devices)
    if kind.startswith("device stream"):
        at = "read" if side == "source" else "write"
        what = kind.removeprefix("device stream ")
        size = device.options.get("state_size", 4096)
        fault = Fault(
            at,
            what,
            errno=rng.choice(("EIO", "ENOMEM")),
            offset=rng.randrange(size),
            once=rng.random() < 0.6,
        )
        return DeviceFault(side, device.name, fault)
    flags = Flags(device.options["flags"]) if durable else _flags(device)
    arcs = [
        arc
        for arc in (_SOURCE_ARCS if side == "source" else _DESTINATION_ARCS)
        if tuple(State[end] for end in arc.split("->")) in ARCS[flags]
    ]
    what = kind.removeprefix("device arc ")
    left = rng.choice((None, None, "ERROR", "STOP")) if what == "errno" else None
    fault = Fault(
        rng.choice(arcs),
        what,
        errno=rng.choice(("EIO", "EBUSY")),
        once=rng.random() < 0.7,
        state=left,
    )
    return DeviceFault(side, device.name, fault)


def _flags(device: DeviceSpec) -> Flags:
    from vfioflow.devices.profile import profile

    if "flags" in device.options:
        return Flags(sum(Flags[name] for name in device.options["flags"]))
    return profile(device.options["profile"]).migration_flags

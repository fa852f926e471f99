"""The rules, one function each.  :data:`RULES` lists them; docs/admission.md explains them.

Each looks at a set and says what stands in its way.  What is refused of a set is refused of every
larger one, which :mod:`vfioflow.admission.combinations` relies on; only ``empty`` is otherwise: it
asks whether the set is all that the destination waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from vfioflow.admission.facts import Circumstances, Facts
from vfioflow.admission.verdict import Finding, Level
from vfioflow.precopy import destination_seconds, source_seconds
from vfioflow.states import Flags

__all__ = ["RULES", "Case", "Rule"]

_UAPI = "include/uapi/linux/vfio.h"
_QEMU = "hw/vfio/migration.c (QEMU)"

_QUEUED = (
    "accesses to it are trapped, queued and replayed: its regions must be reached only through the"
    " trap, by no DMA that an IOMMU maps straight to them; a read of it waits meanwhile"
)

_MOST_NAMED = 16
"""Other devices that are named as the reason."""

_BITMAP_REACH = 8 << 40
"""Bytes of guest memory that a type 1 IOMMU's dirty bitmap covers (QEMU 46c7633114)."""

_SAME_FIRMWARE = ("mlx5_vfio_pci",)
"""Drivers of which it is known that they take only the state of the same firmware."""


@dataclass(frozen=True)
class Case:
    """What is judged.  ``there``: the destination's devices by name; None: not known."""

    devices: tuple[Facts, ...]
    around: Circumstances
    there: Mapping[str, Facts] | None

    @cached_property
    def seconds(self) -> float | None:
        """The downtime that no pre-copy shortens: state changes, and what only stop-copy moves.

        At least that; None without a bandwidth.
        """
        if self.around.bandwidth is None:
            return None
        fixed = source_seconds((d.flags, d.arc_seconds) for d in self.devices)
        there = self.there or {}
        fixed += destination_seconds(
            (d.flags, (there.get(d.name) or d).arc_seconds) for d in self.devices
        )
        left = sum(d.stop_copy_bytes or 0 for d in self.devices if not d.flags & Flags.PRE_COPY)
        return fixed + 2 * self.around.round_trip + left / self.around.bandwidth


@dataclass(frozen=True, slots=True)
class Rule:
    """``when`` it speaks, in words; ``source``: where the rule comes from."""

    name: str
    when: str
    source: str
    look: Callable[[Case], Iterator[Finding]]

    def findings(self, case: Case) -> Iterator[Finding]:
        """What it says of a case."""
        yield from self.look(case)


RULES: list[Rule] = []


def _rule(
    name: str, when: str, source: str
) -> Callable[[Callable[[Case], Iterator[Finding]]], Callable[[Case], Iterator[Finding]]]:
    def add(look: Callable[[Case], Iterator[Finding]]) -> Callable[[Case], Iterator[Finding]]:
        RULES.append(Rule(name, when, source, look))
        return look

    return add


def _no(rule: str, device: Facts, reason: str, remedy: str) -> Finding:
    return Finding(rule, Level.MAY_NOT, (device.name,), reason, remedy)


def _if(rule: str, device: Facts, reason: str, remedy: str) -> Finding:
    return Finding(rule, Level.CONDITION, (device.name,), reason, remedy)


# --------------------------------------------------------------------- the set


@_rule("no-devices", "the set is empty", "there must be something to migrate")
def _no_devices(case: Case) -> Iterator[Finding]:
    if not case.devices:
        reason = "there is no device to migrate"
        yield Finding("no-devices", Level.MAY_NOT, (), reason, "name at least one")


@_rule("name", "two devices have the same name", "names pair source and destination")
def _name(case: Case) -> Iterator[Finding]:
    seen: set[str] = set()
    for device in case.devices:
        if device.name in seen:
            yield _no("name", device, "two devices of the set have this name", "rename one")
        seen.add(device.name)


# ----------------------------------------------------------------- each device


@_rule("usable", "it cannot be opened, or is bound to no VFIO driver", "this host")
def _usable(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if device.why_not:
            yield _no("usable", device, device.why_not, "see `vfioflow probe`")


@_rule(
    "stop-copy",
    "its driver does not have STOP_COPY",
    f"{_UAPI}: every migratable device has it; {_QEMU} refuses such a device",
)
def _stop_copy(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if not device.flags & Flags.STOP_COPY and not device.why_not:
            reason = f"its driver {device.driver} does not support migration"
            yield _no("stop-copy", device, reason, "unplug it before, and plug another in after")


@_rule("state", "it is not RUNNING", f"{_UAPI}: a migration begins in RUNNING")
def _state(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if device.state != "RUNNING":
            reason = f"it is in {device.state}; only a RUNNING device can be migrated"
            yield _no("state", device, reason, "end what was begun with it, or reset it")


@_rule(
    "p2p",
    "a device without the P2P states is in a set with others; with `access_queue` a condition",
    f"{_UAPI}: VFIO_MIGRATION_P2P; {_QEMU}: several devices only if all have it",
)
def _p2p(case: Case) -> Iterator[Finding]:
    some = [d.name for d in case.devices[: _MOST_NAMED + 1]]
    for device in case.devices:
        others = tuple(name for name in some if name != device.name)[:_MOST_NAMED]
        if others and device.flags & Flags.STOP_COPY and not device.flags & Flags.P2P:
            reason = (
                f"its driver {device.driver} has no P2P states:"
                f" {_list(others, len(case.devices) - 1)}"
            )
            names = (device.name,)
            if case.around.policy.access_queue == "writes":
                reason += " may write to it while it stands still"
                yield Finding("p2p", Level.CONDITION, names, reason, _QUEUED, because=others)
            else:
                reason += " could not be kept from DMA to it while it stops"
                remedy = "migrate it alone, or without it; or see docs/access-queue.md"
                yield Finding("p2p", Level.MAY_NOT, names, reason, remedy, because=others)


@_rule(
    "alone",
    "a single device has no P2P states",
    "its BARs may be the target of DMA or MMIO by devices that are not in the set",
)
def _alone(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if len(case.devices) == 1 and not device.flags & Flags.P2P:
            yield _if(
                "alone",
                device,
                f"its driver {device.driver} has no P2P states",
                "no device that stays with the virtual machine may do DMA to it while it stops",
            )


@_rule(
    "late-load",
    "its driver loads, and checks, its state only in RESUMING -> STOP",
    "drivers/vfio/pci/{qat,hisilicon,pds}, samples/vfio-mdev/mtty.c",
)
def _late_load(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if device.late_load and device.flags & Flags.PRE_COPY and case.around.policy.switchover_ack:
            yield _if(
                "late-load",
                device,
                "the destination can acknowledge only that its initial data has arrived, not that"
                " it is loaded: its driver does that in RESUMING -> STOP",
                "that load counts as downtime",
            )


# ------------------------------------------------------------ what is around it


@_rule(
    "dirty-tracking",
    "neither it nor the IOMMU tells which pages it writes",
    f"{_QEMU}: a blocker, unless x-pre-copy-dirty-page-tracking says otherwise",
)
def _dirty_tracking(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if device.tracking == "none":
            yield _if(
                "dirty-tracking",
                device,
                "neither it nor the IOMMU tells which pages of guest memory it writes",
                "whoever moves the guest's memory must take all of it for dirty at the switchover",
            )


@_rule("viommu", "the guest has an IOMMU, and the device does the tracking", _QEMU)
def _viommu(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if case.around.viommu and device.tracking == "device":
            yield _no(
                "viommu",
                device,
                "it logs its DMA by addresses that the guest's own IOMMU changes",
                "start the virtual machine without a vIOMMU",
            )


@_rule(
    "bitmap-size", "guest memory is larger than the IOMMU's dirty bitmap covers", "QEMU 46c7633114"
)
def _bitmap_size(case: Case) -> Iterator[Finding]:
    memory = case.around.guest_memory or 0
    for device in case.devices:
        if device.tracking == "iommu" and memory > _BITMAP_REACH:
            yield _no(
                "bitmap-size",
                device,
                f"{memory / 2**40:.1f} TiB of guest memory; the IOMMU's dirty bitmap covers"
                f" {_BITMAP_REACH / 2**40:.0f} TiB",
                "a smaller guest, or a device that does the tracking itself",
            )


@_rule(
    "feature", "post-copy, a background snapshot, or CPR is to be used", f"{_QEMU}: save_prepare"
)
def _feature(case: Case) -> Iterator[Finding]:
    for feature in sorted(case.around.features):
        yield Finding(
            "feature",
            Level.MAY_NOT,
            tuple(d.name for d in case.devices),
            f"its state cannot be moved in parts after the switchover, as {feature} needs",
            f"do without {feature}",
        )


@_rule(
    "downtime",
    "state changes, and what exists only in stop-copy, take longer than the downtime limit",
    "vfioflow.precopy",
)
def _downtime(case: Case) -> Iterator[Finding]:
    seconds, policy = case.seconds, case.around.policy
    if seconds is None or not case.devices:
        return
    unknown = [d.name for d in case.devices if not d.flags & Flags.PRE_COPY]
    unknown = [d.name for d in case.devices if d.name in unknown and d.stop_copy_bytes is None]
    if seconds > policy.downtime_limit:
        strict = policy.on_no_convergence == "abort"
        yield Finding(
            "downtime",
            Level.MAY_NOT if strict else Level.CONDITION,
            (),
            f"the downtime would be at least {seconds * 1e3:.0f} ms:"
            f" {_heaviest(case)}; the limit is {policy.downtime_limit * 1e3:.0f} ms",
            "a faster wire, fewer devices at once, or --downtime-limit"
            if strict
            else "the policy switches over all the same",
        )
    elif unknown:
        yield Finding(
            "downtime",
            Level.CONDITION,
            tuple(unknown),
            "its driver does not tell its size, and it has no pre-copy",
            "the downtime cannot be predicted",
        )


@_rule(
    "large",
    "a device without pre-copy takes more than half of the downtime limit to move",
    "all of its state moves while the virtual machine stands still",
)
def _large(case: Case) -> Iterator[Finding]:
    rate, limit = case.around.bandwidth, case.around.policy.downtime_limit
    for device in case.devices:
        if rate and not device.flags & Flags.PRE_COPY and device.flags & Flags.STOP_COPY:
            seconds = (device.stop_copy_bytes or 0) / rate
            if limit / 2 < seconds:
                yield _if(
                    "large",
                    device,
                    f"it has no pre-copy: its {_mib(device.stop_copy_bytes or 0)} take"
                    f" {seconds * 1e3:.0f} ms of the downtime limit of {limit * 1e3:.0f} ms",
                    "migrate it when its state is small",
                )


# ------------------------------------------------------------- the destination


@_rule("missing", "the destination has no device of its name", "names pair both sides")
def _missing(case: Case) -> Iterator[Finding]:
    for device in case.devices:
        if case.there is not None and device.name not in case.there:
            reason = "the destination has no device of this name"
            yield _no("missing", device, reason, "give it one in the destination's devices file")


@_rule("free", "the destination's device is in use", "a state is loaded into an idle device")
def _free(case: Case) -> Iterator[Finding]:
    for device, there in _pairs(case):
        if there.why_not or there.state != "RUNNING":
            reason = there.why_not or f"it is in {there.state}; only a RUNNING device is free"
            yield _no("free", device, f"at the destination {reason}", "free it, or name another")


@_rule("driver", "the drivers differ", "a state is understood by the driver that wrote it")
def _driver(case: Case) -> Iterator[Finding]:
    for device, there in _pairs(case):
        if there.driver != device.driver:
            yield _no(
                "driver",
                device,
                f"its driver is {device.driver}, the destination's is {there.driver}",
                "bind both to the same driver",
            )


@_rule("flags", "the destination's lacks a flag", "pre-copy data is part of the stream")
def _flags(case: Case) -> Iterator[Finding]:
    for device, there in _pairs(case):
        needed = device.flags & (Flags.STOP_COPY | Flags.P2P | Flags.PRE_COPY)
        if lacking := needed & ~there.flags:
            yield _no(
                "flags",
                device,
                f"the destination's lacks {lacking}",
                "the same driver and firmware on both hosts",
            )


@_rule("model", "they are different devices", "drivers compare vendor, device and type on load")
def _model(case: Case) -> Iterator[Finding]:
    for device, there in _pairs(case):
        if device.model and there.model and device.model != there.model:
            yield _no(
                "model",
                device,
                f"it is a {device.model}, the destination's is a {there.model}",
                "a device of the same kind",
            )


@_rule(
    "firmware",
    "their firmware differs",
    "mlx5: the same PSID and firmware are required; others check on load",
)
def _firmware(case: Case) -> Iterator[Finding]:
    for device, there in _pairs(case):
        if device.firmware and there.firmware and device.firmware != there.firmware:
            strict = device.driver.replace("-", "_") in _SAME_FIRMWARE
            make = _no if strict else _if
            yield make(
                "firmware",
                device,
                f"its firmware is {device.firmware}, the destination's is {there.firmware}",
                "the same firmware on both" if strict else "the driver may refuse the state",
            )


@_rule("version", "the versions of their driver differ", "drivers check their stream on load")
def _version(case: Case) -> Iterator[Finding]:
    for device, there in _pairs(case):
        if device.version and there.version and device.version != there.version:
            yield _if(
                "version",
                device,
                f"its driver is of version {device.version}, the destination's of {there.version}",
                "the driver may refuse the state",
            )


@_rule("empty", "the destination has a device that the set does not fill", "names pair both sides")
def _empty(case: Case) -> Iterator[Finding]:
    names = {device.name for device in case.devices}
    for name in case.there or ():
        if name not in names:
            reason = "the source does not offer it, it would stay empty"
            remedy = "leave it out of the destination's devices file"
            yield Finding("empty", Level.MAY_NOT, (name,), reason, remedy)


def _pairs(case: Case) -> Iterator[tuple[Facts, Facts]]:
    for device in case.devices:
        there = (case.there or {}).get(device.name)
        if there is not None:
            yield device, there


def _heaviest(case: Case) -> str:
    """What the downtime is made of, in words."""
    rate = case.around.bandwidth or 1.0
    left = {
        d.name: (d.stop_copy_bytes or 0) / rate
        for d in case.devices
        if not d.flags & Flags.PRE_COPY and d.stop_copy_bytes
    }
    parts = [f"{n} {s * 1e3:.0f} ms" for n, s in sorted(left.items(), key=lambda x: -x[1])[:3]]
    moving = f"without pre-copy {', '.join(parts)}" if parts else ""
    fixed = (case.seconds or 0.0) - sum(left.values())
    changes = f"state changes and round trips {fixed * 1e3:.0f} ms"
    return f"{moving}, {changes}" if moving else changes


def _list(names: tuple[str, ...], count: int) -> str:
    """The first of so many, in words."""
    if count > 3:
        return f"{', '.join(names[:2])} and {count - 2} others"
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

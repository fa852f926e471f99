"""What happens in a run, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from vfioflow.devices.profile import Fault

SIDES = ("source", "destination")


@dataclass(frozen=True, slots=True)
class At:
    """A point of progress.

    ``what`` is one of

    - ``"bytes"``: ``count`` bytes have come from one side for ``toward``, on the ``line``-th
      connection that was made (0 is the control connection);
    - ``"unit"``: the ``count``-th message or frame called ``name`` on that connection; ``part`` is
      "before" it is passed on, "inside" (half of it is), or "after";
    - ``"event"``: ``side`` reports ``name``, as "phase stop-copy" or "barrier ready";
    - ``"arc"``: the ``count``-th arc of all devices of ``side``, ``part`` "before" or "after";
    - ``"record"``: ``side`` writes the step ``name`` into its journal, ``part`` as above.
    """

    what: str
    line: int = 0
    toward: str = ""
    side: str = ""
    name: str = ""
    count: int = 0
    part: str = ""

    def __str__(self) -> str:
        if self.what == "bytes":
            return f"after {self.count} bytes for the {self.toward} on connection {self.line}"
        if self.what == "unit":
            return (
                f"{self.part} {self.name!r} number {self.count} for the {self.toward}"
                f" on connection {self.line}"
            )
        if self.what == "event":
            return f"when the {self.side} says {self.name!r}"
        if self.what == "record":
            return f"{self.part} the {self.side} records {self.name}"
        return f"{self.part} arc {self.count} of the {self.side}"


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault other than a device's own.

    ``side`` for those of a process; ``every``: all connections at once; ``amount`` bytes, bits or
    tries, as the kind has it; ``seconds`` where time is the fault.
    """

    kind: str
    at: At
    side: str = ""
    every: bool = False
    amount: int = 0
    seconds: float = 0.0
    how: str = ""

    def __str__(self) -> str:
        said = [self.kind]
        said += [f"the {self.side}"] if self.side else []
        said += ["on all connections"] if self.every else []
        said += [f"({self.how})"] if self.how else []
        said += [f"of {self.amount}"] if self.amount else []
        said += [f"for {self.seconds:g} s"] if self.seconds else []
        return f"{' '.join(said)}, {self.at}"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device of both sides; ``options`` are SimDevice's or DurableDevice's."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceFault:
    """A fault of a device of one side."""

    side: str
    device: str
    fault: Fault

    @property
    def kind(self) -> str:
        where = "stream" if self.fault.at in ("read", "write") else "arc"
        return f"device {where} {self.fault.kind}"

    def __str__(self) -> str:
        f = self.fault
        where = f"at byte {f.position} of its {f.at}" if f.at in ("read", "write") else f"in {f.at}"
        left = f", left in {f.left_in}" if f.left_in is not None else ""
        return f"{self.kind}: {self.device} of the {self.side} {where}{left}{' once' * f.once}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that makes a run."""

    seed: int
    durable: bool
    journal: bool
    psk: bool
    devices: tuple[DeviceSpec, ...]
    policy: dict[str, Any]
    strikes: tuple[Strike, ...] = ()
    faults: tuple[DeviceFault, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What goes wrong; ("none",) for a run in which nothing does."""
        found = [s.kind for s in self.strikes] + [f.kind for f in self.faults]
        return tuple(dict.fromkeys(found)) or ("none",)

    def __str__(self) -> str:
        kept = ", journals" if self.journal else ""
        key = ", a pre-shared key" if self.psk else ""
        kind = "durable" if self.durable else "simulated"
        lines = [f"seed {self.seed}: {kind} devices{kept}{key}"]
        lines += [f"  device {d.name}: {d.options}" for d in self.devices]
        lines += [f"  policy: {self.policy}"]
        lines += [f"  {s}" for s in (*self.strikes, *self.faults)]
        return "\n".join(lines)


HARMLESS = frozenset(
    {"none", "break", "stall", "dribble", "reorder", "stranger", "device stream short"}
)
"""Kinds that must not keep a migration from its end; "break" is a cut that the policy mends."""


def without(whole: Schedule, **changes: Any) -> Schedule:
    """A copy with other values."""
    return Schedule(**{f.name: changes.get(f.name, getattr(whole, f.name)) for f in fields(whole)})

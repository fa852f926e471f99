"""What must be true after a run, whatever went wrong in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from .runner import Outcome
from .schedule import HARMLESS, SIDES, DeviceFault, Schedule, Strike

_RUN = ("RUNNING", "PRE_COPY", "PRE_COPY_P2P")
_DAMAGE = ("flip", "drop", "repeat", "swap")


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and how that was seen."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended, in a few words, and what was wrong with it."""

    result: str
    violations: tuple[Violation, ...]


def check(plan: Schedule, outcome: Outcome) -> Verdict:
    """Judge a run."""
    judge = _Judge(plan, outcome)
    return Verdict(judge.result(), tuple(judge.violations()))


class _Judge:
    def __init__(self, plan: Schedule, outcome: Outcome) -> None:
        self._plan, self._outcome = plan, outcome
        self._ends = {side: outcome.end(side) for side in SIDES}
        self._found: list[Violation] = []
        struck = outcome.struck()
        self._strikes = [s for n, s in enumerate(plan.strikes) if n in struck]
        self._killed = {s.side for s in self._strikes if s.kind == "kill"}
        self._vcpus = {"source": True, "destination": False}
        for entry in outcome.log:
            if entry["what"] == "vcpus":
                self._vcpus[entry["side"]] = entry["running"]

    # ---------------------------------------------------------------- questions

    def _said(self, side: str, key: str) -> Any:
        end = self._ends[side]
        return None if end is None else end[key]

    def _settled(self) -> bool:
        """Whether later processes have found out what became of it."""
        return any(e["what"] == "settling" for e in self._outcome.log)

    def _states(self, side: str) -> dict[str, str]:
        if self._plan.durable:
            store = self._outcome.stores.get(side)
            return {} if store is None else {n: _name(d.state) for n, d in store.devices.items()}
        return self._said(side, "states") or {}

    def _runs(self, side: str) -> bool:
        """Whether the virtual machine runs there, with all its devices."""
        good = _RUN if side in self._killed and not self._settled() else ("RUNNING",)
        states = self._states(side)
        return self._vcpus[side] and bool(states) and all(s in good for s in states.values())

    def _reset(self, side: str) -> set[str]:
        """Devices that were reset, or failed so that what they hold is not known."""
        found = {e["device"] for e in self._outcome.of(side, "reset")}
        found |= {
            e["device"]
            for e in self._outcome.of(side, "rolled back")
            if e["how"] != "set to RUNNING"
        }
        return found

    def _faults(self, side: str) -> list[DeviceFault]:
        return [f for f in self._plan.faults if f.side == side]

    def result(self) -> str:
        source, destination = self._runs("source"), self._runs("destination")
        if source and destination:
            return "BOTH RUN"
        if destination:
            return "the destination runs"
        if source:
            return "the source runs"
        if self._killed and not self._settled():
            return f"nobody runs, the {' and the '.join(sorted(self._killed))} was killed"
        if all(self._said(side, "outcome") == "in-doubt" for side in SIDES):
            return "nobody runs, both say so"
        return "nobody runs"

    # --------------------------------------------------------------- invariants

    def violations(self) -> list[Violation]:
        for what in self._outcome.hangs:
            self._add("ends", what)
        if not self._outcome.hangs:
            self._never_two()
            self._one_runs()
            self._truth()
            self._messages()
            self._errors()
            self._order()
            self._progress()
        self._nothing_left()
        return self._found

    def _add(self, invariant: str, what: str) -> None:
        self._found.append(Violation(invariant, what))

    def _never_two(self) -> None:
        """At no moment do both sides run, nor a device of both."""
        vcpus = {"source": True, "destination": False}
        ready = False
        running: set[str] = set()
        states = dict.fromkeys((d.name for d in self._plan.devices), "RUNNING")
        for entry in self._outcome.log:
            side, what = entry["side"], entry["what"]
            if what == "vcpus":
                vcpus[side] = entry["running"]
                if all(vcpus.values()):
                    self._add("never two", f"both virtual machines run once the {side} started its")
            elif what == "truth" and side == "destination":
                ready = True
            elif what in ("reset", "rolled back") and side == "destination":
                running.discard(entry["device"])
            elif what == "arc" and side == "destination" and ready and entry["end"] == "RUNNING":
                running.add(entry["device"])
                moving = {n: s for n, s in states.items() if s not in ("STOP_COPY", "STOP")}
                if moving:
                    self._add("never two", f"{entry['device']} runs there; at the source: {moving}")
            elif what == "arc" and side == "source":
                states[entry["device"]] = entry["end"]
                if running and entry["end"] not in ("STOP_COPY", "STOP"):
                    self._add(
                        "never two", f"{entry['device']} goes to {entry['end']}; there: {running}"
                    )

    def _one_runs(self) -> None:
        """Exactly one side runs; or none, where that is documented, and both say so."""
        result = self.result()
        for side in SIDES:
            if self._ends[side] is None and side not in self._killed and not self._limits(side):
                self._add("one runs", f"the {side} said nothing at its end")
        if result == "BOTH RUN":
            self._add("one runs", "both run")
        if result == "nobody runs" and not self._excused():
            self._add(
                "one runs",
                "nobody runs; "
                + "; ".join(
                    f"{side}: {self._said(side, 'outcome')}, {self._states(side)},"
                    f" vCPUs {'run' if self._vcpus[side] else 'stopped'}: {self._said(side, 'text')}"
                    for side in SIDES
                ),
            )
        if self._said("source", "outcome") == "completed" and not self._vcpus["destination"]:
            self._add("one runs", "the source says completed, and the destination was not started")
        for side in SIDES:
            outcome = self._said(side, "outcome")
            if side == "destination" and outcome == "completed" and not self._said(side, "vcpus"):
                self._add("one runs", "the destination says completed and does not run")
            if outcome == "in-doubt":
                self._in_doubt(side)
            if outcome in ("failed", "cancelled") and not self._faults(side):
                bad = {n: s for n, s in self._said(side, "states").items() if s != "RUNNING"}
                if bad:
                    self._add("one runs", f"the {side} says {outcome}, and has {bad}")
                if self._said(side, "vcpus") != (side == "source") and not self._hook_failed(side):
                    self._add("one runs", f"the {side} says {outcome}; its vCPUs are wrong")
        if (
            self._killed
            and self._plan.durable
            and not (self._settled() or self._runs("destination"))
        ):
            self._still_there()

    def _in_doubt(self, side: str) -> None:
        """The devices of a side in doubt keep what they hold, and stay as they are."""
        if self._faults(side) or self._hook_failed(side):
            return
        if side == "destination" and "hold the state" not in f"{self._said(side, 'told')}":
            return  # it has committed, and a device did not follow
        good = ("STOP_COPY",) if side == "source" else ("STOP", "RUNNING_P2P")
        bad = {n: s for n, s in self._said(side, "states").items() if s not in good}
        if bad or self._said(side, "vcpus"):
            self._add("one runs", f"the {side} is in doubt, and has {bad}")

    def _excused(self) -> bool:
        """Nobody runs, which a device that fails again, or a hook, has caused; it is said."""
        if any(self._hook_failed(side) for side in SIDES):
            return True
        if not self._faults("source"):
            return (
                self._plan.durable is False
                and self._said("source", "outcome") == "in-doubt"
                and bool(self._killed)
            )
        told = f"{self._said('source', 'told')}"
        return any(f"device {f.device}" in told for f in self._faults("source"))

    def _hook_failed(self, side: str) -> bool:
        return any(s.kind == "hook" and s.side == side for s in self._strikes)

    def _limits(self, side: str) -> bool:
        return any(s.kind in ("memory",) and s.side == side for s in self._strikes)

    def _still_there(self) -> None:
        """After a kill, the true state is still on one side at least."""
        if self._faults("source") or self._faults("destination"):
            return
        source, destination = (self._outcome.stores.get(side) for side in SIDES)
        kept = source is not None and all(
            d.whole() and not d.resets for d in source.devices.values()
        )
        loaded = destination is not None and all(d.loaded for d in destination.devices.values())
        if not kept and not loaded:
            self._add("one runs", "after the kill no side holds the state")

    def _truth(self) -> None:
        """Whoever runs holds what it must, byte for byte."""
        begin = {side: self._outcome.of(side, "begin") for side in SIDES}
        blind = not self._plan.policy["digest"] and any(s.kind in _DAMAGE for s in self._strikes)
        blind = blind and self._plan.durable
        if self._vcpus["destination"] and not blind:
            sent = [e for e in self._outcome.of("source", "truth") if e["at"] == "stop-copy"]
            taken = [e for e in self._outcome.of("destination", "truth") if e["at"] == "ready"]
            if not sent or not taken or sent[-1]["digests"] != taken[-1]["digests"]:
                self._add(
                    "byte-exact", f"the destination runs with {taken}, the source sent {sent}"
                )
        if self._runs("source") and self._ends["source"] and len(begin["source"]) == 1:
            lost = self._reset("source")
            quiet = all(not d.options.get("dirty_rate") for d in self._plan.devices)
            before, after = begin["source"][-1]["digests"], self._ends["source"]["digests"]
            if not self._plan.durable and quiet:
                wrong = {n for n in before if before[n] != after[n]} - lost
                # Messages to peers are part of what a device holds only in its stream.
                if wrong:
                    self._add("byte-exact", f"the source runs on with another state of {wrong}")
        if not self._plan.durable:
            return
        for side, store in self._outcome.stores.items():
            if side == "destination" and blind:
                continue
            for name, device in store.devices.items():
                if not device.whole():
                    self._add("byte-exact", f"{name} of the {side} holds what it never wrote")
                if side == "source" and device.seed != device.home:
                    self._add("byte-exact", f"{name} of the source has another's content")
                if side == "source" and device.resets and not self._faults(side):
                    self._add("byte-exact", f"{name} of the source was reset")

    def _messages(self) -> None:
        """No peer-to-peer message is lost or doubled, on the side that runs."""
        for side in SIDES:
            if any(
                f.fault.left_in is not None or f.fault.kind == "hang" for f in self._faults(side)
            ):
                continue
            if self._reset(side) and side == "source":
                continue
            if "not back after" in f"{self._said(side, 'told')}":
                continue  # its state change went on while the others were put back
            if not self._runs(side):
                continue
            if self._plan.durable:
                wrong = self._outcome.stores[side].balanced()
            else:
                wrong = self._said(side, "ledger") or []
            if wrong:
                self._add("peer-to-peer", f"at the {side}: {'; '.join(wrong)}")

    def _errors(self) -> None:
        """Errors are typed and name the device; nobody prints a traceback."""
        for side in SIDES:
            for end in self._outcome.of(side, "end"):
                self._typed(side, end)
            for entry in self._outcome.of(side, "said"):
                if entry["stack"] or entry["level"] in ("ERROR", "CRITICAL"):
                    if entry["text"].startswith(
                        ("cannot accept a connection", "cannot serve tcp:")
                    ):
                        continue
                    self._add(
                        "no traceback", f"the {side} logged {entry['text']}\n{entry['stack']}"
                    )
                elif entry["logger"] == "py.warnings":
                    self._add("no traceback", f"the {side} warned: {entry['text']}")
        for life in self._outcome.lives:
            if life.status not in (0, -9) or (life.status == -9 and life.side not in self._killed):
                self._add("no traceback", f"the {life.side} exited with {life.status}")
        if self._outcome.stderr:
            self._add("no traceback", f"on standard error:\n{self._outcome.stderr}")
        self._names()
        self._reaches_no_device()

    def _typed(self, side: str, end: dict[str, Any]) -> None:
        if not end["typed"]:
            what = f"the {side}: {end['error']}: {end['text']}\n{end['trace']}"
            self._add("typed errors", what)
        if end["error"] == "IllegalTransition":
            self._add("typed errors", f"the {side} asked for an illegal change: {end['text']}")

    def _names(self) -> None:
        """Where one device is at fault, and nothing else, both sides name it and its step."""
        if len(self._plan.faults) != 1 or self._plan.strikes:
            return
        [fault] = self._plan.faults
        other = SIDES[fault.side == "source"]
        mine, theirs = self._ends[fault.side], self._ends[other]
        if mine is None or theirs is None or mine["outcome"] == "completed":
            return
        step = fault.fault.at.replace("->", " -> ")
        if fault.fault.kind == "corrupt":
            return  # the destination's device finds it
        for side, end in ((fault.side, mine), (other, theirs)):
            text = f"{end['text']} {end['told']} {end['notes']}"
            if f"device {fault.device}" not in text:
                self._add("device named", f"{fault}; the {side} says only: {end['text']}")
            elif (
                fault.fault.at not in ("read", "write")
                and side == fault.side
                and step not in text
                and not _within(step, text)
            ):
                self._add("device named", f"{fault}; the {side} does not say where: {text}")

    def _reaches_no_device(self) -> None:
        """Damage on the wire is found by the wire's own checks, before a device gets it."""
        forged = [s for s in self._strikes if s.kind == "forge"]
        digest = self._plan.policy["digest"]
        if forged and self._vcpus["destination"]:
            self._add(
                "found on the wire", "committed, and the destination had taken something else"
            )
        if self._plan.faults:
            return
        # Without digests, frames that are missing or come twice are still found by their offsets.
        if not any(s.kind in _DAMAGE and (digest or s.how == "whole") for s in self._strikes):
            return
        if len(self._plan.strikes) > 1 and not digest:
            return
        end = self._ends["destination"]
        if end is not None and end["error"] == "DeviceError":
            self._add(
                "found on the wire", f"a device was given what had been damaged: {end['text']}"
            )

    def _order(self) -> None:
        """The vCPUs stop before the devices do, and start after them."""
        running = True
        for entry in self._outcome.log:
            if entry["side"] == "source" and entry["what"] == "vcpus":
                running = entry["running"]
            if (
                entry["side"] == "source"
                and entry["what"] == "arc"
                and running
                and entry["end"] == "STOP_COPY"
            ):
                self._add("order", f"{entry['device']} entered STOP_COPY under running vCPUs")
            if entry["what"] == "vcpus" and entry["running"] and not self._faults(entry["side"]):
                late = {n: s for n, s in entry["states"].items() if s != "RUNNING"}
                if late:
                    self._add("order", f"the {entry['side']} starts the vCPUs while {late}")

    def _progress(self) -> None:
        """What is harmless keeps nothing from its end."""
        if not must_complete(self._plan, self._strikes):
            return
        for side in SIDES:
            if self._said(side, "outcome") != "completed":
                self._add(
                    "progress",
                    f"the {side}: {self._said(side, 'outcome')}: {self._said(side, 'told')}",
                )

    def _nothing_left(self) -> None:
        """No thread, descriptor, file, process or simulated device is left over."""
        for side in SIDES:
            for entry in self._outcome.of(side, "left"):
                self._add("nothing left", f"by the {side}: {', '.join(entry['what_is_left'])}")
        if self._outcome.left:
            self._add("nothing left", ", ".join(self._outcome.left))


def must_complete(plan: Schedule, strikes: list[Strike]) -> bool:
    """Whether a run has nothing that may keep it from completing."""
    return HARMLESS.issuperset(plan.kinds)


def _within(step: str, text: str) -> bool:
    """Whether a composed change that the text names may contain the arc."""
    start, end = step.split(" -> ")
    states = ("RUNNING", "PRE_COPY", "PRE_COPY_P2P", "RUNNING_P2P", "STOP", "STOP_COPY", "RESUMING")
    return any(
        f"{a} -> {b}" in text
        for a, b in itertools.product(states, states)
        if a == start or b == end or (a, b) != (start, end)
    )


def _name(state: int) -> str:
    from vfioflow.states import State

    return State(state).name

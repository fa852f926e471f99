"""A person decides what becomes of a session whose other side is gone for good."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from vfioflow import barrier
from vfioflow.access import codec
from vfioflow.devices.base import Device
from vfioflow.errors import VfioflowError
from vfioflow.handover import Log
from vfioflow.journal import Entry, Journal
from vfioflow.policy import Policy
from vfioflow.states import State
from vfioflow.story import Step, Story

__all__ = ["Choice", "consequence", "decide", "objection"]

Choice: TypeAlias = Literal["run", "discard"]


def objection(story: Story, choice: Choice, found: Mapping[str, str] | None = None) -> str:
    """Why this contradicts what is recorded, or what the devices are found in; empty: it does not."""
    step, source = story.step, story.role == "source"
    if story.choice and story.choice != choice:
        return f"it was decided by hand before: {story.choice}"
    facts = {
        ("source", Step.BEGUN, "discard"): "it was never committed: only the devices here have it",
        ("source", Step.RELEASED, "run"): "the destination runs: it said so",
        ("source", Step.BACK, "discard"): "it was never committed, and the devices run here",
        ("source", Step.TAKEN_BACK, "discard"): "the destination discarded it: it runs here only",
        ("destination", Step.BEGUN, "run"): "its state was never loaded here",
        ("destination", Step.RUNNING, "discard"): "it runs here, and its source may know that",
        ("destination", Step.TOLD, "discard"): "it runs here, and its source knows that",
        ("destination", Step.DISCARDED, "run"): "it was discarded here: its source may run",
    }
    if step is not None and (fact := facts.get((story.role, step, choice))):
        return fact
    loaded = story.get(Step.LOADED)
    if choice == "run" and not source and step is Step.LOADED and found is not None and loaded:
        lost = [f"{n} is {found.get(n, 'not here')}" for n, s in loaded.states.items()
                if found.get(n) != s]  # fmt: skip
        if lost:
            return f"the devices here do not hold its state any more: {', '.join(lost)}"
    return ""


def consequence(story: Story, choice: Choice) -> str:
    """What it means for the other side, in words."""
    if story.role == "source" and choice == "run":
        return "the destination must never run it: `vfioflow resolve --discard` there, or fence it"
    if story.role == "source":
        return "the destination has it: it must be made to run there"
    if choice == "run":
        other = "the source must never run it: `vfioflow resolve --discard` there, or fence it"
        return other + _queued(story)
    if story.get(Step.COMMITTED):
        return (
            "it may have run here: what its guest wrote to its disks meanwhile is there, and the"
            " source's memory does not know of it"
        )
    return "the source has it, and may run"


def _queued(story: Story) -> str:
    """What running it by hand leaves out: what was queued for devices that stood still."""
    loaded = story.get(Step.LOADED)
    if loaded is None or not loaded.accesses:
        return ""
    held = codec.decode(base64.b64decode(loaded.accesses), story.devices)
    if not held.devices:
        return ""
    return (
        f"; what was queued for {', '.join(sorted(held.devices))} is not replayed by hand"
        f" ({len(held.writes)} writes): only a source that comes back, or a listener, has it replayed"
    )


async def decide(
    journal: Journal, entry: Entry, choice: Choice, devices: Sequence[Device], policy: Policy
) -> dict[str, str]:
    """Record the decision (unless it was recorded before), then move the devices of the session.

    Returns for each device that is not where it should be: why.  Raises JournalError: nothing was
    moved.
    """
    log = Log(journal, timeout=policy.stall_timeout)
    log.entry = entry
    mine = [device for device in devices if device.name in entry.devices]
    if entry.allows(Step.BY_HAND):
        await log.record(Step.BY_HAND, choice=choice)
    else:  # said again: what runs by now is none of it
        found = await barrier.states(mine, timeout=policy.stall_timeout)
        mine = [device for device in mine if found[device.name] != "RUNNING"]
    limit = policy.stall_timeout
    if entry.role == "destination" and choice == "discard":
        return await barrier.reset_all(mine, timeout=limit)
    if entry.role == "source" and choice == "run":
        return await barrier.back_to_running(mine, timeout=limit)
    target = State.RUNNING if choice == "run" else State.STOP
    try:
        await barrier.cross("by hand", [(device, target) for device in mine], timeout=limit)
    except VfioflowError as error:
        states = await barrier.states(mine, timeout=limit)
        return {n: f"{s}: {error}" for n, s in states.items() if s != str(target)}
    return {}

"""What a report means, in words: where the downtime went, and what would make it shorter.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from vfioflow.report import Report

__all__ = [
    "Cause",
    "Remedy",
    "causes",
    "headline",
    "prediction",
    "remedies",
    "to_halve",
    "with_destination",
]

_SEEN = 0.05
"""Milliseconds below which a part reads 0.0."""

_SMALL = 0.03
"""Part of the downtime below which a remedy is not worth a word."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A part of the downtime, in milliseconds: ``name`` in a word, ``why`` in some."""

    name: str
    ms: float
    why: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would take so many milliseconds off the downtime, at most."""

    what: str
    saves_ms: float


def with_destination(source: Report, destination: Report) -> Report:
    """The source's report with the destination's changes of state of the hand-over in its timeline.

    Its clock is another: both entered that phase at about the same time, so there they meet.
    """
    meet = [
        next((phase.at for phase in report.timeline.phases if phase.name == "hand over"), None)
        for report in (source, destination)
    ]
    if meet[0] is None or meet[1] is None:
        return source
    shift, since = meet[0] - meet[1], meet[1]
    theirs = destination.timeline
    timeline = replace(
        source.timeline,
        arcs=[
            *source.timeline.arcs,
            *(replace(a, at=a.at + shift) for a in theirs.arcs if a.at >= since),
        ],
        barriers=[
            *source.timeline.barriers,
            *(replace(b, at=b.at + shift) for b in theirs.barriers if b.at >= since),
        ],
    )
    return replace(source, timeline=timeline)


def causes(report: Report) -> list[Cause]:
    """The downtime in a few parts, the largest first; [] where there was none."""
    if report.downtime_ms is None:
        return []
    steps = report.steps_ms
    drain = steps.get("drain", 0.0)
    moved = _mib(report.bytes_stopcopy)
    rate = report.bytes_stopcopy / drain * 1e3 if drain else 0.0
    found = [
        Cause("wire", drain, f"{moved} moved at {_mib(rate)}/s"),
        Cause("load", steps.get("load", 0.0), "the destination took in what was under way"),
        *(
            Cause(name.replace("_", "-"), steps[name], f"{words}{_slowest(report, name)}")
            for name, words in _CHANGES.items()
            if name in steps
        ),
        Cause("stop vCPUs", steps.get("stop_vcpus", 0.0), "the hook"),
        Cause("start vCPUs", steps.get("start_vcpus", 0.0), "the hook"),
        Cause("config", steps.get("config", 0.0), "the hooks that save and load it"),
        Cause("journal", steps.get("journal", 0.0), "records written to stable storage"),
        Cause("commit", steps.get("commit", 0.0), "the words of the hand-over, there and back"),
    ]
    return sorted((cause for cause in found if cause.ms >= _SEEN), key=lambda cause: -cause.ms)


_CHANGES = {
    "quiesce": "the devices enter their P2P states",
    "stop_copy": "the devices stop",
    "validate": "RESUMING -> STOP, where drivers load and check",
    "ready": "the destination's devices leave STOP",
    "resume": "the destination's devices run",
}
_BARRIERS = {"stop_copy": "stop-copy"}


def _slowest(report: Report, step: str) -> str:
    """The device that a barrier waited for."""
    name = _BARRIERS.get(step, step)
    for barrier in report.timeline.barriers:
        if barrier.name == name and barrier.slowest:
            return f"; {barrier.slowest} took longest"
    return ""


def prediction(report: Report) -> list[tuple[str, float, float]]:
    """What was predicted at the decision to switch over, and what happened: part, both in milliseconds."""
    if report.predicted_downtime_ms is None or report.fixed_ms is None or not report.downtime_ms:
        return []
    moving = report.steps_ms.get("drain", 0.0) + report.steps_ms.get("load", 0.0)
    total, fixed = report.predicted_downtime_ms, report.fixed_ms
    return [
        ("what was left over the wire", total - fixed, moving),
        ("state changes, round trips, hooks", fixed, report.downtime_ms - moving),
        ("in all", total, report.downtime_ms),
    ]


def remedies(report: Report) -> list[Remedy]:
    """What would shorten the downtime, by how much it would at most; the most first."""
    total = report.downtime_ms
    if not total:
        return []
    found = [*_of_the_wire(report), *_of_the_devices(report), *_of_the_rest(report)]
    worth = [remedy for remedy in found if remedy.saves_ms >= _SMALL * total]
    return sorted(worth, key=lambda remedy: -remedy.saves_ms)


def to_halve(report: Report) -> list[Remedy]:
    """The fewest of :func:`remedies` that together halve the downtime; [] where they do not."""
    chosen: list[Remedy] = []
    for remedy in remedies(report):
        chosen.append(remedy)
        if sum(each.saves_ms for each in chosen) >= (report.downtime_ms or 0.0) / 2:
            return chosen
    return []


def _of_the_wire(report: Report) -> list[Remedy]:
    drain, left = report.steps_ms.get("drain", 0.0), report.bytes_stopcopy
    if not drain or not left:
        return []
    found = [Remedy(f"a wire twice as fast: {_mib(left)} take {drain:.0f} ms of it", drain / 2)]
    late = [d for d in report.devices if d.can_precopy is False and d.bytes_stopcopy]
    for device in late:
        share = drain * (device.bytes_stopcopy or 0) / left
        found.append(
            Remedy(
                f"less state in {device.name}, which has no pre-copy: its"
                f" {_mib(device.bytes_stopcopy or 0)} all move while the machine stands still",
                share,
            )
        )
    again = sum(d.bytes_stopcopy or 0 for d in report.devices if d.can_precopy)
    if again:
        found.append(
            Remedy(
                f"a lower --downtime-limit: more rounds of pre-copy leave less than {_mib(again)}"
                " of the devices that have it",
                drain * again / left,
            )
        )
    if report.policy.get("compression") == "none":
        found.append(Remedy("--compression auto, where the state can be compressed", drain / 2))
    return found


def _of_the_devices(report: Report) -> list[Remedy]:
    found = []
    for step in _CHANGES:
        took = report.steps_ms.get(step, 0.0)
        name = _BARRIERS.get(step, step)
        barrier = next((b for b in report.timeline.barriers if b.name == name), None)
        if barrier is None or not barrier.slowest:
            if took:
                found.append(Remedy(f"faster drivers in the step {step.replace('_', '-')}", took))
            continue
        others = [
            arc.seconds
            for arc in report.timeline.arcs
            if arc.seconds is not None
            and arc.device != barrier.slowest
            and barrier.at <= arc.at <= barrier.at + barrier.seconds
        ]
        saves = took - max(others, default=0.0) * 1e3
        found.append(
            Remedy(
                f"a faster {barrier.slowest}: the step {step.replace('_', '-')} waits for it",
                max(saves, 0.0),
            )
        )
    return found


def _of_the_rest(report: Report) -> list[Remedy]:
    steps = report.steps_ms
    hooks = steps.get("stop_vcpus", 0.0) + steps.get("start_vcpus", 0.0)
    return [
        Remedy("faster hooks that stop and start the vCPUs", hooks),
        Remedy("a journal on a faster disk", steps.get("journal", 0.0)),
        Remedy("a wire with a shorter round trip", steps.get("commit", 0.0)),
        Remedy("a destination whose devices load faster", steps.get("load", 0.0)),
    ]


def headline(report: Report) -> str:
    """The answer to "why was the downtime so long", in a sentence or two."""
    if report.downtime_ms is None:
        return f"The migration is {report.outcome}" + (f": {report.error}" if report.error else ".")
    total = report.downtime_ms
    parts = causes(report)[:2]
    words = " and ".join(f"{cause.ms / total:.0%} {cause.name} ({cause.why})" for cause in parts)
    text = f"The downtime was {total:.0f} ms: {words}." if words else f"It was {total:.0f} ms."
    if report.lower_bound_ms and report.over_bound:
        text += (
            f" No order of operations could do it in less than {report.lower_bound_ms:.0f} ms with"
            f" these devices, this wire and these bytes: it took {report.over_bound:.2f} times that."
        )
    return text


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 1 << 30 else f"{size / 2**30:.2f} GiB"

"""``vfioflow plan``: who may migrate together, and to where, before anything is touched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import click

from vfioflow.cli.console import put, verbosity
from vfioflow.cli.options import (
    BANDWIDTH,
    SIZE,
    devices_option,
    json_option,
    policy_options,
    security_options,
)

if TYPE_CHECKING:
    from vfioflow.admission import Circumstances, Facts
    from vfioflow.admission.facts import Feature
    from vfioflow.cli.options import Names
    from vfioflow.cli.verdict import Plan
    from vfioflow.planning import Answer
    from vfioflow.policy import Policy

__all__ = ["command"]

_REFUSED = 3


@click.command("plan", short_help="Say which devices may migrate together, and why not.")
@click.argument("names", nargs=-1, metavar="[DEVICE]...")
@devices_option(required=False, default="the devices of this host")
@click.option(
    "--to",
    default="",
    metavar="tcp://HOST:PORT",
    help="Ask the `vfioflow receive` there what it would say. It touches nothing, and goes on waiting.",
)
@security_options("source")
@click.option(
    "--bandwidth",
    type=BANDWIDTH,
    metavar="RATE",
    help="What the wire moves: 10Gbit, or 1GiB (per second). Without, no downtime is predicted.",
)
@click.option("--guest-memory", type=SIZE, metavar="SIZE", help="Of the virtual machine.")
@click.option("--viommu", is_flag=True, help="The guest has an IOMMU of its own.")
@click.option(
    "--with",
    "features",
    multiple=True,
    type=click.Choice(["postcopy", "background-snapshot", "cpr"]),
    help="What the migration of the virtual machine is to use besides.",
)
@policy_options(
    "downtime_limit",
    "access_queue",
    "on_no_convergence",
    "switchover_ack",
    "connect_timeout",
    "stall_timeout",
)
@json_option
@verbosity
def command(
    names: Sequence[str],
    devices_file: str | None,
    to: str,
    security: Names,
    bandwidth: int | None,
    guest_memory: int | None,
    viommu: bool,
    features: Sequence[str],
    policy: Policy,
    as_json: bool,
) -> int:
    """Say whether the devices may migrate together, for each why not, and which parts of the set may.

    \b
    vfioflow plan                                   all VFIO devices of this host
    vfioflow plan --devices devices.toml net0 gpu0  two of a file
    vfioflow plan --devices devices.toml --to tcp://10.0.0.2:4747 --psk migration.key

    Nothing is touched, here or there. The rules are those of `vfioflow send`, and are explained in
    docs/admission.md by the names in brackets.

    Exit code 0: they may migrate. 3: they may not.
    """
    from vfioflow.admission import Circumstances
    from vfioflow.cli.probe import known
    from vfioflow.cli.render import out
    from vfioflow.cli.verdict import as_dict, page

    devices = _chosen(known(devices_file), names)
    answer = _ask(devices, to, security, policy) if to else None
    around = Circumstances(
        policy=policy,
        bandwidth=bandwidth,
        round_trip=answer.round_trip if answer is not None else 0.0,
        guest_memory=guest_memory,
        viommu=viommu,
        features=frozenset(cast("Sequence[Feature]", features)),
    )
    plan = _plan(devices, around, to, answer)
    if as_json:
        put(json.dumps(as_dict(plan)))
    else:
        out(page(plan))
    return 0 if plan.may else _REFUSED


def _chosen(devices: list[Facts], names: Sequence[str]) -> list[Facts]:
    """Those of these names, in their order; all without names."""
    by_name = {device.name: device for device in devices}
    if missing := [name for name in names if name not in by_name]:
        there = ", ".join(by_name) or "none"
        raise click.UsageError(f"there is no device {', '.join(missing)}; there is {there}")
    return [by_name[name] for name in names] if names else devices


def _ask(devices: Sequence[Facts], to: str, security: Names, policy: Policy) -> Answer:
    from vfioflow import planning

    return asyncio.run(
        planning.ask(
            devices,
            to,
            security=security.read(),
            connect_timeout=policy.connect_timeout,
            timeout=2 * policy.stall_timeout,
            access_queue=policy.access_queue == "writes",
        )
    )


def _plan(devices: list[Facts], around: Circumstances, to: str, answer: Answer | None) -> Plan:
    from vfioflow.admission import judge, largest_that_may, refused_pairs, smallest_refused
    from vfioflow.cli.verdict import Plan

    there = None if answer is None else list(answer.devices)
    verdict = judge(devices, around, destination=there)
    mine = verdict.reasons()
    unknown = []
    if around.bandwidth is None:
        unknown.append("No downtime is predicted: that needs --bandwidth.")
    if answer is None:
        unknown.append("No destination was asked: that needs --to.")
    return Plan(
        devices,
        verdict,
        smallest_refused(devices, around, there),
        largest_that_may(devices, around, there),
        refused_pairs(devices, around, there),
        to=to,
        # What both sides say is said once.
        there=None
        if answer is None
        else {name: why for name, why in answer.reasons.items() if name not in mine},
        unknown=unknown,
    )

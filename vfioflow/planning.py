"""Would a destination take a set?  Asked over the wire; nobody's device is touched."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vfioflow import admission, barrier, inventory
from vfioflow.admission import Facts
from vfioflow.devices.base import Device
from vfioflow.policy import Policy
from vfioflow.threads import finish, in_thread
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.greeting import call
from vfioflow.wire.security import Security
from vfioflow.wire.trouble import printable

__all__ = ["Answer", "answer", "ask"]

_LONGEST = 120
"""Characters of a reason in an answer: for as many devices as an offer may have, one message takes them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a destination says: its devices, and why it would refuse, by device.

    ``round_trip``: seconds to it and back, its own look at its devices included.
    """

    devices: tuple[Facts, ...]
    reasons: dict[str, str]
    round_trip: float


async def ask(
    devices: Sequence[Facts],
    to: str,
    *,
    security: Security | None = None,
    connect_timeout: float = 10.0,
    timeout: float = 30.0,
    access_queue: bool = False,
) -> Answer:
    """Ask the destination at ``to`` what it would say to these devices; a listener goes on listening.

    Raises:
        ConfigError: the address or the security is wrong.
        PeerError: nobody answers, or not to this.
    """
    address = Address.parse(to)
    guard = (security or Security()).for_source(address.host)
    control, _ = await call(address, uuid.uuid4().hex, guard, connect_timeout)
    try:
        begin = time.monotonic()
        await control.send(
            messages.Plan(devices=[_offer(d) for d in devices], access_queue=access_queue)
        )
        said = await control.expect(messages.Planned, timeout=timeout, what="what it would say")
        seconds = time.monotonic() - begin
    finally:
        await finish(control.close())
    devices = [_readable(device) for device in inventory.planned(said.devices)]
    reasons = {printable(name): printable(why) for name, why in said.reasons.items()}
    return Answer(tuple(devices), reasons, seconds)


def _readable(device: Facts) -> Facts:
    """What a peer says is shown to people."""
    return replace(
        device,
        name=printable(device.name),
        driver=printable(device.driver),
        state=printable(device.state),
        version=printable(device.version),
        firmware=printable(device.firmware),
        model=printable(device.model),
    )


def _offer(device: Facts) -> messages.OfferedDevice:
    return messages.OfferedDevice(
        name=device.name,
        driver=device.driver,
        profile="",
        flags=int(device.flags),
        size=device.stop_copy_bytes,
        version=device.version,
        firmware=device.firmware,
        model=device.model,
    )


async def answer(
    asked: messages.Plan, devices: Sequence[Device], *, timeout: float
) -> messages.Planned:
    """The destination's part.  Raises ProtocolError: what was asked cannot be."""
    asked.check()
    states = await barrier.states(devices, timeout=timeout)
    here = [inventory.facts_of(d.info, state=states[d.name]) for d in devices]
    offered = inventory.offered(asked.devices)
    queue: Literal["off", "writes"] = "writes" if asked.access_queue else "off"
    verdict = await in_thread(_judge, offered, here, Policy(access_queue=queue), name="plan")
    return messages.Planned(
        devices=[
            messages.PlannedDevice(
                name=d.name,
                driver=d.driver,
                flags=int(d.flags),
                state=d.state,
                version=d.version,
                firmware=d.firmware,
                model=d.model,
                arc_seconds=dict(d.arc_seconds),
            )
            for d in here
        ],
        reasons={name: why[:_LONGEST] for name, why in verdict.reasons().items()},
    )


def _judge(devices: Sequence[Facts], there: Sequence[Facts], policy: Policy) -> admission.Verdict:
    return admission.judge(devices, admission.Circumstances(policy=policy), destination=there)

"""What a migration will be like: a scenario's devices over its wire under a policy, by rounds.  Pure.

The rounds are those of :mod:`vfioflow.rounds`, and each is judged by :func:`vfioflow.precopy.decide`
itself: what is predicted to switch over is what would.  Between two judgements time passes: devices
dirty, the wire moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vfioflow import precopy
from vfioflow.devices.profile import Profile
from vfioflow.lab.bound import transition_seconds
from vfioflow.lab.scenario import Scenario, SimulatedDevice
from vfioflow.policy import Policy
from vfioflow.precopy import Bandwidth, Decision, Pending, Round, Verdict
from vfioflow.states import Flags

__all__ = ["Known", "Prediction", "predict"]

_SHORTEST = 0.05
_LONGEST = 1.0
_PROBE_FIRST, _PROBE_LARGEST, _PROBE_SECONDS = 256 << 10, 64 << 20, 0.05
_RECORD = 65536 / (65536 + 48)
"""Of a simulated device's stream, the part that is state: each block has a header."""

_RATIO = {"zeros": 0.001, "structured": 0.5, "fp16": 0.8, "random": 1.0, "mix": 0.53}
"""Of zstd at its fast levels (docs/data-path.md); a file's is not known."""


@dataclass(frozen=True, slots=True)
class Known:
    """What this host and these devices are known to be like, beside what a scenario says.

    ``rate``: bytes per second that the engine moves where the wire is no limit, and ``loaded``, while
    it is loaded by many devices.  ``ratio``: wire bytes per device byte by content, where the policy
    compresses; ``compress``: device bytes per second and thread that it takes then.  Seconds:
    ``connect`` (until the first connection stands, for each), ``barrier`` and ``round`` (of the engine's own,
    for each), ``hand_over`` (the same, for the whole of it), ``per_device`` in the downtime.
    ``arcs``: by driver, what was learned of its arcs.
    """

    rate: float = 1.2e9
    ratio: Mapping[str, float] = field(default_factory=lambda: dict(_RATIO))
    compress: float = 4e8
    connect: float = 0.004
    barrier: float = 0.0004
    round: float = 0.002
    hand_over: float = 0.003
    per_device: float = 0.0003
    arcs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is to be expected.  Seconds and bytes, as in an :class:`vfioflow.lab.scenario.Outcome`."""

    verdict: Verdict
    reason: str
    downtime: float
    total: float
    bytes_total: int
    bytes_wire: int
    bytes_stopcopy: int
    iterations: int


class _Device:
    """How much of it is where, in bytes of its stream, on the average of what it may dirty."""

    def __init__(self, device: SimulatedDevice) -> None:
        p = self.profile = device.profile
        self.name = device.name
        self.can_precopy = bool(p.migration_flags & Flags.PRE_COPY)
        block = p.block_size
        initial = min(math.ceil(p.initial_bytes / block) * block, p.state_size)
        self.offered = initial / _RECORD if self.can_precopy else 0.0
        self.initial = self.offered
        self.dirty = 0.0
        self.rest = p.state_size / _RECORD - self.initial
        hot = p.dirtied_bytes / _RECORD
        self._hot = min(hot, self.offered)
        self._share = self._hot / hot / _RECORD if hot else 0.0
        self._at = 0.0
        self.moved = 0.0
        self.in_round = 0.0

    def pending(self, *, exact: bool = False) -> Pending:
        size = int(self.initial + self.dirty + self.rest) if exact or not self.can_precopy else None
        if not self.profile.has_data_size:
            size = None
        return Pending(self.name, self.can_precopy, int(self.initial), int(self.dirty), size)

    def run(self, seconds: float) -> None:
        """It runs, and dirties at random what was sent already."""
        dirtied = self.profile.dirtied(self._at, seconds) * self._share
        self._at += seconds
        if not self._hot or not dirtied or not self.offered:
            return
        clean = self._hot * (1 - self.initial / self.offered) - self.dirty
        if clean > 0:
            self.dirty += clean * -math.expm1(-dirtied / self._hot)

    def take(self, budget: float) -> float:
        """So much of what pre-copy offers leaves it, the initial part first."""
        first = min(self.initial, budget)
        then = min(self.dirty, budget - first)
        self.initial -= first
        self.dirty -= then
        self.moved += first + then
        return first + then

    @property
    def own_rate(self) -> float:
        rates = [rate for rate in (self.profile.read_rate, self.profile.write_rate) if rate]
        return min(rates, default=math.inf)


def predict(
    scenario: Scenario, policy: Policy | None = None, known: Known | None = None
) -> Prediction:
    """What a run of the scenario will be like; ``policy``: instead of the scenario's."""
    return _Model(scenario, policy or scenario.policy, known or Known()).run()


class _Model:
    def __init__(self, scenario: Scenario, policy: Policy, known: Known) -> None:
        self._policy = policy
        self._known = known
        self._wire = scenario.wire
        self._devices = [_Device(device) for device in scenario.devices]
        limits = [scenario.wire.rate, policy.max_bandwidth, known.rate]
        self._rate = min(limit for limit in limits if limit)
        self._channels = policy.channel_count(len(self._devices))
        self._round_trip = 2 * scenario.wire.latency + known.barrier
        self._fixed = transition_seconds(self._profiles()) + 2 * self._round_trip

    def _profiles(self) -> list[Profile]:
        return [device.profile for device in self._devices]

    # ----------------------------------------------------------------- the wire

    def _ratio(self, device: _Device) -> float:
        if self._policy.compression == "none":
            return 1.0
        ratio = self._known.ratio
        kind, _, shares = device.profile.content.partition(":")
        if kind != "mix" or not shares:
            return ratio.get(kind, 1.0)
        zeros, structured = (float(share) for share in shares.split(","))
        parts = {"zeros": zeros, "structured": structured, "random": 1 - zeros - structured}
        return sum(share * ratio.get(part, 1.0) for part, share in parts.items())

    def _seconds(self, parts: Mapping[_Device, float]) -> float:
        """To move so many bytes of each device's stream, all at once."""
        wire = sum(size * self._ratio(device) for device, size in parts.items()) / self._rate
        own = max((size / device.own_rate for device, size in parts.items()), default=0.0)
        seconds = max(wire, own)
        if self._policy.compression != "none":
            threads = max(self._policy.thread_count, 1)
            seconds = max(seconds, sum(parts.values()) / (threads * self._known.compress))
        return seconds

    def _probe(self) -> tuple[float, float]:
        """Seconds that measuring the wire takes, and the rate that comes out."""
        size, total, long = float(_PROBE_FIRST), self._round_trip, 0
        if self._policy.max_bandwidth:
            size = max(min(size, self._policy.max_bandwidth * _PROBE_SECONDS), 1.0)
        best = 0.0
        while size <= _PROBE_LARGEST and long < 2:
            seconds = size / self._rate + self._round_trip
            best = max(best, size / seconds)
            total += seconds
            long += seconds >= _PROBE_SECONDS
            size *= 4
        return total, best

    # ------------------------------------------------------------------ the run

    def run(self) -> Prediction:
        known = self._known
        bandwidth = Bandwidth()
        probe, rate = self._probe()
        bandwidth.assume(rate)
        connecting = (1 + self._channels) * (known.connect + self._round_trip)
        before = connecting + probe + self._enter_precopy()
        elapsed, iteration = 0.0, 0
        loaded = 0.0 if self._copying else -1.0
        while True:
            decision = self._judge(iteration, elapsed, bandwidth, elapsed > loaded)
            if decision.verdict is not Verdict.ITERATE:
                break
            initial = any(device.initial for device in self._copying)
            seconds, moved = self._round(bandwidth)
            elapsed += seconds
            iteration += 1
            bandwidth.add(int(moved), max(seconds - known.round, 1e-9))
            if initial:  # acknowledged while the next round is under way, at the earliest
                loaded = elapsed
        return self._end(decision, before + elapsed, iteration)

    @property
    def _copying(self) -> list[_Device]:
        return [device for device in self._devices if device.can_precopy]

    def _enter_precopy(self) -> float:
        arcs = [d.profile.arc_seconds.get("RUNNING->PRE_COPY", 0.0) for d in self._copying]
        return max(arcs, default=0.0) + self._known.barrier

    def _judge(
        self, iteration: int, elapsed: float, bandwidth: Bandwidth, acknowledged: bool
    ) -> Decision:
        now = Round(
            iteration,
            elapsed,
            tuple(device.pending() for device in self._devices),
            bandwidth.value,
            self._fixed,
            acknowledged or not self._copying,
        )
        return precopy.decide(
            now, self._policy, lambda: [device.pending(exact=True) for device in self._devices]
        )

    def _round(self, bandwidth: Bandwidth) -> tuple[float, float]:
        """One round: the seconds that it takes, and the bytes that it moves."""
        chunk = self._policy.frame_size
        most = max(16 * chunk, int(_LONGEST * (bandwidth.value or 0)))
        parts = {
            device: device.take(min(max(device.initial + device.dirty, chunk), most))
            for device in self._copying
        }
        seconds = max(self._seconds(parts) + self._known.round, _SHORTEST)
        for device in self._devices:
            device.run(seconds)
        return seconds, sum(parts.values())

    def _end(self, decision: Decision, elapsed: float, iterations: int) -> Prediction:
        """The downtime, and all of it."""
        left = {device: device.initial + device.dirty + device.rest for device in self._devices}
        precopied = {device: device.moved for device in self._devices}
        gives_up = decision.verdict is Verdict.GIVE_UP
        downtime = 0.0
        if not gives_up:
            last_load = max(
                (d.profile.load_seconds for d in self._devices if d.profile.load_in == "write"),
                default=0.0,
            )
            downtime = (
                self._fixed
                + self._seconds(left)
                + last_load
                + self._known.hand_over
                + self._known.per_device * len(self._devices)
            )
        whole = {d: precopied[d] + (0.0 if gives_up else left[d]) for d in self._devices}
        return Prediction(
            verdict=decision.verdict,
            reason=decision.reason,
            downtime=downtime,
            total=elapsed + downtime + self._known.barrier,
            bytes_total=int(sum(whole.values())),
            bytes_wire=int(sum(size * self._ratio(d) for d, size in whole.items())),
            bytes_stopcopy=0 if gives_up else int(sum(left.values())),
            iterations=iterations,
        )

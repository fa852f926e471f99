"""What the user decides about a migration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from vfioflow.errors import ConfigError

__all__ = ["MAX_CHANNELS", "Policy"]

_MIB = 1024 * 1024
_CHUNK_RANGE = (4096, 64 * _MIB)
_LEAST_OFFERED = 1024 * _MIB

_FRAME_HEAD = 64
"""More than the bytes of a frame besides its data."""

MAX_CHANNELS = 64
MAX_THREADS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to migrate.  Frozen and checked when made; a wrong value raises ConfigError.

    The destination uses ``connect_timeout``, ``stall_timeout``, ``resolve_timeout``, ``stream_factor``
    and ``reconnect_limit``; what concerns both sides travels in the offer.
    """

    downtime_limit: float = 0.3
    """Longest time between the stop of the vCPUs and their start on the other side, in seconds.

    Pre-copy goes on until the predicted downtime is within it.
    """

    max_bandwidth: int | None = None
    """Most bytes per second on the wire, all devices together; None: no limit."""

    compression: str = "none"
    """"none"; "zstd:LEVEL" (-100 to 22); or "auto": zstd at a fitting level where that is faster.

    Both leave out zeros. "auto" decides for each chunk, from the data and from whether the wire or
    the processors are the bottleneck at the moment.
    """

    compression_threads: int = 0
    """Threads that compress, for all devices together; 0: one per processor, at most 8."""

    channels: int = 0
    """Data connections; 0: one per device, at most 8.

    With more devices than channels, several devices share one; with more channels than
    devices, a device's stream spreads over several.
    """

    chunk_size: int = _MIB
    """Most device bytes in one frame, 4 KiB to 64 MiB.

    The source holds one buffer of this size per device, and where it compresses five more per
    thread; the destination two per channel.
    """

    max_iterations: int = 1000
    """Pre-copy rounds after which the migration counts as not converging."""

    precopy_timeout: float = 300.0
    """Seconds of pre-copy after which the migration counts as not converging."""

    on_no_convergence: Literal["abort", "switchover"] = "abort"
    """What to do then: "abort" (the devices run on here) or "switchover" (over the limit)."""

    digest: bool = True
    """Whether each stream carries a running CRC32C that the destination checks before loading."""

    switchover_ack: bool = True
    """Whether to switch over only when the destination has loaded all initial bytes."""

    connect_timeout: float = 10.0
    """Seconds to wait for a connection, and for the peer's answer while both sides set up."""

    stall_timeout: float = 30.0
    """Seconds without progress (bytes, a state change, an answer) that end the migration.

    Twice as long, and at least three seconds, is what the peer's process may give no sign of life.
    """

    stream_factor: float = 64.0
    """Destination: most bytes that it takes for a device, in multiples of the size it was offered with.

    Pre-copy sends again what was dirtied.  A size below 1 GiB counts as that much: not every driver
    knows its own.
    """

    reconnect_timeout: float = 0.0
    """Seconds to try to open a connection again that broke, and go on; 0: a break is the end.

    Meanwhile nothing moves, so ``stall_timeout`` counts too.  Costs a copy of every byte.
    """

    reconnect_limit: float = 300.0
    """Destination: seconds that it waits for a connection to come back at most, whatever is offered."""

    reconnect_stop_copy: Literal["wait", "go-back"] = "go-back"
    """What to do when it breaks while the virtual machine stands still: "go-back" (try only for what
    is left of the downtime limit, then the devices run on here) or "wait" (try for all of
    ``reconnect_timeout``)."""

    resolve_timeout: float = 30.0
    """Seconds to ask again, over new connections, when the last one was lost around COMMIT; 0: not.

    The source asks, the destination waits to be asked; then the hand-over is in doubt.
    """

    window: int = 64 * _MIB
    """Most bytes, all channels together, that are kept to be sent again; two frames per channel at least.

    Less than what is under way (rate times round trip, and the sockets' buffers) slows the wire down.
    """

    access_queue: Literal["off", "writes"] = "off"
    """Whether a set may migrate although a device in it has no P2P states: "writes" has accesses to it
    trapped while it stands still, carried, and replayed.  It needs a trap; see docs/access-queue.md."""

    access_limit: int = 65536
    """Most writes that are queued."""

    access_bytes: int = 16 * _MIB
    """Most bytes that they take, their names and 64 bytes each included."""

    access_reads: Literal["hold", "ones", "fail"] = "hold"
    """What becomes of a read meanwhile: "hold" (it waits until the device runs), "ones" (answered with
    all bits set) or "fail" (the migration fails)."""

    access_hold: float = 1.0
    """Seconds that a read may be held before the migration fails."""

    def __post_init__(self) -> None:
        _require(self.downtime_limit > 0, "downtime_limit", self.downtime_limit, "above 0 seconds")
        _require(
            self.max_bandwidth is None or self.max_bandwidth > 0,
            "max_bandwidth",
            self.max_bandwidth,
            "above 0 bytes per second, or None",
        )
        _require(
            re.fullmatch(r"none|auto|zstd:-?\d{1,3}", self.compression) is not None
            and -100 <= (self.zstd_level or 0) <= 22,
            "compression",
            self.compression,
            '"none", "auto" or "zstd:LEVEL" with a level from -100 to 22',
        )
        _require(
            0 <= self.compression_threads <= MAX_THREADS,
            "compression_threads",
            self.compression_threads,
            f"from 0 to {MAX_THREADS}",
        )
        _require(
            0 <= self.channels <= MAX_CHANNELS,
            "channels",
            self.channels,
            f"from 0 to {MAX_CHANNELS}",
        )
        low, high = _CHUNK_RANGE
        _require(
            low <= self.chunk_size <= high, "chunk_size", self.chunk_size, f"{low} to {high} bytes"
        )
        _require(self.max_iterations > 0, "max_iterations", self.max_iterations, "above 0")
        _require(
            self.on_no_convergence in ("abort", "switchover"),
            "on_no_convergence",
            self.on_no_convergence,
            '"abort" or "switchover"',
        )
        _require(
            self.reconnect_stop_copy in ("wait", "go-back"),
            "reconnect_stop_copy",
            self.reconnect_stop_copy,
            '"wait" or "go-back"',
        )
        _require(
            self.access_queue in ("off", "writes"),
            "access_queue",
            self.access_queue,
            '"off" or "writes"',
        )
        _require(
            self.access_reads in ("hold", "ones", "fail"),
            "access_reads",
            self.access_reads,
            '"hold", "ones" or "fail"',
        )
        _require(
            0 < self.access_limit <= 1 << 20, "access_limit", self.access_limit, "1 to 1048576"
        )
        _require(
            0 < self.access_bytes <= 48 * _MIB,
            "access_bytes",
            self.access_bytes,
            "above 0, and 48 MiB at most",
        )
        _require(self.access_hold > 0, "access_hold", self.access_hold, "above 0 seconds")
        _require(self.window > 0, "window", self.window, "above 0 bytes")
        for name in ("precopy_timeout", "connect_timeout", "stall_timeout"):
            value = getattr(self, name)
            _require(value > 0, name, value, "above 0 seconds")
        _require(self.stream_factor > 0, "stream_factor", self.stream_factor, "above 0")
        for name in ("reconnect_timeout", "reconnect_limit", "resolve_timeout"):
            value = getattr(self, name)
            _require(value >= 0, name, value, "0 seconds or above")

    @property
    def zstd_level(self) -> int | None:
        """The level of "zstd:LEVEL", else None."""
        return int(self.compression[5:]) if self.compression.startswith("zstd:") else None

    @property
    def thread_count(self) -> int:
        """How many threads compress: none with "none"."""
        if self.compression == "none":
            return 0
        return self.compression_threads or min(len(os.sched_getaffinity(0)), 8)

    @property
    def frame_size(self) -> int:
        """Most device bytes in one frame, in bytes: ``chunk_size``, or less under a low bandwidth.

        A frame must not take so long that waiting for its turn looks like a stall.
        """
        if self.max_bandwidth is None:
            return self.chunk_size
        quick = int(self.max_bandwidth * self.stall_timeout / 8)
        return min(self.chunk_size, max(quick, _CHUNK_RANGE[0]))

    def stream_limit(self, offered: int) -> int:
        """Bytes that the destination takes for a device that was offered with so many."""
        return int(self.stream_factor * max(offered, _LEAST_OFFERED))

    def window_size(self, channels: int) -> int:
        """Bytes that each of so many channels keeps to be sent again; 0: none."""
        if not self.reconnect_timeout:
            return 0
        return max(self.window // channels, 2 * (self.frame_size + _FRAME_HEAD))

    def channel_count(self, devices: int) -> int:
        """How many data connections a set of so many devices gets."""
        return self.channels or min(max(devices, 1), 8)


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name}={value!r}: must be {wanted}")

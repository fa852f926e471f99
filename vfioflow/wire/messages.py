"""The control messages, typed.  What each means and when it is sent: docs/wire-protocol.md."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from vfioflow._inlane import CHUNK_LIMIT
from vfioflow.errors import ProtocolError
from vfioflow.policy import MAX_CHANNELS
from vfioflow.story import is_session
from vfioflow.wire.trouble import printable

__all__ = [
    "Accept",
    "Accesses",
    "Back",
    "BackTaken",
    "Commit",
    "Config",
    "ConfigTaken",
    "Delivered",
    "Discarded",
    "Failed",
    "Goodbye",
    "Hello",
    "Loaded",
    "LoadedDevice",
    "MAX_DEVICES",
    "Message",
    "NONCE_SIZE",
    "Offer",
    "OfferedDevice",
    "Probe",
    "ProbeDone",
    "Proof",
    "Ready",
    "Refuse",
    "Resolve",
    "Running",
    "Switchover",
    "SwitchoverAck",
    "Tunnel",
    "VERSION",
    "decode",
    "encode",
]

VERSION = 2
"""The wire protocol's version; both sides must speak the same."""

NONCE_SIZE = 32

Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
"""A time that a side measured or expects; never NaN, which would pass every comparison."""

Bytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
MAX_DEVICES = 4096
MAX_NAME = 255
MAX_WINDOW = 2**40
MAX_STATE = 2**50


class _Message(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True
):
    """The base: encoded as a MessagePack map with its ``type``."""


def _check_channels(channels: int, chunk_size: int, window: int) -> None:
    if not (1 <= channels <= MAX_CHANNELS and 1 <= chunk_size <= CHUNK_LIMIT):
        raise ProtocolError(f"the offer has {channels} channels and chunks of {chunk_size} bytes")
    if window > MAX_WINDOW:
        raise ProtocolError(f"the offer has a window of {window} bytes")


class Hello(_Message, frozen=True, tag="hello"):
    """Both ways, first.  Says who is there and which session this is.

    ``key``: whether its sender has a pre-shared key, and so goes on with a proof.
    """

    version: int
    software: str
    session: str
    nonce: bytes
    key: bool

    def check(self) -> None:
        """Raise ProtocolError unless the peer speaks this version, and all fields are as they must be."""
        if self.version != VERSION:
            raise ProtocolError(
                f"the peer ({printable(self.software)}) speaks version {self.version} of the"
                f" protocol, this side {VERSION}: install the same vfioflow on both"
            )
        if len(self.nonce) != NONCE_SIZE:
            raise ProtocolError(f"the peer's greeting has a nonce of {len(self.nonce)} bytes")
        if not is_session(self.session):
            raise ProtocolError("the peer's greeting has a session whose name cannot be one")


class Proof(_Message, frozen=True, tag="proof"):
    """Both ways, after the greetings, source first: that its sender has the pre-shared key."""

    proof: bytes


class OfferedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device of the source.  ``size`` is its present stop-copy size in bytes, if known.

    ``version`` of its driver, ``firmware`` and ``model`` are compared where both sides know them.
    """

    name: str
    driver: str
    profile: str
    flags: int
    size: Bytes | None
    version: str = ""
    firmware: str = ""
    model: str = ""

    def check(self) -> None:
        """Raise ProtocolError unless its names and numbers are of this world."""
        words = (self.name, self.driver, self.profile, self.version, self.firmware, self.model)
        if any(len(word) > MAX_NAME or not word.isprintable() for word in words):
            raise ProtocolError("the offer has a device with a name that cannot be one")
        if (self.size or 0) > MAX_STATE:
            raise ProtocolError(f"the offer has a device {self.name} of {self.size} bytes")


class Offer(_Message, frozen=True, tag="offer"):
    """Source to destination: the set, and how its data will travel.

    ``chunk_size`` in bytes.  ``window``: bytes that each channel keeps to be sent again; 0: none.
    ``reconnect_seconds``: how long the source tries to open a connection again that broke.
    """

    devices: Annotated[list[OfferedDevice], msgspec.Meta(max_length=MAX_DEVICES)]
    channels: int
    chunk_size: int
    digests: bool
    window: Bytes
    reconnect_seconds: Seconds
    access_queue: bool = False
    """Whether accesses to devices that stand still will come, to be replayed."""

    def check(self) -> None:
        """Raise ProtocolError unless all numbers and names in it are of this world."""
        _check_channels(self.channels, self.chunk_size, self.window)
        for device in self.devices:
            device.check()


class Tunnel(_Message, frozen=True, tag="tunnel"):
    """Source to destination, in place of an offer: one stream of bytes, which is no device's.

    ``two_way``: its other end takes bytes back, where the destination's has some to say.  The other
    fields are as in :class:`Offer`.
    """

    two_way: bool
    channels: int
    chunk_size: int
    digests: bool
    window: Bytes
    reconnect_seconds: Seconds

    def check(self) -> None:
        """Raise ProtocolError unless all numbers in it are of this world."""
        _check_channels(self.channels, self.chunk_size, self.window)


class Accept(_Message, frozen=True, tag="accept"):
    """Destination to source: all devices match and are RESUMING; or the output of a tunnel is open.

    ``load_seconds`` is what the destination expects from the end of the data to RUNNING.
    """

    load_seconds: Seconds


class Refuse(_Message, frozen=True, tag="refuse"):
    """Destination to source: why not, by device.  Nothing was touched."""

    reasons: dict[str, str]


class Plan(_Message, frozen=True, tag="plan"):
    """Source to destination, in place of an offer: would this set be accepted?  Touches nothing."""

    devices: Annotated[list[OfferedDevice], msgspec.Meta(max_length=MAX_DEVICES)]
    access_queue: bool = False
    """As in an offer."""

    def check(self) -> None:
        """Raise ProtocolError unless all numbers and names in it are of this world."""
        for device in self.devices:
            device.check()


class PlannedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device of the destination.  ``state``: the one it is in, or why it does not say."""

    name: str
    driver: str
    flags: int
    state: str
    version: str = ""
    firmware: str = ""
    model: str = ""
    arc_seconds: dict[str, Seconds] = {}


class Planned(_Message, frozen=True, tag="planned"):
    """Destination to source: its devices, and why it would refuse, by device; empty: it would not."""

    devices: Annotated[list[PlannedDevice], msgspec.Meta(max_length=MAX_DEVICES)]
    reasons: dict[str, str]


class Ready(_Message, frozen=True, tag="ready"):
    """Destination to source: all data connections are there.

    ``splice``: every device here takes its bytes by splice, unseen; the source may send them so too.
    """

    splice: bool


class Probe(_Message, frozen=True, tag="probe"):
    """Source to destination: so many pad bytes in all are on their way."""

    size: Bytes


class ProbeDone(_Message, frozen=True, tag="probe-done"):
    """Destination to source: they have arrived."""


class SwitchoverAck(_Message, frozen=True, tag="switchover-ack"):
    """Destination to source: the initial bytes of every pre-copy device are loaded."""


class Switchover(_Message, frozen=True, tag="switchover"):
    """Source to destination: the vCPUs are being stopped; what comes is the stop-copy data."""


class Config(_Message, frozen=True, tag="config"):
    """Source to destination: what the source's hook saved of each device besides its data.

    Comes before the first stop-copy data, which waits for the answer.
    """

    devices: dict[str, bytes]


class ConfigTaken(_Message, frozen=True, tag="config-taken"):
    """Destination to source: it is loaded, or kept until all data is."""


class Accesses(_Message, frozen=True, tag="accesses"):
    """Source to destination: a part of what was queued for devices that stand still, in order."""

    data: bytes
    last: bool


class LoadedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the destination took of one device: bytes and digest of its stream."""

    name: str
    size: Bytes
    digest: int


class Loaded(_Message, frozen=True, tag="loaded"):
    """Destination to source: every device has passed RESUMING -> STOP -> RUNNING_P2P.

    ``journal`` is the identity of the one in which that is recorded; empty: none.
    """

    devices: list[LoadedDevice]
    validate_seconds: Seconds
    ready_seconds: Seconds
    journal: str = ""
    journal_seconds: Seconds = 0.0
    accesses: int | None = None
    """CRC32C of the queued accesses that came; None: there were to be none."""


class Commit(_Message, frozen=True, tag="commit"):
    """Source to destination: the devices are yours.  The point of no return."""


class Running(_Message, frozen=True, tag="running"):
    """Destination to source: every device is RUNNING and the vCPUs are started."""

    resume_seconds: Seconds
    start_vcpus_seconds: Seconds
    replay_seconds: Seconds = 0.0
    journal_seconds: Seconds = 0.0


class Resolve(_Message, frozen=True, tag="resolve"):
    """Source to destination, in place of an offer: what has become of a session that broke off.

    ``decision``: "run" (the source has committed) or "discard" (it has not, and never will).
    ``journal`` repeats what LOADED said; a destination with another one cannot know.
    """

    session: str
    decision: Literal["run", "discard"]
    journal: str = ""


class Discarded(_Message, frozen=True, tag="discarded"):
    """Destination to source: the session does not run here and never will; ``reason`` in words."""

    reason: str


class Goodbye(_Message, frozen=True, tag="goodbye"):
    """Source to destination: it heard RUNNING; nothing more comes."""


class Delivered(_Message, frozen=True, tag="delivered"):
    """Destination to source: a tunnel's output has all bytes and its end; so many, with this digest."""

    size: Bytes
    digest: int


class Back(_Message, frozen=True, tag="back"):
    """Destination to source: what the other end of a tunnel's output says; empty: nothing more.

    The next one waits for the answer.
    """

    data: bytes


class BackTaken(_Message, frozen=True, tag="back-taken"):
    """Source to destination: the other end of the input has taken it."""


class Failed(_Message, frozen=True, tag="failed"):
    """Either way, at any time: this side gives up; ``reason`` in words.

    ``cancelled`` when a person ended it.
    """

    reason: str
    cancelled: bool = False


Message: TypeAlias = (
    Hello
    | Proof
    | Offer
    | Accept
    | Refuse
    | Plan
    | Planned
    | Ready
    | Probe
    | ProbeDone
    | SwitchoverAck
    | Switchover
    | Accesses
    | Config
    | ConfigTaken
    | Loaded
    | Commit
    | Running
    | Resolve
    | Discarded
    | Goodbye
    | Tunnel
    | Delivered
    | Back
    | BackTaken
    | Failed
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as MessagePack."""
    data = bytearray()
    _encoder.encode_into(message, data)  # encode() crashes when memory runs out (msgspec 0.22)
    return bytes(data)


def decode(data: bytes) -> Message:
    """The message in ``data``.  Raises msgspec.DecodeError for anything else."""
    try:
        message: Message = _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec lets these two through
        raise msgspec.DecodeError(str(error)) from None
    return message

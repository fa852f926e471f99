from collections.abc import Sequence

from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._fdio import Cancel, Port

CHUNK_LIMIT: int

class InLane:
    """The destination's end of one device's stream: puts its frames in order, loads them."""

    name: str
    title: str

    def __init__(self, name: str, port: Port) -> None: ...
    @property
    def offset(self) -> int:
        """Device bytes loaded so far."""

    @property
    def wire_bytes(self) -> int:
        """Bytes of its frames on the wire so far, headers included."""

    @property
    def frames(self) -> int:
        """Frames so far."""

    @property
    def write_ns(self) -> int:
        """Time spent in the device's write, in nanoseconds."""

    @property
    def digest(self) -> int:
        """CRC32C of the bytes loaded so far; 0 without digests."""

    @property
    def marks(self) -> int:
        """How many times all initial bytes have been loaded."""

    @property
    def busy(self) -> bool:
        """Whether a frame is going to the device now."""

    @property
    def ended(self) -> bool:
        """Whether the stream came to its end with the right length and digest."""

class Receiver:
    """The destination's ends of all streams of a session."""

    def __init__(
        self,
        lanes: Sequence[InLane],
        pool: Pool,
        cancel: Cancel,
        signal_fd: int,
        *,
        digests: bool,
    ) -> None: ...
    def receive(self, channel: Channel) -> bool:
        """Load what arrives on ``channel`` until the peer ends it; one call for its whole life.

        Returns:
            True at a clean end (between two frames), False when cancelled.

        Raises:
            DeviceError: a device refused its data; always fatal to the load.
            IntegrityError: a digest or a compressed frame is wrong.
            ProtocolError: a frame that makes no sense here.
            PeerLost: the connection failed, or ended inside a frame.
            MemoryError: no buffer.
        """

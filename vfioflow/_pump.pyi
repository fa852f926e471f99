import socket
from collections.abc import Sequence

from vfioflow._buffers import Pool
from vfioflow._fdio import Cancel, Port

CHUNK_LIMIT: int
CANCELLED: int
DRAINED: int
BUDGET: int
END: int

class Limiter:
    """A rate that several lanes share, in bytes a second; 0 is no limit."""

    rate: int
    def __init__(self, rate: int = 0) -> None: ...

class Channel:
    """One connection for data frames.  Takes a connected stream socket and keeps it blocking."""

    def __init__(self, socket: socket.socket) -> None: ...
    @property
    def wire_bytes(self) -> int:
        """Bytes sent on this connection, headers included."""

    @property
    def pad_bytes(self) -> int:
        """Pad bytes received on this connection."""

    def pad(self, size: int, pool: Pool, limiter: Limiter, cancel: Cancel) -> None:
        """Send ``size`` bytes that the receiver throws away, to measure the wire.

        Raises:
            PeerLost: the connection failed.
            MemoryError: no buffer.
        """

class OutLane:
    """The source's end of one device's stream."""

    name: str
    index: int
    offset: int
    wire_bytes: int
    frames: int
    read_ns: int
    send_ns: int
    digest: int

    def __init__(
        self,
        name: str,
        index: int,
        channels: Sequence[Channel],
        pool: Pool,
        cancel: Cancel,
        limiter: Limiter,
        *,
        digests: bool,
        elide_zeros: bool = False,
        level: int | None = None,
    ) -> None: ...
    def pump(self, port: Port, budget: int, *, precopy: bool) -> int:
        """Move up to ``budget`` bytes from the data fd to the wire; one call for one phase.

        Returns:
            DRAINED, BUDGET, END, or CANCELLED.  In pre-copy both ``0`` and ``ENOMSG`` from the
            device mean DRAINED (the uAPI says ENOMSG, several drivers return 0); afterwards ``0``
            means END.

        Raises:
            DeviceError: the device's read failed.
            PeerLost: the connection failed.
            MemoryError: no buffer.
        """

    def hold(self, held: bool = True) -> None:
        """Make a running pump, and later ones, return CANCELLED at the next chunk; or undo it."""

    def mark(self) -> None:
        """Say on the wire that the initial bytes end here.  Raises PeerLost."""

    def end(self) -> None:
        """Say on the wire that the stream ends here.  Raises PeerLost."""

class InLane:
    """The destination's end of one device's stream: puts its frames in order, loads them."""

    name: str

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

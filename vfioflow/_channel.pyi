import socket

from vfioflow._buffers import Pool
from vfioflow._fdio import Cancel

class Limiter:
    """A rate that several lanes share, in bytes a second; 0 is no limit."""

    rate: int
    def __init__(self, rate: int = 0) -> None: ...

class Channel:
    """One connection for data frames.  Takes a connected stream socket and keeps it blocking."""

    def __init__(self, socket: socket.socket) -> None: ...
    def keep(self) -> None:
        """Take the descriptor from the socket: closed when the last pump is done with it."""

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

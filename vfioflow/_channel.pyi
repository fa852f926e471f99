import socket

from vfioflow._buffers import Pool
from vfioflow._fdio import Cancel
from vfioflow._waits import Limiter

class Channel:
    """One connection for data frames.  Takes a connected stream socket and keeps it blocking.

    ``window``: bytes to keep until the receiver has dealt with them, at least two frames; 0: none.
    ``sender``: whether this end sends.  ``signal_fd``: an eventfd, written when the connection breaks.
    ``key``: of the tags of its frames, 32 bytes; empty: none.
    """

    def __init__(
        self,
        socket: socket.socket,
        window: int = 0,
        *,
        sender: bool = False,
        signal_fd: int = -1,
        key: bytes = b"",
    ) -> None: ...
    def keep(self) -> None:
        """Take the descriptor from the socket: closed when the last pump is done with it."""

    @property
    def wire_bytes(self) -> int:
        """Bytes sent on this connection, headers included."""

    @property
    def pad_bytes(self) -> int:
        """Pad bytes received on this connection."""

    @property
    def broken(self) -> bool:
        """Whether the connection is broken, and the pumps wait for another."""

    def look(self) -> bool:
        """Notice a connection that broke while no pump used it; whether it is.  For a sender."""

    def unheard(self, heard: int) -> int:
        """Bytes that were sent, and have to be again, to a receiver that has dealt with ``heard``."""

    def resume(self, socket: socket.socket, heard: int, cancel: Cancel) -> None:
        """Go on sending over ``socket``, whose receiver has dealt with ``heard`` bytes.

        Blocking: what was lost is sent again.  The old socket must be shut down.

        Raises:
            ProtocolError: the receiver cannot have come that far.
            PeerLost: given up meanwhile.
        """

    def park(self, cancel: Cancel) -> int | None:
        """Wait until the receiving pump is done with the old socket, which must be shut down.

        Blocking.  Returns how many bytes it has dealt with; None when there is no use in waiting.
        """

    def unpark(self, socket: socket.socket) -> None:
        """Let the receiving pump go on over ``socket``."""

    def give_up(self) -> None:
        """Let the pumps fail that wait for another connection."""

    def finish(self, cancel: Cancel) -> None:
        """Say that nothing more comes on this channel.  Raises PeerLost."""

    def pad(self, size: int, pool: Pool, limiter: Limiter, cancel: Cancel) -> None:
        """Send ``size`` bytes that the receiver throws away, to measure the wire.

        Raises:
            PeerLost: the connection failed.
            MemoryError: no buffer.
        """

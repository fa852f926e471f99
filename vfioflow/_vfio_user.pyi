from collections.abc import Sequence

class Line:
    """A connection to a vfio-user server, by its socket, which it owns."""

    def __init__(self, fd: int, patience: float) -> None: ...
    def fileno(self) -> int:
        """The socket's descriptor.  Raises OSError once closed."""

    @property
    def broken(self) -> int:
        """The errno for which it is of no use any more; 0: it is whole."""

    @property
    def reason(self) -> str:
        """Why it is broken, in words; "" while it is whole."""

    @property
    def waiting(self) -> int:
        """Requests whose replies are due."""

    def request(
        self, command: int, payload: bytes, most: int, timeout: float, fds: Sequence[int] = ()
    ) -> tuple[int, bytes]:
        """Ask, and wait for the reply: the server's errno (0: it was done), and the reply's payload.

        Raises OSError: the connection is broken; TimeoutError: no reply within ``timeout`` seconds.
        """

    def shut(self, code: int, reason: str) -> None:
        """Break it, if it is whole, end every wait, and close the socket.  Safe to call twice."""

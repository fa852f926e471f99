from typing_extensions import Buffer

class Port:
    """A device's data fd, as a pump reads or writes it.  Owns the fd; makes it non-blocking."""

    def __init__(self, fd: int, *args: object) -> None: ...
    def fileno(self) -> int:
        """The data fd.  Raises ValueError once closed."""

    @property
    def takes_pages(self) -> bool:
        """Whether splice is the fastest way into it."""

    @property
    def advice(self) -> str:
        """What to say besides the errno when a read or write failed; "" where that says it all."""

    def readinto(self, buffer: Buffer) -> int:
        """One read as a pump does it, for callers in Python: the bytes read.

        Raises OSError: BlockingIOError where there is nothing yet, and what a driver says in PRE_COPY
        where it has nothing left, ENOMSG.
        """

    def close(self) -> None:
        """Close the data fd.  Safe to call twice; never call it while a pump runs on the port."""

class Cancel:
    """A switch that ends every wait of the pumps it was given to.  Once set, it stays set."""

    def __init__(self) -> None: ...
    def set(self) -> None:
        """End the waits.  Safe from any thread, and to call twice."""

    @property
    def is_set(self) -> bool:
        """Whether `set` was called."""

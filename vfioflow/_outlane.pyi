from collections.abc import Sequence

from vfioflow._balance import Balance
from vfioflow._buffers import Pool
from vfioflow._channel import Channel
from vfioflow._crew import Crew
from vfioflow._fdio import Cancel, Port
from vfioflow._waits import Limiter

CANCELLED: int
DRAINED: int
BUDGET: int
END: int

class OutLane:
    """The source's end of one device's stream."""

    name: str
    title: str
    index: int
    offset: int
    wire_bytes: int
    frames: int
    digest: int
    balance: Balance | None

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
        crew: Crew | None = None,
        splice: bool = False,
        crowded: bool = False,
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

    def mark(self) -> None:
        """Say on the wire that the initial bytes end here.  Raises PeerLost."""

    def end(self) -> None:
        """Say on the wire that the stream ends here.  Raises PeerLost."""

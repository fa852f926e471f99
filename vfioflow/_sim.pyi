from collections.abc import Sequence

from vfioflow._simfabric import FabricCore

def live() -> dict[str, int]:
    """Devices not closed, and open sessions: a thread, a buffer and a pipe each."""

def name_hash(name: str) -> int:
    """What stands for a name in streams and ledgers."""

class SimCore:
    """The part of a simulated device that works without the GIL.

    `open_*` and `end_session` must not be called by two threads at once; everything else may.
    Raises OSError with the errno that the kernel would give.
    """

    def __init__(
        self,
        name: str,
        driver: str,
        *,
        size: int,
        block: int,
        initial: int,
        hot: int,
        dirty_rate: float,
        content: str,
        path: str | None,
        seed: int,
        read_rate: float,
        write_rate: float,
        p2p_rate: float,
        load_seconds: float,
        drained_errno: int,
        info_starts_save: bool,
        load_in_write: bool,
        state: int,
        faults: Sequence[tuple[bool, int, int, bool, int]],
        dirty_rates: Sequence[float] = (),
        dirty_step: float = 0,
    ) -> None: ...
    def close(self) -> None:
        """End the session, leave the fabric.  The object only answers questions afterwards."""

    def join(self, fabric: FabricCore) -> None:
        """Connect the device to the others in `fabric`.  Raises ValueError."""

    def fresh(self) -> None:
        """The state of a device just made: its own content at version 0, an empty ledger."""

    def arm(self, room: int) -> None:
        """Have the fabric keep messages to this device, `room` of all such devices; nothing without one."""

    def disarm(self) -> bool:
        """Let messages reach it again, unless the fabric keeps some; whether they do now."""

    def take_trapped(self) -> list[tuple[int, int, int]]:
        """All messages that the fabric keeps, in order: (sender, receiver, number), names as hashes."""

    def receive(self, sender: str, number: int) -> bool:
        """Give the device a message that was kept; whether it could take it."""

    @property
    def state(self) -> int:
        """The effective migration state, as a number."""

    @property
    def session(self) -> int:
        """0 none, 1 saving, 2 loading."""

    @property
    def released(self) -> int:
        """Counts calls of `release`; give it to the waits below."""

    @property
    def waiting(self) -> int:
        """How many threads wait in an arc, for a load, or inside a write."""

    def release(self) -> None:
        """End the waits and hangs that began before."""

    def wait_arc(self, seconds: float, released: int) -> bool:
        """Spend the time of an arc (negative: for ever); False when it was released."""

    def tick(self) -> None:
        """Let the fabric deliver."""

    def set_effective(self, state: int) -> None:
        """The end of an arc: `state` holds from now on; a drained stream reopens for STOP_COPY."""

    def open_save(self, state: int) -> int:
        """Open a saving session and enter `state`; the fd to read from, the caller's to close."""

    def open_load(self, state: int) -> int:
        """Open a loading session and enter `state`; the fd to write to, the caller's to close."""

    def end_session(self) -> None:
        """Stop the session's thread and free what it used; ports give ENODEV from here on."""

    def flush(self, released: int) -> bool:
        """Wait until the consumer has taken all that was written; False when released meanwhile."""

    def load(self) -> None:
        """Take over the state that was loaded: EINVAL unless it is whole and right."""

    def precopy_info(self, fd: int) -> tuple[int, int]:
        """(initial, dirty) bytes of the stream that are still to be read from `fd`."""

    def stop_copy_size(self) -> int:
        """Bytes of the stream that a STOP_COPY from here would still hand out."""

    def true_digest(self) -> int:
        """The sum of the digests of all blocks as they are now."""

    def ledger(self) -> dict[int, tuple[int, int, int, int]]:
        """What the device knows of its peers: name hash -> (sent, received, duplicates, gaps)."""

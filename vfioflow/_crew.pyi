from vfioflow._buffers import Pool

class Crew:
    """Threads that compress, shared by all lanes of a session."""

    threads: int
    level: int
    automatic: bool
    packed_in: int
    packed_out: int

    def __init__(
        self, threads: int, pool: Pool, spare_jobs: int, *, level: int | None = None
    ) -> None: ...
    def start(self) -> None:
        """Start the threads."""

    def close(self, *, wait: bool = True) -> None:
        """End the threads, each when its present job is done, and ``wait`` for that.  Safe to call twice.

        A pump that still runs must have been cancelled.
        """

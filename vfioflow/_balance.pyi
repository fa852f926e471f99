class Balance:
    """Whether compression pays now, for one lane.  Times in nanoseconds, rates in bytes per nanosecond."""

    packing: bool
    level: int
    raw_rate: float

    def __init__(self) -> None: ...
    def sent(self, size: int, ns: int) -> None:
        """``size`` device bytes took ``ns`` from being read to being with the socket."""

    def sampled(self, which: int, size: int, packed: int, ns: int) -> None:
        """One thread took ``ns`` to make ``packed`` out of ``size`` bytes, at level number ``which``."""

    def due(self) -> bool:
        """Whether it is time for a sample of each level and a decision."""

    def decide(self, now: int, threads: float) -> None:
        """Set ``packing`` and ``level``; ``threads``: this lane's share of the compressors."""

class Pool:
    """At most ``capacity`` buffers of ``size`` bytes; each is mapped when it is first needed."""

    size: int
    capacity: int
    allocated: int

    def __init__(self, size: int, capacity: int) -> None: ...
    @property
    def in_use(self) -> int:
        """How many buffers are out now; 0 when no pump runs."""

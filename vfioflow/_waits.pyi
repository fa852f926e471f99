class Limiter:
    """A rate that several lanes share, in bytes a second; 0 is no limit."""

    rate: int
    def __init__(self, rate: int = 0) -> None: ...

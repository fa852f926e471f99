def version() -> str:
    """The zstd library's version, such as "1.5.7"."""

class Compressor:
    """A compression context of a fixed level, used again for each chunk."""

    level: int
    def __init__(self, level: int) -> None: ...

class Decompressor:
    """A decompression context, used again for each chunk."""

    def __init__(self) -> None: ...

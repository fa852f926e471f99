KEY_SIZE: int

def load() -> None:
    """Look up everything in Python's libcrypto, if that has not been done yet.

    Raises:
        ImportError: it cannot do GMAC.
    """

class Mac:
    """The tags of one channel's frames, counted from 0.  For one thread at a time.

    ``key``: 32 bytes, for this channel of this session alone.

    Raises:
        ImportError: Python's libcrypto cannot do it.
        MemoryError: no memory.
    """

    def __init__(self, key: bytes) -> None: ...

def tag_of(mac: Mac, number: int, head: bytes, payload: bytes) -> bytes:
    """The tag of a frame with this number.  For tests and tools."""

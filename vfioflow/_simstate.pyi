from typing_extensions import Buffer

CONTENTS: dict[str, int]

class Tile:
    """The bytes from which blocks are made: at most 4 MiB, or a mapped file."""

    @property
    def blocks(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def content(self) -> int: ...
    @property
    def seed(self) -> int: ...

def get_tile(content: str, seed: int, size: int, block: int, path: str | None = None) -> Tile:
    """The tile for a device, shared with all live devices of the same content, seed and shape."""

def content_name(content: int) -> str:
    """The name of a content kind as it stands in a stream; KeyError for an unknown one."""

def block_bytes(tile: Tile, size: int, index: int, version: int) -> bytes:
    """The bytes of one block of a state of `size` bytes, as a device sends them."""

def block_digest(data: Buffer, index: int, version: int) -> int:
    """The device's own 64-bit digest of a block; releases the GIL."""

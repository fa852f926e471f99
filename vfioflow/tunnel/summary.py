"""How a tunnel ended."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Summary"]


class Summary(msgspec.Struct, kw_only=True):
    """One side's account; there however it ended."""

    role: Literal["source", "destination"]
    outcome: Literal["completed", "failed", "cancelled"] = "failed"
    error: str | None = None
    session: str = ""
    peer: str = ""
    end: str = ""
    """The input at the source, the output at the destination, in words."""

    channels: int = 0
    bytes: int = 0
    """Of the stream: taken from the input and sent, or put into the output."""

    bytes_wire: int = 0
    """What they were on the wire, frames' headers included."""

    bytes_back: int = 0
    """What the output's other end said, and the input's was told."""

    digest: str = ""
    """CRC32C of the stream; empty without digests."""

    reconnects: int = 0
    """Connections that the source opened again."""

    seconds: float = 0.0
    """From when bytes began to flow (a tenth of a second more or less) to the end."""

    def to_json(self) -> str:
        """As one JSON object."""
        return msgspec.json.encode(self).decode()

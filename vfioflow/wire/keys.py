"""What a session's connections know each other by, and are protected with.

Everything is derived from one secret, which both sides compute from their greetings: HMAC-SHA256
in the way of HKDF (RFC 5869), one label for each purpose.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Literal, TypeAlias

__all__ = ["Keys", "Seal", "Side", "TAG_SIZE", "TOKEN_SIZE"]

TOKEN_SIZE = 16
TAG_SIZE = 16

Side: TypeAlias = Literal["source", "destination"]

_NUMBER = struct.Struct("<Q")


class Seal:
    """The tags of the control messages of one side."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def tag(self, number: int, data: bytes) -> bytes:
        """The tag of its message ``number``, counted from 1, head included."""
        return hmac.digest(self._key, _NUMBER.pack(number) + data, hashlib.sha256)[:TAG_SIZE]

    def fits(self, tag: bytes, number: int, data: bytes) -> bool:
        """Whether it is the tag of this message; takes as long whatever is wrong with it."""
        return hmac.compare_digest(tag, self.tag(number, data))


class Keys:
    """The keys of one session.

    Args:
        transcript: both greetings, as they went over the wire.
        psk: the key that both sides have beforehand; empty: none.  Then whoever reads the greetings
            has the keys too, and they only keep stray connections out.
    """

    def __init__(self, transcript: bytes, psk: bytes = b"") -> None:
        self._secret = hmac.digest(psk, transcript, hashlib.sha256)
        self.keyed = bool(psk)
        """Whether messages and frames carry tags."""

    def token(self, role: int, channel: int, attempt: int) -> bytes:
        """What opens the connection ``channel`` of ``role`` for the ``attempt``-th time."""
        return self._derive(b"open", role, channel, attempt)[:TOKEN_SIZE]

    def answer(self, role: int, channel: int, attempt: int) -> bytes:
        """What shows that the destination's answer to it comes from this session."""
        return self._derive(b"answer", role, channel, attempt)[:TOKEN_SIZE]

    def proof(self, side: Side) -> bytes:
        """What shows that ``side`` has the pre-shared key, in a session with these greetings."""
        return self._derive(b"proof of the " + side.encode())

    def seal(self, side: Side) -> Seal | None:
        """The tags of the control messages that ``side`` sends; None without a pre-shared key."""
        return Seal(self._derive(b"messages of the " + side.encode())) if self.keyed else None

    def frames(self, channel: int) -> bytes:
        """The key of the tags of a channel's frames; empty without a pre-shared key."""
        return self._derive(b"frames", channel) if self.keyed else b""

    def _derive(self, label: bytes, *numbers: int) -> bytes:
        about = struct.pack(f"<{len(numbers)}I", *numbers)
        return hmac.digest(self._secret, b"vfioflow " + label + b"\0" + about, hashlib.sha256)

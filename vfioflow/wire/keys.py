"""What a session's connections know each other by, and are protected with.

Everything is derived from one secret, which both sides compute from their greetings: HMAC-SHA256
in the way of HKDF (RFC 5869), one label for each purpose.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

__all__ = ["Keys", "TOKEN_SIZE"]

TOKEN_SIZE = 16


class Keys:
    """The keys of one session.

    Args:
        transcript: both greetings, as they went over the wire.
        psk: the key that both sides have beforehand; empty: none.  Then whoever reads the greetings
            has the keys too, and they only keep stray connections out.
    """

    def __init__(self, transcript: bytes, psk: bytes = b"") -> None:
        self._secret = hmac.digest(psk, transcript, hashlib.sha256)

    def token(self, role: int, channel: int, attempt: int) -> bytes:
        """What opens the connection ``channel`` of ``role`` for the ``attempt``-th time."""
        return self._derive(b"open", role, channel, attempt)[:TOKEN_SIZE]

    def answer(self, role: int, channel: int, attempt: int) -> bytes:
        """What shows that the destination's answer to it comes from this session."""
        return self._derive(b"answer", role, channel, attempt)[:TOKEN_SIZE]

    def _derive(self, label: bytes, *numbers: int) -> bytes:
        about = struct.pack(f"<{len(numbers)}I", *numbers)
        return hmac.digest(self._secret, b"vfioflow " + label + b"\0" + about, hashlib.sha256)

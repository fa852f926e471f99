"""The messages and frames that the bytes of a connection are made of."""

from __future__ import annotations

import msgspec

_TAG = 16
"""Bytes behind a message or frame of a session with a key."""

_FRAME_KINDS = ("", "raw", "zstd", "zero", "mark", "end", "pad", "close")


class Units:
    """Cuts a stream into the messages or frames that it is made of, while it is well-formed."""

    def __init__(self, data: bool, toward: str, *, tagged: bool) -> None:
        self._data = data
        self._tag = _TAG if tagged else 0
        self._toward = toward
        self._held = bytearray()
        self._begun = False
        self._lost = False

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """What is whole now; what cannot be understood is called "" and passed on."""
        self._held += data
        found = []
        while not self._lost and self._held:
            size = self._size()
            if size is None or len(self._held) < size:
                break
            unit = bytes(self._held[:size])
            del self._held[:size]
            found.append((self._name(unit), unit))
            self._begun = True
        if self._lost and self._held:
            found.append(("", bytes(self._held)))
            self._held.clear()
        return found

    def rest(self) -> bytes:
        """What is left of a unit that never became whole."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _size(self) -> int | None:
        held = self._held
        if not self._begun:
            if len(held) < 32:
                return None
            again = held[11] != 0
            # A connection that is opened again says how far its side had come.
            both = held[10] == 1 or self._toward == "source"
            return 40 if again and both else 32
        if self._data:
            if len(held) < 32:
                return None
            length = int.from_bytes(held[4:8], "little")
            self._lost = length > 1 << 27 or not 0 < held[0] < len(_FRAME_KINDS)
            return None if self._lost else 32 + length + self._tag
        if len(held) < 8:
            return None
        if held[:8] == bytes(8):
            return 8
        length = int.from_bytes(held[:4], "little")
        self._lost = not 0 < length <= 1 << 20
        if self._lost or len(held) < 8 + length:
            return None
        # The greetings and proofs, by which both sides come to a key, have no tag.
        early = _type(bytes(held[8 : 8 + length])) in ("hello", "proof")
        return 8 + length + (0 if early else self._tag)

    def _name(self, unit: bytes) -> str:
        if not self._begun:
            return "preamble"
        if self._data:
            return _FRAME_KINDS[unit[0]]
        if unit == bytes(8):
            return "sign of life"
        return _type(unit[8 : 8 + int.from_bytes(unit[:4], "little")])


def forge(unit: bytes, field: str) -> bytes:
    """LOADED with another digest or size of its first device."""
    end = 8 + int.from_bytes(unit[:4], "little")
    message = msgspec.msgpack.decode(unit[8:end])
    message["devices"][0][field] ^= 1
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "little") + unit[4:8] + body + unit[end:]


def _type(message: bytes) -> str:
    try:
        return str(msgspec.msgpack.decode(message).get("type"))
    except (msgspec.DecodeError, AttributeError):
        return "?"

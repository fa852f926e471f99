"""A place in a stream that only goes forward, and knows how far it is."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vfioflow.errors import StreamError

__all__ = ["Cursor", "Read"]

Read = Callable[[int], bytes]
"""At most so many bytes, and none at the end."""

CHUNK = 1 << 20
"""Bytes that are read at a time; a little more than twice as many are held."""

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class Cursor:
    """Takes big-endian numbers and strings.

    All but :meth:`peek` and :meth:`find` raise StreamError where the stream ends before.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._data = b""
        self._at = 0
        self._base = 0
        self._ended = False

    @property
    def offset(self) -> int:
        """Bytes of the stream before this place."""
        return self._base + self._at

    def _fill(self, size: int) -> bool:
        """Have so many bytes at hand; whether there are."""
        while len(self._data) - self._at < size and not self._ended:
            more = self._read(CHUNK)
            self._ended = not more
            self._base += self._at
            self._data = self._data[self._at :] + more
            self._at = 0
        return len(self._data) - self._at >= size

    def peek(self, size: int) -> bytes:
        """The next bytes, without going on; fewer where the stream ends.  At most CHUNK."""
        self._fill(size)
        return self._data[self._at : self._at + size]

    def take(self, size: int, what: str) -> bytes:
        """The next bytes, at most CHUNK; ``what`` they are, for the error."""
        if not self._fill(size):
            raise StreamError(
                self._base + len(self._data), f"the stream ends in the middle of {what}"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def skip(self, size: int, what: str) -> None:
        """Go on by so many bytes, however many."""
        while size > 0:
            part = min(size, max(len(self._data) - self._at, 1))
            self.take(part, what)
            size -= part

    def u8(self, what: str) -> int:
        """A byte."""
        return self.take(1, what)[0]

    def u16(self, what: str) -> int:
        """Two bytes."""
        (value,) = _U16.unpack(self.take(2, what))
        return int(value)

    def u32(self, what: str) -> int:
        """Four bytes."""
        (value,) = _U32.unpack(self.take(4, what))
        return int(value)

    def u64(self, what: str) -> int:
        """Eight bytes."""
        if len(self._data) - self._at >= 8:  # a shortcut, for there are millions
            (value,) = _U64.unpack_from(self._data, self._at)
            self._at += 8
            return int(value)
        (value,) = _U64.unpack(self.take(8, what))
        return int(value)

    def name(self, what: str) -> str:
        """A string behind the byte with its length; must be printable ASCII."""
        begin = self.offset
        data = self.take(self.u8(what), what)
        if not (data.isascii() and data.decode("ascii").isprintable()):
            raise StreamError(begin, f"{what} is no text")
        return data.decode("ascii")

    def find(self, pattern: bytes, fits: Callable[[bytes], bool], ahead: int) -> int | None:
        """Go on to the next ``pattern`` for which what follows, up to ``ahead`` bytes, ``fits``.

        The bytes that were passed; None: there is no such, and the stream is at its end.
        """
        passed = 0
        while True:
            self._fill(len(pattern) + ahead)
            at = self._data.find(pattern, self._at)
            if at < 0:
                keep = min(len(pattern) - 1, len(self._data) - self._at)
                passed += len(self._data) - keep - self._at
                self._at = len(self._data) - keep
                if self._ended:
                    return None
                self._fill(keep + 1)
                continue
            passed += at - self._at
            self._at = at
            after = self.peek(len(pattern) + ahead)[len(pattern) :]
            if fits(after):
                return passed
            passed += 1
            self._at += 1

"""The description at a stream's end: JSON with the size of each field of each device."""

from __future__ import annotations

import msgspec

__all__ = ["described_sizes"]


class _Field(msgspec.Struct):
    size: int = 0
    array_len: int = 1


class _Subsection(msgspec.Struct):
    vmsd_name: str
    fields: list[_Field] = []
    subsections: list[_Subsection] = []

    @property
    def bytes(self) -> int:
        """With its header: a byte, the name behind its length, the version."""
        return 1 + 1 + len(self.vmsd_name) + 4 + _size(self.fields, self.subsections)


class _Device(msgspec.Struct):
    name: str
    instance_id: int
    fields: list[_Field] = []
    subsections: list[_Subsection] = []


class _Description(msgspec.Struct):
    devices: list[_Device]


_decoder = msgspec.json.Decoder(_Description)


def _size(fields: list[_Field], subsections: list[_Subsection]) -> int:
    """Of an array whose elements all have one size, QEMU describes the first, and says how many there are."""
    return sum(field.size * field.array_len for field in fields) + sum(s.bytes for s in subsections)


def described_sizes(data: bytes) -> dict[tuple[str, int], int] | None:
    """Bytes of each device's section, by name and instance; None: it is no such description."""
    try:
        devices = _decoder.decode(data).devices
        return {(d.name, d.instance_id): _size(d.fields, d.subsections) for d in devices}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None

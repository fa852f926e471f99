"""What is found in a stream."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Command", "Ram", "Section", "Stream", "Vfio"]


class Ram(msgspec.Struct, kw_only=True):
    """The part of a section that is guest memory."""

    blocks: dict[str, int] = {}
    """Each block's length in bytes, by name."""

    pages: int = 0
    """Pages sent as they are."""

    page_bytes: int = 0
    zero_pages: int = 0
    """Pages of one byte all over, of which that byte alone was sent."""

    packed_pages: int = 0
    """Pages sent as a difference, or compressed."""

    packed_bytes: int = 0


class Vfio(msgspec.Struct, kw_only=True):
    """The part of a section that is a VFIO device's.

    Bytes are of the device, without the flags and lengths around them.
    """

    setup: bool = False
    """Whether its setup is there, which has no bytes."""

    data_blocks: int = 0
    precopy_bytes: int = 0
    """Of its data, before the virtual machine stood still."""

    stopcopy_bytes: int = 0
    """And since."""

    config_bytes: int | None = None
    """Its config space; None: there is none in this stream."""

    initial_data_sent: bool = False
    """Whether the source said that all initial bytes were sent."""

    config_load_ready: bool = False
    """Whether the config space, sent on another channel, could be loaded from here on."""

    @property
    def device_bytes(self) -> int:
        """All of them."""
        return self.precopy_bytes + self.stopcopy_bytes + (self.config_bytes or 0)


class Section(msgspec.Struct, kw_only=True):
    """Everything that carries one section number, which may come in many pieces."""

    name: str
    instance: int
    version: int
    number: int
    kind: Literal["ram", "vfio", "device"]
    offset: int
    """Where in the stream it begins."""

    pieces: int = 0
    bytes: int = 0
    """Of all pieces, without the headers and footers around them."""

    sized: Literal["parsed", "footer"] = "parsed"
    """How that is known: its contents say it; or by looking for its footer."""

    described: int | None = None
    """How many the description at the stream's end says; None: it does not."""

    ram: Ram | None = None
    vfio: Vfio | None = None


class Command(msgspec.Struct, kw_only=True):
    """What the stream told the other side to do."""

    name: str
    count: int = 0
    bytes: int = 0


class Stream(msgspec.Struct, kw_only=True):
    """A whole stream, or as much of it as could be read."""

    machine: str = ""
    capabilities: list[str] = []
    page_size: int = 4096
    bytes: int = 0
    sections: list[Section] = []
    commands: list[Command] = []
    description_bytes: int | None = None
    """Of the description at the end; None: there is none."""

    complete: bool = False
    """Whether the stream's own end was there."""

    notes: list[str] = []
    """What cannot be known, or does not agree."""

    def total(self, kind: str) -> int:
        """Bytes of all sections of a kind."""
        return sum(section.bytes for section in self.sections if section.kind == kind)

    @property
    def around(self) -> int:
        """Bytes of headers, footers, commands and the description."""
        return self.bytes - sum(section.bytes for section in self.sections)

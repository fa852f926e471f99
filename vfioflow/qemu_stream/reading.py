"""The stream as a whole: header, sections, commands, and the description.

A section has no length.  Memory and VFIO data say where they end.  Of everything else only its device
knows; what is here looks for the section's footer, a byte and the section's number, behind which
something must follow that can follow there.  The description at the end says whether that was right.

Source of the rules: QEMU's ``migration/savevm.c``.
"""

from __future__ import annotations

import struct
from typing import Literal

from vfioflow.errors import StreamError
from vfioflow.qemu_stream.contents import FLAG_SIZE, is_vfio, read_ram, read_vfio
from vfioflow.qemu_stream.cursor import CHUNK, Cursor, Read
from vfioflow.qemu_stream.description import described_sizes
from vfioflow.qemu_stream.model import Command, Ram, Section, Stream, Vfio

__all__ = ["read_stream"]

_MAGIC, _VERSION = b"QEVM", 3
_EOF, _START, _PART, _LAST, _FULL, _SUBSECTION = range(6)
_DESCRIPTION, _CONFIGURATION, _COMMAND, _FOOTER = 0x06, 0x07, 0x08, 0x7E

_COMMANDS = (
    "INVALID",
    "OPEN_RETURN_PATH",
    "PING",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_RUN",
    "POSTCOPY_RAM_DISCARD",
    "PACKAGED",
    "ENABLE_COLO",
    "POSTCOPY_RESUME",
    "RECV_BITMAP",
    "SWITCHOVER_START",
)

_MOST_SECTIONS = 65536
_MOST_DESCRIPTION = 64 << 20
_MOST_CAPABILITIES = 256
_AHEAD = 1 + 4 + 1 + 255
"""Bytes behind a footer that show whether it is one: the next section's type, number and name."""

_NUMBER = struct.Struct(">I")


def read_stream(read: Read) -> Stream:
    """Everything that is in a stream.

    Memory stays bounded, however long it is, by what its sections' names need.

    Args:
        read: gives at most so many of the next bytes, and none at the end.

    Raises:
        StreamError: it is none, is damaged or cut short, or has something that cannot be read past; with
            what was found before (``found``).
    """
    reader = _Reader(read)
    try:
        reader.run()
    except StreamError as error:
        error.found = reader.finish()
        raise
    return reader.finish()


class _Reader:
    def __init__(self, read: Read) -> None:
        self._cursor = Cursor(read)
        self._stream = Stream()
        self._by_number: dict[int, Section] = {}
        self._commands: dict[int, Command] = {}
        self._stopped = False
        """Whether a section has come to its last piece: from then on the virtual machine stands still."""

    def run(self) -> None:
        cursor = self._cursor
        if cursor.take(4, "the header") != _MAGIC:
            raise StreamError(0, "this is no QEMU migration stream: it does not begin with QEVM")
        if (version := cursor.u32("the header")) != _VERSION:
            raise StreamError(4, f"version {version} of the stream is unknown")
        while kind := cursor.u8("the sections: its own end is missing"):
            if kind == _CONFIGURATION:
                self._configuration()
            elif kind in (_START, _FULL, _PART, _LAST):
                self._section(kind)
            elif kind == _COMMAND:
                self._command()
            else:
                raise StreamError(cursor.offset - 1, f"a section of the unknown type {kind:#04x}")
        self._stream.complete = True
        self._description()

    def finish(self) -> Stream:
        stream = self._stream
        stream.bytes = self._cursor.offset
        stream.sections = list(self._by_number.values())
        stream.commands = list(self._commands.values())
        return stream

    # ------------------------------------------------------------------ configuration

    def _configuration(self) -> None:
        cursor = self._cursor
        size = cursor.u32("the machine's name")
        if size > 255:
            raise StreamError(cursor.offset - 4, f"a machine's name of {size} bytes")
        at, machine = cursor.offset, cursor.take(size, "the machine's name")
        if not (machine.isascii() and machine.decode().isprintable()):
            raise StreamError(at, "the machine's name is no text")
        self._stream.machine = machine.decode()
        while cursor.peek(1) == bytes([_SUBSECTION]):
            cursor.skip(1, "the configuration")
            at = cursor.offset
            name = cursor.name("a part of the configuration")
            cursor.u32("a part of the configuration")  # its version
            if name == "configuration/capabilities":
                self._capabilities()
            elif name == "configuration/target-page-bits":
                bits = cursor.u32("the page size")
                if not 10 <= bits <= 24:
                    raise StreamError(at, f"pages of 2^{bits} bytes")
                self._stream.page_size = 1 << bits
            elif name == "configuration/uuid":
                cursor.skip(16, "the UUID")
            else:
                raise StreamError(at, f"the configuration has an unknown part {name!r}")

    def _capabilities(self) -> None:
        cursor = self._cursor
        count = cursor.u32("the capabilities")
        if count > _MOST_CAPABILITIES:
            raise StreamError(cursor.offset - 4, f"{count} capabilities")
        names = [cursor.name("a capability") for _ in range(count)]
        self._stream.capabilities = names
        if "mapped-ram" in names:
            raise StreamError(
                cursor.offset, "a file made with mapped-ram keeps its memory apart: it is no stream"
            )

    # ------------------------------------------------------------------------ sections

    def _section(self, kind: int) -> None:
        cursor = self._cursor
        at = cursor.offset - 1
        number = cursor.u32("a section's header")
        section = self._by_number.get(number)
        if kind in (_START, _FULL):
            section = self._named(number, at, section)
        elif section is None:
            raise StreamError(at, f"a further piece of section {number}, which has not begun")
        self._stopped |= kind == _LAST
        begin = cursor.offset
        section.pieces += 1
        try:
            self._contents(section)
        finally:
            section.bytes += cursor.offset - begin
        found = cursor.take(5, f"the footer of {section.name}")
        if found != _footer(number):
            raise StreamError(
                cursor.offset - 5,
                f"{section.name} does not end with its footer; streams of machine types before 2.4 have"
                " none, and cannot be read",
            )

    def _named(self, number: int, at: int, before: Section | None) -> Section:
        cursor = self._cursor
        name = cursor.name("a section's name")
        instance = cursor.u32("a section's header")
        version = cursor.u32("a section's header")
        if before is not None:
            if (before.name, before.instance) != (name, instance):
                raise StreamError(at, f"section {number} is {before.name}, and then {name}")
            return before
        if len(self._by_number) >= _MOST_SECTIONS:
            raise StreamError(at, f"more than {_MOST_SECTIONS} sections")
        kind: Literal["ram", "vfio", "device"] = "device"
        if name == "ram":
            kind = "ram"
            if version != 4:
                raise StreamError(at, f"guest memory of the unknown version {version}")
        elif is_vfio(name):
            kind = "vfio"
        section = self._by_number[number] = Section(
            name=name,
            instance=instance,
            version=version,
            number=number,
            kind=kind,
            offset=at,
            ram=Ram() if kind == "ram" else None,
            vfio=Vfio() if kind == "vfio" else None,
        )
        return section

    def _contents(self, section: Section) -> None:
        stream = self._stream
        if section.ram is not None:
            shared = "x-ignore-shared" in stream.capabilities
            read_ram(self._cursor, section.ram, stream.page_size, shared=shared)
        elif section.vfio is None:
            self._to_footer(section)
        elif not read_vfio(self._cursor, section.vfio, stopped=self._stopped):
            size = self._to_footer(section) - FLAG_SIZE  # the one at its end
            if size < 0:
                raise StreamError(
                    self._cursor.offset, f"the config space of {section.name} has no end"
                )
            section.vfio.config_bytes = (section.vfio.config_bytes or 0) + size

    def _to_footer(self, section: Section) -> int:
        """Go on to the footer of a section whose contents only its device knows; the bytes passed."""
        section.sized = "footer"
        begin = self._cursor.offset
        passed = self._cursor.find(_footer(section.number), self._may_follow, _AHEAD)
        if passed is None:
            raise StreamError(
                self._cursor.offset,
                f"the stream ends in the middle of {section.name}, which began at byte {begin}; or it has"
                " no footers, as those of machine types before 2.4",
            )
        return passed

    def _may_follow(self, data: bytes) -> bool:
        """Whether this may come behind a footer; shorter than what is looked at, it is the stream's end."""
        if not data or data in (b"\0", b"\0\x06"):
            return True
        kind = data[0]
        if kind == _EOF:
            return data[1] == _DESCRIPTION and data[6:7] in (b"", b"{")
        if kind == _COMMAND:
            return len(data) < 3 or int.from_bytes(data[1:3], "big") < len(_COMMANDS)
        if kind not in (_START, _PART, _LAST, _FULL):
            return False
        if len(data) < 6:
            return True
        known = self._by_number.get(_NUMBER.unpack_from(data, 1)[0])
        if kind in (_PART, _LAST):
            return known is not None
        name = data[6 : 6 + data[5]]
        if known is not None:
            return name == known.name.encode()
        return bool(name) and name.isascii() and name.decode().isprintable()

    # ------------------------------------------------------------- commands, description

    def _command(self) -> None:
        cursor = self._cursor
        at = cursor.offset
        number, size = cursor.u16("a command"), cursor.u16("a command")
        if number >= len(_COMMANDS):
            raise StreamError(at, f"the unknown command {number}")
        cursor.skip(size, "a command")  # what is packaged follows, and is read like everything else
        command = self._commands.setdefault(number, Command(name=_COMMANDS[number]))
        command.count += 1
        command.bytes += size

    def _description(self) -> None:
        cursor, stream = self._cursor, self._stream
        sizes = None
        if cursor.peek(1) == bytes([_DESCRIPTION]):
            cursor.skip(1, "the description")
            size = cursor.u32("the description")
            if size > _MOST_DESCRIPTION:
                raise StreamError(cursor.offset - 4, f"a description of {size} bytes")
            stream.description_bytes = size
            parts = []
            while size > 0:
                parts.append(cursor.take(min(size, CHUNK), "the description"))
                size -= len(parts[-1])
            sizes = described_sizes(b"".join(parts))
            if sizes is None:
                stream.notes.append("the description at the end is not as QEMU writes it")
        self._compare(sizes)
        if cursor.peek(1):
            at = cursor.offset
            stream.notes.append(f"something follows the stream's end, from byte {at} on")

    def _compare(self, sizes: dict[tuple[str, int], int] | None) -> None:
        guessed = [s for s in self._by_number.values() if s.sized == "footer"]
        if sizes is None:
            if guessed:
                self._stream.notes.append(
                    f"the sizes of {len(guessed)} sections are where their footers seem to be: there is no"
                    " description of them"
                )
            return
        for section in guessed:
            title = f"{section.name} ({section.instance})"
            section.described = sizes.get((section.name, section.instance))
            found = section.bytes
            if section.vfio is not None:
                found = (section.vfio.config_bytes or 0) + 2 * FLAG_SIZE
            if section.described is None:
                self._stream.notes.append(
                    f"{title} is not described: its size is where its footer seems to be"
                )
            elif section.described != found:
                self._stream.notes.append(
                    f"{title} has {found} bytes up to what seems to be its footer, and"
                    f" {section.described} by its description"
                )


def _footer(number: int) -> bytes:
    return bytes([_FOOTER]) + _NUMBER.pack(number)

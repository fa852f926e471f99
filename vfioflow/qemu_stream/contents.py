"""The sections whose contents say where they end: guest memory, and VFIO devices.

Sources of the rules: QEMU's ``migration/ram.c`` and ``hw/vfio/migration.c``.
"""

from __future__ import annotations

from vfioflow.errors import StreamError
from vfioflow.qemu_stream.cursor import Cursor
from vfioflow.qemu_stream.model import Ram, Vfio

__all__ = ["FLAG_SIZE", "is_vfio", "read_ram", "read_vfio"]

_ZERO, _SIZES, _PAGE, _END, _SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
_DIFFERENCE, _HOOK, _COMPRESSED, _FLUSH = 0x40, 0x80, 0x100, 0x200

_MOST_BLOCKS = 4096

FLAG_SIZE = 8

_FIRST, _LAST = 0xFFFFFFFFEF100001, 0xFFFFFFFFEF100006
_VFIO_END, _CONFIG, _SETUP, _DATA, _INITIAL_SENT, _LOAD_READY = range(_FIRST, _LAST + 1)


def is_vfio(name: str) -> bool:
    """Whether that is what QEMU calls a VFIO device's section."""
    return name == "vfio" or name.endswith("/vfio")


def read_ram(cursor: Cursor, ram: Ram, page_size: int, *, shared: bool) -> None:
    """One piece of guest memory, to its end.

    ``shared``: block sizes come with an address each (the capability x-ignore-shared).
    """
    while True:
        at = cursor.offset
        word = cursor.u64("guest memory")
        flags = word & (page_size - 1)
        if flags & _SIZES:
            _read_blocks(cursor, ram, word - flags, shared=shared)
            flags &= ~_SIZES
        if flags & (_ZERO | _PAGE | _DIFFERENCE | _COMPRESSED):
            _read_page(cursor, ram, flags, page_size)
            continue
        if flags & _END:
            return
        if flags & _HOOK:
            raise StreamError(at, "guest memory that went by RDMA is not in the stream")
        if flags & ~_FLUSH:
            raise StreamError(at, f"guest memory with unknown flags {flags:#x}")


def _read_blocks(cursor: Cursor, ram: Ram, total: int, *, shared: bool) -> None:
    """The names and lengths of all blocks."""
    while total > 0:
        at = cursor.offset
        name = cursor.name("a memory block's name")
        length = cursor.u64("a memory block's length")
        if shared:
            cursor.u64("a memory block's address")
        if not 0 < length <= total or len(ram.blocks) >= _MOST_BLOCKS:
            raise StreamError(
                at, f"a memory block {name!r} of {length} bytes, of {total} that are left"
            )
        ram.blocks[name] = length
        total -= length


def _read_page(cursor: Cursor, ram: Ram, flags: int, page_size: int) -> None:
    if not flags & _SAME_BLOCK:
        at = cursor.offset
        name = cursor.name("a page's memory block")
        if ram.blocks and name not in ram.blocks:
            raise StreamError(at, f"a page of a memory block {name!r} that there is not")
    if flags & _ZERO:
        cursor.skip(1, "a page of zeros")
        ram.zero_pages += 1
    elif flags & _PAGE:
        cursor.skip(page_size, "a page")
        ram.pages += 1
        ram.page_bytes += page_size
    else:
        if flags & _DIFFERENCE:
            cursor.skip(1, "a page's difference")
            size = cursor.u16("a page's difference")
        else:
            size = cursor.u32("a compressed page")
        cursor.skip(size, "a page's difference or compression")
        ram.packed_pages += 1
        ram.packed_bytes += size


def read_vfio(cursor: Cursor, vfio: Vfio, *, stopped: bool) -> bool:
    """One piece of a device, to its end; False: to the beginning of its config space, which has no length."""
    while True:
        at = cursor.offset
        word = cursor.u64("a VFIO device's state")
        if word == _DATA:
            size = cursor.u64("the length of a VFIO device's data")
            cursor.skip(size, "a VFIO device's data")
            vfio.data_blocks += 1
            if stopped:
                vfio.stopcopy_bytes += size
            else:
                vfio.precopy_bytes += size
        elif word == _SETUP:
            vfio.setup = True
        elif word == _CONFIG:
            return False
        elif word == _INITIAL_SENT:
            vfio.initial_data_sent = True
            return True
        elif word == _LOAD_READY:
            vfio.config_load_ready = True
            return True
        elif word == _VFIO_END:
            return True
        else:
            raise StreamError(at, f"a VFIO device's state with the unknown flag {word:#x}")

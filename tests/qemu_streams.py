"""QEMU migration streams, put together piece by piece."""

from __future__ import annotations

import json
import struct

START, PART, LAST, FULL = 1, 2, 3, 4
ZERO, SIZES, PAGE, END, SAME_BLOCK, DIFFERENCE, HOOK, COMPRESSED, FLUSH = (
    2, 4, 8, 16, 32, 64, 128, 256, 512,
)  # fmt: skip
FLAG = 0xFFFFFFFFEF100000
VFIO_END, CONFIG, SETUP, DATA, INITIAL_SENT, LOAD_READY = range(FLAG + 1, FLAG + 7)
EOF = b"\0"


def u16(value):
    return struct.pack(">H", value)


def u32(value):
    return struct.pack(">I", value)


def u64(value):
    return struct.pack(">Q", value)


def text(name):
    return bytes([len(name)]) + name.encode()


def header(machine="pc-q35-10.1", capabilities=(), *more):
    data = b"QEVM" + u32(3) + b"\x07" + u32(len(machine)) + machine.encode()
    if capabilities:
        data += b"\x05" + text("configuration/capabilities") + u32(1) + u32(len(capabilities))
        data += b"".join(map(text, capabilities))
    return data + b"".join(more)


def section(kind, number, contents, name="", instance=0, version=1):
    """A piece of a section, with its footer."""
    head = bytes([kind]) + u32(number)
    if kind in (START, FULL):
        head += text(name) + u32(instance) + u32(version)
    return head + contents + b"\x7e" + u32(number)


def command(number, data=b""):
    return b"\x08" + u16(number) + u16(len(data)) + data


def blocks(**sizes):
    """The names and lengths of memory blocks."""
    return u64(sum(sizes.values()) | SIZES) + b"".join(
        text(name) + u64(size) for name, size in sizes.items()
    )


def page(number, *, block="", fill=7, size=4096):
    flags = PAGE | (0 if block else SAME_BLOCK)
    return u64(number * size | flags) + (text(block) if block else b"") + bytes([fill]) * size


def zeros(number, *, block=""):
    return (
        u64(number << 12 | ZERO | (0 if block else SAME_BLOCK))
        + (text(block) if block else b"")
        + b"\0"
    )


def data(contents):
    return u64(DATA) + u64(len(contents)) + contents


def description(*devices):
    """Of (name, instance, size)."""
    listed = [
        {
            "name": name,
            "instance_id": instance,
            "version": 1,
            "fields": [{"name": "data", "size": size, "type": "buffer"}],
        }
        for name, instance, size in devices
    ]
    found = json.dumps({"page_size": 4096, "devices": listed}).encode()
    return b"\x06" + u32(len(found)) + found


VFIO = "0000:00:05.0/vfio"


def whole(config=b"\x7e" * 40, timer=bytes(24)):
    """Memory, a VFIO device and a timer, as in a migration of a machine that runs."""
    return b"".join(
        [
            header("pc-q35-10.1", ["multifd"]),
            section(START, 2, blocks(ram=1 << 20) + u64(END), "ram", version=4),
            section(START, 7, u64(SETUP) + u64(VFIO_END), VFIO),
            command(1),
            command(2, u32(1)),
            section(PART, 2, page(0, block="ram") + page(1) + zeros(2) + u64(END)),
            section(PART, 7, data(b"a" * 1000) + u64(VFIO_END)),
            section(PART, 7, data(b"b" * 500) + u64(INITIAL_SENT)),
            section(LAST, 2, zeros(3, block="ram") + u64(FLUSH) + u64(END)),
            section(LAST, 7, data(b"c" * 2000) + data(b"d" * 2) + u64(VFIO_END)),
            section(FULL, 0, timer, "timer"),
            section(FULL, 7, u64(CONFIG) + config + u64(VFIO_END), VFIO),
            EOF,
            description(("timer", 0, len(timer)), (VFIO, 0, len(config) + 16)),
        ]
    )

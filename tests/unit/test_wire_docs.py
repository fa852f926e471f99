"""The bytes in docs/wire-protocol.md are those that the code sends and takes."""

import re
import struct
from pathlib import Path

import pytest

from vfioflow import _frame
from vfioflow.policy import MAX_CHANNELS
from vfioflow.wire import messages
from vfioflow.wire.control import MAX_MESSAGE
from vfioflow.wire.opening import Preamble, Role

TEXT = (Path(__file__).parents[2] / "docs" / "wire-protocol.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```hex (\S+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
TOKEN = bytes(range(16))
CHUNK = 1 << 20


def _bytes(block: str) -> bytes:
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in block.splitlines()))


EXAMPLES = {name: _bytes(block) for name, block in BLOCKS}


def _control(message) -> bytes:
    data = messages.encode(message)
    return struct.pack("<II", len(data), 3) + data


def _frames() -> dict[str, bytes]:
    first = _frame.crc(b"device")
    last = _frame.crc(bytes(4096), first)
    return {
        "raw-frame": _frame.pack(1, 2, 6, 0, 6, first) + b"device",
        "zero-frame": _frame.pack(3, 2, 0, 6, 4096, last),
        "end-frame": _frame.pack(5, 2, 0, 4102, 0, last),
    }


EXPECTED = {
    "control-preamble": Preamble(Role.CONTROL).pack(),
    "data-preamble": Preamble(Role.DATA, 3, TOKEN).pack(),
    "commit": _control(messages.Commit()),
    "probe": _control(messages.Probe(size=256 * 1024)),
    **_frames(),
}


def test_every_example_is_checked():
    assert len(BLOCKS) == len(EXAMPLES)
    assert EXAMPLES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_code_sends_these_bytes(name):
    assert EXAMPLES[name].hex(" ") == EXPECTED[name].hex(" ")


def test_the_code_takes_these_bytes():
    assert Preamble.unpack(EXAMPLES["data-preamble"]) == Preamble(Role.DATA, 3, TOKEN)
    assert messages.decode(EXAMPLES["probe"][8:]) == messages.Probe(size=256 * 1024)
    kinds = {
        name: _frame.unpack(EXAMPLES[name][:32], CHUNK, CHUNK)[:5]
        for name in ("raw-frame", "zero-frame", "end-frame")
    }
    assert kinds == {
        "raw-frame": (1, 2, 6, 0, 6),
        "zero-frame": (3, 2, 0, 6, 4096),
        "end-frame": (5, 2, 0, 4102, 0),
    }


def test_every_message_and_field_is_described():
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|(.*)$", TEXT, re.MULTILINE))
    kinds = {kind.__struct_config__.tag: kind for kind in messages.Message.__args__}
    assert rows.keys() == kinds.keys()
    for tag, kind in kinds.items():
        for field in kind.__struct_fields__:
            assert f"`{field}`" in rows[tag], f"{tag}.{field}"
    for part, row in ((messages.OfferedDevice, "offer"), (messages.LoadedDevice, "loaded")):
        for field in part.__struct_fields__:
            assert f"`{field}`" in rows[row], field


def test_the_limits_are_those_of_the_code():
    assert f"1 to {MAX_MESSAGE}" in TEXT
    assert f"1 to {MAX_CHANNELS} **channels**" in TEXT
    assert TEXT.startswith(f"# The wire protocol, version {messages.VERSION}\n")

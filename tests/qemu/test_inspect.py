"""What `vfioflow inspect` says of a stream that QEMU wrote."""

from __future__ import annotations

import asyncio
import os

from guest import SIZE, Guest

from vfioflow.qemu_stream import read_stream

DEVICES = (
    "e1000", "VGA", "qemu-xhci", "ich9-ahci", "virtio-serial-pci", "virtio-balloon-pci", "intel-hda",
)  # fmt: skip


def test_every_size_is_what_the_stream_says_of_itself(tmp_path):
    (tmp_path / "here.ram").write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
    options = [word for name in DEVICES for word in ("-device", name)]

    async def main():
        async with Guest(tmp_path, "here", *options) as here:
            await here.counts_on()
            await here.migrate(f"exec:cat >{tmp_path / 'stream'}")
            assert await here.migrated() == "completed"
            return (await here.monitor.execute("query-migrate"))["ram"]

    said = asyncio.run(main())
    with (tmp_path / "stream").open("rb") as file:
        stream = read_stream(file.read)
    assert stream.machine.startswith("pc-i440fx-")
    assert (stream.complete, stream.notes) == (True, [])
    assert stream.bytes == (tmp_path / "stream").stat().st_size
    (ram,) = [s.ram for s in stream.sections if s.ram is not None]
    assert ram.blocks["ram"] == SIZE
    assert (ram.pages, ram.zero_pages) == (said["normal"], said["duplicate"])
    devices = [section for section in stream.sections if section.kind == "device"]
    assert {"e1000", "timer", "cpu"} <= {section.name.rpartition("/")[2] for section in devices}
    assert [s.bytes for s in devices] == [s.described for s in devices]

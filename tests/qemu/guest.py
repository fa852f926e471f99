"""A guest that counts: QEMU without acceleration, and 50 bytes of firmware."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

from qemu.qmp import EventListener, QMPClient, QMPError

PROGRAM = "qemu-system-x86_64"
SIZE = 64 << 20
COUNTER = 0x1000

_ROM = 65536

# Real mode, at f000:0000.  Counts at COUNTER, and writes the count all over 64 KiB from 20000 on, so that
# pages are dirtied while it migrates.
_CODE = bytes.fromhex(
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "b80020"  # mov ax, 0x2000
    "8ec0"  # mov es, ax
    "66ff060010"  # again: inc dword [0x1000]
    "8b3e0010"  # mov di, [0x1000]
    "6689f8"  # mov eax, edi
    "81e7fcff"  # and di, 0xfffc
    "266689 05"  # mov es:[di], eax
    "ebeb"  # jmp again
)

_RESET = bytes.fromhex("ea000000f0")  # jmp f000:0000


def firmware(path: Path) -> Path:
    """Write the firmware there."""
    rom = bytearray(_ROM)
    rom[: len(_CODE)] = _CODE
    rom[-16 : -16 + len(_RESET)] = _RESET
    path.write_bytes(rom)
    return path


class Guest:
    """QEMU with such a guest, whose RAM is the file ``memory``.  An async context manager."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.memory = folder / f"{name}.ram"
        self.monitor = QMPClient(name)
        self._events = EventListener(("MIGRATION", "RESUME", "STOP"))
        if not self.memory.exists():
            with self.memory.open("wb") as file:
                file.truncate(SIZE)
        backend = f"memory-backend-file,id=ram,mem-path={self.memory},size={SIZE},share=on"
        self._words = [
            PROGRAM, "-machine", "pc,memory-backend=ram", "-accel", "tcg", "-nodefaults",
            "-no-user-config", "-display", "none", "-m", f"{SIZE >> 20}M", "-object", backend,
            "-bios", str(firmware(folder / "firmware")), "-device", "virtio-rng-pci,id=rng",
            "-mon", "chardev=monitor,mode=control", *options,
        ]  # fmt: skip
        self._log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Guest:
        await self.monitor.connect(self._start())
        self.monitor.register_listener(self._events)
        return self

    def _start(self) -> socket.socket:
        """Start QEMU; the near end of its monitor."""
        near, far = socket.socketpair()
        with far, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._words, "-chardev", f"socket,id=monitor,fd={far.fileno()}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[far.fileno()],
            )
        return near

    async def __aexit__(self, *error: object) -> None:
        with suppress(QMPError, OSError, EOFError):
            await self.monitor.disconnect()
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What QEMU and the commands that it started have said."""
        return self._log.read_text()

    def count(self) -> int:
        """How far the guest has counted."""
        with self.memory.open("rb") as file:
            file.seek(COUNTER)
            (value,) = struct.unpack("<I", file.read(4))
        return int(value)

    async def counts_on(self) -> None:
        """Return when it counts; the test's own time limit is how long that may take."""
        before = self.count()
        while self.count() == before:
            await self.status()  # takes a moment

    async def status(self) -> str:
        """Its run state."""
        return (await self.monitor.execute("query-status"))["status"]

    async def migrate(self, uri: str, *capabilities: str) -> None:
        """Begin to migrate."""
        await self.set_up(*capabilities)
        await self.monitor.execute("migrate", {"uri": uri})

    async def set_up(self, *capabilities: str, **parameters: object) -> None:
        """Set migration capabilities, and let it use all of the wire."""
        wanted = [{"capability": name, "state": True} for name in ("events", *capabilities)]
        await self.monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
        await self.monitor.execute(
            "migrate-set-parameters", {"max-bandwidth": 1 << 40, **parameters}
        )

    async def migrated(self) -> str:
        """How its migration has ended: "completed", "failed" or "cancelled"."""
        async for event in self._events:
            status = event["data"].get("status") if event["event"] == "MIGRATION" else None
            if status in ("completed", "failed", "cancelled"):
                return str(status)
        raise AssertionError("the monitor is gone")

    async def ended(self) -> int:
        """Wait until QEMU itself has; its exit status."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait)

"""What happens in a run, written down by all its processes."""

from __future__ import annotations

import json
import os
from typing import Any


class Log:
    """What both sides of a run and the runner write down, in the order in which it happened."""

    def __init__(self) -> None:
        fd = os.memfd_create("chaos-log")
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(fd)

    def write(self, side: str, what: str, **more: Any) -> None:
        os.write(self.fd, json.dumps({"side": side, "what": what, **more}).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        data = os.pread(self.fd, os.fstat(self.fd).st_size, 0)
        return [json.loads(line) for line in data.splitlines()]

    def close(self) -> None:
        os.close(self.fd)

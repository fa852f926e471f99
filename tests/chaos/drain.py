"""Empties a pipe that a loading device is written to."""

from __future__ import annotations

import errno
import os
import select
import threading

PIPE = 1 << 20
"""Bytes that such a pipe holds."""


class Drain:
    """Takes what is written to a pipe, as it comes."""

    def __init__(self, pipe: int) -> None:
        self._taken = bytearray()
        self._starved = False
        self._pipe = pipe
        self._ask, self._tell = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="durable-drain", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._ask)
            os.close(self._tell)
            raise

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._pipe, self._ask):
            poll.register(fd, select.POLLIN)
        asked = False
        while True:
            ready = [fd for fd, _ in poll.poll(0 if asked else None)]
            asked = asked or self._ask in ready
            try:
                piece = os.read(self._pipe, PIPE)
                self._taken += piece
            except BlockingIOError:
                piece = None
            except MemoryError:
                self._starved = True
                return
            if piece:
                continue
            if asked:
                return
            if piece is not None:
                poll.unregister(self._pipe)  # closed; whoever ends it says so

    def end(self) -> bytes:
        """All that was written.  Raises OSError: there was no memory for it."""
        self.close()
        if self._starved:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return bytes(self._taken)

    def close(self) -> None:
        """Be done with the pipe, and with the thread."""
        if self._thread.is_alive():
            os.write(self._tell, b"x")
            self._thread.join()
        for fd in (self._ask, self._tell):
            if fd >= 0:
                os.close(fd)
        self._ask = self._tell = -1

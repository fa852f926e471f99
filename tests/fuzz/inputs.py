"""What targets share: bytes that have arrived, and what an error must have."""

from __future__ import annotations

import socket

MOST = 32 * 1024
"""Bytes of an input: they fit into a socket's buffer, so that nobody needs to send them meanwhile."""


class Named(socket.socket):
    """One end of a socket pair that passes for TCP: a million inputs would use all ports up."""

    def getpeername(self) -> tuple[str, int]:
        return "peer", 1

    def setsockopt(self, *args: object) -> None:
        pass


def fed(data: bytes) -> tuple[Named, socket.socket]:
    """A socket on which ``data`` and then the end has arrived, and its other end."""
    near, far = socket.socketpair()
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)
    return Named(fileno=near.detach()), far


def reason(error: BaseException) -> str:
    """What an error says, which is never nothing."""
    text = str(error)
    assert text, f"{error!r} says nothing"
    return text


def shown(error: BaseException) -> None:
    """The same of an error that repeats what a peer said: also fit for a terminal, and of one line."""
    text = reason(error)
    assert text.isprintable(), f"{text!r} is not fit for a terminal"

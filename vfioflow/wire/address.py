"""Where the other side is: ``tcp://HOST:PORT``, or ``fd://N`` for an inherited listener."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from vfioflow.errors import ConfigError

__all__ = ["Address", "bind"]


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name or number) and a port; port 0 lets the system choose one when listening."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """``tcp://HOST:PORT``, IPv6 numbers in brackets.  Raises ConfigError."""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")
        except ValueError as error:
            raise ConfigError(f"{text!r} is not an address: {error}") from None
        if parts.scheme != "tcp" or not host or port is None or parts.path or parts.query:
            raise ConfigError(f"{text!r} is not an address: write tcp://HOST:PORT")
        return cls(host, port)

    @classmethod
    def of(cls, sock: socket.socket, *, peer: bool = False) -> Address:
        """The address of a socket's own end, or of its peer."""
        name = sock.getpeername() if peer else sock.getsockname()
        return cls(str(name[0]), int(name[1]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def bind(text: str) -> socket.socket:
    """A listening, non-blocking socket for ``tcp://HOST:PORT``, or the one inherited as ``fd://N``.

    Raises:
        ConfigError: no such address or descriptor, or the port is taken.
    """
    if text.startswith("fd://"):
        return _inherited(text)
    address = Address.parse(text)
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"cannot listen on {text}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {text}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def _inherited(text: str) -> socket.socket:
    try:
        fd = int(text.removeprefix("fd://"))
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"{text} is not an inherited socket: {error}") from None
    if not listening or sock.family not in (socket.AF_INET, socket.AF_INET6):
        sock.detach()
        raise ConfigError(f"{text} is a socket that does not listen on TCP")
    sock.setblocking(False)
    return sock

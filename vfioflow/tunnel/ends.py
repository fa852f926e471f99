"""The two ends of a tunnel: what ``--from`` and ``--into`` may name, and how each is opened and closed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import select
import socket
import stat
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

from vfioflow._fdio import Port
from vfioflow.errors import ConfigError, EndError

__all__ = ["Input", "Output"]

_PAUSE = 0.05
"""Seconds between two tries to reach whoever is to read the output."""

_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of a TCP connection whose closing shall say that something went wrong."""

_NOBODY_YET = (errno.ENOENT, errno.ECONNREFUSED, errno.ENXIO)


class _End:
    """What both ends have in common: a name in words, and a descriptor of which they take care."""

    _what: str
    _standard: int
    _mode: int
    """O_RDONLY or O_WRONLY."""

    def __init__(self, where: str) -> None:
        self._kind, self._fd_number, self.path = _parse(where)
        stream = {0: "standard input", 1: "standard output"}[self._standard]
        self.name = f"the {self._what} ({stream if where == '-' else where})"
        self.port: Port | None = None
        self._socket: socket.socket | None = None
        self._flags = 0

    @property
    def is_socket(self) -> bool:
        """Whether its other end may say something too."""
        return self._socket is not None

    def _inherited(self) -> int | None:
        """The descriptor that "-" or "fd:N" names, from now on ours alone.  Raises ConfigError."""
        if self._kind == "standard":
            fd = os.dup(self._standard)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._standard)
            os.close(null)
            return fd
        if self._kind != "fd":
            return None
        try:
            flags = fcntl.fcntl(self._fd_number, fcntl.F_GETFL)
        except (OSError, OverflowError):
            raise ConfigError(f"{self.name}: no such descriptor was handed over") from None
        if flags & os.O_ACCMODE not in (self._mode, os.O_RDWR) or flags & os.O_PATH:
            use = "reading" if self._mode == os.O_RDONLY else "writing"
            raise ConfigError(f"{self.name}: it is not open for {use}")
        os.set_inheritable(self._fd_number, False)
        return self._fd_number

    def _check(self, fd: int) -> None:
        """Raise ConfigError unless bytes can flow through a descriptor, and see whether it is a socket."""
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{self.name}: is a directory")
        if not stat.S_ISSOCK(mode):
            return
        sock = socket.socket(fileno=os.dup(fd))
        with ExitStack() as owned:
            owned.callback(sock.close)
            if sock.type != socket.SOCK_STREAM or sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                raise ConfigError(f"{self.name}: is not a connected stream socket")
            owned.pop_all()
        self._socket = sock

    def _adopt(self, fd: int) -> Port:
        """A port on a descriptor, which it owns.  Whoever shares the descriptor gets its flags back."""
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        self.port = Port(fd)
        return self.port

    def _close(self) -> None:
        if self.port is not None:
            fcntl.fcntl(self.port.fileno(), fcntl.F_SETFL, self._flags)
            self.port.close()
            self.port = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.name}: {error.strerror or error}")


class Input(_End):
    """Where a stream comes from: "-", "fd:N", "unix:PATH" (listens there), or a file or FIFO.

    Raises ConfigError: it names none of these.
    """

    _what = "input"
    _standard = 0
    _mode = os.O_RDONLY

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._fd: int | None = None
        self._listening: socket.socket | None = None

    def prepare(self) -> None:
        """Open it, or listen, without waiting for anybody.  Raises ConfigError."""
        if self._kind == "unix":
            self._listening = self._listen()
            return
        self._fd = self._inherited()
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._check(self._fd)
        except OSError as error:
            raise self._unusable(error) from None

    def _listen(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(self.path)
            Path(self.path).chmod(0o600)  # before anybody can connect
            sock.listen(1)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"{self.name}: is there already; if nobody listens there any more, remove it"
                ) from None
            raise self._unusable(error) from None
        return sock

    @property
    def two_way(self) -> bool:
        """Whether its other end takes bytes back."""
        return self._listening is not None or self.is_socket

    @property
    def waits(self) -> bool:
        """Whether somebody has yet to connect."""
        return self._listening is not None

    async def arrive(self) -> Port:
        """Wait for its other end: the one connection that is taken; for a FIFO, whoever writes."""
        if self._listening is not None:
            await _ready(self._listening.fileno())
            accepted, _ = self._listening.accept()
            self._stop_listening()
            self._fd = accepted.detach()
            self._check(self._fd)
        assert self._fd is not None
        if stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            await _ready(
                self._fd
            )  # until somebody has opened a FIFO, it would seem to be at its end
        fd, self._fd = self._fd, None
        return self._adopt(fd)

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            with suppress(OSError):
                Path(self.path).unlink()

    def hung_up(self) -> bool:
        """Whether nobody is at its other end any more who could take anything."""
        if self.port is None:
            return True
        poller = select.poll()
        poller.register(self.port.fileno(), 0)
        return bool(poller.poll(0))

    async def give_back(self, data: bytes) -> None:
        """Tell its other end; nothing: that no more comes.  One that is gone does not miss it."""
        assert self._socket is not None
        with suppress(OSError):
            if data:
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
            else:
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it; whoever writes to it then finds nobody."""
        self._stop_listening()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._close()


class Output(_End):
    """Where a stream goes: "-", "fd:N", "unix:PATH" (connects there), a file, a FIFO or a device.

    A file gets its name when it is whole; until then it is a hidden one beside it.

    Raises ConfigError: it names none of these.
    """

    _what = "output"
    _standard = 1
    _mode = os.O_WRONLY

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._fd: int | None = None
        self._part: Path | None = None
        self._final = Path(os.path.realpath(self.path)) if self._kind == "path" else Path()

    def prepare(self) -> None:
        """Take what was handed over, and see what is wrong already.  Raises ConfigError."""
        self._fd = self._inherited()
        if self._fd is not None:
            if os.isatty(self._fd):
                raise ConfigError(
                    f"{self.name}: is a terminal, which a stream of bytes would upset"
                )
            self._check(self._fd)
        elif self._kind == "path" and self._final.is_dir():
            raise ConfigError(f"{self.name}: is a directory")
        elif not self._final.parent.is_dir():
            raise ConfigError(f"{self.name}: there is no directory {self._final.parent}")

    async def open(self, patience: float) -> Port:
        """Open it, waiting up to ``patience`` seconds for whoever is to read.

        Raises EndError: nobody is, or it cannot be opened.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while self._fd is None:
            try:
                self._fd = self._connect() if self._kind == "unix" else self._open()
                self._check(self._fd)
            except OSError as error:
                if error.errno not in _NOBODY_YET or loop.time() > until:
                    raise EndError(self.name, "opening it", error.errno or 0) from None
                await asyncio.sleep(_PAUSE)
        fd, self._fd = self._fd, None
        return self._adopt(fd)

    def _connect(self) -> int:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with ExitStack() as owned:
            owned.callback(sock.close)
            sock.connect(self.path)
            owned.pop_all()
        return sock.detach()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC
        if self._final.exists() and not self._final.is_file():
            return os.open(self._final, flags | os.O_NONBLOCK)
        part = self._final.with_name(f".{self._final.name}.{secrets.token_hex(4)}.part")
        fd = os.open(part, flags | os.O_CREAT | os.O_EXCL, 0o666)
        self._part = part
        return fd

    async def hear(self, size: int) -> bytes:
        """What its other end, a socket, says; nothing: it has no more to say.

        Raises EndError: it was closed before everything was read.
        """
        assert self._socket is not None
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, size)
        except OSError as error:
            raise EndError(self.name, "hearing its reader", error.errno or 0) from None

    def finish(self) -> None:
        """All is written: make it last, and let the reader find the end.  Blocking.

        Raises EndError: a disk took it, and could not keep it.
        """
        assert self.port is not None
        try:
            fd = self.port.fileno()
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                os.fsync(fd)
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_WR)
                return
            self._close()
            if self._part is not None:
                self._part.replace(self._final)
                self._part = None
                _sync_directory(self._final.parent)
        except OSError as error:
            raise EndError(self.name, "finishing it", error.errno or 0) from None

    def close(self, *, whole: bool) -> None:
        """Close it; unless the stream is ``whole``, so that it looks as little as possible like its end."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._socket is not None and not whole:
            with suppress(OSError):  # a UNIX socket has no such thing
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._close()
        if self._part is not None:
            with suppress(OSError):
                self._part.unlink()
            self._part = None


def _parse(where: str) -> tuple[str, int, str]:
    """The kind ("standard", "fd", "unix" or "path"), the descriptor, the path.  Raises ConfigError."""
    if where == "-":
        return "standard", -1, ""
    kind, colon, rest = where.partition(":")
    if colon and kind == "fd":
        if not re.fullmatch(r"\d{1,9}", rest, re.ASCII):
            raise ConfigError(f"{where!r}: write fd:N with the number of a descriptor")
        return "fd", int(rest), ""
    if colon and kind == "unix":
        if not rest or "\0" in rest or len(os.fsencode(rest)) > 107:
            raise ConfigError(f"{where!r}: a socket's path has 1 to 107 bytes")
        return "unix", -1, rest
    if not where or "\0" in where:
        raise ConfigError(f"{where!r} names nothing: write -, fd:N, unix:PATH or PATH")
    return "path", -1, where


async def _ready(fd: int) -> None:
    """Until there is something to read, or the other end has gone."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""The agent's UNIX socket: made, found or handed over, and who may come in."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vfioflow.errors import ConfigError

__all__ = ["Credentials", "Gate", "handed_over", "listening", "notify"]

_UCRED = struct.Struct("3i")
_FIRST_FD = 3
"""Where systemd puts what it hands over (sd_listen_fds(3))."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who is at the other end, as the kernel says (``SO_PEERCRED``): when it connected."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Credentials:
        """Of a connected UNIX socket."""
        return cls(
            *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        )

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}, group {self.gid}"


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may use the agent: root, who runs it, and these."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    own: int = field(default_factory=os.geteuid)

    @classmethod
    def of(cls, users: tuple[str, ...] = (), groups: tuple[str, ...] = ()) -> Gate:
        """From names or numbers.  Raises ConfigError."""
        return cls(frozenset(map(_uid, users)), frozenset(map(_gid, groups)))

    def lets_in(self, who: Credentials) -> bool:
        """Whether a process may; its supplementary groups count too, as far as they can be seen."""
        if who.uid in (0, self.own) or who.uid in self.uids or who.gid in self.gids:
            return True
        return bool(self.gids) and not self.gids.isdisjoint(_groups(who.uid))


def _groups(uid: int) -> list[int]:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(entry.pw_name, entry.pw_gid)


def _uid(name: str) -> int:
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"there is no user {name}") from None


def _gid(name: str) -> int:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {name}") from None


@contextmanager
def listening(path: str | Path, *, mode: int = 0o600, group: str = "") -> Iterator[socket.socket]:
    """A listening socket at ``path``, which is removed afterwards.

    What a dead agent left there is replaced.

    Raises ConfigError: somebody listens there, or something else is there; the folder is missing, or
    anybody could put another socket in its place.
    """
    where = Path(path)
    _check_folder(where.parent)
    _remove_dead(where)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Nobody else may connect before it has its mode and its group.
        before = os.umask(0o177)
        try:
            sock.bind(str(where))
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        made = where.stat()
        try:
            if group:
                os.chown(where, -1, _gid(group))
            where.chmod(mode)
            sock.listen()
            yield sock
        except PermissionError as error:
            raise ConfigError(
                f"{where}: it cannot be given to the group {group}: {error.strerror}"
            ) from None
        finally:
            with suppress(OSError):
                if os.path.samestat(where.stat(), made):
                    where.unlink()
    finally:
        sock.close()


def _check_folder(folder: Path) -> None:
    try:
        found = folder.stat()
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; make the folder first") from None
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise ConfigError(f"{folder}: anybody may write there, and put another socket in its place")


def _remove_dead(where: Path) -> None:
    try:
        found = where.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{where}: something is there that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(str(where))
    if code != errno.ECONNREFUSED:
        raise ConfigError(f"{where}: somebody listens there already")
    where.unlink(missing_ok=True)


def handed_over() -> socket.socket | None:
    """The listening socket that systemd started this process with; None: it did not.

    Raises ConfigError: it handed over something else, or more than one.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        raise ConfigError("systemd handed over more than one socket; the agent takes one")
    os.set_inheritable(_FIRST_FD, False)
    sock = socket.socket(fileno=_FIRST_FD)
    if sock.family != socket.AF_UNIX or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise ConfigError("what systemd handed over is no listening UNIX socket")
    sock.setblocking(False)
    return sock


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3)): "READY=1", "STOPPING=1"."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    if where.startswith("@"):
        where = f"\0{where[1:]}"
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(state.encode(), where)

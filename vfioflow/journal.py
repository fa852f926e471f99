"""What each side of a hand-over has decided, on stable storage, so that it outlives a crash.

One file for each session and role, in one directory, with the lines of :mod:`vfioflow.story`.  A
record is on the disk when :meth:`Entry.record` returns.  No device data.  Everything here blocks:
from a coroutine, call it on a thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from vfioflow.errors import ConfigError, JournalError
from vfioflow.story import Record, Role, Step, Story, check_session, is_session, pack

__all__ = ["Entry", "Journal", "KEEP_DAYS", "default_directory"]

log = logging.getLogger("vfioflow")

KEEP_DAYS = 30
"""How long an entry that has ended is kept, in days."""

_SUFFIX = ".journal"
_IDENTITY = "identity"
_LONGEST = 16 << 20
"""Bytes; a file that is longer is none of ours."""


def default_directory() -> Path:
    """``$XDG_STATE_HOME/vfioflow``, or ``~/.local/state/vfioflow``."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():  # the rule of the XDG base directories: others are ignored
        return state / "vfioflow"
    try:
        return Path.home() / ".local" / "state" / "vfioflow"
    except RuntimeError:
        raise ConfigError(
            "there is no home directory for the journal: name one with --journal DIR"
        ) from None


class Entry(Story):
    """A story that can go on: this process holds its lock, until :meth:`close`."""

    def __init__(self, path: Path, session: str, role: Role, fd: int) -> None:
        super().__init__(path, session, role)
        self._fd = fd
        self._lock = threading.Lock()
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def record(self, step: Step, **about: Any) -> None:
        """Write a step; it is on stable storage when this returns.

        ``about`` are fields of :class:`Record`.

        Raises:
            JournalError: it could not be written; then it counts as not done.
        """
        try:
            with self._lock:
                self._record(Record(step=step, time=time.time(), **about))
        finally:
            if self._closing:  # meanwhile, when it could not be
                self.close()

    def _record(self, record: Record) -> None:
        if not self.allows(record.step):  # a record that came back late was before it
            what = f"{record.step} cannot come after {self.step}"
            raise JournalError(self.path, what, errno.EPROTO, "see whether its disk is slow")
        line = pack(record)
        if self._unended:
            line = b"\n" + line
        try:
            if self._fd < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self.torn:
                os.ftruncate(self._fd, self._good)
            _write(self._fd, line, self._good)
            os.fsync(self._fd)
        except OSError as error:
            # What of it is there must not look as if it was done, and the next takes its place.
            self.torn = True
            with suppress(OSError):
                os.ftruncate(self._fd, self._good)
                os.fsync(self._fd)
            raise _failed(self.path, f"cannot record {record.step}", error) from error
        self.torn = self._unended = False
        self._good += len(line)
        self.records.append(record)

    def close(self) -> None:
        """Give the lock up, as soon as no record is being written.  Safe to call twice."""
        self._closing = True
        if self._lock.acquire(blocking=False):
            try:
                if self._fd >= 0:
                    os.close(self._fd)
                    self._fd = -1
            finally:
                self._lock.release()


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


class Journal:
    """A directory of entries; it is made when it is first needed, and then readable by its owner only.

    Sessions of several virtual machines may share one.  A destination's answers are only as good as
    its memory: it must find the same directory again when it is started again.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def __repr__(self) -> str:
        return f"<Journal {self.directory}>"

    @property
    def identity(self) -> str:
        """A number that was made with the directory, by which another journal is told from it.

        Raises JournalError.
        """
        path = self.directory / _IDENTITY
        for _ in range(2):
            try:
                text = path.read_text(encoding="ascii").strip()
            except FileNotFoundError:
                self._make_identity(path)
            except (OSError, UnicodeDecodeError) as error:
                raise _failed(path, "cannot be read", error) from error
            else:
                if re.fullmatch(r"[0-9a-f]{32}", text) is None:
                    raise JournalError(path, "is damaged", errno.EBADMSG, "see docs/operations.md")
                return text
        raise JournalError(path, "is there and is not", errno.ENOENT, "leave the directory alone")

    def _make_identity(self, path: Path) -> None:
        self._make_directory()
        draft = path.with_name(f".{_IDENTITY}.{secrets.token_hex(8)}")
        try:
            with ExitStack() as undo:
                fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                undo.callback(draft.unlink)
                undo.callback(os.close, fd)
                _write(fd, secrets.token_hex(16).encode() + b"\n", 0)
                os.fsync(fd)
                with suppress(FileExistsError):  # somebody else was quicker
                    path.hardlink_to(draft)
            _sync_directory(self.directory)
        except OSError as error:
            raise _failed(path, "cannot be written", error) from error

    def _make_directory(self) -> None:
        """Make the directory, or see that nobody else can write in it.  Raises JournalError."""
        try:
            made = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in made:
                _sync_directory(path.parent)
            mode = self.directory.stat().st_mode
        except OSError as error:
            raise _failed(self.directory, "cannot be made", error) from error
        if mode & 0o022:
            raise JournalError(
                self.directory,
                "can be written by others than its owner",
                errno.EPERM,
                "chmod go-w it, or name another with --journal DIR",
            )

    def begin(self, session: str, role: Role, peer: str, devices: Mapping[str, bool]) -> Entry:
        """A new entry, with BEGUN recorded: of this session, with these devices.

        Args:
            session: its name, see :func:`check_session`.
            role: whose entry it is.
            peer: the other side's address.
            devices: their names, and whether each one's state outlives this process.

        Raises:
            ConfigError: it cannot name a session.
            JournalError: the session is there already, or nothing can be written.
        """
        entry = self.open(session, role, create=True)
        assert entry is not None
        with ExitStack() as undo:
            undo.enter_context(entry)
            if entry.records:
                raise JournalError(
                    entry.path,
                    f"the session is known already, and {entry.step}",
                    errno.EEXIST,
                    "a new migration needs a new name",
                )
            entry.record(Step.BEGUN, peer=peer, devices=dict(devices))
            undo.pop_all()
        return entry

    def open(self, session: str, role: Role, *, create: bool = False) -> Entry | None:
        """The entry, locked; None where there is none, unless ``create``.

        Raises:
            JournalError: another process holds it, or it is damaged, or cannot be opened.
        """
        path = self._path(session, role)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if create:
            self._make_directory()
        with ExitStack() as undo:
            try:
                fd = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _failed(path, "cannot be opened", error) from error
            entry = undo.enter_context(Entry(path, session, role, fd))
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock())
                data = _read(fd)
                if create and not data:
                    _sync_directory(self.directory)
            except BlockingIOError as error:
                advice = "wait until it has ended"
                what = "another process is at work on this session"
                raise JournalError(path, what, errno.EWOULDBLOCK, advice) from error
            except OSError as error:
                raise _failed(path, "cannot be opened", error) from error
            entry.parse(data)
            if entry.torn:
                log.warning("%s: the last line is torn, and is ignored", path)
            if not entry.records and not create:
                return None
            undo.pop_all()
        return entry

    def find(self, session: str, role: Role) -> Story | None:
        """What is known of a session now, without its lock.  Raises as :meth:`open`, save for that."""
        return self._story(self._path(session, role), session, role)

    def stories(self) -> list[Story]:
        """Every session of which anything is known, the oldest first.

        Raises JournalError for the first that is damaged.
        """
        found = []
        try:
            names = sorted(p.name for p in self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failed(self.directory, "cannot be read", error) from error
        for name in names:
            session, _, role = name.removesuffix(_SUFFIX).rpartition(".")
            for known in get_args(Role):
                if role == known and name.endswith(_SUFFIX) and is_session(session):
                    story = self._story(self.directory / name, session, known)
                    if story is not None:
                        found.append(story)
        return sorted(found, key=lambda story: story.records[0].time)

    def pending(self, role: Role | None = None) -> list[Story]:
        """The sessions that have yet to end (of one role), the oldest first.

        Those that a process is at work on are among them: see :meth:`is_held`.
        """
        return [s for s in self.stories() if s.pending and role in (None, s.role)]

    def is_held(self, story: Story) -> bool:
        """Whether some process holds its lock."""
        try:
            fd = os.open(story.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            # Asks only: a lock, however short, could keep another process from its entry.
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock())
        finally:
            os.close(fd)
        return bool(_FLOCK.unpack(found[: _FLOCK.size])[0] != fcntl.F_UNLCK)

    def claims(self, devices: Sequence[str]) -> dict[str, Story]:
        """For each of these devices that a pending session of a dead process names: that session."""
        return {
            name: story
            for story in self.pending()
            if not self.is_held(story)
            for name in devices
            if name in story.devices
        }

    def latest(self) -> dict[str, Story]:
        """For each device that any session names, of either role: the one that began last."""
        return {name: story for story in self.stories() for name in story.devices}

    def prune(self, days: float = KEEP_DAYS) -> int:
        """Remove entries that ended longer ago; how many.  Never raises: they only take space.

        A destination that runs keeps its entry until the source knows: whoever asks for a session
        that is not there is told that it never runs here.
        """
        removed = 0
        oldest = time.time() - days * 86400
        with suppress(JournalError):
            for story in self.stories():
                last = story.records[-1]
                told = story.role == "source" or last.step in (Step.TOLD, Step.DISCARDED)
                if story.pending or not told or last.time > oldest or self.is_held(story):
                    continue
                with suppress(OSError):
                    story.path.unlink()
                    removed += 1
        return removed

    def _path(self, session: str, role: Role) -> Path:
        return self.directory / f"{check_session(session)}.{role}{_SUFFIX}"

    def _story(self, path: Path, session: str, role: Role) -> Story | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(path, "cannot be opened", error) from error
        try:
            data = _read(fd)
        except OSError as error:
            raise _failed(path, "cannot be read", error) from error
        finally:
            os.close(fd)
        story = Story(path, session, role)
        story.parse(data)
        return story if story.records else None


_FLOCK = struct.Struct("@hhqqi4x")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, pid."""


def _lock() -> bytes:
    """On the whole file, for writing."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _read(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > _LONGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    data = b""
    while piece := os.pread(fd, 1 << 16, len(data)):
        data += piece
    return data


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_ADVICE = {
    errno.ENOSPC: "make room, or name another directory with --journal DIR",
    errno.EDQUOT: "make room, or name another directory with --journal DIR",
    errno.EFBIG: "raise the limit on file sizes, or name another directory with --journal DIR",
    errno.EROFS: "name a directory that can be written with --journal DIR",
    errno.EACCES: "mend its permissions, or name another directory with --journal DIR",
    errno.EPERM: "mend its permissions, or name another directory with --journal DIR",
}


def _failed(path: Path, what: str, error: OSError | UnicodeDecodeError) -> JournalError:
    code = (error.errno if isinstance(error, OSError) else None) or errno.EIO
    advice = _ADVICE.get(code, "name another directory with --journal DIR")
    return JournalError(path, what, code, advice)

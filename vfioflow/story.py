"""What is recorded of a session, and in which order: the lines of a journal's file.

A line is the CRC32C of the rest in hexadecimal, a space, and a JSON object.  Pure: nothing here
touches the disk, see :mod:`vfioflow.journal`.
"""

from __future__ import annotations

import enum
import errno
import re
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from vfioflow._frame import crc
from vfioflow.errors import ConfigError, JournalError

__all__ = ["Record", "Role", "Step", "Story", "check_session", "is_session", "pack"]

Role: TypeAlias = Literal["source", "destination"]

_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Step(enum.StrEnum):
    """What was decided, in the order in which it may be (`docs/operations.md`)."""

    BEGUN = "BEGUN"
    """Both: devices are about to be touched."""
    COMMITTED = "COMMITTED"
    """Source: COMMIT is about to be said.  Destination: it was heard, devices are about to run."""
    BACK = "BACK"
    """Source: the devices are RUNNING again, and COMMIT was never said."""
    RELEASED = "RELEASED"
    """Source: the destination runs."""
    TAKEN_BACK = "TAKEN_BACK"
    """Source: the destination has promised never to run; the devices run here again."""
    LOADED = "LOADED"
    """Destination: the devices hold the state; the source is about to hear of it."""
    RUNNING = "RUNNING"
    """Destination: the devices and the vCPUs run."""
    DISCARDED = "DISCARDED"
    """Destination: this session never runs here."""
    TOLD = "TOLD"
    """Destination: the source knows that it runs, so nobody will ask again."""
    BY_HAND = "BY_HAND"
    """Both: a person decided; ``choice`` is "run" or "discard", of the devices on this side."""


_S = Step
_NEXT: dict[Role, dict[Step | None, tuple[Step, ...]]] = {
    "source": {
        None: (_S.BEGUN,),
        _S.BEGUN: (_S.COMMITTED, _S.BACK, _S.BY_HAND),
        # BACK: the record of COMMITTED was reported as failed, and is there after all.
        _S.COMMITTED: (_S.RELEASED, _S.TAKEN_BACK, _S.BY_HAND, _S.BACK),
    },
    "destination": {
        None: (_S.BEGUN, _S.DISCARDED),
        _S.BEGUN: (_S.LOADED, _S.DISCARDED, _S.BY_HAND),
        _S.LOADED: (_S.COMMITTED, _S.DISCARDED, _S.BY_HAND),
        # DISCARDED: as BACK above.
        _S.COMMITTED: (_S.RUNNING, _S.BY_HAND, _S.DISCARDED),
        _S.RUNNING: (_S.TOLD,),
        _S.BY_HAND: (_S.TOLD,),
    },
}
_PENDING = (Step.BEGUN, Step.COMMITTED, Step.LOADED)


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: a step, when (seconds since 1970), and what belongs to it."""

    step: Step
    time: float
    peer: str = ""
    """BEGUN: the other side's address."""
    devices: dict[str, bool] = {}
    """BEGUN: each device, and whether its state outlives the process."""
    states: dict[str, str] = {}
    """LOADED: where each device stands."""
    accesses: str = ""
    """LOADED: what was queued for devices that stood still, in base64."""
    identity: str = ""
    """COMMITTED, source: the destination's journal."""
    choice: str = ""
    """BY_HAND."""
    reason: str = ""
    """DISCARDED, BACK, TAKEN_BACK: why."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def is_session(session: str) -> bool:
    """Whether this can name a session."""
    return _SESSION.fullmatch(session) is not None


def check_session(session: str) -> str:
    """The session's name, if it can be one (and so part of a file's name).  Raises ConfigError."""
    if not is_session(session):
        raise ConfigError(
            f"{session!r} cannot name a session: 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-',"
            " of which the first is a letter or a figure"
        )
    return session


class Story:
    """What a journal knows of one session, as of one side."""

    def __init__(self, path: Path, session: str, role: Role) -> None:
        self.path = path
        self.session = session
        self.role: Role = role
        self.records: list[Record] = []
        self.torn = False
        """Whether the last line was cut off by a crash; it was never acted upon, and is ignored."""
        self._good = 0  # bytes of whole lines
        self._unended = False  # whether the last one lacks its newline only

    @property
    def step(self) -> Step | None:
        """The last step; None where none was recorded."""
        return self.records[-1].step if self.records else None

    @property
    def pending(self) -> bool:
        """Whether it has yet to end."""
        return self.step in _PENDING

    @property
    def runs(self) -> bool:
        """Whether the devices are to run on this side, as far as that is decided."""
        if self.step is Step.BY_HAND or (self.step is Step.TOLD and self.get(Step.BY_HAND)):
            return self.choice == "run"
        return self.step in (Step.BACK, Step.TAKEN_BACK, Step.RUNNING, Step.TOLD)

    @property
    def choice(self) -> str:
        """What a person decided, if one did."""
        record = self.get(Step.BY_HAND)
        return record.choice if record is not None else ""

    @property
    def devices(self) -> dict[str, bool]:
        """Its devices, and whether each one's state outlives the process that moved it."""
        return next((r.devices for r in self.records if r.devices), {})

    @property
    def peer(self) -> str:
        """The other side's address."""
        return next((r.peer for r in self.records if r.peer), "")

    @property
    def reason(self) -> str:
        """Why it ended as it did, where that was said."""
        return self.records[-1].reason if self.records else ""

    def get(self, step: Step) -> Record | None:
        """The record of a step, if there is one."""
        return next((r for r in self.records if r.step is step), None)

    def allows(self, step: Step) -> bool:
        """Whether this step may come next."""
        return step in _NEXT[self.role].get(self.step, ())

    def parse(self, data: bytes) -> None:
        """Take in a file.  Raises JournalError for anything but lines and a torn end."""
        *lines, rest = data.split(b"\n")
        if rest:
            lines.append(rest)
        for number, line in enumerate(lines, 1):
            record = _unpack(line)
            whole = self._good + len(line) < len(data)
            if record is None and not whole:
                self.torn = True
                return
            if record is None:
                raise self._damaged(number, "it does not agree with its check")
            if not self.allows(record.step):
                before = self.step or "the beginning"
                raise self._damaged(number, f"{record.step} cannot come after {before}")
            self.records.append(record)
            self._good += len(line) + whole
            self._unended = not whole

    def _damaged(self, number: int, why: str) -> JournalError:
        return JournalError(
            self.path,
            f"line {number} is damaged: {why}",
            errno.EBADMSG,
            "look at both sides, see which one runs, and move the file away",
        )


def pack(record: Record) -> bytes:
    """The line of a record, with its newline."""
    body = bytearray()
    _encoder.encode_into(record, body)  # encode() crashes when memory runs out (msgspec 0.22)
    return f"{crc(body):08x} ".encode() + body + b"\n"


def _unpack(line: bytes) -> Record | None:
    check, _, body = line.partition(b" ")
    if check != f"{crc(body):08x}".encode():
        return None
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # msgspec lets two through
        return None

"""Events as a file of JSON lines."""

from __future__ import annotations

import dataclasses
import enum
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from vfioflow.errors import ConfigError
from vfioflow.events import Began, Event

__all__ = ["JsonLines", "as_dict", "name_of", "plain"]

log = logging.getLogger("vfioflow")


def name_of(kind: type[Any]) -> str:
    """What a class of events is called in JSON: StateChanged is "state-changed"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def as_dict(event: Event) -> dict[str, Any]:
    """An event as what JSON can say: its class as ``event``, then its fields; units as there.

    States, phases and verdicts are their names; what an event consists of is nested.
    """
    return {"event": name_of(type(event)), **_fields(event)}


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def plain(value: Any) -> Any:
    """A value of an event's field, as what JSON can say."""
    if isinstance(value, enum.Enum):
        return str(value) if not isinstance(value.value, str) else value.value
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


class JsonLines:
    """An observer that appends a line for each event to a file.

    Each line has ``at`` (seconds since the session began), ``time`` (seconds since 1970), ``session``,
    ``role``, and then :func:`as_dict`.  A line that cannot be written is said once, in the log; the
    migration goes on.

    Raises ConfigError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._file: IO[bytes] | None = self._path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: events cannot be written there: {error.strerror}") from None
        self._encoder = msgspec.json.Encoder()
        self._session: dict[str, str] = {"session": "", "role": ""}
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Write an event down."""
        if isinstance(event, Began):
            self._session = {"session": event.session, "role": event.role}
            self._began = time.monotonic()
        if self._file is None:
            return
        when = {"at": round(time.monotonic() - self._began, 6), "time": round(time.time(), 6)}
        line = self._encoder.encode({**when, **self._session, **as_dict(event)}) + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            log.warning("%s: events are written no more: %s", self._path, error.strerror)
            self.close()

    def close(self) -> None:
        """Close the file.  Safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

"""A device behind a vfio-user socket."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from vfioflow._vfio_user_data import DataPort
from vfioflow.devices.base import DeviceInfo, PrecopyInfo
from vfioflow.devices.vfio_user import protocol
from vfioflow.devices.vfio_user.client import Client
from vfioflow.devices.vfio_user.estimate import pending
from vfioflow.devices.vfio_user.protocol import Command, Feature, Method
from vfioflow.errors import ConfigError, DeviceError
from vfioflow.states import SAVING, State, opens_data_fd, path

__all__ = ["Settings", "VfioUserDevice"]

log = logging.getLogger("vfioflow")

_KIB = 1024
_MESSAGE_HEAD = 24
"""Bytes of a MIG_DATA_WRITE besides its data."""
_STOPPED = (State.STOP, State.STOP_COPY)
_LARGEST_TRANSFER = 64 << 20
_MOST_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is talked to.

    ``timeout``: seconds to wait for an answer, and for a server to listen; a change of state and a
    reset may take as long as the device likes.  ``in_flight``: requests for data under way at once.
    ``read_size``, ``write_size``: most bytes of data in one.  Both also stay within
    ``max_data_xfer_size``.  A message of up to 32 KiB arrives in one piece, which servers that
    read a message at once rely on; a server that does not may get larger ones.
    """

    timeout: float = 5.0
    in_flight: int = 4
    read_size: int = 1024 * _KIB
    write_size: int = 32 * _KIB - _MESSAGE_HEAD

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(f"timeout = {self.timeout!r}: must be above 0 seconds")
        if not 0 < self.in_flight <= _MOST_IN_FLIGHT:
            raise ConfigError(f"in_flight = {self.in_flight}: must be from 1 to {_MOST_IN_FLIGHT}")
        for key in ("read_size", "write_size"):
            if not 0 < getattr(self, key) <= _LARGEST_TRANSFER:
                raise ConfigError(
                    f"{key} = {getattr(self, key)}: must be from 1 byte to {_LARGEST_TRANSFER}"
                )


class VfioUserDevice:
    """A device that another process implements, by its vfio-user connection.

    Use :meth:`connect`.  A connection that breaks is made again when the device is next asked
    something, since a server keeps the device's state; what was loaded must still be there then.
    Closing leaves the device as it is.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        driver: str,
        outlives: bool,
        settings: Settings,
        where: str = "",
    ) -> None:
        self._client = client
        self._name, self._driver, self._where = name, driver, where
        self._outlives, self._settings = outlives, settings
        self._flags = client.flags()
        self._has_size = client.can(Feature.MIG_DATA_SIZE, Method.GET)
        logs = client.can(Feature.DMA_LOGGING_START, Method.SET)
        self._tracking: Literal["device", "unknown"] = "device" if logs else "unknown"
        self._model = client.model()
        self._port: DataPort | None = None
        self._session: Literal["", "save", "load"] = ""
        self._last: State | None = None
        self._loaded = False
        self._changing = 0
        self._closed = False
        self._connecting = threading.Lock()
        self.maps: dict[int, int] = {}
        """Memory that the server may reach, by :meth:`map_dma`: size by address, in bytes."""

    # ----------------------------------------------------------------- ways in

    @classmethod
    def connect(
        cls,
        path: str | Path,
        *,
        name: str = "",
        driver: str = "vfio-user",
        outlives: bool = True,
        settings: Settings | None = None,
    ) -> Self:
        """To the server that listens at ``path``.  Asks, and changes nothing.

        Args:
            path: of its socket.
            name: what it is called in a migration; default: the socket's name without its suffix.
            driver: decides whose state a device accepts; the same on both sides.
            outlives: whether the server keeps the device, and its state, when this process dies.
            settings: limits.

        Raises:
            ConfigError: a setting or the path is wrong.
            DeviceError: nobody answers there, or not in a version that is spoken here.
        """
        name = name or Path(path).stem
        settings = settings or Settings()
        client = _dial(str(path), name, settings)
        return cls._of(client, name, driver, outlives, settings, str(path))

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket,
        *,
        name: str,
        driver: str = "vfio-user",
        outlives: bool = True,
        settings: Settings | None = None,
    ) -> Self:
        """By a connected socket on which nothing was said yet.  Takes it over.

        Such a connection is not made again when it breaks.  Raises as :meth:`connect`.
        """
        settings = settings or Settings()
        client = Client(
            sock,
            name=name,
            where="its socket",
            timeout=settings.timeout,
            transfer=_transfer(settings),
        )
        return cls._of(client, name, driver, outlives, settings, "")

    @classmethod
    def _of(
        cls,
        client: Client,
        name: str,
        driver: str,
        outlives: bool,
        settings: Settings,
        where: str,
    ) -> Self:
        try:
            return cls(
                client, name=name, driver=driver, outlives=outlives, settings=settings, where=where
            )
        except BaseException:
            client.line.shut(errno.ECANCELED, "the device was not opened")
            raise

    # ------------------------------------------------------------------ facts

    def __repr__(self) -> str:
        return f"<VfioUserDevice {self._name} {self._where or 'by socket'}>"

    @property
    def name(self) -> str:
        """Unique within its set; the same on source and destination."""
        return self._name

    @property
    def info(self) -> DeviceInfo:
        """Static facts, as they were told when the connection was made."""
        return DeviceInfo(
            self._name,
            self._driver,
            self._flags,
            outlives=self._outlives,
            model=self._model,
            tracking=self._tracking,
        )

    @property
    def client(self) -> Client:
        """The connection; a new one where the old one broke.  Raises DeviceError."""
        client = self._client
        if self._closed:
            raise DeviceError(self._name, "ask it", errno.ENODEV, "the device is closed")
        if not client.broken:
            return client
        if not self._where:
            raise DeviceError(self._name, "ask it", client.line.broken, client.line.reason)
        if not self._connecting.acquire(timeout=self._settings.timeout):
            raise DeviceError(self._name, f"connect to {self._where}", errno.ETIMEDOUT)
        try:
            if self._client is client:
                self._connect_again(client)
            return self._client
        finally:
            self._connecting.release()

    def _connect_again(self, old: Client) -> None:
        log.warning("device %s: connecting again: %s", self._name, old.line.reason)
        try:
            client = _dial(self._where, self._name, self._settings)
        except DeviceError as error:
            error.add_note(f"the connection was lost before: {old.line.reason}")
            raise
        old.line.shut(errno.ENODEV, "")
        self._client = client
        self.maps.clear()

    # ------------------------------------------------------------------- state

    @property
    def state(self) -> State:
        """The present state, asked from the server.  Raises DeviceError."""
        client = self.client
        try:
            return client.state()
        except DeviceError as error:
            # What came before it may never be answered, say data that nobody waits for any more.
            lost = client.broken or error.errno == errno.ETIMEDOUT
            if not lost or self._changing or not self._where:
                raise
            client.line.shut(errno.ETIMEDOUT, f"no answer within {self._settings.timeout:g} s")
        return self.client.state()

    def set_state(self, state: State) -> int:
        """Take the device to ``state``; the server composes the way, by the kernel's rules.

        Returns a descriptor for :meth:`port` where a session begins, which the caller owns, or -1.
        It can only be polled: the data goes over the connection.

        Raises:
            IllegalTransition: refused before the server was asked.
            DeviceError: names the change, the errno, and where the device stands now.
        """
        start = self.state
        action = f"{start} -> {state}"
        if self._loaded and start is not self._last:
            raise DeviceError(
                self._name,
                action,
                errno.ESTALE,
                f"it was left in {self._last} and is in {start}: what was loaded into it is gone;"
                " only a reset helps",
            )
        chain = path(self._flags, start, state)
        if not chain:
            return -1
        opened = -1
        opens = any(map(opens_data_fd, (start, *chain), chain))
        self._leave_session(start, state, action)
        client = self.client
        if opens:
            opened = client.duplicate()
        self._loaded = self._loaded or state is State.RESUMING
        self._changing += 1
        try:
            client.set_state(action, state)
        except BaseException as error:
            if opened >= 0:
                os.close(opened)
            if isinstance(error, DeviceError):
                raise self._stands(error, action) from error
            raise
        finally:
            self._changing -= 1
        self._last = state
        self._loaded = self._loaded and state is not State.RUNNING
        if opens:
            self._session = "save" if state in SAVING else "load"
        return opened

    def _leave_session(self, start: State, state: State, action: str) -> None:
        """What was asked for of a stream that goes on must come first; else nobody wants it."""
        if self._port is not None and (start, state) == (State.PRE_COPY, State.STOP_COPY):
            try:
                self._port.stop_copy(self._settings.timeout)
            except OSError as error:
                code = error.errno or errno.EIO
                raise DeviceError(self._name, action, code, self._port.advice) from error
        else:
            self._end_session()

    def _end_session(self) -> None:
        if self._port is not None:
            self._port.end()
        self._port = None
        self._session = ""

    def _stands(self, error: DeviceError, action: str) -> DeviceError:
        """The same error, with where the device is now."""
        self._end_session()
        if self._client.broken:
            return error
        try:
            self._last = now = self._client.state()
        except DeviceError as unknown:
            where = f"in a state that it does not tell ({unknown})"
        else:
            where = f"in {now}" + (", which only a reset leaves" if now is State.ERROR else "")
        return DeviceError(self._name, action, error.errno or errno.EIO, f"it is now {where}")

    def port(self, data_fd: int) -> DataPort:
        """How a pump reads or writes the session's data.  Takes the descriptor over."""
        saving = self._session == "save"
        if not self._session:
            os.close(data_fd)
            raise DeviceError(self._name, "open port", errno.EINVAL, "it has no session")
        settings, client = self._settings, self._client
        size = min(settings.read_size if saving else settings.write_size, client.transfer)
        precopy = saving and self._last is State.PRE_COPY
        try:
            self._port = DataPort(data_fd, client.line, size, settings.in_flight, precopy)
        except OSError as error:
            raise DeviceError(self._name, "open port", error.errno or errno.EIO) from error
        return self._port

    def precopy_info(self, data_fd: int) -> PrecopyInfo:
        """How much there is to move, judged by what was read: a server does not tell.

        Raises DeviceError (EINVAL) outside PRE_COPY.
        """
        port = self._port
        if port is None or self._last is not State.PRE_COPY:
            raise DeviceError(self._name, "precopy_info", errno.EINVAL, "it is not in PRE_COPY")
        return pending(port.progress(), self._settings.read_size)

    def stop_copy_size(self) -> int | None:
        """What STOP_COPY would hand out now (bytes), for the servers that tell; None for the others."""
        if not self._has_size:
            return None
        data = self.client.get("stop_copy_size", Feature.MIG_DATA_SIZE, 8)
        return protocol.parse_data_size(data)

    def reset(self) -> None:
        """Reset the device: RUNNING, empty, any session gone.

        A server may refuse that in STOP and STOP_COPY, and is asked in another state then: in
        RUNNING, or where it may hold another device's state in RESUMING, so that it never runs
        with that.
        """
        start = self.state if self._flags else None
        client = self.client
        own = self._last is not None and not self._loaded
        self._end_session()
        try:
            self._reset(client)
        except DeviceError:
            if client.broken or start not in _STOPPED:
                raise
            detour = State.RUNNING if own else State.RESUMING
            client.set_state(f"{start} -> {detour}, for a reset", detour)
            self._reset(client)
        self._loaded = False
        self._last = client.state() if self._flags else None
        if self._last not in (None, State.RUNNING):
            # Newer servers leave the state to whoever resets.
            client.set_state(f"{self._last} -> RUNNING, after a reset", State.RUNNING)
            self._last = State.RUNNING

    def _reset(self, client: Client) -> None:
        client.request("reset", Command.DEVICE_RESET, unlimited=True)

    # ---------------------------------------------------------------------- DMA

    def map_dma(self, iova: int, size: int, fd: int, offset: int = 0) -> None:
        """Let the server reach memory: ``size`` bytes of ``fd`` from ``offset``, at address ``iova``.

        Of no use to a migration; a stack whose only connection this is needs it.  Gone when the
        connection is lost.  Raises DeviceError.
        """
        payload = protocol.pack_dma_map(iova, size, offset)
        self.client.request("map memory", Command.DMA_MAP, payload, fds=[fd])
        self.maps[iova] = size

    def unmap_dma(self, iova: int, size: int) -> None:
        """Take back what :meth:`map_dma` gave.  Raises DeviceError."""
        payload = protocol.pack_dma_unmap(iova, size)
        self.client.request("unmap memory", Command.DMA_UNMAP, payload)
        self.maps.pop(iova, None)

    # -------------------------------------------------------------------- end

    def close(self) -> None:
        """Close the connection, and nothing else; ends what waits for an answer.  Safe to call twice."""
        self._closed = True
        self._client.line.shut(errno.ENODEV, "the device is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _transfer(settings: Settings) -> int:
    return max(settings.read_size, settings.write_size, protocol.DEFAULT_TRANSFER)


def _dial(where: str, name: str, settings: Settings) -> Client:
    return Client.connect(where, name=name, timeout=settings.timeout, transfer=_transfer(settings))

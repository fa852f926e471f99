"""A connection to a vfio-user server that has agreed on a version, and what is asked over it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from vfioflow._vfio_user import Line
from vfioflow.devices.vfio_user import protocol
from vfioflow.devices.vfio_user.protocol import BadReply, Capabilities, Command, Feature, Method
from vfioflow.errors import ConfigError, DeviceError
from vfioflow.states import Flags, State

__all__ = ["Client"]

T = TypeVar("T")

_UNKNOWN = {errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS}
"""What servers that lack a feature answer: EINVAL, or what a kernel would say."""


class Client:
    """Typed requests, from any thread.  Every error is a DeviceError that names the device and the request.

    Args:
        sock: connected, and nothing said on it yet; taken over.
        name: the device's, for errors.
        where: what it is connected to, for errors.
        timeout: seconds to wait for an answer, except to what may take as long as the device likes.
        transfer: most bytes of data that this side takes in one message.

    Raises DeviceError: the server does not answer, or not in a version that is spoken here.
    """

    def __init__(
        self, sock: socket.socket, *, name: str, where: str, timeout: float, transfer: int
    ) -> None:
        self._name, self._where, self._timeout = name, where, timeout
        self.line = Line(sock.detach(), timeout)
        try:
            self._negotiate(transfer)
        except BaseException:
            self.line.shut(errno.ECANCELED, "nothing was agreed on")
            raise

    @classmethod
    def connect(cls, path: str, *, name: str, timeout: float, transfer: int) -> Self:
        """To the server that listens at ``path``."""
        if "\0" in path:
            raise ConfigError(f"socket = {path!r}: a path has no null character")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(path)
        except OSError as error:
            sock.close()
            code = error.errno or (
                errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.ENAMETOOLONG
            )
            advice = {
                errno.ENOENT: "is its server running?",
                errno.ECONNREFUSED: "its server is gone, and has left its socket behind",
                errno.EAGAIN: "its server has another client",
                errno.ETIMEDOUT: "its server has another client, or hangs",
            }.get(code, "")
            raise DeviceError(name, f"connect to {path}", code, advice) from error
        return cls(sock, name=name, where=path, timeout=timeout, transfer=transfer)

    def _negotiate(self, transfer: int) -> None:
        mine = Capabilities(max_data_xfer_size=transfer)
        action = "agree on a version"
        reply = self.request(
            action, Command.VERSION, protocol.pack_version(protocol.VERSION[1], mine)
        )
        try:
            self.minor, theirs = protocol.parse_version(reply)
        except BadReply as error:
            raise DeviceError(self._name, action, errno.EPROTONOSUPPORT, str(error)) from None
        # Both ways: servers hold a client to its own word too.
        self.transfer = min(transfer, theirs.max_data_xfer_size)
        if self.transfer == 0:
            raise DeviceError(
                self._name, action, errno.EPROTONOSUPPORT, "the server takes messages without data"
            )

    # ----------------------------------------------------------------- requests

    @property
    def broken(self) -> bool:
        """Whether the connection is of no use any more."""
        return self.line.broken != 0

    def request(
        self,
        action: str,
        command: Command,
        payload: bytes = b"",
        *,
        most: int = protocol.LARGEST_REPLY,
        unlimited: bool = False,
        fds: Sequence[int] = (),
    ) -> bytes:
        """Ask; the payload of the reply.

        Args:
            action: what is asked, in words, for errors.
            command: its number.
            payload: what follows the header.
            most: bytes of the largest payload that may come back.
            unlimited: wait for as long as the connection lives.
            fds: descriptors that go with it.
        """
        timeout = -1.0 if unlimited else self._timeout
        try:
            code, reply = self.line.request(command, payload, most, timeout, fds)
        except TimeoutError as error:
            if self.broken:
                raise self._lost(action) from error
            advice = f"no answer within {self._timeout:g} s"
            raise DeviceError(self._name, action, errno.ETIMEDOUT, advice) from error
        except OSError as error:
            raise self._lost(action) from error
        if code:
            raise DeviceError(self._name, action, code)
        return reply

    def _lost(self, action: str) -> DeviceError:
        advice = f"{self._where}: {self.line.reason}"
        return DeviceError(self._name, action, self.line.broken or errno.EIO, advice)

    def checked(self, action: str, parse: Callable[[], T]) -> T:
        """What ``parse`` makes of a reply; a BadReply becomes a DeviceError (EPROTO)."""
        try:
            return parse()
        except BadReply as error:
            raise DeviceError(self._name, action, errno.EPROTO, str(error)) from None

    def get(self, action: str, feature: Feature, size: int, data: bytes = b"") -> bytes:
        """A feature's data, of which there must be at least ``size`` bytes."""
        room = len(data) + size
        payload = protocol.pack_feature(feature, Method.GET, data, room=room)
        most = max(protocol.LARGEST_REPLY, 8 + room)
        reply = self.request(action, Command.DEVICE_FEATURE, payload, most=most)
        return self.checked(action, lambda: protocol.parse_feature(reply, feature, size))

    def set(
        self, action: str, feature: Feature, data: bytes = b"", *, unlimited: bool = False
    ) -> bytes:
        """Set a feature; the data of the reply."""
        payload = protocol.pack_feature(feature, Method.SET, data)
        reply = self.request(action, Command.DEVICE_FEATURE, payload, unlimited=unlimited)
        return self.checked(action, lambda: protocol.parse_feature(reply, feature, 0))

    def can(self, feature: Feature, method: Method) -> bool:
        """Whether the device has a feature, to get or to set it."""
        payload = protocol.pack_feature(feature, method | Method.PROBE)
        try:
            self.request(f"probe {feature.name}", Command.DEVICE_FEATURE, payload)
        except DeviceError as error:
            if self.broken or error.errno not in _UNKNOWN:
                raise
            return False
        return True

    # ------------------------------------------------------------------- facts

    def flags(self) -> Flags:
        """What the device has of migration; NONE where it has none."""
        action = "ask for its migration flags"
        try:
            data = self.get(action, Feature.MIGRATION, 8)
        except DeviceError as error:
            if self.broken or error.errno not in _UNKNOWN:
                raise
            return Flags.NONE
        return protocol.parse_flags(data)

    def state(self) -> State:
        """The device's state."""
        action = "ask for its state"
        data = self.get(action, Feature.MIG_DEVICE_STATE, 4)
        return self.checked(action, lambda: protocol.parse_state(data))

    def set_state(self, action: str, state: State) -> None:
        """Change the device's state, for as long as that takes."""
        self.set(action, Feature.MIG_DEVICE_STATE, protocol.pack_state(state), unlimited=True)

    def model(self) -> str:
        """Vendor and device id of a PCI device, as ``1af4:1041``; "" where they are not told."""
        try:
            reply = self.request("ask for its kind", Command.DEVICE_GET_INFO, protocol.pack_info())
            if not protocol.parse_is_pci(reply):
                return ""
            payload = protocol.pack_region_read(protocol.CONFIG_REGION, 0, 4)
            reply = self.request("read its ids", Command.REGION_READ, payload)
            ids = protocol.parse_region(reply, 4)
        except (DeviceError, BadReply):
            if self.broken:
                raise
            return ""  # not allowed in every state, and only good to know
        return f"{ids[1]:02x}{ids[0]:02x}:{ids[3]:02x}{ids[2]:02x}"  # config space is little-endian

    def duplicate(self) -> int:
        """A descriptor of the socket's own, to be closed by the caller; good to poll."""
        try:
            return os.dup(self.line.fileno())
        except OSError as error:
            code = error.errno or errno.EIO
            raise DeviceError(self._name, "duplicate its socket", code) from error

"""The greetings: who is there, which session this is, and what its connections are known by.

Until they are done nothing is known of the peer, so little is read of it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import struct
from contextlib import ExitStack
from importlib.metadata import version
from typing import TypeVar

import msgspec

from vfioflow.errors import AuthenticationError, PeerLost, ProtocolError, RemoteError
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import (
    Preamble,
    Role,
    connect,
    peer_of,
    read_exactly,
    read_preamble,
    send_all,
)
from vfioflow.wire.security import Guard
from vfioflow.wire.trouble import part, printable

__all__ = ["MAX_GREETING", "answer", "call"]

MAX_GREETING = 4096
"""Bytes of control messages that a peer may send before it has shown that it has the key."""

_HEAD = struct.Struct("<II")
"""As in :mod:`vfioflow.wire.control`."""

_NO_KEY_THERE = "it has no key, this side has one: give it the same with --psk FILE"
_NO_KEY_HERE = "it has a key, this side has none: give this side the same with --psk FILE"
_OTHER_KEY = "the two sides do not have the same key: compare the files given with --psk"

M = TypeVar("M", bound=messages.Message)

_SOFTWARE = f"vfioflow {version('vfioflow')}"


async def call(
    address: Address, session: str, guard: Guard, timeout: float
) -> tuple[Control, Keys]:
    """The source's part: a new control connection, on which the session is named.

    Raises:
        AuthenticationError: one of the sides could not prove who it is.
        ProtocolError: the peer speaks another version.
        PeerError: it said something else, or nothing within ``timeout`` seconds.
    """
    sock = await connect(address, Preamble(Role.CONTROL), timeout, guard)
    with ExitStack() as owned:
        owned.callback(sock.close)
        try:
            async with asyncio.timeout(timeout):
                await read_preamble(sock, timeout)
                talk = _Talk(sock)
                keys = await _greet(talk, session, guard)
                control = Control(sock, keys=keys, side="source", greeted=talk.sent)
        except TimeoutError:
            raise PeerLost(f"{address} did not send its greeting within {timeout:g} s") from None
        except PeerLost as error:
            raise PeerLost(f"{address}: {error}") from None
        owned.pop_all()
    return control, keys


async def _greet(talk: _Talk, session: str, guard: Guard) -> Keys:
    mine = _hello(session, guard)
    sent = await talk.say(mine)
    theirs, heard = await talk.hear(messages.Hello)
    theirs.check()
    if theirs.key != mine.key:
        raise AuthenticationError(f"{talk.peer}: {_NO_KEY_HERE if theirs.key else _NO_KEY_THERE}")
    if theirs.session != session:
        raise ProtocolError(f"{talk.peer} answered for another session")
    keys = Keys(sent + heard, guard.psk)
    if mine.key:
        await talk.say(messages.Proof(proof=keys.proof("source")))
        try:
            proof, _ = await talk.hear(messages.Proof)
        except RemoteError as error:
            raise AuthenticationError(str(error)) from None
        if not hmac.compare_digest(proof.proof, keys.proof("destination")):
            raise AuthenticationError(f"{talk.peer}: {_OTHER_KEY}")
    return keys


async def answer(sock: socket.socket, guard: Guard) -> tuple[Control, str, Keys]:
    """The destination's part, once it has answered the preamble; returns the session's name too.

    Owns ``sock`` only if it returns.

    Raises:
        AuthenticationError, ProtocolError, PeerError: as :func:`call`.
    """
    talk = _Talk(sock)
    try:
        theirs, heard = await talk.hear(messages.Hello)
        theirs.check()
        mine = _hello(theirs.session, guard)
        keys = Keys(heard + await talk.say(mine), guard.psk)
        if theirs.key != mine.key:
            raise AuthenticationError(_NO_KEY_HERE if theirs.key else _NO_KEY_THERE)
        if mine.key:
            proof, _ = await talk.hear(messages.Proof)
            if not hmac.compare_digest(proof.proof, keys.proof("source")):
                await talk.say(messages.Failed(reason=_OTHER_KEY))
                raise AuthenticationError(_OTHER_KEY)
            await talk.say(messages.Proof(proof=keys.proof("destination")))
    except (AuthenticationError, ProtocolError):
        await part(sock)
        raise
    control = Control(sock, keys=keys, side="destination", greeted=talk.sent)
    return control, theirs.session, keys


class _Talk:
    """The first messages of a connection, one after the other; from then on a Control has it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.peer = peer_of(sock)
        self.sent = self.heard = 0
        self._room = MAX_GREETING

    async def say(self, message: messages.Message) -> bytes:
        """Send one; what went over the wire, without the head.  Raises PeerLost."""
        data = messages.encode(message)
        await send_all(self._sock, _HEAD.pack(len(data), self.heard) + data)
        self.sent += 1
        return data

    async def hear(self, kind: type[M]) -> tuple[M, bytes]:
        """The next, and what went over the wire.

        Raises:
            RemoteError: the peer said Failed.
            ProtocolError: it said something else, or too much.
            PeerLost: the peer is gone.
        """
        size, heard = _HEAD.unpack(await read_exactly(self._sock, _HEAD.size))
        if not 0 < size <= self._room:
            raise ProtocolError(f"{self.peer} announced a greeting of {size} bytes")
        self._room -= size
        data = await read_exactly(self._sock, size)
        try:
            message = messages.decode(data)
        except msgspec.DecodeError as error:
            raise ProtocolError(
                f"{self.peer} sent a control message that is none: {printable(str(error))}"
            ) from None
        if isinstance(message, messages.Failed):
            raise RemoteError(f"{self.peer} gave up: {printable(message.reason)}")
        if not isinstance(message, kind) or heard != self.sent:
            raise ProtocolError(f"{self.peer} sent something else than its greeting")
        self.heard += 1
        return message, data


def _hello(session: str, guard: Guard) -> messages.Hello:
    return messages.Hello(
        version=messages.VERSION,
        software=_SOFTWARE,
        session=session,
        nonce=secrets.token_bytes(messages.NONCE_SIZE),
        key=bool(guard.psk),
    )

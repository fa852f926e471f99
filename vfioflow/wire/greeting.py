"""The greetings: who is there, which session this is, and what its connections are known by."""

from __future__ import annotations

import secrets
from importlib.metadata import version

from vfioflow.errors import PeerLost
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import Preamble, Role, connect, read_preamble

__all__ = ["answer", "call", "greet"]


async def call(address: Address, session: str, timeout: float) -> tuple[Control, Keys]:
    """A new control connection to the destination, with the greetings exchanged.

    Raises PeerLost: nobody there, or no answer in ``timeout`` seconds; else as :func:`greet`.
    """
    sock = await connect(address, Preamble(Role.CONTROL), timeout)
    control = None
    try:
        await read_preamble(sock, timeout)
        control = Control(sock)
    except PeerLost as error:
        raise PeerLost(f"{address}: {error}") from None
    finally:
        if control is None:
            sock.close()
    try:
        keys = await greet(control, session, timeout)
    except BaseException:
        await control.close()
        raise
    return control, keys


async def greet(control: Control, session: str, timeout: float) -> Keys:
    """The source's part: name the session.

    Raises:
        ProtocolError: the peer speaks another version.
        PeerError: it said something else, or nothing within ``timeout`` seconds.
    """
    mine = _hello(session)
    await control.send(mine)
    theirs = await control.expect(messages.Hello, timeout=timeout, what="its greeting")
    theirs.check()
    return Keys(messages.encode(mine) + messages.encode(theirs))


async def answer(control: Control, timeout: float) -> tuple[str, Keys]:
    """The destination's part; returns the session's name too.  Raises as :func:`greet`."""
    theirs = await control.expect(messages.Hello, timeout=timeout, what="its greeting")
    theirs.check()
    mine = _hello(theirs.session)
    await control.send(mine)
    return theirs.session, Keys(messages.encode(theirs) + messages.encode(mine))


def _hello(session: str) -> messages.Hello:
    return messages.Hello(
        version=messages.VERSION,
        software=f"vfioflow {version('vfioflow')}",
        session=session,
        nonce=secrets.token_bytes(messages.NONCE_SIZE),
    )

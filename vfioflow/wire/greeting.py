"""The greetings: who is there, which session this is, and what its connections are known by."""

from __future__ import annotations

import secrets
from importlib.metadata import version

from vfioflow.wire import messages
from vfioflow.wire.control import Control
from vfioflow.wire.keys import Keys

__all__ = ["answer", "greet"]

_SOFTWARE = f"vfioflow {version('vfioflow')}"


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
        software=_SOFTWARE,
        session=session,
        nonce=secrets.token_bytes(messages.NONCE_SIZE),
    )

"""Scripted sources, and the destinations that must bear them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable

import model
import sessions
import streams
from sessions import (
    AGAIN,
    CHUNK,
    DATA,
    FRAMED,
    GREET,
    HEAR,
    JOURNAL,
    KEY,
    OPEN,
    PSK,
    WHOLE,
    Peer,
    device,
    ended,
    exactly,
    greeting,
    kept_journal,
    picked,
    pieces,
    run,
    script,
    security,
    steps,
    stream,
    which,
)

from vfioflow import (
    HandoverInDoubt,
    Policy,
    State,
    listen,
)
from vfioflow.wire import messages
from vfioflow.wire.address import Address
from vfioflow.wire.keys import Keys
from vfioflow.wire.opening import HEARD, Preamble, Role


def play(data: bytes) -> None:
    """A destination whose source follows the script."""
    if data:
        outcome(data)


def outcome(data: bytes) -> BaseException | None:
    """How it ended."""
    return run(_destination(data))


async def _destination(data: bytes) -> BaseException | None:
    policy = Policy(connect_timeout=5, stall_timeout=5, resolve_timeout=sessions.PATIENCE)
    with device() as there, kept_journal(data) as journal:
        where = "tcp://127.0.0.1:0"
        async with listen(
            where, [there], policy=policy, journal=journal, security=security(data)
        ) as listener:
            session = asyncio.create_task(listener.receive())
            address = Address.parse(listener.address)
            peer = Peer()
            try:
                await _be_source(peer, address, data)
                peer.finish()
                # Until the listener is through with all connections; what it accepts with goes on.
                while len(listener._tasks) > 1:
                    await asyncio.wait(listener._tasks, return_when=asyncio.FIRST_COMPLETED)
                # Without a session it waits for one; with a window, for connections to come back.
                began = listener._session
                waits = began is None and listener._waiting.empty()
                resumable = began is not None and began._control.resumable
                error = await ended(session, cancel=waits or resumable)
            finally:
                peer.close()
        if not isinstance(error, HandoverInDoubt):
            assert there.state is State.RUNNING, f"{there.state} after {error!r}"
        return error


async def _dial(address: Address, hello: bytes) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (address.host, address.port))
    await loop.sock_sendall(sock, hello)
    return sock


async def _be_source(peer: Peer, address: Address, data: bytes) -> None:
    options = data[0]
    first = b"" if not options & GREET else Preamble(Role.CONTROL).pack()
    peer.control = await _dial(address, first)
    if options & GREET:
        with contextlib.suppress(OSError):
            await exactly(peer.control, len(first))
        hello = greeting("s", key=bool(options & KEY))
        await peer.send(hello)
        if (answer := await peer.hear()) is not None:
            peer.keys = Keys(hello + answer, PSK if options & KEY else b"")
        if options & KEY and peer.keys is not None:
            await peer.send(messages.encode(messages.Proof(proof=peer.keys.proof("source"))))
            await peer.hear()
            peer.seal = peer.keys.seal("source")
    for what, payload in steps(data):
        number = payload[0] if payload else 0
        if what == OPEN and peer.keys is not None and number not in peer.channels:
            token = peer.keys.token(Role.DATA, number, 0)
            peer.channels[number] = await _dial(address, Preamble(Role.DATA, number, token).pack())
        elif what == DATA:
            await peer.tagged(number, streams.repaired(payload[1:], chunk=CHUNK))
        elif what == WHOLE:
            frames = streams.Stream().add(model.RAW, 0, stream()).add(model.END, 0)
            await peer.tagged(number, frames.other(model.CLOSE).bytes())
        elif what == AGAIN and len(payload) > 2 and peer.keys is not None:
            await _dial_again(peer, address, payload)
        else:
            await peer.tell(what, payload)


async def _dial_again(peer: Peer, address: Address, payload: bytes) -> None:
    """Open a connection again: role, channel, attempt, and what is claimed to have been heard."""
    role, number, attempt = which(payload)
    token = peer.keys.token(role, number, attempt) if peer.keys else bytes(16)
    hello = Preamble(role, number, token, attempt).pack()
    sock = await _dial(address, hello + payload[3:])
    old = peer.control if role is Role.CONTROL else peer.channels.get(number)
    if role is Role.CONTROL:
        peer.control = sock
    else:
        peer.channels[number] = sock
    if old is not None:
        old.close()
    if peer.patient:
        try:
            async with asyncio.timeout(sessions.PATIENCE):
                await exactly(sock, len(hello) + HEARD.size)
        except (OSError, TimeoutError):
            peer.patient = False


def scripts() -> Iterable[bytes]:
    """A whole migration, one that breaks and comes back, and pieces."""
    offer = streams.offer(streams.offered())
    patient = streams.offer(streams.offered(), window=1 << 20, reconnect_seconds=30.0)
    begin = [(FRAMED, messages.encode(offer)), (HEAR, b""), (OPEN, b"\0"), (HEAR, b"")]
    lasting = [(FRAMED, messages.encode(patient)), *begin[1:]]
    end = [*picked(messages.Switchover), (WHOLE, b"\0"), (HEAR, b"")]
    end += [*picked(messages.Commit), (HEAR, b"")]
    end += picked(messages.Goodbye)
    again = (AGAIN, b"\1\0\1" + HEARD.pack(3))
    yield script(GREET, *begin, *end)
    yield script(GREET | JOURNAL, *begin, *end)
    yield script(GREET | KEY, *begin, *end)
    yield script(GREET | JOURNAL, *picked(messages.Resolve), (HEAR, b""))
    probe = messages.encode(messages.Probe(size=1000))
    pads = streams.Stream().other(model.PAD, 1000).bytes()
    yield script(GREET, *begin, (FRAMED, probe), (DATA, b"\0" + pads), (HEAR, b""), *end)
    yield script(GREET, *begin, *end[:3], *picked(messages.Failed))
    yield script(GREET | KEY, *lasting, (AGAIN, b"\1\0\1" + HEARD.pack(4)), *end)
    yield script(GREET, *lasting, again, (AGAIN, b"\0\0\1"), *end)
    for one in streams.channels():
        yield script(GREET, *begin, (DATA, b"\0" + one))
    yield from pieces(begin)

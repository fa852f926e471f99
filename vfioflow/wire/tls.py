"""TLS 1.3 with certificates on both sides, by the standard library.

The pumps work on plain descriptors.  So where the kernel does the encryption, a connection's own
descriptor goes on without the library; else a :mod:`relay <vfioflow.wire.relay>` stands between.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vfioflow.errors import AuthenticationError, ConfigError
from vfioflow.wire.address import Address
from vfioflow.wire.relay import Tunnel
from vfioflow.wire.trouble import in_words, part, reason

__all__ = ["HANDSHAKE", "Tls", "ready"]

HANDSHAKE = b"\x16"
"""The first byte of a TLS connection; vfioflow's preamble begins with a letter."""

_ENABLE_KTLS = 1 << 3
"""``ssl.OP_ENABLE_KTLS``, which Python names from 3.12 on."""

_SOL_TLS, _TLS_TX, _TLS_RX = 282, 1, 2


class Tls:
    """One side's certificates, tried: they are of that CA, and of this day."""

    def __init__(
        self, context: ssl.SSLContext, *, hostname: str | None = None, peer: str | None = None
    ) -> None:
        self._context = context
        self._hostname = hostname
        self._peer = peer

    @classmethod
    def client(cls, folder: Path, hostname: str) -> Tls:
        """A source's, which connects to the one that has a certificate for ``hostname``.

        Raises:
            ConfigError: a file is not there, or not good.
        """
        caller = _context(folder, ssl.PROTOCOL_TLS_CLIENT, "client")
        caller.check_hostname = False
        caller.verify_mode = ssl.CERT_NONE
        taker = _context(folder, ssl.PROTOCOL_TLS_SERVER, "client")
        _try_out(folder / "client-cert.pem", caller, taker, hostname)
        return cls(_context(folder, ssl.PROTOCOL_TLS_CLIENT, "client"), hostname=hostname)

    @classmethod
    def server(cls, folder: Path, peer: str | None) -> Tls:
        """A destination's, which takes only ``peer``, if that is a name.  Raises as :meth:`client`."""
        caller = _context(folder, ssl.PROTOCOL_TLS_CLIENT, "server")
        caller.check_hostname = False
        taker = _context(folder, ssl.PROTOCOL_TLS_SERVER, "server")
        taker.verify_mode = ssl.CERT_NONE
        _try_out(folder / "server-cert.pem", caller, taker)
        return cls(_context(folder, ssl.PROTOCOL_TLS_SERVER, "server"), peer=peer)

    async def connect(self, sock: socket.socket, peer: Address) -> socket.socket:
        """The handshake of the side that connected; a plain socket that stands for the connection.

        Owns ``sock`` from the beginning, whatever happens.

        Raises:
            AuthenticationError: a certificate is not good, or the peer knows no TLS.
            PeerError: the connection failed.
        """
        with ExitStack() as undo:
            undo.callback(sock.close)
            tls = self._context.wrap_socket(
                sock, server_hostname=self._hostname, do_handshake_on_connect=False
            )
        return await _established(tls, peer)

    async def accept(self, sock: socket.socket, peer: Address, refusal: bytes) -> socket.socket:
        """The same for the side that listens; ``refusal`` is for one whose name is not the wanted one."""
        with ExitStack() as undo:
            undo.callback(sock.close)
            tls = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return await _established(tls, peer, self._peer, refusal)


async def _established(
    tls: ssl.SSLSocket, peer: Address, name: str | None = None, refusal: bytes = b""
) -> socket.socket:
    with ExitStack() as undo:
        undo.callback(tls.close)
        try:
            await _until_done(tls, tls.do_handshake)
            if name is not None and name.lower() not in (names := _names(tls)):
                await _until_done(tls, lambda: tls.send(refusal))
                raise AuthenticationError(
                    f"its certificate is for {', '.join(sorted(names)) or 'nobody'}, not {name}"
                )
        except OSError as error:
            await part(tls)
            raise reason(error) from None
        undo.pop_all()
    if _in_kernel(tls):
        return socket.socket(fileno=tls.detach())
    return Tunnel.around(tls, peer)


async def _until_done(tls: ssl.SSLSocket, act: Callable[[], object]) -> None:
    """Try until the connection is ready for it.  Raises OSError."""
    while True:
        try:
            act()
        except ssl.SSLWantReadError:
            await ready(tls, writing=False)
        except ssl.SSLWantWriteError:
            await ready(tls, writing=True)
        else:
            return


async def ready(sock: socket.socket, *, writing: bool) -> None:
    """Until the descriptor is ready for it, whatever the socket is."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    add(sock.fileno(), event.set)
    try:
        await event.wait()
    finally:
        remove(sock.fileno())


def _names(tls: ssl.SSLSocket) -> frozenset[str]:
    """The names in the peer's certificate, in small letters."""
    certificate: dict[str, Any] = tls.getpeercert() or {}
    alternatives = certificate.get("subjectAltName", ())
    names = {name for kind, name in alternatives if kind in ("DNS", "IP Address", "email")}
    for attributes in certificate.get("subject", ()):
        names |= {value for key, value in attributes if key == "commonName"}
    return frozenset(name.lower() for name in names)


def _in_kernel(sock: socket.socket) -> bool:
    """Whether the kernel both encrypts and decrypts on this connection."""
    try:
        for direction in (_TLS_TX, _TLS_RX):
            sock.getsockopt(_SOL_TLS, direction, 4)
    except OSError:
        return False
    return True


def _context(folder: Path, protocol: int, role: str) -> ssl.SSLContext:
    """TLS 1.3 with the certificate of ``role`` ("client", "server"), and the CA for the peer's."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # The end of a channel is a frame, and that of a session a message: no need of close_notify.
    if ssl.OPENSSL_VERSION_INFO >= (3, 0):
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF | _ENABLE_KTLS
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a control record that nobody would read in the kernel's TLS
    authority, revoked = folder / "ca-cert.pem", folder / "ca-crl.pem"
    _load(authority, lambda: context.load_verify_locations(authority))
    if revoked.exists():
        _load(revoked, lambda: context.load_verify_locations(revoked))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    certificate, key = folder / f"{role}-cert.pem", folder / f"{role}-key.pem"
    for path in (certificate, key):
        _load(path, path.read_bytes)
    _load(
        certificate,
        lambda: context.load_cert_chain(certificate, key, password=lambda: _encrypted(key)),
    )
    return context


def _load(path: Path, load: Callable[[], object]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise ConfigError(f"{path}: {in_words(error)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _encrypted(key: Path) -> str:
    raise ConfigError(
        f"{key}: is encrypted, and there is nobody to ask: store it without a password"
    )


def _try_out(
    path: Path, caller: ssl.SSLContext, taker: ssl.SSLContext, hostname: str | None = None
) -> None:
    """Shake hands in memory: what is wrong with a certificate shows before anything is touched."""
    to_taker, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        calling = caller.wrap_bio(to_caller, to_taker, server_hostname=hostname)
    except ValueError as error:
        raise ConfigError(f"{hostname!r} is no name for a certificate: {error}") from None
    sides = (calling, taker.wrap_bio(to_taker, to_caller, server_side=True))
    for side in 2 * sides:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"{path}: {in_words(error)}") from None
        except ssl.SSLError as error:
            raise ConfigError(f"{path}: cannot be used: {in_words(error)}") from None

"""What went wrong with a connection, in words."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from contextlib import suppress

from vfioflow.errors import AuthenticationError, IntegrityError, PeerError, PeerLost, ProtocolError

__all__ = ["in_words", "part", "printable", "reason"]

_PARTING = 1.0
"""Seconds that a peer gets to read why it is refused."""

_LONGEST = 1000

_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
_TAMPERED = {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "BAD_RECORD_TYPE", "DATA_LENGTH_TOO_LONG"}


def in_words(error: OSError) -> str:
    """The reason alone, without number or file."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def reason(error: OSError) -> PeerError:
    """What a failure of a TLS connection means.  A PeerError stays what it is."""
    if isinstance(error, PeerError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(f"its certificate is not accepted: {_why(error)}")
    if not isinstance(error, ssl.SSLError):
        return PeerLost(f"the connection failed: {in_words(error)}")
    code = error.reason or ""
    if code in _NOT_TLS:
        return AuthenticationError(
            "it does not speak TLS: give both sides certificates (--tls DIR), or neither"
        )
    if code == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return AuthenticationError("it has no certificate")
    if match := re.fullmatch(r"(?:SSLV3|TLSV1|TLSV13)_ALERT_(.*)", code):
        words = match[1].replace("_", " ").lower()
        return AuthenticationError(f"it does not accept this side's certificate: {words}")
    if code in _TAMPERED:
        return IntegrityError(f"what came was changed on the way ({in_words(error)})")
    if isinstance(error, ssl.SSLEOFError) or not code:
        return PeerLost("the peer closed the connection")
    return ProtocolError(f"TLS failed: {in_words(error)}")


def _why(error: ssl.SSLCertVerificationError) -> str:
    """The library's words, and what to do."""
    words = str(error.verify_message)
    if "match" in words:
        return f"{words}; --tls-hostname names the one to expect"
    if "expired" in words or "not yet valid" in words:
        return f"{words}; renew it, or set the clocks"
    if "issuer" in words or "self-signed" in words or "self signed" in words:
        return f"{words}: it is not of the CA in ca-cert.pem here"
    return words


async def part(sock: socket.socket) -> None:
    """Let the peer read what was sent, before the socket is closed.

    What it sent and nobody read would make the system throw that away.
    """
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        async with asyncio.timeout(_PARTING):
            with socket.socket(fileno=os.dup(sock.fileno())) as plain:
                plain.setblocking(False)
                while await loop.sock_recv(plain, 4096):
                    pass


def printable(text: str) -> str:
    """What a peer said, fit for a terminal and a log: of one line, of bounded length."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])
    return shown + ("..." if len(text) > _LONGEST else "")

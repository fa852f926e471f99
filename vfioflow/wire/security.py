"""How the two sides of a migration know each other: by nothing, a pre-shared key, or certificates."""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
import string
from dataclasses import dataclass, field
from pathlib import Path

from vfioflow import _mac
from vfioflow.errors import ConfigError
from vfioflow.wire.tls import Tls

__all__ = ["Guard", "Security", "is_loopback", "write_psk"]

_LEAST_KEY = 16
_MOST_KEY = 4096
_FEWEST_VALUES = 8
"""Fewer different bytes than this in a key: it is not random.  Of 16 random bytes, about 15 differ."""

_HOW_TO_MAKE_ONE = "make one with `vfioflow key FILE`, and copy it to the other host over SSH"


@dataclass(frozen=True, slots=True)
class Guard:
    """What one side opens its connections with."""

    psk: bytes = field(default=b"", repr=False)
    tls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How the two sides know each other.  Frozen and checked when made; raises ConfigError.

    ``Security()`` is nothing at all: only a listener on a loopback address takes it.
    """

    psk: bytes | None = field(default=None, repr=False)
    """A key that both sides have: at least 16 random bytes.  Proves who is there and that nothing
    was changed on the way; hides nothing."""

    tls: Path | None = None
    """A folder of certificates; both sides prove who they are, and everything is encrypted."""

    hostname: str | None = None
    """At the source: the name in the destination's certificate; None: the host that it connects to."""

    peer: str | None = None
    """At the destination: the only name in a certificate that a source may have; None: any that the
    CA has signed."""

    def __post_init__(self) -> None:
        if self.psk is not None and self.tls is not None:
            raise ConfigError("a key and certificates exclude each other: use one of them")
        if self.tls is None and (self.hostname is not None or self.peer is not None):
            raise ConfigError("the name in a certificate means nothing without certificates")
        if self.psk is not None:
            _check_key(self.psk)
            try:
                _mac.load()
            except ImportError as error:
                raise ConfigError(f"a key cannot be used here: {error}") from None

    @classmethod
    def from_psk_file(cls, path: str | os.PathLike[str]) -> Security:
        """A key from a file: at least 16 random bytes, raw or as hexadecimal digits.

        Raises:
            ConfigError: it cannot be read, others may read it too, or it holds no such key.
        """
        where = Path(path)
        try:
            with where.open("rb") as file:
                check_private(where, os.fstat(file.fileno()))
                data = file.read(_MOST_KEY + 1)
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}; {_HOW_TO_MAKE_ONE}") from None
        try:
            return cls(psk=_parse_key(data))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_tls_dir(
        cls, path: str | os.PathLike[str], hostname: str | None = None, peer: str | None = None
    ) -> Security:
        """Certificates from a folder, with the names that QEMU gives them.

        ``ca-cert.pem``; at the source ``client-cert.pem`` and ``client-key.pem``, at the
        destination ``server-cert.pem`` and ``server-key.pem``; ``ca-crl.pem``, if there is one.
        Which of them are needed, and whether they are good, shows when a side is made with them.

        Args:
            path: the folder.
            hostname: see the field of this name.
            peer: see the field of this name.

        Raises:
            ConfigError: no such folder.
        """
        where = Path(path)
        if not where.is_dir():
            raise ConfigError(f"{where}: no folder with certificates")
        return cls(tls=where, hostname=hostname, peer=peer)

    def for_source(self, host: str) -> Guard:
        """What a source opens its connections to ``host`` with.  Raises ConfigError."""
        if self.tls is None:
            return Guard(self.psk or b"")
        if self.peer is not None:
            raise ConfigError("`peer` is for the destination; the source's is `hostname`")
        check_private(self.tls / "client-key.pem")
        return Guard(tls=Tls.client(self.tls, self.hostname or host))

    def for_destination(self, *, loopback: bool) -> Guard:
        """What a destination takes its connections with.

        Raises:
            ConfigError: wrong files; or none, and it listens on more than a ``loopback`` address.
        """
        if self.tls is not None:
            if self.hostname is not None:
                raise ConfigError("`hostname` is for the source; the destination's is `peer`")
            check_private(self.tls / "server-key.pem")
            return Guard(tls=Tls.server(self.tls, self.peer))
        if self.psk is None and not loopback:
            raise ConfigError(
                "whoever reaches this address could put a state into the devices: give both sides"
                " a key (--psk FILE, made by `vfioflow key FILE`) or certificates (--tls DIR), or"
                " listen on tcp://127.0.0.1:PORT and come by an SSH tunnel (ssh -L)"
            )
        return Guard(self.psk or b"")


def is_loopback(host: str) -> bool:
    """Whether only this host's own programs can reach an address, a number, that is listened on."""
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(number, "ipv4_mapped", None)
    return (mapped or number).is_loopback


def check_private(path: Path, status: os.stat_result | None = None) -> None:
    """Raise ConfigError where others may read or change a file with a secret, or it is not there."""
    try:
        mode = (status or path.stat()).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: is not a file")
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            f"{path}: others may read or change it (mode {stat.S_IMODE(mode):04o}); if nobody has,"
            f" chmod 600 {path}, else it is no secret any more: make a new one"
        )


def write_psk(path: str | os.PathLike[str]) -> None:
    """Write a new key of 32 random bytes, as hexadecimal digits, into a new file of mode 0600.

    Raises:
        ConfigError: the file is there already, or cannot be written.
    """
    where = Path(path)
    try:
        fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None


def _parse_key(data: bytes) -> bytes:
    if len(data) > _MOST_KEY:
        raise ConfigError(f"is longer than {_MOST_KEY} bytes, and so no key")
    text = data.strip()
    if text and all(byte in string.hexdigits.encode() for byte in text) and len(text) % 2 == 0:
        return bytes.fromhex(text.decode())
    if data and all(byte in string.printable.encode() for byte in data):
        raise ConfigError(
            "is text, and not a key in hexadecimal digits; a word that people can remember can be"
            f" guessed: {_HOW_TO_MAKE_ONE}"
        )
    return data


def _check_key(key: bytes) -> None:
    if len(key) < _LEAST_KEY:
        raise ConfigError(
            f"a key has at least {_LEAST_KEY} random bytes, not {len(key)}: {_HOW_TO_MAKE_ONE}"
        )
    if len(set(key)) < _FEWEST_VALUES:
        raise ConfigError(f"this key is not random: {_HOW_TO_MAKE_ONE}")

"""Certificates for tests, in QEMU's layout."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme

HOST = "127.0.0.1"
CLIENT = "source.test"


class Authority:
    """A CA, and folders with what it signed."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def folder(
        self,
        path: Path,
        *,
        server: str = HOST,
        client: str = CLIENT,
        expired: bool = False,
        trusts: Authority | None = None,
    ) -> Path:
        """A folder for both sides; ``trusts``: whose ca-cert.pem is in it, its own by default."""
        path.mkdir()
        ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        (trusts or self)._ca.cert_pem.write_to_path(path / "ca-cert.pem")
        for role, name in (("server", server), ("client", client)):
            made = self._ca.issue_cert(name, not_after=ends if expired else None)
            made.cert_chain_pems[0].write_to_path(path / f"{role}-cert.pem")
            key = path / f"{role}-key.pem"
            made.private_key_pem.write_to_path(key)
            key.chmod(0o600)
        return path

"""Keys and certificates as they are given, and what is wrong with them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from certificates import Authority

from vfioflow import ConfigError, Security
from vfioflow.wire import security
from vfioflow.wire.keys import Keys
from vfioflow.wire.security import is_loopback, write_psk

KEY = bytes(range(32))


@pytest.fixture
def file(tmp_path):
    def make(data, mode=0o600):
        path = tmp_path / "key"
        path.write_bytes(data)
        path.chmod(mode)
        return path

    return make


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def folder(authority, tmp_path):
    return authority.folder(tmp_path / "pki")


@pytest.mark.parametrize("data", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n"])
def test_a_key_is_raw_or_hexadecimal(file, data):
    assert Security.from_psk_file(file(data)).psk == KEY


def test_a_key_is_not_shown():
    assert KEY.hex() not in repr(Security(psk=KEY))
    assert str(KEY) not in repr(Security(psk=KEY))
    assert str(KEY) not in repr(Security(psk=KEY).for_source("x"))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "at least 16 random bytes, not 0"),
        (b"\n", "can be guessed"),
        (KEY[:15], "at least 16 random bytes, not 15"),
        (KEY[:15].hex().encode(), "at least 16 random bytes, not 15"),
        (b"correct horse battery staple", "can be guessed"),
        (bytes(32), "not random"),
        (b"ab" * 32, "not random"),
        (os.urandom(5000), "longer than 4096 bytes"),
    ],
)
def test_what_is_no_key(file, data, match):
    with pytest.raises(ConfigError, match=match):
        Security.from_psk_file(file(data))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620])
def test_a_key_that_others_may_read_or_change(file, mode):
    with pytest.raises(ConfigError, match="others may read or change it"):
        Security.from_psk_file(file(KEY, mode))


def test_a_key_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory; make one with `vfioflow key"):
        Security.from_psk_file(tmp_path / "none")


def test_a_key_that_is_made(tmp_path):
    path = tmp_path / "new"
    write_psk(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(Security.from_psk_file(path).psk) == 32
    with pytest.raises(ConfigError, match="File exists"):
        write_psk(path)


def test_where_the_library_cannot_do_it(monkeypatch):
    def load():
        raise ImportError("Python's libcrypto has no GMAC")

    monkeypatch.setattr(security._mac, "load", load)
    with pytest.raises(ConfigError, match="cannot be used here: Python's libcrypto has no GMAC"):
        Security(psk=KEY)


def test_a_key_and_certificates_exclude_each_other(folder):
    with pytest.raises(ConfigError, match="exclude each other"):
        Security(psk=KEY, tls=folder)
    with pytest.raises(ConfigError, match="without certificates"):
        Security(psk=KEY, hostname="x")
    with pytest.raises(ConfigError, match="for the destination"):
        Security.from_tls_dir(folder, peer="x").for_source("x")
    with pytest.raises(ConfigError, match="for the source"):
        Security.from_tls_dir(folder, hostname="x").for_destination(loopback=True)


def test_only_loopback_goes_without():
    assert not Security().for_destination(loopback=True).psk
    with pytest.raises(ConfigError, match=r"--psk FILE.*--tls DIR.*SSH tunnel"):
        Security().for_destination(loopback=False)
    assert Security(psk=KEY).for_destination(loopback=False).psk == KEY


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
def test_what_is_loopback(host, loopback):
    assert is_loopback(host) is loopback


# ------------------------------------------------------------- certificates


def test_good_certificates(folder):
    assert Security.from_tls_dir(folder).for_source("127.0.0.1").tls is not None
    assert Security.from_tls_dir(folder).for_destination(loopback=False).tls is not None


def test_each_side_needs_its_own_files_only(folder):
    for name in ("server-cert.pem", "server-key.pem"):
        (folder / name).unlink()
    assert Security.from_tls_dir(folder).for_source("127.0.0.1").tls is not None
    with pytest.raises(ConfigError, match=r"server-key\.pem: No such file"):
        Security.from_tls_dir(folder).for_destination(loopback=True)


def test_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="no folder with certificates"):
        Security.from_tls_dir(tmp_path / "none")


def destination(folder):
    return Security.from_tls_dir(folder).for_destination(loopback=True)


def test_a_private_key_that_others_may_read(folder):
    (folder / "server-key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"server-key\.pem: others may read"):
        destination(folder)


@pytest.mark.parametrize("name", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
def test_a_file_that_is_missing_or_garbage(folder, name):
    (folder / name).write_text("garbage")
    with pytest.raises(ConfigError, match=name.replace("-key", "-(cert|key)")):
        destination(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: No such file"):
        destination(folder)


def test_a_key_of_another_certificate(folder):
    shutil.copy(folder / "client-key.pem", folder / "server-key.pem")
    with pytest.raises(ConfigError, match=r"server-cert\.pem: .*mismatch"):
        destination(folder)


@pytest.mark.parametrize("side", ["source", "destination"])
def test_certificates_of_yesterday(authority, tmp_path, side):
    old = Security.from_tls_dir(authority.folder(tmp_path / "old", expired=True))
    with pytest.raises(ConfigError, match=r"-cert\.pem: certificate has expired"):
        old.for_source("127.0.0.1") if side == "source" else old.for_destination(loopback=True)


def test_certificates_of_another_authority(authority, tmp_path):
    folder = Authority().folder(tmp_path / "other", trusts=authority)
    with pytest.raises(ConfigError, match=r"server-cert\.pem: unable to get local issuer"):
        destination(folder)


def test_a_name_that_none_can_have(folder):
    with pytest.raises(ConfigError, match="is no name for a certificate"):
        Security.from_tls_dir(folder, hostname=".x").for_source("127.0.0.1")


def test_the_commands_of_the_documentation_make_good_ones(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^```sh certificates\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True)
    assert Security.from_tls_dir(tmp_path).for_source("there").tls is not None
    assert destination(tmp_path).tls is not None


# --------------------------------------------------------------------- keys


def test_keys_differ_by_greeting_key_and_purpose():
    keys = Keys(b"greetings", KEY)
    others = [Keys(b"greetings"), Keys(b"other greetings", KEY), Keys(b"greetings", KEY[::-1])]
    made = [
        *(each.token(2, 0, 0) for each in (keys, *others)),
        *(each.proof(side) for each in (keys, *others) for side in ("source", "destination")),
        keys.answer(2, 0, 0),
        keys.token(2, 1, 0),
        keys.token(2, 0, 1),
        keys.frames(0),
        keys.frames(1),
    ]
    assert len(set(made)) == len(made)


def test_a_message_has_another_tag_at_another_place_or_from_the_other_side():
    keys = Keys(b"greetings", KEY)
    mine, theirs = keys.seal("source"), keys.seal("destination")
    tags = {mine.tag(1, b"x"), mine.tag(2, b"x"), mine.tag(1, b"y"), theirs.tag(1, b"x")}
    assert len(tags) == 4
    assert mine.fits(mine.tag(1, b"x"), 1, b"x")
    assert not mine.fits(mine.tag(1, b"x"), 2, b"x")
    assert Keys(b"greetings").seal("source") is None
    assert Keys(b"greetings").frames(0) == b""

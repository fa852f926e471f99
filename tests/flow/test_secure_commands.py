"""Keys and certificates on the command line: what a user sees on both sides."""

import pytest
from certificates import CLIENT, Authority
from processes import running

DEVICES = """
[[device]]
name = "nic0"
profile = "mlx5"
state_size = "24MiB"
seed = 1
"""


@pytest.fixture
def devices(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    return file


@pytest.fixture
def key(tmp_path):
    with running("key", tmp_path / "migration.key") as made:
        assert made.end() == (0, "", "")
    return tmp_path / "migration.key"


def receiving(devices, *args):
    return running("receive", "--devices", devices, "--no-journal", "--json", *args)


def sending(devices, address, *args):
    to = ["--to", address, "--no-journal", "--json"]
    return running("send", "--devices", devices, *to, *args)


def address_of(command):
    where = command.wait_for("listening on ").split()[-1]
    return where.replace("0.0.0.0", "127.0.0.1")


def test_with_a_key_from_anywhere(devices, key):
    with receiving(devices, "--listen=tcp://0.0.0.0:0", "--psk", key) as receive:
        address = address_of(receive)
        with sending(devices, address) as stranger:
            code, _ = stranger.report()
            assert code == 5
            assert "it has a key, this side has none: give this side the same" in stranger.log
            assert "every device is RUNNING" in stranger.log or "no device" in stranger.log
        with sending(devices, address, "--psk", key) as send:
            assert send.report()[0] == 0, send.log
        assert receive.report()[0] == 0
    assert "refused a connection from tcp://127.0.0.1" in receive.log
    assert key.read_text().strip() not in receive.log + send.log + stranger.log


def test_with_certificates(devices, tmp_path):
    pki = Authority().folder(tmp_path / "pki", server="there.test")
    listen = ["--listen=tcp://0.0.0.0:0", "--tls", pki, "--tls-peer", CLIENT]
    with receiving(devices, *listen) as receive:
        address = address_of(receive)
        with sending(devices, address, "--tls", pki) as wrong:
            assert wrong.report()[0] == 5
            assert "--tls-hostname names the one to expect" in wrong.log
        with sending(devices, address, "--tls", pki, "--tls-hostname", "there.test") as send:
            assert send.report()[0] == 0, send.log
        assert receive.report()[0] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--listen=tcp://0.0.0.0:0"], "come by an SSH tunnel"),
        (["--listen=tcp://0.0.0.0:0", "--psk", "none"], "none: No such file or directory"),
        (["--listen=tcp://127.0.0.1:0", "--tls", "none"], "none: no folder with certificates"),
        (["--listen=tcp://127.0.0.1:0", "--tls-peer", "x"], "--tls-peer needs --tls"),
        (["--listen=tcp://127.0.0.1:0", "--psk", "a", "--tls", "b"], "exclude each other"),
    ],
    ids=["nothing", "no key", "no folder", "a name alone", "both"],
)
def test_what_is_refused_at_once(devices, args, words):
    with receiving(devices, *args) as receive:
        code, _, log = receive.end()
    assert code == 2
    assert words in log


def test_a_key_is_not_overwritten(key):
    before = key.read_bytes()
    with running("key", key) as again:
        code, _, log = again.end()
    assert code == 2
    assert f"{key}: File exists" in log
    assert key.read_bytes() == before

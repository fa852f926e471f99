"""The devices file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vfioflow.devices import config
from vfioflow.devices.sim import SimDevice, ledger, live
from vfioflow.errors import ConfigError
from vfioflow.states import State

WHOLE = """
[[device]]
name = "net0"
kind = "sim"
profile = "mlx5"
state_size = "2MiB"
seed = 1
dirty_rate = "50MiB"
[[device.fault]]
at = "read"
kind = "errno"
errno = "EIO"
offset = "1MiB"

[[device]]
name = "gpu0"
state_size = 65536
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    devices = config.load_devices(write(tmp_path, WHOLE))
    net, gpu = devices
    assert isinstance(net, SimDevice)
    assert isinstance(gpu, SimDevice)
    try:
        assert [d.name for d in devices] == ["net0", "gpu0"]
        assert net.info.driver == "mlx5_vfio_pci"
        assert (net.profile.state_size, net.profile.dirty_rate) == (2 << 20, 50 << 20)
        assert gpu.profile.state_size == 65536
        # They are each other's peers.
        net.set_state(State.RUNNING_P2P)
        gpu.set_state(State.RUNNING_P2P)
        assert ledger([net, gpu]).balanced
        assert ledger([net, gpu]).messages > 0
    finally:
        net.close()
        gpu.close()


GOOD = '[[device]]\nname = "good"\nprofile = "mtty"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists no device"),
        ("device = []", "lists no device"),
        ("device = 5", "lists no device"),
        ("device = [5]", "device number 1: write it as a table"),
        ("[device]\nname = 'a'", "lists no device"),
        ("= 1", "not TOML"),
        ("colour = 1\n" + GOOD, "unknown key 'colour'"),
        (GOOD + "[[device]]\nseed = 1", "device number 2: needs a name"),
        (GOOD + "[[device]]\nname = 7", "device number 2: needs a name"),
        (GOOD + GOOD, "device good: name is there twice"),
        (GOOD + "kind = 'magic'", "device good: kind = 'magic': must be one of sim"),
        (GOOD + "kind = []", "device good: kind"),
        ("[[device]]\nname = 'a'\nprofile = 'mlx6'", "device a: unknown profile 'mlx6'"),
        ("[[device]]\nname = 'a'\nprofile = 6", "device a: profile = 6"),
        (GOOD + "state_size = '1 parsec'", "device good: state_size: '1 parsec' is not a size"),
        (
            GOOD + "stat_size = 1",
            "device good: unknown key 'stat_size'; valid are profile, seed, fault, driver",
        ),
        (GOOD + "seed = '1'", "device good: seed = '1'"),
        (GOOD + "seed = -1", "device good: seed = -1"),
        (GOOD + "fault = 1", r"device good: fault: write each as a table \[\[device.fault\]\]"),
        (GOOD + "[[device.fault]]\nat = 'read'", "device good: fault 1: needs 'kind'"),
        (GOOD + "[[device.fault]]\nwhen = 1", "device good: fault 1: unknown key 'when'"),
        (
            GOOD + "[[device.fault]]\nat = 'read'\nkind = 'errno'\nerrno = 'EX'",
            "device good: fault 1: errno = 'EX'",
        ),
        (GOOD + "fabric = 1", "device good: unknown key 'fabric'"),
        (GOOD + "name2 = 1", "device good: unknown key 'name2'"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    before = live()
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        config.load_devices(path)
    assert str(path) in str(caught.value)
    assert live() == before


def test_too_many_devices_for_one_fabric(tmp_path: Path) -> None:
    text = "".join(f"[[device]]\nname = 'd{i}'\nprofile = 'mtty'\n" for i in range(65))
    before = live()
    with pytest.raises(ConfigError, match="room for 64"):
        config.load_devices(write(tmp_path, text))
    assert live() == before


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load_devices(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load_devices(tmp_path)
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        config.load_devices(path)


def test_another_kind_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, dict[str, Any]]] = []

    def make(name: str, table: dict[str, Any]) -> SimDevice:
        made.append((name, table))
        return SimDevice(name, profile="mtty")

    monkeypatch.setitem(config.KINDS, "other", config.Kind(make, lambda devices: None))
    text = "[[device]]\nname = 'a'\nkind = 'other'\nkey = 1\n"
    (device,) = config.load_devices(write(tmp_path, text))
    device.close()
    assert made == [("a", {"key": 1})]

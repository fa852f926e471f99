"""The library example of the README, run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_runs(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    script = tmp_path / "example.py"
    script.write_text(blocks[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=ROOT, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"67141744 bytes, \d+ ms: RUNNING there\n", done.stdout), done.stdout


def test_the_devices_file_loads(tmp_path):
    from vfioflow.devices.config import load_devices

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```toml\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    path = tmp_path / "devices.toml"
    path.write_text(example, encoding="utf-8")
    devices = load_devices(path)
    try:
        assert [device.name for device in devices] == ["nic0", "disk0"]
    finally:
        for device in devices:
            device.close()

"""The programs in docs/examples and docs/embedding.md, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SAID = {
    "hooks.py": (
        r"source       before connect\n.*"
        r"source       before stop-copy\n(?:.*\n)*?vCPUs stop\n.*"
        r"destination  before hand over\n(?:.*\n)*?vCPUs start there\n.*"
        r"completed: one more round, then \d+ ms of downtime\n"
    ),
    "trap.py": r"10 stores were queued; all 210 arrived once, in order\n",
    "ram.py": r"RAM: 6[4-9] MiB while it ran, \d+ KiB while it stood still; net0: \d+ MiB; \d+ ms\n",
}


def run(*command, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, command)],
        cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_program_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", sorted(SAID))
def test_a_program(name):
    said = run(EXAMPLES / name)
    assert re.fullmatch(SAID[name], said, re.DOTALL), said


def test_the_page_names_every_program():
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    assert [name for name in SAID if f"(examples/{name})" not in page] == []

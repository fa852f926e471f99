"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

_VERSIONS = {
    "socat": ["socat", "-V"],
    "mbuffer": ["mbuffer", "--version"],
    "zstd": ["zstd", "--version"],
    "qemu": ["qemu-system-x86_64", "--version"],
    "cc": ["cc", "--version"],
}
_NUMBER = re.compile(r"\d+(?:\.\d+)+|R?\d{8}")


def facts() -> dict[str, object]:
    """The machine, and the versions of all programs that take part ("not installed" for some)."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "vfioflow": version("vfioflow"),
        "zstandard": version("zstandard"),
        "revision": _revision(),
        **{name: _said(words) for name, words in _VERSIONS.items()},
    }


def load() -> float:
    """The load average of the last minute.  A run of its own brings it to 2 or more."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _revision() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    if shutil.which("git") is None:
        return "unknown"
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def _said(words: list[str]) -> str:
    if shutil.which(words[0]) is None:
        return "not installed"
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    found = _NUMBER.search(run.stdout + run.stderr)
    return found[0] if found else "unknown"

"""Tests with a real QEMU, which `make test-qemu` installs; elsewhere they are not collected."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "flow")]

if not os.environ.get("VFIOFLOW_QEMU"):
    collect_ignore_glob = ["test_*.py"]

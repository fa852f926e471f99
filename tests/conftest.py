"""What all tests share."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# No deadline: a busy machine must not fail a test. A failure prints how to reproduce itself.
settings.register_profile("vfioflow", deadline=None, print_blob=True)
settings.load_profile("vfioflow")


def _open_fds() -> set[str]:
    gc.collect()
    return {
        f"{fd.name} {fd.readlink()}" for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()
    }


@pytest.fixture(scope="session")
def namespaces():
    """Network namespaces, which take the right to administer the system."""
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"the user of these tests may not: {tried.stderr.strip()}")


@pytest.fixture
def nothing_left():
    """Fails when the test leaves a descriptor or one of our threads behind."""
    before = _open_fds()
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("vfioflow-"):
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} still runs"
    assert _open_fds() - before == set()


@pytest.fixture
def one_thread(monkeypatch):
    """Only one more thread can be had; the list of those that began."""
    begun = []

    def start(self, first=threading.Thread.start):
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(self)
        first(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    return begun

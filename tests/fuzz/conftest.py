"""The targets and what they are made of."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_event_loop(nothing_left):
    """For all inputs of a test; nothing is left of it either.  No log, whose records keep objects alive."""
    import sessions

    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    sessions.close()

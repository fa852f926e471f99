"""What the whole-migration tests share."""

import contextlib
import sys
from pathlib import Path

import pytest

from vfioflow import Fabric
from vfioflow.devices.sim import live

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def devices(nothing_left):
    """Makes two equal sets, each with its fabric; afterwards nothing may be left over."""
    with contextlib.ExitStack() as stack:

        def make(function, **options):
            both = function(**options), function(**options)
            for side in both:
                Fabric(side)
                for device in side:
                    stack.callback(device.close)
            return both

        yield make
    assert live() == {"devices": 0, "sessions": 0}

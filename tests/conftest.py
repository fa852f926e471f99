"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a busy machine must not fail a test. A failure prints how to reproduce itself.
settings.register_profile("vfioflow", deadline=None, print_blob=True)
settings.load_profile("vfioflow")

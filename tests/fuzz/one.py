"""Fuzzes one target, guided by coverage: ``one.py TARGET [CORPUS or INPUT] [options of libFuzzer]``.

With an input instead of a corpus it runs that once.  `campaign.py` says how it is started.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["vfioflow", "tomllib"]):
    import sessions
    from targets import TARGETS


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    name = sys.argv.pop(1)
    entry = TARGETS[name].entry
    logging.disable()
    sessions.PATIENCE = (
        0.03  # a script that waits in vain must not cost much; a late answer only its rest
    )
    atheris.Setup(sys.argv, entry)
    atheris.Fuzz()


main()

"""What the command line says, and how the program ends on a signal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

DEFAULTS = {
    "raw": (4.0, 7),
    "compressed": (4.0, 5),
    "scale": (32.0, 3),
    "security": (2.0, 7),
    "qemu": (1.0, 3),
    "quick": (1.0, 3),
}
"""GiB and rounds of each comparison."""


def parser(about: str | None) -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "what",
        choices=tuple(DEFAULTS),
        help="raw: as it is; compressed: what auto chooses; scale: real migrations; "
        "security: with a key and by TLS; qemu: its migration through the tunnel; "
        "quick: a few of each against stored ratios",
    )
    result.add_argument(
        "--gib",
        type=float,
        help="GiB in a run, all devices together (compressed, scale: in the largest run)",
    )
    result.add_argument("--rounds", type=int, help="interleaved rounds")
    result.add_argument("--json", type=Path, metavar="FILE", help="write every single run there")
    result.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture (.svg, .png)")
    result.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help='only cells with all these words, such as "pipe loopback 16"; may be repeated',
    )
    result.add_argument(
        "--store", action="store_true", help="quick: make these ratios the reference"
    )
    return result


def stop(number: int, *_: object) -> NoReturn:
    """Leave every context on the way out, so that namespaces and processes go."""
    sys.exit(128 + number)

"""What protection costs: the same bytes plain, with a key, and by TLS (relayed in user space).

All with digests, from and to memory files, over loopback.  The yardstick is the plain one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trustme

from comparison.content import Content
from comparison.ends import MEMFD
from comparison.movers import vfioflow
from comparison.rounds import Cell, interleave
from comparison.stage import Stage
from comparison.wires import LOOPBACK

PLAIN = "vfioflow"
KEY = "vfioflow, key"
TLS = "vfioflow, TLS"
DEVICES = (1, 4)


def certificates(folder: Path) -> None:
    """Those of both sides, of a new CA, in QEMU's layout."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca-cert.pem")
    for role in ("server", "client"):
        made = authority.issue_cert("127.0.0.1")
        made.cert_chain_pems[0].write_to_path(folder / f"{role}-cert.pem")
        made.private_key_pem.write_to_path(folder / f"{role}-key.pem")
        (folder / f"{role}-key.pem").chmod(0o600)


def run(stage: Stage, size: int, rounds: int, devices: tuple[int, ...] = DEVICES) -> list[Cell]:
    """A cell for each number of devices, all moving ``size`` bytes together."""
    wire = stage.wire(LOOPBACK)
    assert wire is not None
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        certificates(Path(folder))
        movers = [
            vfioflow(PLAIN, "--digest"),
            vfioflow(KEY, "--digest", "--key"),
            vfioflow(TLS, "--digest", "--tls", folder),
        ]
        for count in devices:
            cell = Cell({"wire": LOOPBACK, "devices": count}, (PLAIN,))
            if not stage.wants(cell.title):
                continue
            stage.expect(rounds)
            with Content("random", size, count) as content:
                for _ in range(rounds):
                    measure = stage.streams(content, MEMFD, MEMFD, wire)
                    interleave(cell, movers, 1, measure, stage.say)
                    stage.tick()
            cells.append(cell)
    return cells

"""Live migration of VFIO devices."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_include"]


def get_include() -> list[str]:
    """The folders with which an outside ``.pyx`` can ``cimport vfioflow._fdio``.

    Give them to Cython as ``include_path`` and to the C compiler as ``include_dirs``.
    """
    package = Path(__file__).resolve().parent
    installed = package / "include"
    if installed.is_dir():
        return [str(installed)]
    sources = package.parent / "pyx"  # an editable install
    return [str(sources), str(sources / "lib")]

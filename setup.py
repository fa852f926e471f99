"""Builds the Cython extensions in ``pyx/vfioflow`` into the package ``vfioflow``.

``VFIOFLOW_DEBUG=1`` builds without optimisation and with the extensions' own checks.
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("VFIOFLOW_DEBUG") == "1"
CFLAGS = ["-O0", "-g"] if DEBUG else ["-O2"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"vfioflow.{source.stem}",
                [str(source)],
                include_dirs=["pyx/lib"],
                extra_compile_args=[*CFLAGS, "-Wall", "-Wextra", "-Wno-unused-parameter"],
            )
            for source in sorted(Path("pyx/vfioflow").glob("*.pyx"))
        ],
        include_path=["pyx", "pyx/lib"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    ),
)

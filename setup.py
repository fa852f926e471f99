"""Builds the Cython extensions in ``pyx/vfioflow`` into the package ``vfioflow``.

``VFIOFLOW_DEBUG=1`` builds without optimisation and with the extensions' own checks.
``VFIOFLOW_WERROR=1`` compiles everything anew and fails on any warning of the C compiler,
and on any warning or performance hint of Cython.
``VFIOFLOW_SANITIZE=address,undefined`` (or what else ``-fsanitize`` takes) builds with sanitizers;
the process that loads the extensions must have the sanitizer's library loaded first.  With
``fuzzer-no-link`` in it they are linked without, for the library that comes with a fuzzer.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

DEBUG = os.environ.get("VFIOFLOW_DEBUG") == "1"
WERROR = os.environ.get("VFIOFLOW_WERROR") == "1"
SANITIZE = [f"-fsanitize={each}" for each in [os.environ.get("VFIOFLOW_SANITIZE")] if each]

CFLAGS = ["-O0", "-g"] if DEBUG else ["-O2"]
if SANITIZE:
    CFLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZE]
# Every function of the C API gets arguments that it need not use.
CFLAGS += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
if WERROR:
    CFLAGS += ["-Werror"]


class BuildPy(build_py):
    """Ships, as ``vfioflow/include``, what an outside ``.pyx`` needs to cimport the extensions."""

    def run(self) -> None:
        """Copy ``pyx/vfioflow/*.pxd`` to ``include/vfioflow`` and ``pyx/lib`` to ``include``."""
        super().run()
        if self.editable_mode:  # vfioflow.get_include() then points to pyx/ itself
            return
        include = Path(self.build_lib, "vfioflow", "include")
        for folder, target in (("pyx/lib", include), ("pyx/vfioflow", include / "vfioflow")):
            self.mkpath(str(target))
            for source in sorted([*Path(folder).glob("*.pxd"), *Path(folder).glob("*.h")]):
                self.copy_file(str(source), str(target / source.name))


def extensions() -> list[Extension]:
    """One extension per ``.pyx``, translated to C."""
    return cythonize(
        [
            Extension(
                f"vfioflow.{source.stem}",
                [str(source)],
                include_dirs=["pyx/lib"],
                depends=[str(header) for header in Path("pyx/lib").glob("*.h")],
                extra_compile_args=CFLAGS,
                extra_link_args=[] if "fuzzer" in "".join(SANITIZE) else SANITIZE,
            )
            for source in sorted(Path("pyx/vfioflow").glob("*.pyx"))
        ],
        include_path=["pyx", "pyx/lib"],
        build_dir="build/werror" if WERROR else "build/cython",
        force=WERROR,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )


def extensions_without_a_warning() -> list[Extension]:
    """The same, unless Cython has anything to say: it has no switch for performance hints."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        result = extensions()
    sys.stderr.write(said.getvalue())
    if "warning:" in said.getvalue() or "performance hint:" in said.getvalue():
        sys.exit("Cython's warnings and performance hints count as errors here")
    return result


setup(
    cmdclass={"build_py": BuildPy},
    ext_modules=extensions_without_a_warning() if WERROR else extensions(),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)

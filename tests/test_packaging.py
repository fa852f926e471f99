"""The distributions, as a user gets them: sdist, wheel from the sdist, an empty environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vfioflow

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
EXTENSIONS = {f"vfioflow.{source.stem}" for source in ROOT.glob("pyx/vfioflow/*.pyx")}
DECLARED = {f"vfioflow.{source.stem}" for source in ROOT.glob("pyx/vfioflow/*.pxd")}

OUTSIDE = """
from poll cimport POLLIN
from vfioflow._fdio cimport Port, fd_read, port_t, wait_fd


cdef ssize_t shout(port_t *port, void *buffer, size_t size) noexcept nogil:
    cdef ssize_t i, n = fd_read(port, buffer, size)
    for i in range(n):
        (<char *>buffer)[i] -= 32
    return n


cdef class Shouting(Port):
    def __init__(self, int fd):
        self.c.read = shout

    def take(self):
        cdef char buffer[64]
        cdef ssize_t n
        with nogil:
            n = wait_fd(self.c.fd, POLLIN, -1, -1)
            if n == 0:
                n = self.c.read(&self.c, buffer, sizeof(buffer))
        return buffer[:n]
"""

OUTSIDE_SETUP = """
import vfioflow
from Cython.Build import cythonize
from setuptools import Extension, setup

include = vfioflow.get_include()
setup(
    name="outside",
    ext_modules=cythonize(
        [Extension("outside", ["outside.pyx"], include_dirs=include)],
        include_path=include,
        language_level=3,
    ),
)
"""

OUTSIDE_RUN = """
import os
import outside

r, w = os.pipe()
os.write(w, b"hello")
port = outside.Shouting(r)
print(port.take().decode())
port.close()
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of ``command``, run as if neither the checkout nor its environment existed."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "CFLAGS", "VFIOFLOW_DEBUG", "VFIOFLOW_WERROR"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip_install(python: Path, *what: str | Path) -> None:
    """Install into the environment of ``python``, which has no pip of its own."""
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--disable-pip-version-check", *what, cwd=python.parent)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it in isolation."""
    work = tmp_path_factory.mktemp("distributions")
    leftovers = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, work / "source", ignore=leftovers)
    build = (sys.executable, "-m", "build", "--outdir", work / "dist")
    run(*build, work / "source", cwd=work)
    return work / "dist"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what it depends on, nothing else."""
    work = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", work / "env", cwd=work)
    pip_install(work / "env/bin/python", wheel)
    return work / "env/bin/python"


def test_sdist_has_all_sources(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("pyx", "vfioflow", "tests")
    sources = {
        str(source.relative_to(ROOT))
        for folder in folders
        for source in (ROOT / folder).rglob("*")
        if source.is_file() and source.suffix not in {".so", ".pyc"}
    }
    assert sources - names == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml"} <= names
    built = {name for name in names - sources if name.endswith((".so", ".pyc", ".c"))}
    assert {name for name in built if not name.startswith(("bench/", "docs/"))} == set()


def test_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {
        str(source.relative_to(ROOT))
        for source in (ROOT / "vfioflow").rglob("*")
        if source.is_file() and source.suffix not in {".so", ".pyc"}
    }
    declarations = {
        f"vfioflow/include/{source.relative_to(folder)}"
        for folder, pattern in ((ROOT / "pyx", "vfioflow/*"), (ROOT / "pyx/lib", "*"))
        for source in folder.glob(pattern)
        if source.suffix in {".pxd", ".h"}
    }
    compiled = {name for name in names if name.endswith(".so")}
    assert {name.partition(".")[0].replace("/", ".") for name in compiled} == EXTENSIONS
    assert names - compiled == package | declarations
    assert "vfioflow/py.typed" in names


def test_installed_package_imports_without_the_checkout(python: Path, tmp_path: Path) -> None:
    code = f"""
import importlib, importlib.metadata, json, sys
import vfioflow, vfioflow._fdio, vfioflow.states
modules = [importlib.import_module(name) for name in {sorted(EXTENSIONS)}]
print(json.dumps([sys.path, [vfioflow.__file__] + [module.__file__ for module in modules]]))
"""
    path, files = json.loads(run(python, "-I", "-c", code, cwd=tmp_path))
    environment = str(python.parents[1])
    assert [file for file in files if not file.startswith(environment)] == []
    assert [entry for entry in path if Path(entry).is_relative_to(ROOT)] == []


def test_console_script(python: Path, tmp_path: Path) -> None:
    version = run(
        python, "-c", "import importlib.metadata as m; print(m.version('vfioflow'))", cwd=tmp_path
    )
    command = python.with_name("vfioflow")
    assert version.strip() in run(command, "--version", cwd=tmp_path)
    assert "Usage:" in run(command, "--help", cwd=tmp_path)
    report = json.loads(run(command, "demo", "--json", cwd=tmp_path))
    assert report["outcome"] == "completed"
    assert report["destination"]["outcome"] == "completed"


def test_an_outside_pyx_compiles_against_the_wheel(python: Path, tmp_path: Path) -> None:
    pip_install(python, "cython", "setuptools")
    every = "".join(f"cimport {module}\n" for module in sorted(DECLARED))
    (tmp_path / "outside.pyx").write_text(every + OUTSIDE)
    (tmp_path / "setup.py").write_text(OUTSIDE_SETUP)
    run(python, "setup.py", "--quiet", "build_ext", "--inplace", cwd=tmp_path)
    assert run(python, "-c", OUTSIDE_RUN, cwd=tmp_path) == "HELLO\n"


def test_an_editable_install_offers_the_declarations_too() -> None:
    folders = [Path(folder) for folder in vfioflow.get_include()]
    for declaration in ("vfioflow/_fdio.pxd", "poll.pxd"):
        assert any((folder / declaration).is_file() for folder in folders)

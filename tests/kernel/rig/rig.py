"""A guest with a real VFIO kernel: builds it (once) and runs a command in it.

    python3 rig.py [debian|custom] CMD [ARG...]

``debian``: Debian's own kernel as packaged, with the sample mediated devices mtty and mdpy built
against its headers; VFIO by group and container.  ``custom``: a small kernel from the same source
package, which has iommufd and VFIO's character devices as well.

The guest sees this machine's files at their own paths, read only under a layer of memory, so that
an interpreter or a virtual environment of this machine works in it.  CMD starts in the current
folder; its output and its exit status come back.  125: the guest ended before CMD did; 124: it
took too long; 123: the guest could not be made.

Downloads and builds are kept in ``vfioflow-rig`` under $XDG_CACHE_HOME (or ~/.cache); running
``rig.py clean`` removes them.  Debian 12 or newer on x86-64; runs on the system's Python alone.

Environment:
    RIG_ACCEL    tcg (default) or kvm
    RIG_TIMEOUT  seconds that CMD may take with the boot (default 540)
    RIG_ENV      names of more variables that CMD gets
    RIG_LOG      a file for the kernel's messages
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vfioflow-rig"
FLAVOURS = ("debian", "custom")
MODULES = ("9pnet_virtio", "9p", "overlay", "vfio", "vfio_iommu_type1", "iommufd", "mdev")
MODULES += ("mtty", "mdpy", "vfio-pci")
RECIPE = b"1"  # another one here builds everything anew
BOOT_TOOLS = ["qemu-system-x86", "busybox-static", "cpio"]
BUILD_TOOLS = ["kmod", "make", "gcc", "xz-utils", "libelf-dev"]
CUSTOM_TOOLS = ["flex", "bison", "bc", "libssl-dev"]
COMPLAINTS = re.compile(r"WARNING: |BUG: |Oops|Call Trace|general protection|soft lockup|hung task")


def say(text: str) -> None:
    """One line about what is being done."""
    print(f"rig: {text}", file=sys.stderr, flush=True)


def fail(text: str, status: int = 123) -> NoReturn:
    """Say what is wrong and give up."""
    say(text)
    sys.exit(status)


def run(*command: str | Path, cwd: Path | None = None, what: str, log: Path | None = None) -> str:
    """A command's output; where it fails, its last lines and the end."""
    result = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "LC_ALL": "C", "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    if log is not None:
        log.write_text(result.stdout)
    if result.returncode:
        print("\n".join(result.stdout.splitlines()[-25:]), file=sys.stderr)
        fail(f"cannot {what}: {command[0]} ended with {result.returncode}")
    return result.stdout


# ---------------------------------------------------------------------- packages


class Apt:
    """Packages of the suite that has the kernel, from lists of our own."""

    def __init__(self) -> None:
        release = dict(
            line.split("=", 1)
            for line in Path("/etc/os-release").read_text().splitlines()
            if "=" in line
        )
        name = release.get("VERSION_CODENAME", "").strip('"')
        if release.get("ID") != "debian" or not shutil.which("apt-get"):
            fail("needs Debian 12 or newer: the guest is made of its packages")
        self.suite = "bookworm-backports" if name == "bookworm" else name
        self.home = CACHE / f"apt-{self.suite}"
        self.options = [
            *("-o", f"Dir::Etc::sourcelist={self.home}/sources.list"),
            *("-o", "Dir::Etc::sourceparts=-"),
            *("-o", f"Dir::State::lists={self.home}/lists"),
            *("-o", f"Dir::Cache={self.home}/cache"),
            *("-o", "APT::Sandbox::User=root"),
        ]

    def refresh(self) -> None:
        """Fetch the suite's lists, from the mirror that the machine's own apt uses."""
        if (self.home / "fresh").exists():
            return
        out = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(CREATED_BY)",
                  what="ask apt for its mirror")  # fmt: skip
        codename = self.suite.partition("-")[0]
        mirrors = [
            line.split()[0]
            for line in out.splitlines()
            if line.endswith(" Packages") and line.split()[1] == codename
        ]
        if not mirrors:
            fail(f"apt here has no mirror of {codename}; run apt-get update first")
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        line = f"deb [signed-by={key}] {mirrors[0]} {self.suite} main\n"
        (self.home / "sources.list").write_text(line)
        run("apt-get", *self.options, "update", what=f"fetch the package lists of {self.suite}")
        (self.home / "fresh").touch()

    def show(self, package: str) -> dict[str, str]:
        """The fields of the newest version of a package."""
        out = run("apt-cache", *self.options, "show", "--no-all-versions", package,
                  what=f"find the package {package} in {self.suite}")  # fmt: skip
        return dict(line.split(": ", 1) for line in out.splitlines() if re.match(r"\S+: ", line))

    def get(self, package: str, version: str) -> Path:
        """The package's file, downloaded once."""
        folder = CACHE / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        pattern = f"{package}_{version.replace(':', '%3a')}_*.deb"
        if not list(folder.glob(pattern)):
            say(f"downloading {package} {version}")
            run("apt-get", *self.options, "download", f"{package}={version}", cwd=folder,
                what=f"download {package}")  # fmt: skip
        return next(folder.glob(pattern))


def install(packages: list[str]) -> None:
    """Install those of the machine's packages that are missing."""
    have = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\n")
    missing = [p for p in packages if f"{p} installed" not in have]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    root: list[str] = [] if os.getuid() == 0 else ["sudo"]
    if root and not shutil.which("sudo"):
        fail(f"missing: {' '.join(missing)}; as root, run: apt-get update && {' '.join(command)}")
    say(f"installing {' '.join(missing)}")
    run(*root, "apt-get", "update", what="fetch apt's package lists")
    run(*root, "env", "DEBIAN_FRONTEND=noninteractive", *command, what="install the packages")


# ------------------------------------------------------------------------ kernel


class Kernel:
    """Which kernel to make, as the package lists say."""

    def __init__(self, apt: Apt) -> None:
        self.apt = apt
        depends = apt.show("linux-image-amd64").get("Depends", "")
        found = re.search(r"linux-image-(\S+)-amd64 \(= ([^)]+)\)", depends)
        if not found:
            fail(f"{apt.suite} has no linux-image-amd64 as it is known here: {depends!r}")
        self.name, self.version = found.groups()
        self.release = f"{self.name}-amd64"
        series = re.match(r"\d+\.\d+", self.name)
        self.source = f"linux-source-{series.group() if series else ''}"
        headers = apt.show(f"linux-headers-{self.release}").get("Depends", "")
        compiler = re.search(r"gcc-\d+", headers)
        self.compiler = compiler.group() if compiler else "gcc"

    def unpack_source(self, target: Path, only: str = "") -> None:
        """The kernel's source, or the files that a pattern names, without its top folder."""
        package = self.apt.get(self.source, self.version)
        target.mkdir(parents=True)
        # The package holds the source as a tar.xz of its own.
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as a,
            subprocess.Popen(
                ["tar", "-xO", "--wildcards", f"*/{self.source}.tar.xz"],
                stdin=a.stdout,
                stdout=subprocess.PIPE,
            ) as b,
        ):
            wanted = ["--wildcards", f"{self.source}/{only}"] if only else []
            subprocess.run(
                ["tar", "-xJ", "-C", target, "--strip-components=1", *wanted],
                stdin=b.stdout,
                check=True,
            )


def build_debian(kernel: Kernel, out: Path, work: Path) -> tuple[str, Path]:
    """Unpack Debian's kernel and build the sample devices against its headers."""
    root = work / "root"
    for package in (
        f"linux-image-{kernel.release}",
        f"linux-headers-{kernel.release}",
        f"linux-headers-{kernel.name}-common",
        f"linux-kbuild-{kernel.name}",
    ):
        run("dpkg", "-x", kernel.apt.get(package, kernel.version), root, what=f"unpack {package}")
    headers = root / f"usr/src/linux-headers-{kernel.release}"
    makefile = headers / "Makefile"
    common = root / f"usr/src/linux-headers-{kernel.name}-common/Makefile"
    makefile.write_text(
        re.sub(r"(?m)^include .*", lambda _: f"include {common}", makefile.read_text())
    )
    say("building mtty and mdpy")
    kernel.unpack_source(work / "source", "samples/vfio-mdev/m*")
    samples = work / "source/samples/vfio-mdev"
    (samples / "Makefile").write_text("obj-m := mtty.o mdpy.o\n")
    run("make", "-C", headers, f"M={samples}", f"CC={kernel.compiler}",
        "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules", what="build the sample devices")  # fmt: skip
    extra = root / f"lib/modules/{kernel.release}/extra"
    if not extra.parent.is_dir():
        extra = root / f"usr/lib/modules/{kernel.release}/extra"
        (root / "lib").symlink_to("usr/lib")
    extra.mkdir()
    for name in ("mtty.ko", "mdpy.ko"):
        run("strip", "--strip-debug", samples / name, what="strip a module")
        shutil.copy(samples / name, extra)
    run("depmod", "-b", root, kernel.release, what="list the modules")
    shutil.copy(root / f"boot/vmlinuz-{kernel.release}", out / "vmlinuz")
    return kernel.release, root


def build_custom(kernel: Kernel, out: Path, work: Path) -> tuple[str, Path]:
    """Compile the small kernel of custom.config."""
    source, build, root = work / "source", work / "build", work / "root"
    kernel.unpack_source(source)
    build.mkdir()
    make = ["nice", "make", "-C", source, f"O={build}", f"CC={kernel.compiler}"]
    run(*make, "tinyconfig", what="configure the kernel")
    with (build / ".config").open("a") as config:
        config.write((HERE / "custom.config").read_text())
    run(*make, "olddefconfig", what="configure the kernel")
    config_text = (build / ".config").read_text().splitlines()
    for line in (HERE / "custom.config").read_text().splitlines():
        if line.startswith("CONFIG_") and line not in config_text:
            say(f"this kernel does not grant {line}")
    say("compiling the kernel")
    jobs = f"-j{os.cpu_count() or 1}"
    run(*make, jobs, "bzImage", "modules", what="compile the kernel", log=out / "make.log")
    run(*make, f"INSTALL_MOD_PATH={root}", "modules_install", what="install the modules")
    shutil.copy(build / "arch/x86/boot/bzImage", out / "vmlinuz")
    return (build / "include/config/kernel.release").read_text().strip(), root


def collect_modules(out: Path, root: Path, release: str) -> None:
    """The modules that the guest needs, uncompressed, and the order to load them in."""
    folder = out / "modules"
    folder.mkdir()
    order: list[str] = []
    for module in MODULES:
        shown = subprocess.run(
            ["/sbin/modprobe", "-d", root, "-S", release, "--show-depends", module],
            capture_output=True,
            text=True,
            check=False,
        )
        if shown.returncode and module in ("mtty", "mdpy", "9p", "vfio"):
            fail(f"the kernel came out without the module {module}: {shown.stderr}")
        for line in shown.stdout.splitlines():
            what, _, path = line.strip().partition(" ")
            name = Path(path.strip()).name.removesuffix(".xz")
            if what == "insmod" and name not in order:
                data = Path(path.strip()).read_bytes()
                (folder / name).write_bytes(lzma.decompress(data) if ".xz" in path else data)
                order.append(name)
    (folder / "order").write_text("".join(f"{name}\n" for name in order))


def initramfs(out: Path, control: Path) -> Path:
    """Busybox, our init, and the modules."""
    tree = control / "initramfs"
    for folder in ["bin", "proc", "sys", "dev", "host", "ctl", "layer", "new"]:
        (tree / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    shutil.copy(HERE / "init", tree / "init")
    (tree / "init").chmod(0o755)
    shutil.copytree(out / "modules", tree / "modules")
    names = "\n".join(sorted(str(p.relative_to(tree)) for p in tree.rglob("*")))
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        cwd=tree,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    shutil.rmtree(tree)
    image = control / "initramfs.gz"
    image.write_bytes(gzip.compress(archive.stdout, 1))
    return image


def prepare(flavour: str) -> Path:
    """The folder with the guest of a flavour; builds it where it is not there yet."""
    recipe = RECIPE + (HERE / "custom.config").read_bytes() * (flavour == "custom")
    out = CACHE / f"{flavour}-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if (out / "release").exists():
        install(BOOT_TOOLS)
        return out
    say(
        "building the guest, once: about "
        + ("a minute" if flavour == "debian" else "ten minutes on two cores")
        + ", with a download of 250 MB"
    )
    begin = time.monotonic()
    CACHE.mkdir(parents=True, exist_ok=True)
    install(BOOT_TOOLS + BUILD_TOOLS + (CUSTOM_TOOLS if flavour == "custom" else []))
    apt = Apt()
    apt.refresh()
    kernel = Kernel(apt)
    install([kernel.compiler])
    say(f"kernel {kernel.name}, version {kernel.version}, {kernel.compiler}")
    for old in CACHE.glob(f"{flavour}-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix="work-", dir=CACHE) as folder:
        work = Path(folder)
        made = work / "out"
        made.mkdir()
        build = build_debian if flavour == "debian" else build_custom
        release, root = build(kernel, made, work)
        collect_modules(made, root, release)
        (made / "release").write_text(release)
        made.rename(out)
    say(f"built in {time.monotonic() - begin:.0f} s: Linux {release}")
    return out


# ------------------------------------------------------------------------- guest


def script(command: list[str]) -> str:
    """What the guest's shell runs."""
    variables = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    variables |= {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "RIG_GUEST": "1"}
    for name in os.environ.get("RIG_ENV", "").split():
        if name in os.environ:
            variables[name] = os.environ[name]
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(
        [*lines, f"cd {shlex.quote(str(Path.cwd()))}", f"exec {shlex.join(command)}\n"]
    )


def boot(out: Path, command: list[str]) -> int:
    """Run a command in the guest; its exit status."""
    accel = os.environ.get("RIG_ACCEL", "tcg")
    # One thread: with several, QEMU 7.2 may run an instruction that the kernel has just patched away.
    how = ["tcg,thread=single,tb-size=512", "max,la57=off"] if accel == "tcg" else [accel, "host"]
    with tempfile.TemporaryDirectory(prefix="rig-") as folder:
        control = Path(folder)
        (control / "command").write_text(script(command))
        source, sink = os.pipe()
        kernel_line = (
            "console=ttyS0 loglevel=7 panic=-1 softlockup_panic=1 watchdog_thresh=30"
            " mitigations=off nokaslr tsc=reliable no_timer_check"
        )
        begin = time.monotonic()
        guest = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "q35", "-m", "2G", "-smp", "2",
             "-accel", how[0], "-cpu", how[1],
             "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-kernel", str(out / "vmlinuz"), "-initrd", str(initramfs(out, control)),
             "-append", kernel_line,
             "-serial", f"file:{control}/console",
             "-device", "virtio-serial-pci",
             "-chardev", f"file,id=out,path=/proc/self/fd/{sink}",
             "-device", "virtserialport,chardev=out,name=rig",
             "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
             "-virtfs", f"local,path={control},mount_tag=ctl,security_model=none"],
            stdin=subprocess.DEVNULL,
            pass_fds=[sink],
        )  # fmt: skip
        os.close(sink)
        copier = threading.Thread(target=copy_out, args=(source,))
        copier.start()
        try:
            guest.wait(float(os.environ.get("RIG_TIMEOUT", "540")))
        except subprocess.TimeoutExpired:
            say("the guest took too long")
        finally:
            if late := guest.poll() is None:
                guest.kill()
                guest.wait()
            copier.join()
        return verdict(control, time.monotonic() - begin, out, late=late)


def verdict(control: Path, seconds: float, out: Path, *, late: bool) -> int:
    """The exit status, and a word about the kernel's messages."""
    messages = control / "dmesg"
    if not messages.exists():
        messages = control / "console"
    text = messages.read_text(errors="replace") if messages.exists() else ""
    if log := os.environ.get("RIG_LOG"):
        Path(log).write_text(text)
    status = control / "status"
    if not status.exists() or not status.read_text().strip():
        print("\n".join(text.splitlines()[-40:]), file=sys.stderr)
        say("the guest ended before its command did; above are its console's last lines")
        return 124 if late else 125
    complaints = [line for line in text.splitlines() if COMPLAINTS.search(line)]
    for line in complaints[:10]:
        say(f"the guest's kernel: {line}")
    began, ended = (float(x) for x in (control / "times").read_text().split())
    code = int(status.read_text())
    say(
        f"Linux {(out / 'release').read_text()}: {seconds:.1f} s in all,"
        f" {began:.1f} s to boot, {ended - began:.1f} s for the command, exit status {code}"
    )
    return code or (1 if complaints else 0)


def copy_out(source: int) -> None:
    """The guest's output, as it comes."""
    while data := os.read(source, 65536):
        sys.stdout.buffer.write(data.replace(b"\r\n", b"\n"))
        sys.stdout.buffer.flush()
    os.close(source)


def main(arguments: list[str]) -> int:
    """As the head of this file says."""
    if arguments == ["clean"]:
        shutil.rmtree(CACHE, ignore_errors=True)
        return 0
    if not arguments or arguments[0] not in FLAVOURS:
        print(__doc__)
        return 2
    if os.uname().machine != "x86_64":
        fail("the guest is built for x86-64 only")
    out = prepare(arguments[0])
    return boot(out, arguments[1:]) if arguments[1:] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

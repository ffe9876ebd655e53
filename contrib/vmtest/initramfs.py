# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The guest's files
-----------------

An initramfs is all that a guest has: no disk, no file system module, and nothing to
install. It holds a static busybox and, for checks from inside, the Python that runs
this script with drgn, NumPy and drgn-hvo, without what a guest never imports.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
import importlib.util
import io
import os
from pathlib import Path
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from typing import Optional

from contrib.vmtest.errors import MissingError
from contrib.vmtest.kernels import Kernel, debian_package
import drgn_hvo

__all__ = ("Initramfs", "base_files", "crash_files", "python_files")

_HERE = Path(__file__).resolve().parent

#: Where the guest has the packages that drgn-hvo needs, and drgn-hvo itself.
SITE = "/site"

_DISTRIBUTIONS = ("drgn", "numpy", "construct", "tqdm")

# Never imported in a guest, and large.
_LEFT_OUT = frozenset(
    (
        "__pycache__",
        "distutils",
        "ensurepip",
        "f2py",
        "idlelib",
        "include",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    )
)
_CONFIG_DIRECTORY = re.compile(r"config-3\.")


class Initramfs:
    """
    A cpio archive in the kernel's "newc" format, with fixed owners and times, so that
    the same files give the same image.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, bytes]] = {}

    def add(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self._files.setdefault(path.lstrip("/"), (stat.S_IFREG | mode, content))

    def add_link(self, path: str, to: str) -> None:
        """Add a symbolic link."""
        self._files.setdefault(path.lstrip("/"), (stat.S_IFLNK | 0o777, to.encode()))

    def add_host_file(self, source: Path, path: str) -> None:
        """Add a file of the host, executable where it is there."""
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self.add(path, source.read_bytes(), mode)

    def add_program(self, source: Path, path: str) -> None:
        """Add a program or a shared library, and the system's libraries it needs."""
        self.add_host_file(source, path)
        for library in _libraries(source):
            # Wheels bring the others, in a folder that they are looked for in.
            if not library.parent.name.endswith(".libs"):
                self.add_host_file(library, str(library))

    def write(self, path: Path) -> None:
        """Write the archive."""
        with path.open("wb") as f:
            directories = {
                str(parent)
                for name in self._files
                for parent in Path(name).parents
                if str(parent) != "."
            }
            number = 0
            for number, name in enumerate(sorted(directories), 1):
                f.write(_entry(number, name, stat.S_IFDIR | 0o755, b""))
            for name, (mode, content) in sorted(self._files.items()):
                number += 1
                f.write(_entry(number, name, mode, content))
            f.write(_entry(0, "TRAILER!!!", 0, b""))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    out = io.BytesIO()
    out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
    out.write(bytes(-out.tell() % 4))
    out.write(content)
    out.write(bytes(-out.tell() % 4))
    return out.getvalue()


def _libraries(program: Path) -> list[Path]:
    done = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=False, timeout=60
    )
    found = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE)
    return [Path(path) for path in found]


def base_files(kernel: Kernel, work: Path) -> Initramfs:
    """What every guest has: init, busybox, and the kernel's modules."""
    image = Initramfs()
    image.add_host_file(_busybox(work), "/bin/busybox")
    image.add("/init", (_HERE / "init").read_bytes(), 0o755)
    for number, (name, content) in enumerate(kernel.modules):
        image.add(f"/modules/{number:02}-{name}.ko", content)
    return image


def crash_files(image: Initramfs, kernel: Kernel, work: Path) -> None:
    """
    Add what a kdump needs: kexec, and the same kernel with a small image.

    :raises MissingError: if there is no kexec.
    """
    found = shutil.which("kexec")
    kexec = Path(found) if found else debian_package("kexec-tools", work) / "sbin/kexec"
    image.add_program(kexec, "/bin/kexec")
    image.add_host_file(kernel.vmlinuz, "/crash/vmlinuz")
    small = work / "initrd-crash"
    base_files(kernel, work).write(small)
    image.add_host_file(small, "/crash/initrd")


def _busybox(work: Path) -> Path:
    """A static busybox: the host's, or the package's."""
    installed = Path("/bin/busybox")
    if installed.is_file() and not _libraries(installed):
        return installed
    return debian_package("busybox-static", work) / "bin/busybox"


def python_files(image: Initramfs, scripts: Iterable[Path]) -> None:
    """
    Add Python and drgn-hvo.

    :param scripts: More files, which the guest has in ``/scripts``.
    :raises MissingError: if this Python lacks what drgn-hvo needs.
    """
    program = Path(sys.base_prefix, "bin", f"python{_version()}").resolve()
    image.add_program(program, str(program))
    image.add_link("/bin/python3", str(program))
    image.add(
        "/bin/guest-python",
        b"#!/bin/sh\n"
        b"export PYTHONHOME=%s PYTHONPATH=%s PYTHONDONTWRITEBYTECODE=1\n"
        b'exec python3 -s "$@"\n' % (sys.base_prefix.encode(), SITE.encode()),
        0o755,
    )
    stdlib = Path(sysconfig.get_path("stdlib"))
    _add_tree(image, stdlib, str(stdlib))
    for name in _DISTRIBUTIONS:
        _add_distribution(image, name)
    ours = Path(drgn_hvo.__file__).parent
    _add_tree(image, ours, f"{SITE}/drgn_hvo")
    for script in scripts:
        image.add_host_file(script, f"/scripts/{script.name}")


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _is_left_out(path: Path) -> bool:
    return any(
        part in _LEFT_OUT or _CONFIG_DIRECTORY.match(part) for part in path.parts
    )


def _add_tree(image: Initramfs, source: Path, path: str) -> None:
    for directory, names, files in os.walk(source):
        inside = Path(directory).relative_to(source)
        names[:] = sorted(name for name in names if not _is_left_out(Path(name)))
        for name in files:
            _add_module(image, Path(directory, name), f"{path}/{inside / name}")


def _add_distribution(image: Initramfs, name: str) -> None:
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise MissingError(f"the Python that runs this has no {name}") from None
    for file in files:
        if not _is_left_out(Path(file)) and ".." not in file.parts:
            _add_module(image, Path(str(file.locate())), f"{SITE}/{file}")


def _add_module(image: Initramfs, source: Path, path: str) -> None:
    """Add one file of a Python package, compiled: emulated, that takes minutes."""
    if ".so" in source.suffixes:
        image.add_program(source, path)
    elif source.suffix == ".py":
        image.add_host_file(source, path)
        cached = importlib.util.cache_from_source(path)
        compiled = _compile(source)
        if compiled is not None:
            image.add(cached, compiled)
    elif source.suffix not in (".a", ".h", ".pyc", ".pyi", ".pxd", ".c"):
        image.add_host_file(source, path)


def _compile(source: Path) -> Optional[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        compiled = Path(directory, "compiled")
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        try:
            py_compile.compile(
                str(source), str(compiled), doraise=True, invalidation_mode=mode
            )
        except (py_compile.PyCompileError, ValueError):
            return None
        return compiled.read_bytes()

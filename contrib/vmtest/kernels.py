# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Finding a kernel
----------------

A kernel is named by a Debian package, a ``.deb`` file, a ``vmlinuz``, or a directory
that has one. Nothing is installed: packages are downloaded and unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
import lzma
from pathlib import Path
import re
import shutil
import subprocess
from typing import Optional

from contrib.vmtest.errors import MissingError

__all__ = ("Kernel", "debian_package", "find_kernel", "run_tool")

# What the guest needs if it is not built in: the note for QEMU's vmcoreinfo device,
# and a fast way out for a core.
_WANTED_MODULES = ("qemu_fw_cfg", "virtio_pci", "virtio_console")

_DOWNLOAD_TIMEOUT = 300  # seconds


@dataclass(frozen=True)
class Kernel:
    """
    A kernel to boot.

    :param modules: Names and contents, uncompressed, in the order to load them.
    """

    name: str
    vmlinuz: Path
    modules: tuple[tuple[str, bytes], ...]


def run_tool(*command: str, timeout: float, cwd: Optional[Path] = None) -> str:
    """
    Run a program of the host.

    :raises MissingError: if it is not there or fails.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=True,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise MissingError(f"there is no {command[0]} on this host") from None
    except subprocess.TimeoutExpired:
        raise MissingError(f"{command[0]} was not done in {timeout:.0f} s") from None
    except subprocess.CalledProcessError as e:
        lines = e.stderr.strip().splitlines() or [f"exit status {e.returncode}"]
        raise MissingError(f"{' '.join(command)}: {lines[-1]}") from None
    return done.stdout


def debian_package(name: str, work: Path) -> Path:
    """
    Download a Debian package and unpack it.

    :return: The directory that it was unpacked into.
    """
    unpacked = work / name
    if unpacked.is_dir():
        return unpacked
    downloads = work / f"{name}.download"
    downloads.mkdir(parents=True)
    # As root apt would drop its privileges, and warns where it then cannot write.
    run_tool(
        *("apt-get", "-o", "APT::Sandbox::User=root", "download", name),
        timeout=_DOWNLOAD_TIMEOUT,
        cwd=downloads,
    )
    unpack_deb(next(downloads.glob("*.deb")), unpacked)
    return unpacked


def unpack_deb(deb: Path, directory: Path) -> None:
    """Unpack a ``.deb`` file."""
    run_tool("dpkg-deb", "-x", str(deb), str(directory), timeout=_DOWNLOAD_TIMEOUT)


def find_kernel(what: str, work: Path) -> Kernel:
    """
    Find a kernel and the modules that it needs.

    :param what: Package, ``.deb``, ``vmlinuz``, or a directory.
    :param work: Where packages are unpacked.
    :raises MissingError: if there is none.
    """
    path = Path(what)
    if what.endswith(".deb"):
        if not path.is_file():
            raise MissingError(f"{what}: no such file")
        unpack_deb(path, work / path.stem)
        return _from_directory(path.stem, work / path.stem)
    if path.is_dir():
        return _from_directory(path.name, path)
    if path.is_file():
        return _from_vmlinuz(path)
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", what):
        raise MissingError(f"{what}: no such file, and no name of a Debian package")
    return _from_directory(what, debian_package(what, work))


def _from_directory(name: str, directory: Path) -> Kernel:
    found = sorted([*directory.glob("vmlinuz*"), *directory.glob("boot/vmlinuz*")])
    if not found:
        raise MissingError(f"{name}: has no vmlinuz; is it a kernel image?")
    return Kernel(name, found[-1], _modules(name, directory, found[-1]))


def _from_vmlinuz(vmlinuz: Path) -> Kernel:
    name = vmlinuz.name
    # An installed kernel has its modules in /lib/modules.
    release = name.partition("vmlinuz-")[2]
    installed = Path("/lib/modules", release) if release else None
    around = installed if installed and installed.is_dir() else vmlinuz.parent
    return Kernel(name, vmlinuz, _modules(name, around, vmlinuz))


def _modules(
    name: str, directory: Path, vmlinuz: Path
) -> tuple[tuple[str, bytes], ...]:
    built_in = _built_in(vmlinuz)
    files = {_module_name(path): path for path in directory.rglob("*.ko*")}
    loaded: dict[str, bytes] = {}
    for module in _WANTED_MODULES:
        if module in files:
            _load(module, files, loaded)
        elif module == "qemu_fw_cfg" and "FW_CFG_SYSFS" not in built_in:
            raise MissingError(
                f"{name}: there is no qemu_fw_cfg.ko beside the kernel, and without "
                "it QEMU's vmcoreinfo device stays empty"
            )
    return tuple(loaded.items())


def _built_in(vmlinuz: Path) -> frozenset[str]:
    """Options that are ``y`` in the configuration beside a kernel, if there is one."""
    directory, name = vmlinuz.parent, vmlinuz.name.replace("vmlinuz", "config")
    for config in (directory / name, directory / "config"):
        if config.is_file():
            found = re.findall(r"^CONFIG_(\w+)=y$", config.read_text(), re.MULTILINE)
            return frozenset(found)
    return frozenset()


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _load(module: str, files: dict[str, Path], loaded: dict[str, bytes]) -> None:
    """Add a module behind those that it depends on."""
    if module in loaded or module not in files:
        return
    content = _read_module(files[module])
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    for needed in (found[1] if found else b"").decode().split(","):
        _load(needed.replace("-", "_"), files, loaded)
    loaded[module] = content


def _read_module(path: Path) -> bytes:
    packed = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(packed)
    if path.suffix == ".zst":
        zstd = shutil.which("zstd")
        if zstd is None:
            raise MissingError(f"{path.name}: there is no zstd on this host")
        return subprocess.run(
            [zstd, "-dc", str(path)], capture_output=True, check=True, timeout=60
        ).stdout
    return packed

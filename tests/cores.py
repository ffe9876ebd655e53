# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The shared vmcores
------------------

Real cores and their ground truth lie beside the repository, packed. They are
unpacked once, into the directory that ``DRGN_HVO_CORE_CACHE`` names or into one
below the directory for temporary files. Whatever is missing skips the test that
asked for it, with the reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
import importlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import tempfile
from typing import IO, Any, Optional

import drgn
import pytest

__all__ = (
    "CORES",
    "DRGN_IS_WRONG",
    "SAMPLES",
    "WITHOUT",
    "core_path",
    "layout_of",
    "open_core",
    "truth",
    "vmlinux_path",
)

#: Cores that every clone has.
SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "cores"

#: The cores, by the name of their truth.
CORES = [
    "6.1-2node",
    "6.12-2node",
    "6.12-mix",
    "7.2-2node",
    "7.2-boot1g",
    "7.2-kdump",
    "7.2-mix",
    "seed5-1g-hit",
    "seed5-2node",
    "seed6-2node",
    "seedgh-2node",
]


def _shared(pattern: str) -> Path:
    for path in sorted(_SHARED.glob(pattern)):
        return path
    pytest.skip(f"no {pattern} in ../shared/cores")


def _cache() -> Path:
    named = os.environ.get("DRGN_HVO_CORE_CACHE")
    cache = Path(named or Path(tempfile.gettempdir(), "drgn-hvo-cores"))
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def _unpacked(packed: Path) -> Iterator[IO[bytes]]:
    """Unpack with zstd(1) or, without it, with whichever module there is."""
    command = shutil.which("zstd")
    if command is not None:
        arguments = [command, "-dcq", str(packed)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
        assert process.returncode == 0, f"zstd cannot unpack {packed.name}"
        return
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        with module.open(packed, "rb") as file:
            yield file
        return
    pytest.skip("no zstd command and no zstandard module to unpack cores with")


def core_path(name: str) -> Path:
    """The unpacked core."""
    packed = _shared(f"{name}.*.zst")
    unpacked = _cache() / packed.stem
    if unpacked.exists() and unpacked.stat().st_mtime >= packed.stat().st_mtime:
        return unpacked
    # Other sessions may look for it at this moment.
    with tempfile.NamedTemporaryFile(dir=unpacked.parent, delete=False) as partial:
        try:
            with _unpacked(packed) as file:
                shutil.copyfileobj(file, partial, 1 << 20)
            os.replace(partial.name, unpacked)
        except BaseException:
            os.unlink(partial.name)
            raise
    return unpacked


def truth(name: str) -> Any:
    """What an independent program found in the core, and the guest confirmed."""
    return json.loads(_shared(f"{name}.truth.json").read_text())


def open_core(name: str) -> drgn.Program:
    """A program of its own for the core: no debuginfo, no finders of ours."""
    prog = drgn.Program()
    prog.set_core_dump(core_path(name))
    return prog


def vmlinux_path(name: str) -> Optional[Path]:
    """The core's vmlinux; None if there is none, or no core."""
    try:
        release = truth(name)["release"]
    except pytest.skip.Exception:
        return None
    directories = os.environ.get("DRGN_HVO_VMLINUX", "").split(os.pathsep)
    directories += ["/usr/lib/debug/boot", f"/usr/lib/debug/lib/modules/{release}"]
    for directory in filter(None, directories):
        for file_name in (f"vmlinux-{release}", "vmlinux"):
            path = Path(directory, file_name)
            # A plain vmlinux may be that of another kernel.
            if path.exists() and release in str(path):
                return path
    return None


#: Those of which there is none.
WITHOUT = [name for name in CORES if vmlinux_path(name) is None]

#: drgn's compound_head() takes masks for pointers unless struct zone has the array.
DRGN_IS_WRONG = [name for name in CORES if name.startswith("seed")]


#: Kind of tails, where they are, and what names them, by how a name begins.
_LAYOUTS: dict[str, tuple[str, Optional[str], Optional[str]]] = {
    "6": ("fake-head", None, None),
    "7": ("shared", "zone", "struct page *"),
    "seed5": ("shared", "pglist_data", "pfn"),
    "seed6": ("shared", "pglist_data", "struct page *"),
    "seedgh": ("fake-head", None, None),
}


def layout_of(name: str) -> tuple[str, Optional[str], Optional[str]]:
    """How the kernel of a core keeps tails."""
    return _LAYOUTS[name.split(".")[0].split("-")[0]]

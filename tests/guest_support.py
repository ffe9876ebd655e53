# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Guests under QEMU
-----------------

A stock kernel with HVO that runs a program of ours as its first process, and the dump
that QEMU makes of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
import gzip
import json
import os
from pathlib import Path
import re
import shutil
import socket
import stat
import subprocess
import sys
import time

import pytest

__all__ = ("Guest", "command", "connect", "run", "running")

_ROOT = Path(__file__).resolve().parents[1]
_KERNEL = _ROOT.parent / "shared" / "kernels" / "7.2.13"


def _newc(name: str, mode: int, data: bytes = b"") -> bytes:
    """A member of an initramfs, Documentation/driver-api/early-userspace."""
    path = name.encode() + b"\0"
    fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return b"".join(part + bytes(-len(part) % 4) for part in (header, data))


def _initramfs(directory: Path, program: str) -> Path:
    source, init = directory / "init.c", directory / "init"
    source.write_text(program)
    subprocess.run(
        ["gcc", "-static", "-w", "-O1", "-o", str(init), str(source)], check=True
    )
    module = subprocess.run(
        ["xz", "-dc", str(_KERNEL / "qemu_fw_cfg.ko.xz")],
        check=True,
        capture_output=True,
    ).stdout
    path = directory / "initramfs"
    path.write_bytes(
        gzip.compress(
            b"".join(_newc(name, stat.S_IFDIR | 0o755) for name in ("proc", "dev"))
            + _newc("init", stat.S_IFREG | 0o755, init.read_bytes())
            + _newc("qemu_fw_cfg.ko", stat.S_IFREG | 0o644, module)
            + _newc("TRAILER!!!", 0)
        )
    )
    return path


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    return connection


class Guest:
    """
    A machine that runs; its paths are short enough for sockets.

    :param program: In C, what its first process runs.
    :param more: Of its command line.
    """

    def __init__(self, directory: Path, program: str, more: str = "") -> None:
        self.directory = directory
        self.serial = directory / "serial"
        self.serial.touch()
        initramfs = _initramfs(directory, program)
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max",
             "-m", "512", "-display", "none", "-monitor", "none", "-nodefaults",
             "-device", "vmcoreinfo", "-serial", f"file:{self.serial}",
             "-kernel", str(_KERNEL / "vmlinuz"), "-initrd", str(initramfs),
             "-append",
             f"console=ttyS0 hugetlb_free_vmemmap=on {more}",
             "-qmp", f"unix:{directory}/qmp,server,nowait",
             "-gdb", f"unix:{directory}/gdb,server,nowait"],
        )  # fmt: skip

    def wait_for(self, word: str) -> dict[str, int]:
        """What the guest has told, once it has told *word*."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            text = self.serial.read_text("ascii", "replace")
            found = re.findall(r"^GUEST ([0-9a-f]+) (?:\w )?(\w+)", text, re.MULTILINE)
            told = {name: int(value, 16) for value, name in found}
            if word in told:
                return told
            assert self.process.poll() is None, "QEMU ended"
            time.sleep(0.5)
        raise AssertionError(f"the guest did not get as far as {word}: {text[-500:]}")

    def dump(self) -> Path:
        core = self.directory / "core"
        file = connect(self.directory / "qmp").makefile("rw")
        file.readline()
        for command, arguments in (
            ("qmp_capabilities", {}),
            ("dump-guest-memory", {"paging": False, "protocol": f"file:{core}"}),
        ):
            file.write(json.dumps({"execute": command, "arguments": arguments}))
            file.flush()
            answer: dict[str, object] = {}
            while "return" not in answer:
                answer = json.loads(file.readline())
                assert "error" not in answer, answer
        return core


@contextmanager
def running(directory: Path, program: str, more: str) -> Iterator[Guest]:
    """A guest that ends with the test; skips it where none can be made."""
    for name in ("qemu-system-x86_64", "gcc", "xz"):
        if shutil.which(name) is None:
            pytest.skip(f"no {name}")
    if not _KERNEL.is_dir():
        pytest.skip("no kernels/7.2.13 in ../shared")
    guest = Guest(directory, program, more)
    yield guest
    guest.process.kill()
    guest.process.wait()
    # As large as the guest's memory; pytest would keep three of them.
    (directory / "core").unlink(missing_ok=True)


def run(*args: object) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *map(str, args)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    return result.stdout


def command(*args: object) -> str:
    return run("drgn_hvo", *args)

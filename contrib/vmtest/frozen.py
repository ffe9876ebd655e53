# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The memory of a stopped guest
-----------------------------

The guest's memory lies in files, which are mapped here: an audit of a stopped guest
needs no dump. Types, symbols and layout are found out once.
"""

from __future__ import annotations

from collections.abc import Sequence
import mmap
from pathlib import Path
import struct
from typing import Optional

import drgn

from contrib.vmtest.errors import GuestError
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.run import run_audit
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.unread import KnownWords
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("FrozenGuest", "vmcoreinfo_of")

_X86_64 = drgn.Platform(
    drgn.Architecture.X86_64,
    drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN,
)


class _Memory:
    """Files that follow each other from physical address 0 on."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.segments: list[tuple[int, mmap.mmap]] = []
        start = 0
        for path in files:
            with path.open("rb") as f:
                memory = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            self.segments.append((start, memory))
            start += len(memory)

    def read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        """As a memory segment of drgn is read."""
        for start, memory in self.segments:
            if start <= address and address + count <= start + len(memory):
                return memory[address - start : address - start + count]
        raise drgn.FaultError("no such memory", address)


def vmcoreinfo_of(files: Sequence[Path], note: int) -> bytes:
    """
    The text of VMCOREINFO.

    :param note: Physical address of its ELF note, from ``/sys/kernel/vmcoreinfo``.
    :raises GuestError: if it is not there.
    """
    memory = _Memory(files)
    names, size, _type = struct.unpack("<III", memory.read(note, 12, 0, True))
    if names > 64 or not 0 < size < 1 << 16:
        raise GuestError("the guest has no VMCOREINFO where it says")
    start = note + 12 + (names + 3 & ~3)
    return memory.read(start, size, 0, True).rstrip(b"\0")


class FrozenGuest:
    """
    What drgn-hvo says of a stopped guest.

    :param files: Its memory, one file for each node, from physical address 0 on
        without holes: QEMU has none below 3 GiB.
    :param vmcoreinfo: The text of its VMCOREINFO; another boot's, without KASLR, is
        the same.
    """

    def __init__(self, files: Sequence[Path], vmcoreinfo: bytes) -> None:
        self._memory = _Memory(files)
        self._vmcoreinfo = vmcoreinfo
        self._kernel: Optional[Kernel] = None
        self._settled: Optional[Hvo] = None

    def _bound(self) -> Kernel:
        """
        The kernel of the stopped guest.

        :raises HvoError: if it has not booted so far that there is a kernel.
        """
        if self._kernel is None:
            prog = drgn.Program(_X86_64)
            for start, memory in self._memory.segments:
                prog.add_memory_segment(start, len(memory), self._memory.read, True)
            prog.set_linux_kernel_custom(self._vmcoreinfo, False)
            self._kernel = Kernel(prog, {})
        return self._kernel

    def settle(self) -> None:
        """The guest is up: from now on, its layout stays as it is."""
        self._settled = Hvo(self._bound())
        run_audit(self._settled)

    def audit(self, *, deep: bool = False) -> Audit:
        """
        Audit the guest as it stands now.

        :raises HvoError: if it cannot be audited, while it boots.
        """
        kernel = self._bound()
        kernel.reader = FrameReader(kernel.prog, kernel.geometry.page_size)
        kernel.known_words = KnownWords(kernel.prog, kernel.geometry.page_size)
        return run_audit(Hvo(kernel, self._settled), deep=deep)

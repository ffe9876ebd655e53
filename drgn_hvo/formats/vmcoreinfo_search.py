# SPDX-License-Identifier: LGPL-2.1-or-later

"""
VMCOREINFO in memory
--------------------

A core without a VMCOREINFO note still holds the text, in the memory that it is a dump
of: since Linux kernel commit 203e9e412191 ("kexec: move vmcoreinfo out of the kernel's
.bss section") (in v4.13), ``vmcoreinfo_data`` is a page of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.elf_segments import ElfFrame
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = ("FoundVmcoreinfo", "find_vmcoreinfo")

# Every kernel's begins so (crash_save_vmcoreinfo_init() in kernel/vmcore_info.c).
_BEGIN = b"OSRELEASE="

# What any VMCOREINFO has, and a log or a document that quotes it may not.
_KEYS = ("OSRELEASE", "PAGESIZE", "SYMBOL(init_uts_ns)", "SYMBOL(swapper_pg_dir)")

# The smallest page of any architecture, and the largest VMCOREINFO_BYTES.
_PAGE_SIZE = 4096
_MAX_TEXT = 1 << 16

_PIECE = 16 << 20

# How often the same bytes may be of segments: of /proc/vmcore, those of the kernel's
# own text are of two.
_MOST_TIMES = 4


@dataclass(frozen=True)
class FoundVmcoreinfo:
    """
    A text in memory.

    :param address: Physical.
    """

    address: int
    data: bytes


def find_vmcoreinfo(f: BinaryIO, elf: ElfFrame) -> list[FoundVmcoreinfo]:
    """
    Texts that can be VMCOREINFO, where pages begin; of equal ones the first. All of the
    file is read, and not much more, whatever its headers claim.
    """
    found: list[FoundVmcoreinfo] = []
    left = _MOST_TIMES * elf.size
    for load in elf.loads:
        offset, address, size = load.offset, load.paddr, load.filesz
        skip = -address % _PAGE_SIZE
        for at in range(skip, min(size, elf.size - offset), _PIECE):
            if left <= 0:
                return _distinct(found)
            f.seek(offset + at)
            piece = f.read(min(_PIECE, size - at))
            left -= len(piece)
            for start in _page_starts(piece):
                f.seek(offset + at + start)
                text = f.read(min(_MAX_TEXT, size - at - start)).partition(b"\0")[0]
                if _is_vmcoreinfo(text):
                    found.append(FoundVmcoreinfo(address + at + start, text))
    return _distinct(found)


def _page_starts(piece: bytes) -> list[int]:
    """Where pages begin with the beginning of VMCOREINFO."""
    pages = len(piece) // _PAGE_SIZE
    rows = np.frombuffer(piece, dtype=np.uint8, count=pages * _PAGE_SIZE)
    begin = np.frombuffer(_BEGIN, dtype=np.uint8)
    first = rows.reshape(pages, _PAGE_SIZE)[:, : len(begin)]
    # One byte of each page decides about nearly all of them.
    (likely,) = (first[:, 0] == begin[0]).nonzero()
    hits = likely[(first[likely] == begin).all(axis=1)]
    return (hits * _PAGE_SIZE).tolist()


def _is_vmcoreinfo(text: bytes) -> bool:
    try:
        known = Vmcoreinfo(text)
    except FormatError:
        return False
    return all(key in known for key in _KEYS)


def _distinct(found: list[FoundVmcoreinfo]) -> list[FoundVmcoreinfo]:
    """
    One of each: a kernel that crashed has a second copy, vmcoreinfo_data_safecopy, that
    lacks the time of the crash or has it alone.
    """
    texts: dict[bytes, FoundVmcoreinfo] = {}
    for one in found:
        lines = one.data.split(b"\n")
        key = b"\n".join(x for x in lines if not x.startswith(b"CRASHTIME="))
        texts.setdefault(key, one)
    return list(texts.values())

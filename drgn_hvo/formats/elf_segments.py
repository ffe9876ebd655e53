# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Segments of ELF cores
---------------------

The memory that a core file says it has: its ``PT_LOAD`` program headers.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple, Optional

__all__ = ("Segment", "read_segments")

_PT_LOAD = 1
# More program headers than 16 bits count: the number is in the first section header.
_PN_XNUM = 0xFFFF
# vmcores of the largest machines have some thousands.
_MAX_HEADERS = 1 << 20


class Segment(NamedTuple):
    """A ``PT_LOAD`` program header, in bytes."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


def read_segments(f: BinaryIO) -> Optional[list[Segment]]:
    """
    The segments of a core of a 64-bit machine.

    :param f: At its beginning.
    :return: ``None`` if it is no such file, or its headers are cut off.
    """
    header = f.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02" or header[5] not in (1, 2):
        return None
    order = "<" if header[5] == 1 else ">"
    phoff, shoff = struct.unpack_from(order + "QQ", header, 32)
    phentsize, phnum = struct.unpack_from(order + "HH", header, 54)
    if phnum == _PN_XNUM:
        f.seek(shoff)
        section = f.read(64)
        if len(section) < 64:
            return None
        (phnum,) = struct.unpack_from(order + "I", section, 44)
    if phentsize != 56 or phnum > _MAX_HEADERS:
        return None
    f.seek(phoff)
    table = f.read(phnum * phentsize)
    if len(table) < phnum * phentsize:
        return None
    headers = struct.iter_unpack(order + "IIQQQQQQ", table)
    return [
        Segment(offset, vaddr, paddr, filesz, memsz)
        for kind, _, offset, vaddr, paddr, filesz, memsz, _ in headers
        if kind == _PT_LOAD
    ]

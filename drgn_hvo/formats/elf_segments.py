# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The headers of ELF cores
------------------------

Which physical memory an ELF vmcore says it holds, and where in the file. drgn reads the
memory itself.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple, Optional

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix

__all__ = ("ELF_MAGIC", "ElfFrame", "Segment", "read_elf_frame")

ELF_MAGIC = b"\x7fELF"

_CLASS_64 = 2
_BYTE_ORDERS: dict[int, ByteOrder] = {1: "little", 2: "big"}

# Elf64_Ehdr behind e_ident, and Elf64_Phdr, as struct formats.
_EHDR = "HHIQQQIHHHHHH"
_PHDR = "IIQQQQQQ"
_EHDR_SIZE = 64
_SHDR_INFO = 44  # sh_info in Elf64_Shdr
_PN_XNUM = 0xFFFF

_ET_CORE = 4
_PT_LOAD = 1
_PT_NOTE = 4

# Those of a machine with thousands of processors have a few MiB.
_MAX_NOTES = 64 << 20

# Of what the kernel calls loff_t, which has a sign.
_MAX_FILE = (1 << 63) - 1

# DUMP_ELF_INCOMPLETE of makedumpfile's elf_info.h, in e_flags.
_INCOMPLETE = 1

# Machines of which the ABI says nothing about that bit; those of PowerPC, RISC-V and
# LoongArch have a meaning of their own for it.
_FREE_FLAGS = (22, 62, 183)  # EM_S390, EM_X86_64, EM_AARCH64


class Segment(NamedTuple):
    """``Elf64_Phdr``: places in the file and in memory, in bytes."""

    kind: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class ElfFrame(NamedTuple):
    """
    What the headers of an ELF file say.

    :param size: Of the file, in bytes.
    :param is_core: Whether ``e_type`` is ``ET_CORE``.
    :param machine: ``e_machine``.
    :param flags: ``e_flags``.
    :param headers_end: Where the headers end, in bytes.
    """

    size: int
    byteorder: ByteOrder
    is_core: bool
    machine: int
    flags: int
    segments: list[Segment]
    headers_end: int

    @property
    def loads(self) -> list[Segment]:
        """Segments of memory, ``PT_LOAD``."""
        return [segment for segment in self.segments if segment.kind == _PT_LOAD]

    def has_note(self, f: BinaryIO, name: bytes) -> bool:
        """
        Whether there is a note of a name.

        :raises FormatError: if there are more notes than anybody wants to read: the
            same bytes may be of many segments.
        """
        notes = [segment for segment in self.segments if segment.kind == _PT_NOTE]
        size = sum(segment.filesz for segment in notes)
        if size > _MAX_NOTES:
            raise FormatError(
                f"this ELF file is damaged: its program headers name {size} bytes of "
                "notes, which are more than any machine has"
            )
        for segment in notes:
            f.seek(segment.offset)
            if name + b"\0" in f.read(segment.filesz):
                return True
        return False

    @property
    def end(self) -> int:
        """How many bytes the file must have for all that its headers name."""
        ends = (segment.offset + segment.filesz for segment in self.segments)
        return max(self.headers_end, *ends) if self.segments else self.headers_end

    @property
    def is_incomplete(self) -> Optional[bool]:
        """Whether makedumpfile could not write all of it; ``None`` if not known."""
        if self.machine not in _FREE_FLAGS:
            return None
        return bool(self.flags & _INCOMPLETE)


def read_elf_frame(f: BinaryIO) -> Optional[ElfFrame]:
    """
    The headers of a 64-bit ELF file.

    :return: ``None`` if it is none.
    :raises FormatError: if it is cut off in its headers, or damaged.
    """
    size = f.seek(0, 2)
    f.seek(0)
    header = f.read(_EHDR_SIZE)
    if not header.startswith(ELF_MAGIC) or header[4:5] != bytes([_CLASS_64]):
        return None
    byteorder = _BYTE_ORDERS.get(header[5]) if len(header) == _EHDR_SIZE else None
    if byteorder is None:
        raise FormatError("this ELF file is cut off or damaged in its header")
    prefix = type_prefix(byteorder)
    kind, machine, _, _, phoff, shoff, flags, _, phentsize, phnum, _, _, _ = (
        struct.unpack_from(prefix + _EHDR, header, 16)
    )
    if phnum == _PN_XNUM:
        # More do not fit: sh_info of the first section header has the number.
        f.seek(min(shoff + _SHDR_INFO, size))
        found = f.read(4)
        if len(found) < 4:
            raise FormatError("this ELF file is cut off: it lacks its section header")
        (phnum,) = struct.unpack(f"{prefix}I", found)
    end = phoff + phnum * phentsize
    if end > size or phentsize != struct.calcsize(prefix + _PHDR):
        raise FormatError(
            f"this ELF file is cut off or damaged: it has {size} bytes, its program "
            f"headers end at {end}; copy it again"
        )
    f.seek(phoff)
    segments = [
        Segment(kind, offset, vaddr, paddr, filesz, memsz)
        for kind, _, offset, vaddr, paddr, filesz, memsz, _ in struct.iter_unpack(
            prefix + _PHDR, f.read(phnum * phentsize)
        )
    ]
    for number, segment in enumerate(segments):
        if segment.offset + segment.filesz > _MAX_FILE:
            raise FormatError(
                f"this ELF file is damaged: its program header {number} names bytes "
                f"at {segment.offset:#x}, where no file has any"
            )
    return ElfFrame(size, byteorder, kind == _ET_CORE, machine, flags, segments, end)

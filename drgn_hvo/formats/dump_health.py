# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The health of a dump
--------------------

Whether a file holds what it was meant to hold: makedumpfile marks a file that it could
not finish, copies are interrupted, and a piece of a split dump is not the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Optional

from drgn_hvo.formats.elf_segments import ElfFrame, read_elf_frame
from drgn_hvo.formats.kdump import KdumpFrame, read_kdump_frame

__all__ = (
    "DumpHealth",
    "Piece",
    "Truncated",
    "elf_health",
    "kdump_health",
    "read_dump_health",
)


@dataclass(frozen=True)
class Truncated:
    """
    A file that is shorter than it says, in bytes.

    :param expected: How long it has to be at least.
    """

    expected: int
    actual: int


@dataclass(frozen=True)
class Piece:
    """
    A piece of a dump that ``makedumpfile --split`` wrote.

    :param end_pfn: One more than the last PFN that it can have.
    """

    start_pfn: int
    end_pfn: int


@dataclass(frozen=True)
class DumpHealth:
    """
    What a file says of itself; ``None`` is not known.

    :param format: ``"elf"``, ``"kdump"`` or ``"flattened"``.
    :param size: Of the file, in bytes.
    :param incomplete_flag: Whether makedumpfile marked it as not finished.
    :param truncated: Whether it was cut off behind its headers.
    :param split: Which piece of a split dump it is.
    :param filtered: What was filtered, as for ``makedumpfile -d``.
    :param unwritten: Pages that the headers name, but that were not written.
    :param elsewhere: Pages that other pieces of a split dump have.
    """

    format: str
    size: int
    incomplete_flag: Optional[bool] = None
    truncated: Optional[Truncated] = None
    split: Optional[Piece] = None
    filtered: Optional[int] = None
    unwritten: Optional[int] = None
    elsewhere: Optional[int] = None

    @property
    def is_whole(self) -> bool:
        """Whether it claims to be all that it was meant to be."""
        lost = self.truncated or self.incomplete_flag or self.unwritten
        return not lost and not self.elsewhere

    def complaints(self) -> list[str]:
        """What is wrong, one line each, with what to do."""
        said = []
        lengths = ""
        if self.truncated is not None:
            lengths = (
                f": the file has {self.truncated.actual} bytes, its headers name "
                f"{self.truncated.expected}"
            )
        lost = f" ({self.unwritten} pages are missing)" if self.unwritten else ""
        if self.incomplete_flag:
            said.append(
                "incomplete: makedumpfile could not write all of it, for want of space "
                f"or because it was interrupted{lost}{lengths}"
            )
        elif self.truncated is not None:
            said.append(f"cut off{lengths}; copy it again")
        elif lost:
            said.append(f"incomplete{lost}")
        if self.split is not None:
            first, end = self.split.start_pfn, self.split.end_pfn
            pages = f"PFN {first} to {end - 1}" if first < end else "no pages"
            said.append(
                f"a piece of a split dump, with {pages}: join all pieces with "
                "'makedumpfile --reassemble PIECE... NEW'"
            )
        return said


def read_dump_health(f: BinaryIO) -> Optional[DumpHealth]:
    """
    Look at the headers of a dump.

    :return: ``None`` if its format is not known.
    :raises FormatError: if it is damaged, or cut off so that it cannot be opened.
    """
    elf = read_elf_frame(f)
    if elf is not None:
        return elf_health(elf)
    kdump = read_kdump_frame(f)
    if kdump is None:
        return None
    kdump.check()
    return kdump_health(kdump)


def elf_health(elf: ElfFrame) -> DumpHealth:
    """What the headers of an ELF file say."""
    cut = Truncated(elf.end, elf.size) if elf.end > elf.size else None
    return DumpHealth("elf", elf.size, elf.is_incomplete, cut)


def kdump_health(kdump: KdumpFrame) -> DumpHealth:
    """What the tables of a kdump-compressed file say, which were checked."""
    file = kdump.file
    return DumpHealth(
        "flattened" if file.is_flattened else "kdump",
        file.stored_size,
        kdump.is_incomplete,
        Truncated(kdump.end, file.size) if kdump.end > file.size else None,
        split=None if kdump.split is None else Piece(*kdump.split),
        filtered=kdump.dump_level,
        unwritten=kdump.unwritten,
        elsewhere=kdump.elsewhere,
    )

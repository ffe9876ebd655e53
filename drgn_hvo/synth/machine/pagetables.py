# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page tables, written
--------------------

The kernel's page tables of x86-64 (:linux:`arch/x86/include/asm/pgtable_types.h`),
4 or 5 levels of them, built from arrays of entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgn_hvo.synth.described.generations import PAGE_SIZE
from drgn_hvo.synth.machine.frames import Extent

__all__ = (
    "HEAD_SLICE",
    "KERNEL_DATA",
    "KERNEL_RODATA",
    "KERNEL_TEXT",
    "LARGE",
    "OWN_SLICE",
    "BuiltTables",
    "PageTables",
    "present_read_only",
)

U64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

_NX = 1 << 63
_PSE = 1 << 7
_RW = 1 << 1
_TABLE = 0x67  # _PAGE_TABLE: present, writable, user, accessed, dirty
_GLOBAL_RO = 0x121  # present, accessed, global

#: PAGE_KERNEL, PAGE_KERNEL_LARGE, and those of the kernel image.
OWN_SLICE = _NX | 0x163
HEAD_SLICE = OWN_SLICE
LARGE = _NX | 0x163 | _PSE
KERNEL_TEXT = 0x121 | _PSE
KERNEL_RODATA = _NX | 0x121 | _PSE
KERNEL_DATA = LARGE


def present_read_only(*, boot: bool, dirty: bool) -> int:
    """
    PAGE_KERNEL_RO as it is seen in vmemmap.

    :param boot: vmemmap_wrprotect_hvo() made it: _PAGE_SAVED_DIRTY (bit 58) stays.
    :param dirty: Up to v6.5, whose PAGE_KERNEL_RO had the dirty bit.
    """
    return _NX | _GLOBAL_RO | (1 << 58 if boot else 0) | (0x40 if dirty else 0)


@dataclass(frozen=True)
class _Level:
    """The tables of one level: their numbers, ascending, and their first frame."""

    numbers: U64
    pfn: int


class BuiltTables:
    """Page tables that have their places."""

    def __init__(self, levels: list[_Level], extents: list[Extent]) -> None:
        self._levels = levels
        self.extents = extents

    @property
    def root(self) -> int:
        """Frame of the top table."""
        return self._levels[-1].pfn

    def entry(self, address: int, level: int) -> int:
        """Physical address of the entry that maps a virtual address."""
        bits = 12 + 9 * len(self._levels)
        index = (address & ((1 << bits) - 1)) >> (12 + 9 * level)
        tables = self._levels[level]
        at = int(np.searchsorted(tables.numbers, np.uint64(index >> 9)))
        if at == len(tables.numbers) or int(tables.numbers[at]) != index >> 9:
            raise KeyError(f"{address:#x} has no table of level {level}")
        return (tables.pfn + at) * PAGE_SIZE + 8 * (index & 511)


class PageTables:
    """
    Collects mappings.

    :param levels: 4 or 5.
    """

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self._mappings: list[list[tuple[U64, U64]]] = [[] for _ in range(levels)]

    def map(self, address: int, pfns: Int64, flags: int, level: int = 0) -> None:
        """
        Map frames behind each other from a virtual address on.

        :param pfns: The first frame of each page.
        :param level: 0 for base pages, 1 for 2 MiB, 2 for 1 GiB.
        """
        values = (pfns.astype(np.uint64) << np.uint64(12)) | np.uint64(flags)
        self.map_entries(address, values, level)

    def map_entries(self, address: int, values: U64, level: int = 0) -> None:
        """As :meth:`map()`, with whole entries."""
        bits = 12 + 9 * self._levels
        first = (address & ((1 << bits) - 1)) >> (12 + 9 * level)
        indices = np.uint64(first) + np.arange(len(values), dtype=np.uint64)
        self._mappings[level].append((indices, values))

    def build(self, root: int, take: Callable[[int], int]) -> BuiltTables:
        """
        Give each table a place.

        :param root: Frame of the top table.
        :param take: Hands out so many frames behind each other.
        """
        levels: list[_Level] = []
        extents = []
        for level, mappings in enumerate(self._mappings):
            indices = np.concatenate([m[0] for m in mappings] or [_NONE])
            values = np.concatenate([m[1] for m in mappings] or [_NONE])
            numbers = np.unique(indices >> np.uint64(9))
            top = level == self._levels - 1
            if not len(numbers):
                levels.append(_Level(numbers, 0))
                continue
            pfn = root if top else take(len(numbers))
            tables = np.zeros((len(numbers), 512), dtype="<u8")
            rows = np.searchsorted(numbers, indices >> np.uint64(9))
            tables[rows, (indices & np.uint64(511)).astype(np.int64)] = values
            extents.append(Extent.rows(pfn, tables.view(np.uint8)))
            levels.append(_Level(numbers, pfn))
            if not top:
                frames = np.uint64(pfn) + np.arange(len(numbers), dtype=np.uint64)
                entries = (frames << np.uint64(12)) | np.uint64(_TABLE)
                self._mappings[level + 1].append((numbers, entries))
        return BuiltTables(levels, extents)


_NONE = np.zeros(0, dtype=np.uint64)

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page tables, written
--------------------

The kernel's page tables, built from arrays of entries. What the bits of an entry are
is told by :mod:`drgn_hvo.formats.page_table_formats`; where entries belong is worked
out here, apart from the walk that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.synth.described.generations import PAGE_SIZE
from drgn_hvo.synth.machine.frames import Extent

__all__ = (
    "BuiltTables",
    "PageTables",
    "tail_flags",
)

U64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


def tail_flags(page_table: PageTableFormat, *, boot: bool, dirty: bool) -> int:
    """
    What the entry of a slice that shares its frame has besides the frame.

    :param boot: vmemmap_wrprotect_hvo() made it, of a writable one.
    :param dirty: Up to v6.5, whose PAGE_KERNEL_RO had the dirty bit.
    """
    protections = page_table.protections
    if protections.read_only is None:
        return protections.kernel
    flags = protections.read_only
    if boot:
        flags |= protections.write_protected
    return flags | page_table.dirty if dirty else flags


@dataclass(frozen=True)
class _Level:
    """The tables of one level: their numbers, ascending, and their first frame."""

    numbers: U64
    pfn: int


class BuiltTables:
    """Page tables that have their places."""

    def __init__(
        self, page_table: PageTableFormat, levels: list[_Level], extents: list[Extent]
    ) -> None:
        self.format = page_table
        self._levels = levels
        self.extents = extents

    @property
    def root(self) -> int:
        """Frame of the top table."""
        return self._levels[-1].pfn

    def entry(self, address: int, level: int) -> int:
        """Physical address of the entry that maps a virtual address."""
        number, index = _place(self.format, address, level)
        tables = self._levels[level]
        at = int(np.searchsorted(tables.numbers, np.uint64(number)))
        if at == len(tables.numbers) or int(tables.numbers[at]) != number:
            raise KeyError(f"{address:#x} has no table of level {level}")
        return (tables.pfn + at) * PAGE_SIZE + 8 * index


def _place(page_table: PageTableFormat, address: int, level: int) -> tuple[int, int]:
    """The number of the table of a level that an address is in, and the index."""
    within = address & ((1 << page_table.reach_shift) - 1)
    entries = 1 << page_table.levels[level].index_bits
    return divmod(within >> page_table.shift(level), entries)


class PageTables:
    """Collects mappings."""

    def __init__(self, page_table: PageTableFormat) -> None:
        self.format = page_table
        self._mappings: list[list[tuple[U64, U64]]] = [[] for _ in page_table.levels]

    def map(self, address: int, pfns: Int64, flags: int, level: int = 0) -> None:
        """
        Map frames behind each other from a virtual address on.

        :param pfns: The first frame of each page.
        :param flags: One of the protections of the format.
        :param level: 0 for base pages, 1 for the next larger ones.
        """
        frames = pfns.astype(np.uint64) << np.uint64(self.format.page_shift)
        self.map_entries(address, self.format.make(frames, level, flags), level)

    def map_entries(self, address: int, values: U64, level: int = 0) -> None:
        """As :meth:`map()`, with whole entries."""
        number, index = _place(self.format, address, level)
        first = (number << self.format.levels[level].index_bits) + index
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
            bits = np.uint64(self.format.levels[level].index_bits)
            last = (np.uint64(1) << bits) - np.uint64(1)
            numbers = np.unique(indices >> bits)
            top = level == len(self._mappings) - 1
            if not len(numbers):
                levels.append(_Level(numbers, 0))
                continue
            pfn = root if top else take(len(numbers))
            tables = np.zeros((len(numbers), int(last) + 1), dtype="<u8")
            rows = np.searchsorted(numbers, indices >> bits)
            tables[rows, (indices & last).astype(np.int64)] = values
            extents.append(Extent.rows(pfn, tables.view(np.uint8)))
            levels.append(_Level(numbers, pfn))
            if not top:
                frames = np.uint64(pfn) + np.arange(len(numbers), dtype=np.uint64)
                addresses = frames << np.uint64(self.format.page_shift)
                entries = self.format.make_table(addresses, level + 1)
                self._mappings[level + 1].append((numbers, entries))
        return BuiltTables(self.format, levels, extents)


_NONE = np.zeros(0, dtype=np.uint64)

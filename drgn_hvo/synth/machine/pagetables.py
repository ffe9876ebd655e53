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
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.byteorder import type_prefix
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.synth.machine.frames import Extent

__all__ = (
    "BuiltTables",
    "PageTables",
    "TakeTables",
    "tail_flags",
)

U64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

#: ``take(count, align)``: hands out frames behind each other; the first one.
TakeTables = Callable[[int, int], int]


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
    """
    The tables of one level: their numbers, ascending, and the physical address from
    which on they lie behind each other.
    """

    numbers: U64
    address: int


class BuiltTables:
    """Page tables that have their places."""

    def __init__(
        self, page_table: PageTableFormat, levels: list[_Level], extents: list[Extent]
    ) -> None:
        self.format = page_table
        self._levels = levels
        self.extents = extents

    def entry(self, address: int, level: int) -> int:
        """Physical address of the entry that maps a virtual address."""
        number, index = _place(self.format, address, level)
        tables = self._levels[level]
        at = int(np.searchsorted(tables.numbers, np.uint64(number)))
        if at == len(tables.numbers) or int(tables.numbers[at]) != number:
            raise KeyError(f"{address:#x} has no table of level {level}")
        return tables.address + at * self.format.table_size(level) + 8 * index


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

    def build(self, root: int, take: TakeTables, order: str) -> BuiltTables:
        """
        Give each table a place.

        :param root: Physical address of the top table.
        :param order: Of bytes, as NumPy calls it.
        """
        if self.format.entry_byteorder is not None:
            order = type_prefix(self.format.entry_byteorder)
        builder = _TableBuilder(self.format, take, f"{order}u8")
        levels: list[_Level] = []
        for level, mappings in enumerate(self._mappings):
            indices = np.concatenate([m[0] for m in mappings] or [_NONE])
            values = np.concatenate([m[1] for m in mappings] or [_NONE])
            top = level == len(self._mappings) - 1
            levels.append(builder.add(level, indices, values, root if top else None))
            if not top and len(levels[-1].numbers):
                tables = levels[-1]
                size = np.uint64(self.format.table_size(level))
                behind = np.arange(len(tables.numbers), dtype=np.uint64) * size
                entries = self.format.make_table(
                    np.uint64(tables.address) + behind, level + 1
                )
                self._mappings[level + 1].append((tables.numbers, entries))
        return BuiltTables(self.format, levels, builder.extents)


class _TableBuilder:
    """Puts the tables of one level after the other into frames."""

    def __init__(
        self, page_table: PageTableFormat, take: TakeTables, dtype: str
    ) -> None:
        self._format = page_table
        self._take = take
        self._dtype = dtype
        # Of the level below: the table that stands for none.
        self._none: Optional[int] = None
        self.extents: list[Extent] = []

    def _empty(self, level: int) -> int:
        """An entry that is not in use."""
        if self._none is not None:
            entry: int = self._format.make_table(self._none, level)
            return entry
        empty = self._format.protections.empty
        return empty[level] if empty else 0

    def add(
        self, level: int, indices: U64, values: U64, address: Optional[int]
    ) -> _Level:
        """
        Make the tables of a level, as many as the entries need.

        :param indices: Of all entries, counted over all tables of the level.
        :param address: Of the tables; ``None`` if they are to be given one.
        """
        bits = np.uint64(self._format.levels[level].index_bits)
        last = (np.uint64(1) << bits) - np.uint64(1)
        numbers = np.unique(indices >> bits)
        empty = self._empty(level)
        tables = np.full((len(numbers), int(last) + 1), empty, dtype=self._dtype)
        rows = np.searchsorted(numbers, indices >> bits)
        tables[rows, (indices & last).astype(np.int64)] = values
        if len(numbers):
            address = self._store(level, tables, address)
        if self._format.none_is_a_table:
            none = np.full((1, int(last) + 1), empty, dtype=self._dtype)
            self._none = self._store(level, none, None)
        return _Level(numbers, address or 0)

    def _store(
        self, level: int, tables: npt.NDArray[np.uint64], address: Optional[int]
    ) -> int:
        size = 1 << self._format.page_shift
        if address is None:
            align = max(1, self._format.table_size(level) // size)
            address = self._take(-(-tables.nbytes // size), align) * size
        self.extents.append(Extent.stored(address // size, tables.tobytes(), size))
        return address


_NONE = np.zeros(0, dtype=np.uint64)

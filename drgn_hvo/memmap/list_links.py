# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Links of lists, in bulk
-----------------------

A list of half a million folios cannot be followed word by word. Folios that the page
tables of vmemmap have shown are known before; where links between them agree in both
directions, whole stretches of a list are followed at once. Any other folio is read
together with its neighbours.
"""

from __future__ import annotations

from array import array
from functools import cached_property

import numpy as np

from drgn_hvo.kernel.arrays import Int64Array, U64Array, is_in
from drgn_hvo.memmap.folio_heads import FolioHeads
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("ListLinks", "Passed")

# How many heads around one that is not known are read at once. No such block is read
# twice: a list in no order at all costs no more than all heads that there can be.
_BLOCK = 32


class ListLinks:
    """
    ``next`` and ``prev`` of ``struct list_head`` by its address.

    :param pfns: Heads of folios to know from the beginning, ascending.
    """

    def __init__(self, vmemmap: Vmemmap, heads: FolioHeads, pfns: Int64Array) -> None:
        self._vmemmap = vmemmap
        self._heads = heads
        self._lru = vmemmap.kernel.struct_page.require("lru")
        records = heads.of(pfns)
        # What an ELF core does not hold reads as zeros; no head is all zeros.
        present = records["present"] & ~records["zeros"]
        #: Heads of folios that are known from the beginning, one row each.
        self.pfns = pfns[present]
        self._next = records["next"][present]
        self._prev = records["prev"][present]
        # A memoryview gives single elements faster than an array does.
        self._successors: memoryview = self._clean_successors().data
        self._others: dict[int, tuple[int, int]] = {}
        self._blocks: set[tuple[int, int]] = set()

    def _clean_successors(self) -> Int64Array:
        """
        The row of the folio that each one leads to; -1 if that is not known, or does
        not lead back.
        """
        own = self._addresses(self.pfns)
        rows = np.searchsorted(own, self._next)
        clean = rows < len(own)
        clean[clean] = own[rows[clean]] == self._next[clean]
        clean[clean] = self._prev[rows[clean]] == own[clean]
        return np.where(clean, rows, -1)

    def _addresses(self, pfns: Int64Array) -> U64Array:
        """Where the ``lru`` of folios is."""
        return self._vmemmap.page_addresses(pfns) + np.uint64(self._lru)

    def address(self, pfn: int) -> int:
        """Where the ``lru`` of a folio is."""
        return self._vmemmap.page_address(pfn) + self._lru

    def row(self, pfn: int) -> int:
        """The row of a folio that is known from the beginning, else -1."""
        if not self._successors:
            return -1  # HVO is off: nothing to look up for each folio
        row = int(np.searchsorted(self.pfns, pfn))
        return row if row < len(self.pfns) and self.pfns[row] == pfn else -1

    def stretch(self, address: int, passed: Passed, most: int) -> Int64Array:
        """
        The folios that surely follow behind an entry: links lead there and back.

        :param passed: Where to end; gets all of them.
        :param most: How many to give at most.
        """
        pfn = self._vmemmap.page_pfn(address - self._lru)
        row = -1 if pfn is None else self.row(pfn)
        rows = array("q")
        while row >= 0 and len(rows) < most:
            following = self._successors[row]
            if following < 0 or passed.rows[following]:
                break
            if abs(following - row) == 1:
                straight = self._straight(row, following - row, most - len(rows))
                following = passed.pass_straight(straight, rows)
            else:
                passed.rows[following] = 1
                rows.append(following)
            row = following
        return self.pfns[np.frombuffer(rows, dtype=np.int64)]

    def _straight(self, row: int, step: int, most: int) -> range:
        """
        The rows that a list leads to from one on, as long as each is the next.

        :param step: 1, or -1 if each is the one in front.
        """
        if step > 0:
            ends = self._ends_upwards
            last = int(ends[ends.searchsorted(row)])
            return range(row + 1, min(last, row + most) + 1)
        ends = self._ends_downwards
        last = int(ends[ends.searchsorted(row, side="right") - 1])
        return range(row - 1, max(last, row - most) - 1, -1)

    @cached_property
    def _ends_upwards(self) -> Int64Array:
        """Rows that do not lead to the next one, ascending."""
        successors = np.asarray(self._successors)
        return np.flatnonzero(successors != np.arange(1, len(successors) + 1))

    @cached_property
    def _ends_downwards(self) -> Int64Array:
        """Rows that do not lead to the one in front, ascending."""
        successors = np.asarray(self._successors)
        ends = successors != np.arange(-1, len(successors) - 1)
        return np.flatnonzero(ends | (successors < 0))

    def find(self, address: int, order: int) -> tuple[int, int]:
        """
        ``next`` and ``prev`` of one entry.

        :param order: Of the folios on its list.
        :raises FaultError: if it is not in the dump.
        """
        link = self._others.get(address)
        if link is not None:
            return link
        pfn = self._vmemmap.page_pfn(address - self._lru)
        if pfn is not None:
            row = self.row(pfn)
            if row >= 0:
                return int(self._next[row]), int(self._prev[row])
            self._read_block(pfn, order)
        if address not in self._others:
            kernel = self._vmemmap.kernel
            links = kernel.prog.read_u64(address), kernel.prog.read_u64(address + 8)
            for i, link in enumerate(links):
                kernel.known_words.check(link, address + 8 * i)
            self._others[address] = links
        return self._others[address]

    def _read_block(self, pfn: int, order: int) -> None:
        """Read the heads that a pool fills memory with, around one of them."""
        block = (pfn >> order) // _BLOCK, order
        if pfn % (1 << order) or block in self._blocks:
            return
        self._blocks.add(block)
        pfns = (block[0] * _BLOCK + np.arange(_BLOCK, dtype=np.int64)) << order
        pfns = pfns[(pfns < self._vmemmap.end_pfn) & ~is_in(pfns, self.pfns)]
        records = self._heads.read(pfns)
        present = records["present"] & ~records["zeros"]
        links = zip(
            records["next"][present].tolist(), records["prev"][present].tolist()
        )
        self._others.update(zip(self._addresses(pfns[present]).tolist(), links))


class Passed:
    """The folios of one list that were passed, by PFN."""

    def __init__(self, links: ListLinks) -> None:
        self._links = links
        #: Of the folios that are known from the beginning.
        self.rows = bytearray(len(links.pfns))
        self._others: set[int] = set()

    def pass_straight(self, straight: range, rows: array[int]) -> int:
        """
        Pass rows, as far as none was passed before.

        :param straight: At least one, which was not.
        :param rows: Gets them.
        :return: The last one.
        """
        first, last = straight[0], straight[-1]
        if straight.step > 0:
            taken = self.rows.find(1, first, last + 1)
            last = last if taken < 0 else taken - 1
            self.rows[first : last + 1] = b"\1" * (last + 1 - first)
        else:
            taken = self.rows.rfind(1, last, first + 1)
            last = last if taken < 0 else taken + 1
            self.rows[last : first + 1] = b"\1" * (first + 1 - last)
        rows.extend(range(first, last + straight.step, straight.step))
        return last

    def add(self, pfn: int) -> None:
        """Pass a folio."""
        row = self._links.row(pfn)
        if row >= 0:
            self.rows[row] = 1
        else:
            self._others.add(pfn)

    def __contains__(self, pfn: int) -> bool:
        row = self._links.row(pfn)
        return bool(self.rows[row]) if row >= 0 else pfn in self._others

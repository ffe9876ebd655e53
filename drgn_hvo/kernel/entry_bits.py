# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Bits of page table entries
--------------------------

Whether user mode may use a mapping, how it is cached, whether it is global: the kernel
gives all entries of one range of its own the same such bits. What they are follows from
the entries themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.kernel.arrays import U64Array

__all__ = ("EntryBitsWatch", "OddEntries")

# At most this many entries with the same odd bits are remembered.
_KEPT = 16


@dataclass(frozen=True)
class OddEntries:
    """
    Entries whose bits are not those of their siblings.

    :param level: Of their tables, 0 the lowest.
    :param mask: The bits that are compared.
    :param bits: What they are.
    :param expected: What those of most siblings are.
    :param addresses: The first addresses that some of them decide about, ascending.
    :param count: How many there are.
    """

    level: int
    mask: int
    bits: int
    expected: int
    addresses: tuple[int, ...]
    count: int


@dataclass
class _Group:
    """Entries of one level with the same bits."""

    count: int
    addresses: list[int]


class EntryBitsWatch:
    """Compares entries as a walk comes to them."""

    def __init__(self, page_table: PageTableFormat) -> None:
        self._page_table = page_table
        # Entries that are alike, by level, whether they are mappings, and their bits.
        self._groups: dict[tuple[int, bool, int], _Group] = {}

    def look(self, level: int, values: U64Array, addresses: U64Array) -> None:
        """
        Look at entries that are present.

        :param addresses: The first one that each decides about.
        """
        form = self._page_table.levels[level]
        if form.table is None:
            self._add(level, True, values, addresses)
            return
        leads = form.table.hold(values)
        if leads.any():
            self._add(level, False, values[leads], addresses[leads])
        if not leads.all():
            self._add(level, True, values[~leads], addresses[~leads])

    def _add(
        self, level: int, is_mapping: bool, values: U64Array, addresses: U64Array
    ) -> None:
        mask = np.uint64(self._page_table.shared_bits(level, is_mapping=is_mapping))
        every = np.bitwise_and.reduce(values) & mask
        # The usual case, and cheap to find out: all entries have the same bits.
        if np.bitwise_or.reduce(values) & mask == every:
            self._count(level, is_mapping, int(every), len(values), addresses)
            return
        bits = values & mask
        for one in np.unique(bits).tolist():
            mine = np.flatnonzero(bits == np.uint64(one))
            self._count(level, is_mapping, one, len(mine), addresses[mine[:_KEPT]])

    def _count(
        self, level: int, is_mapping: bool, bits: int, count: int, addresses: U64Array
    ) -> None:
        group = self._groups.setdefault((level, is_mapping, bits), _Group(0, []))
        group.count += count
        room = _KEPT - len(group.addresses)
        group.addresses += addresses[:room].tolist()

    def add(self, others: EntryBitsWatch) -> None:
        """Add what was seen of entries behind these, by another process."""
        for (level, is_mapping, bits), group in others._groups.items():
            addresses = np.array(group.addresses, dtype=np.uint64)
            self._count(level, is_mapping, bits, group.count, addresses)

    def odd(self) -> list[OddEntries]:
        """Entries that are not as most of their siblings, of high levels first."""
        found = []
        for (level, is_mapping, bits), group in sorted(self._groups.items())[::-1]:
            siblings = self._siblings(is_mapping)
            usual = max(siblings, key=lambda change: siblings[change])
            plain = self._plain(level, is_mapping)
            if siblings[bits ^ plain] < siblings[usual]:
                mask = self._page_table.shared_bits(level, is_mapping=is_mapping)
                found.append(
                    OddEntries(
                        level,
                        mask,
                        bits,
                        usual ^ plain,
                        tuple(group.addresses),
                        group.count,
                    )
                )
        return found

    def _siblings(self, is_mapping: bool) -> dict[int, int]:
        """
        How many entries of a kind there are, by how they differ from what the format
        says of their level: there are few at the top.
        """
        found: dict[int, int] = {}
        for (level, kind, bits), group in self._groups.items():
            if kind == is_mapping:
                change = bits ^ self._plain(level, kind)
                found[change] = found.get(change, 0) + group.count
        return found

    def _plain(self, level: int, is_mapping: bool) -> int:
        """The bits that the format says entries of a level have."""
        page_table = self._page_table
        mask = page_table.shared_bits(level, is_mapping=is_mapping)
        if not is_mapping:
            return mask & int(page_table.make_table(0, level))
        return mask & int(page_table.make(0, level, page_table.protections.kernel))

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a printed page says
------------------------

The words of a struct page as ``dump_page()`` prints them, read without any memory:
what ``sizeof(struct page)`` is, what the page is, and what its neighbours must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn_hvo.formats.page_dump import PageDump
from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    Geometry,
    is_tail,
    mask_order,
    tail_mapping,
)

__all__ = ("PrintedPage", "printed_page")

# Words of struct page that have not moved since v5.14, and what its lru begins with.
_LRU = 1
_MAPPING = 3
_LRU_OFFSET = 8
# _mapcount and _refcount, of 32 bits each.
_COUNTS = 6


@dataclass(frozen=True)
class PrintedPage:
    """
    A page of a log.

    :param geometry: Of the kernel, or what the text implies.
    """

    dump: PageDump
    pfn: Optional[int]
    geometry: Geometry

    @property
    def is_tail(self) -> Optional[bool]:
        """Whether its word makes it a tail; ``None`` if it was not printed."""
        info = self.dump.info
        return None if info is None else is_tail(info)

    @property
    def is_head(self) -> bool:
        """Whether it is a head by itself: flags are printed of the head of a page."""
        dump = self.dump
        if dump.flag_names is None or not dump.words or self.is_tail:
            return False
        return "head" in dump.flag_names and dump.words[0] == dump.flags

    @property
    def mask_order(self) -> Optional[int]:
        """Of the mask that its word is."""
        info = self.dump.info
        order = None if info is None else mask_order(self.geometry, info)
        return None if order is None or order > self.geometry.largest_order else order

    @property
    def encoding(self) -> Optional[str]:
        """``mask`` or ``pointer``, of a tail."""
        if not self.is_tail:
            return None
        return "pointer" if self.mask_order is None else "mask"

    @property
    def head_pointer(self) -> Optional[int]:
        """The address of the head that its word is."""
        info = self.dump.info
        if info is None or self.encoding != "pointer":
            return None
        return info - 1

    @property
    def order(self) -> Optional[int]:
        """By its mask, or as the kernel said."""
        order = self.mask_order
        if order is None and self.dump.order:
            order = self.dump.order
        return order if order is None or order <= self.geometry.largest_order else None

    @property
    def head_pfn(self) -> Optional[int]:
        """Of the folio, which is aligned, if its order is known."""
        if self.pfn is None or self.order is None:
            return None
        return self.pfn & -(1 << self.order)

    @property
    def index_in_slice(self) -> Optional[int]:
        """Which struct page of its page of vmemmap it is."""
        if self.pfn is None or not self.geometry.power_of_2:
            return None
        return self.pfn % self.geometry.pages_per_slice

    @property
    def refcount(self) -> Optional[int]:
        """Its own reference count, not that of its head."""
        if len(self.dump.words) <= _COUNTS:
            return None
        return self.dump.words[_COUNTS] >> 32

    @property
    def has_tail_mapping(self) -> Optional[bool]:
        """Whether ``mapping`` is what a tail has there."""
        if len(self.dump.words) <= _MAPPING:
            return None
        return self.dump.words[_MAPPING] in (
            tail_mapping(0xDEAD << 48),
            tail_mapping(0x5DEADBEEF << 28),
        )

    @property
    def is_unaligned_head(self) -> bool:
        """Whether it is a head where none of its order can be: a copy of one."""
        order = self.dump.order
        if not self.is_head or not order or self.pfn is None:
            return False
        return order <= self.geometry.largest_order and self.pfn % (1 << order) != 0

    @property
    def is_copied_tail(self) -> bool:
        """
        Whether it holds a folio's fields where its place in vmemmap, but not in the
        folio, is that of one of the first tails.

        The first three tails of a folio are not asked for TAIL_MAPPING when it is
        freed, see ``free_tail_page_prepare()``; so one that fails this test is not of
        them.
        """
        index = self.index_in_slice
        if index == 1:
            return self._has_order_as_flags
        return (
            index in (2, 3)
            and self.has_tail_mapping is False
            and self.refcount == 0
            and self.dump.because == "corrupted mapping in tail page"
        )

    @property
    def _has_order_as_flags(self) -> bool:
        """``_flags_1``, whose low byte is the order, and ``_nr_pages`` beside it."""
        words = self.dump.words
        if len(words) < 5:
            return False
        order = words[0] & 0xFF
        return 1 < order <= self.geometry.largest_order and (
            words[4] & 0xFFFFFFFF == 1 << order
        )

    @property
    def _lru_prev(self) -> Optional[int]:
        """``lru.prev``, if it points to the ``lru`` of a struct page."""
        words = self.dump.words
        if len(words) <= _LRU + 1 or words[_LRU + 1] == ALL_ONES:
            return None
        prev = words[_LRU + 1]
        is_lru = prev % self.geometry.struct_page_size == _LRU_OFFSET
        return prev if prev >> 63 and is_lru else None

    @property
    def has_empty_lru(self) -> bool:
        """
        Whether ``lru`` points both ways to the ``lru`` of one struct page, as
        ``__init_single_page()`` leaves it.
        """
        return self._lru_prev is not None and self.dump.words[_LRU] == self._lru_prev

    @property
    def has_lru_of_another(self) -> bool:
        """
        Whether ``lru.prev`` is left pointing into another struct page than this: to
        the last one of all that shared it when ``__init_single_page()`` wrote there.

        vmemmap begins at a multiple of ``MAX_FOLIO_VMEMMAP_ALIGN`` on all kernels that
        share tails, so that an address tells the lower bits of its PFN.
        """
        if self._lru_prev is None or self.pfn is None:
            return False
        size = self.geometry.struct_page_size
        aligned = self.geometry.vmemmap_align(self.geometry.largest_order)
        return (self._lru_prev - _LRU_OFFSET - self.pfn * size) % aligned != 0


def printed_page(
    dump: PageDump, pfn: Optional[int], geometry: Optional[Geometry]
) -> PrintedPage:
    """
    A struct page as the kernel printed it, with what its words mean.

    :param pfn: Of the page, where the report names it; else what the dump of the page
        says.
    :param geometry: Of the kernel, if that is at hand; else pages have 4 KiB, and the
        struct page is as long as what was printed of it.
    """
    if geometry is None:
        try:
            geometry = Geometry(4096, dump.struct_page_size or 64)
        except ValueError:
            geometry = Geometry(4096, 64)
    return PrintedPage(dump, dump.pfn if pfn is None else pfn, geometry)

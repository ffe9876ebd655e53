# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Compound pages in transition
----------------------------

A kernel stops wherever its processors happen to be, also between the stores that make
a compound page or undo one. What such a page can look like follows from the order of
those stores, which is the table :data:`TRANSITIONS`; a page that looks like none of
them is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.kernel.arrays import Int64Array, column
from drgn_hvo.memmap.vmemmap import StructPages

if TYPE_CHECKING:
    from drgn_hvo.audit.context import Context

__all__ = ("TRANSITIONS", "Transition", "Transitions")

# Struct pages that are read at once behind a head.
_CHUNK = 4096

# A processor makes or undoes one page at a time, and this is the largest NR_CPUS there
# is (arch/x86/Kconfig): more of them than that are damage.
_MOST = 8192

# For tails that do not lie behind each other.
_SCATTERED = (0, 0)


@dataclass(frozen=True)
class Transition:
    """
    A stretch of kernel code that leaves a compound page half made.

    In all of them the page has PG_head and no type, and nobody but the code itself can
    have a reference.

    :param source: Where the kernel does it, and in which order it stores.
    :param is_prefix: The tails that lead to the head are the first ones; else the last.
    :param has_order: Whether the head says its order meanwhile, which is otherwise 0.
    """

    source: str
    is_prefix: bool
    has_order: bool


TRANSITIONS = (
    Transition(
        "prep_compound_page() (mm/page_alloc.c): __SetPageHead(), prep_compound_tail() "
        "of tail 1 to the last, then prep_compound_head() stores the order",
        is_prefix=True,
        has_order=False,
    ),
    Transition(
        "free_pages_prepare() (mm/page_alloc.c): the order goes with the flags of the "
        "first tail, free_tail_page_prepare() clears tail 1 to the last, and the flags "
        "of the head, PG_head among them, go last",
        is_prefix=False,
        has_order=False,
    ),
    Transition(
        "__prep_compound_gigantic_folio() (mm/hugetlb.c): order and PG_head first, "
        "then tail 1 to the last",
        is_prefix=True,
        has_order=True,
    ),
    Transition(
        "__destroy_compound_gigantic_folio() (mm/hugetlb.c): clears tail 1 to the "
        "last, then order and PG_head",
        is_prefix=False,
        has_order=True,
    ),
)


@dataclass(frozen=True)
class _Head:
    """
    The words of a head that tell whether it can be in transition.

    :param order: 0, too, if what the kernel keeps there is not reset.
    """

    untyped: bool
    refcount: int
    order: int


class Transitions:
    """Tells compound pages in transition from damaged ones, each looked at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[int, Optional[bool]] = {}

    def holds(self, pfn: int) -> Optional[bool]:
        """
        Whether a struct page with PG_head, which is not all that a head is, looks as
        one of :data:`TRANSITIONS` leaves it; ``None`` if that was not all read.
        """
        if pfn not in self._known:
            if len(self._known) >= _MOST:
                return False
            self._known[pfn] = self._look(pfn)
        return self._known[pfn]

    @cached_property
    def are_orders_reset(self) -> bool:
        """
        Whether a page that is no head says order 0. Since Linux kernel commit
        ebc1baf5c9b4 ("mm: free up a word in the first tail page") (in v6.6) the order
        is in the flags of the first tail; before, it shares a word with lru.prev, which
        may hold anything until the order is stored, and keeps the order when a page is
        freed.
        """
        page, place = self._context.kernel.struct_page, self._context.hvo.fields
        order = place.order_place
        return order is not None and 0 <= order[0] - page.size - page.flags < 8

    @property
    def found(self) -> set[int]:
        """The heads that are in transition."""
        return {pfn for pfn, holds in self._known.items() if holds}

    def _look(self, pfn: int) -> Optional[bool]:
        head = self._read_head(pfn)
        if head is None:
            return None
        if not head.untyped or pfn % 2:
            return False
        # Since v6.13 pages are allocated frozen, and get their reference when they are
        # whole; before, prep_new_page() first sets it. Kernels with shared tail pages
        # are newer.
        most = 0 if self._context.layout.tails.kind == "shared" else 1
        if not 0 <= head.refcount <= most:
            return False
        tails = self._tails(pfn, head.order)
        if tails is None or tails == _SCATTERED:
            return None if tails is None else False
        return any(self._fits(one, head, pfn, tails) for one in TRANSITIONS)

    def _fits(
        self, transition: Transition, head: _Head, pfn: int, tails: tuple[int, int]
    ) -> bool:
        first, end = tails
        if head.order and (first, end) == (1, 1 << head.order):
            return False  # whole: what is wrong with it is something else
        if transition.has_order != (head.order > 0):
            return False
        size = 1 << head.order if head.order else None
        if first == end:  # Before the first tail, or behind the last.
            return size is None or pfn % size == 0
        if transition.is_prefix:
            return first == 1 and (size is None or end <= size)
        # The last tail ends the page, whose size is a power of two.
        whole = end & (end - 1) == 0 and pfn % end == 0
        return whole and (size is None or end == size)

    def _read_head(self, pfn: int) -> Optional[_Head]:
        context, page = self._context, self._context.kernel.struct_page
        rows = context.vmemmap.read_pages(np.array([pfn], dtype=np.int64), 3)
        orders = context.hvo.fields.orders(rows.data)
        if not rows.present[0] or orders is None:
            return None
        if page.mapcount is None or page.refcount is None:
            return None
        u32 = context.kernel.reader.u32
        if not int(context.vmemmap.flags(rows)[0]) & context.kernel.PG_head_mask:
            return _Head(untyped=False, refcount=0, order=0)
        kind = int(column(rows.data, page.mapcount, u32)[0])
        refcount = int(column(rows.data, page.refcount, u32)[0])
        order = int(orders[0]) if self.are_orders_reset else 0
        return _Head(kind == 0xFFFFFFFF, refcount, order)

    def _tails(self, pfn: int, order: int) -> Optional[tuple[int, int]]:
        """
        Which pages behind a head are its tails.

        :return: The first one and the end, counted from the head; :data:`_SCATTERED`
            if they do not lie behind each other; ``None`` if they were not all read.
        """
        limit = self._limit(pfn, order)
        first: Optional[int] = None
        at = 1
        while at < limit:
            count = min(_CHUNK, limit - at)
            pages = self._read(pfn + at, count)
            if not pages.present.all():
                return None
            places = np.flatnonzero(self._lead_to(pfn, pfn + at, pages))
            if self._has_strangers(pages, places):
                return _SCATTERED
            if first is None and len(places):
                first = at + int(places[0])
            if first is not None:
                expected = np.arange(max(first - at, 0), count)
                end = at + len(places) + max(first - at, 0)
                if not np.array_equal(places, expected[: len(places)]):
                    return _SCATTERED
                if end < at + count:
                    return first, end
            elif at >= self._most_in_front(limit):
                break
            at += count
        return (1, 1) if first is None else (first, limit)

    def _has_strangers(self, pages: StructPages, places: Int64Array) -> bool:
        """
        Whether a page in front of the last tail, or right behind the head or that one,
        is a tail of another head. Nothing leaves that.
        """
        end = int(places[-1]) + 1 if len(places) else 0
        infos = self._context.vmemmap.tail_words(pages)[: end + 1]
        tails = int(np.count_nonzero(infos & np.uint64(1)))
        return tails > len(places)

    def _limit(self, pfn: int, order: int) -> int:
        """How many pages a compound page that begins here can have at most."""
        largest = self._context.geometry.largest_order
        alignment = pfn & -pfn if pfn else 1 << largest
        limit = min(1 << largest, alignment, self._context.vmemmap.end_pfn - pfn)
        return min(limit, 1 << order) if 0 < order <= largest else limit

    def _most_in_front(self, limit: int) -> int:
        """
        How far to look for the first tail that is left. Of larger pages only the
        hugetlb code clears tails; their order tells their size.
        """
        hstates = self._context.hugetlb.hstates
        return min(limit, max((1 << h.order for h in hstates), default=1024))

    def _read(self, pfn: int, count: int) -> StructPages:
        pfns: Int64Array = np.arange(pfn, pfn + count, dtype=np.int64)
        return self._context.vmemmap.read_pages(pfns)

    def _lead_to(self, head: int, first: int, pages: StructPages) -> Int64Array:
        """Which struct pages from *first* on are tails of a head."""
        context = self._context
        infos = context.vmemmap.tail_words(pages)
        pfns = np.arange(first, first + len(infos), dtype=np.int64)
        leads = context.hvo.heads.of_tails(pfns, infos)
        is_tail = (infos & np.uint64(1)) != 0
        return is_tail & (leads == np.uint64(context.vmemmap.page_address(head)))

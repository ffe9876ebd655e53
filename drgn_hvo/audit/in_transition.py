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

from drgn_hvo.audit.compound_pages import CHUNK, MOST_AT_ONCE, CompoundPages
from drgn_hvo.audit.splits import Splits

if TYPE_CHECKING:
    from drgn_hvo.audit.context import Context

__all__ = ("TRANSITIONS", "Transition", "Transitions")


@dataclass(frozen=True)
class Transition:
    """
    A stretch of kernel code that leaves a compound page half made.

    In all of them the page has PG_head and no type, and nobody but the code itself can
    have a reference.

    :param source: Where the kernel does it, and in which order it stores.
    :param is_prefix: The tails that lead to the head are the first ones; else the last.
    :param has_order: Whether the head says its order meanwhile, which is otherwise 0.
    :param is_piece: Whether the pages behind its tails are those of a larger page that
        is being split up, see :mod:`drgn_hvo.audit.splits`.
    """

    source: str
    is_prefix: bool
    has_order: bool
    is_piece: bool = False


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
    Transition(
        "demote_free_hugetlb_folios() (mm/hugetlb.c), __split_folio_to_order() "
        "(mm/huge_memory.c): prep_compound_page() of one piece after another; what "
        "is not yet a piece still are tails of the whole",
        is_prefix=True,
        has_order=False,
        is_piece=True,
    ),
    Transition(
        "hugetlb_folio_init_vmemmap() (mm/hugetlb.c), while booting: PG_head, then the "
        "reference count becomes 0, tail 1 to the last, the order last; behind them "
        "vmemmap_populate_hvo() (mm/sparse-vmemmap.c) has mapped the shared tail page",
        is_prefix=True,
        has_order=False,
    ),
)


@dataclass(frozen=True)
class _Tails:
    """
    The tails behind a head, which lie behind each other.

    :param first: The first one, counted from the head.
    :param end: The first page behind that is none of them.
    :param follows: The head that this page is a tail of, if it is one.
    """

    first: int
    end: int
    follows: Optional[int] = None


# For tails that do not lie behind each other, or among those of other heads.
_SCATTERED = _Tails(0, 0)


class Transitions:
    """Tells compound pages in transition from damaged ones, each looked at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pages = CompoundPages(context)
        self.splits = Splits(context)
        self._known: dict[int, Optional[bool]] = {}

    def holds(self, pfn: int) -> Optional[bool]:
        """
        Whether a struct page with PG_head, which is not all that a head is, looks as
        one of :data:`TRANSITIONS` leaves it; ``None`` if that was not all read.
        """
        if pfn not in self._known:
            if len(self._known) >= MOST_AT_ONCE:
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
        found = {pfn for pfn, holds in self._known.items() if holds}
        return found | self.splits.found

    def _look(self, pfn: int) -> Optional[bool]:
        head = self._pages.head(pfn)
        if head is None:
            return None
        if not head.is_head or head.is_typed or pfn % 2:
            return False
        # Since v6.13 pages are allocated frozen, and get their reference when they are
        # whole; before, prep_new_page() first sets it. Kernels with shared tail pages
        # are newer, but hugetlb_folio_init_vmemmap() freezes a head behind PG_head.
        is_frozen = self._context.layout.tails.kind == "shared"
        most = 0 if is_frozen and self._context.is_booting is False else 1
        if not 0 <= head.refcount <= most:
            return False
        order = head.order if self.are_orders_reset else 0
        tails = self._tails(pfn, order)
        if tails is None or tails == _SCATTERED:
            return None if tails is None else False
        fits = [one for one in TRANSITIONS if self._fits(one, order, pfn, tails)]
        if not fits or tails.follows is None:
            return bool(fits)
        return self.splits.may_be_piece(tails.follows, pfn, pfn + tails.end)

    def _fits(
        self, transition: Transition, order: int, pfn: int, tails: _Tails
    ) -> bool:
        first, end = tails.first, tails.end
        if order and (first, end) == (1, 1 << order):
            return False  # whole: what is wrong with it is something else
        if transition.has_order != (order > 0):
            return False
        if transition.is_piece != (tails.follows is not None):
            return False
        size = 1 << order if order else None
        if first == end:  # Before the first tail, or behind the last.
            return size is None or pfn % size == 0
        if transition.is_prefix:
            return first == 1 and (size is None or end <= size)
        # The last tail ends the page, whose size is a power of two.
        whole = end & (end - 1) == 0 and pfn % end == 0
        return whole and (size is None or end == size)

    def _tails(self, pfn: int, order: int) -> Optional[_Tails]:
        """
        Which pages behind a head are its tails.

        :return: :data:`_SCATTERED` if they do not lie behind each other, or behind
            tails of another head; ``None`` if they were not all read.
        """
        limit = self._limit(pfn, order)
        address = np.uint64(self._context.vmemmap.page_address(pfn))
        first: Optional[int] = None
        strange = False
        at = 1
        while at < limit:
            count = min(CHUNK, limit - at)
            pages = self._pages.read(pfn + at, count)
            if not pages.present.all():
                return None
            are_tails, heads = self._pages.heads_of(pfn + at, pages)
            mine = are_tails & (heads == address)
            places = np.flatnonzero(mine)
            if first is None and len(places):
                first = at + int(places[0])
            start = 0 if first is None else max(first - at, 0)
            end = start + len(places) if first is not None else 0
            others = are_tails & ~mine
            if others[:end].any() or not mine[start:end].all():
                return _SCATTERED
            if first is not None and first >= at and strange:
                return _SCATTERED
            strange |= first is None and bool(others.any())
            if first is None and at == 1 and are_tails[0]:
                return _Tails(1, 1, self._pfn_of(int(heads[0])))
            if first is not None and end < count:
                follows = self._pfn_of(int(heads[end])) if are_tails[end] else None
                return _Tails(first, at + end, follows)
            if first is None and at >= self._most_in_front(limit):
                break
            at += count
        return _Tails(1, 1) if first is None else _Tails(first, limit)

    def _pfn_of(self, head: int) -> int:
        """The PFN of a head, -1 if it is none."""
        pfn = self._context.vmemmap.page_pfn(head)
        return -1 if pfn is None else pfn

    def _limit(self, pfn: int, order: int) -> int:
        """How many pages a compound page that begins here can have at most."""
        largest = self._context.geometry.largest_order
        alignment = pfn & -pfn if pfn else 1 << largest
        limit = min(1 << largest, alignment, self._context.vmemmap.end_pfn - pfn)
        if self._is_mapped_at_boot(pfn):
            limit = min(limit, self._private_pages)
        return min(limit, 1 << order) if 0 < order <= largest else limit

    @property
    def _private_pages(self) -> int:
        """How many struct pages of an optimized folio are its own."""
        slices = self._context.layout.tails.private_slices
        return slices * self._context.geometry.pages_per_slice

    def _is_mapped_at_boot(self, pfn: int) -> bool:
        """
        Whether the slices behind a head share one frame already: since "mm/hugetlb:
        add pre-HVO framework" (in v6.15) hugetlb_vmemmap_init_early() has the vmemmap
        of huge pages from memblock mapped so, before their heads are made.
        """
        if self._context.is_booting is False:
            return False
        slices = (pfn + self._private_pages) // self._context.geometry.pages_per_slice
        first, second = (self._context.vmemmap.mapping(slices + i) for i in (0, 1))
        return first is not None and second is not None and first.pfn == second.pfn

    def _most_in_front(self, limit: int) -> int:
        """
        How far to look for the first tail that is left. Of larger pages only the
        hugetlb code clears tails; their order tells their size.
        """
        hstates = self._context.hugetlb.hstates
        return min(limit, max((1 << h.order for h in hstates), default=1024))

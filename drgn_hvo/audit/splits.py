# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Compound pages that are being split up
--------------------------------------

One compound page becomes several smaller ones: piece after piece gets a head and tails
of its own, and until then its pages are tails of the whole.

- demote_free_hugetlb_folios() (mm/hugetlb.c, 6.12 and later; 6.1 first destroys the
  page): of each piece, from the first on, clear_compound_head(), then
  prep_compound_page(). The first piece's order replaces that of the whole, so that the
  head no longer covers the pieces behind.
- __split_folio_to_order(), in 6.12 __split_huge_page_tail() (mm/huge_memory.c): the
  same, in 6.12 from the last piece on. The order of the whole goes last.

In both the head of the whole is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.audit.compound_pages import CHUNK, MOST_AT_ONCE, CompoundPages

if TYPE_CHECKING:
    from drgn_hvo.audit.context import Context

__all__ = ("Rest", "Splits")


@dataclass(frozen=True)
class Rest:
    """
    The tails of a demoted huge page that still lead to the head of the whole.

    :param first: PFN of the first.
    :param end: PFN behind the last.
    """

    first: int = 0
    end: int = 0


_NOTHING = Rest()


class Splits:
    """Tells pages that are being split up from damaged ones, each looked at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pages = CompoundPages(context)
        self._known: dict[int, Optional[Rest]] = {}

    def may_be_piece(self, head: int, pfn: int, end: int) -> Optional[bool]:
        """
        Whether a page can be the head of a piece that is being made.

        :param head: The head of the whole.
        :param end: The first page behind the piece's own tails, a tail of the whole.
        :return: ``None`` if what tells was not all read.
        """
        whole = self._pages.head(head)
        if whole is None:
            return None
        if not whole.is_head or whole.refcount or head >= pfn:
            return False
        if whole.order and pfn < head + (1 << whole.order):
            return True
        rest = self.rest(head)
        return None if rest is None else rest.first == end

    def rest(self, head: int) -> Optional[Rest]:
        """
        What is left of a huge page that is being demoted, empty if it is none.

        :return: ``None`` if what tells was not all read.
        """
        if head not in self._known:
            if len(self._known) >= MOST_AT_ONCE:
                return _NOTHING
            self._known[head] = self._find(head)
        return self._known[head]

    @property
    def found(self) -> set[int]:
        """The heads of huge pages that are being demoted."""
        return {h for h, rest in self._known.items() if rest not in (None, _NOTHING)}

    def _find(self, pfn: int) -> Optional[Rest]:
        """As :meth:`rest()`: only orders that have pools are demoted to each other."""
        head = self._pages.head(pfn)
        if head is None:
            return None
        orders = {hstate.order for hstate in self._context.hugetlb.hstates}
        if not head.is_head or head.refcount or head.order not in orders:
            return _NOTHING
        for order in sorted(orders):
            if order > head.order and pfn % (1 << order) == 0:
                rest = self._rest(pfn, head.order, pfn + (1 << order))
                if rest != _NOTHING:
                    return rest
        return _NOTHING

    def _rest(self, pfn: int, order: int, end: int) -> Optional[Rest]:
        """
        What is left of one huge page, if it is being demoted to pieces of one order.

        :param order: Of the pieces.
        :param end: PFN behind the whole.
        :return: As :meth:`rest()`.
        """
        if end > self._context.vmemmap.end_pfn:
            return _NOTHING
        last = self._leads(pfn, end - 1, 1)
        if last is None or not last:
            return None if last is None else _NOTHING
        first = end
        at = pfn + (1 << order)
        # Behind the first tail of the whole there is nothing else.
        while at < end:
            count = min(CHUNK, end - at)
            pages = self._pages.read(at, count)
            if not pages.present.all():
                return None
            leads = self._pages.lead_to(pfn, at, pages)
            if first == end and leads.any():
                first = at + int(np.argmax(leads))
            if not leads[max(first - at, 0) :].all():
                return _NOTHING
            at += count
        are_pieces = self._are_pieces(pfn, order, first)
        if are_pieces is None or not are_pieces:
            return None if are_pieces is None else _NOTHING
        return Rest(first, end)

    def _are_pieces(self, pfn: int, order: int, end: int) -> Optional[bool]:
        """Whether there are pieces up to a page, the last one perhaps not yet whole."""
        heads = np.arange(pfn, end, 1 << order, dtype=np.int64)
        last = int(heads[-1])
        are_whole = self._pages.are_whole(heads[:-1], order)
        if not are_whole or last + 1 == end:
            return are_whole
        return self._leads(last, last + 1, end - last - 1)

    def _leads(self, head: int, first: int, count: int) -> Optional[bool]:
        pages = self._pages.read(first, count)
        if not pages.present.all():
            return None
        return bool(self._pages.lead_to(head, first, pages).all())

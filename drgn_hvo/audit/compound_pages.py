# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Words of compound pages
-----------------------

What the struct pages of one compound page say, wherever it lies: for the rules that
tell a page that is being made, undone or split up from a damaged one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array, column
from drgn_hvo.memmap.folio_fields import HEAD_PAGES
from drgn_hvo.memmap.vmemmap import StructPages

if TYPE_CHECKING:
    from drgn_hvo.audit.context import Context

__all__ = ("CHUNK", "MOST_AT_ONCE", "CompoundPages", "HeadWords")

#: Struct pages that are read at once behind a head.
CHUNK = 4096

#: A processor makes or undoes one page at a time, and this is the largest NR_CPUS there
#: is (arch/x86/Kconfig): more pages that look so are damage.
MOST_AT_ONCE = 8192


@dataclass(frozen=True)
class HeadWords:
    """
    What a struct page says of itself.

    :param is_head: Whether it has PG_head.
    :param is_typed: Whether ``page_type``, or ``_mapcount``, is not -1.
    :param order: What the kernel keeps there, which may be stale.
    """

    is_head: bool
    is_typed: bool
    refcount: int
    order: int


class CompoundPages:
    """Reads struct pages of compound pages."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def head(self, pfn: int) -> Optional[HeadWords]:
        """A head; ``None`` if it could not be read, or nothing tells where it is."""
        context, page = self._context, self._context.kernel.struct_page
        rows = context.vmemmap.read_pages(np.array([pfn], dtype=np.int64), HEAD_PAGES)
        orders = context.hvo.fields.orders(rows.data)
        if not rows.present[0] or orders is None:
            return None
        if page.mapcount is None or page.refcount is None:
            return None
        u32 = context.kernel.reader.u32
        flags = int(context.vmemmap.flags(rows)[0])
        return HeadWords(
            is_head=bool(flags & context.kernel.PG_head_mask),
            is_typed=int(column(rows.data, page.mapcount, u32)[0]) != 0xFFFFFFFF,
            refcount=int(column(rows.data, page.refcount, u32)[0]),
            order=int(orders[0]),
        )

    def are_whole(self, pfns: Int64Array, order: int) -> Optional[bool]:
        """
        Whether there are heads of an order, each with a tail of its own behind it;
        ``None`` if they were not all read.
        """
        context, fields = self._context, self._context.hvo.fields
        rows = context.vmemmap.read_pages(pfns, HEAD_PAGES)
        orders = fields.orders(rows.data)
        if not rows.present.all() or orders is None:
            return None
        offset = context.size + context.kernel.struct_page.offset
        behind = fields.words(rows.data, offset, 8)
        mask = np.uint64(context.kernel.PG_head_mask)
        good = (context.vmemmap.flags(rows) & mask) != 0
        good &= (orders == order) & ((behind & np.uint64(1)) != 0)
        leads = context.hvo.heads.of_tails(pfns + 1, behind)
        good &= leads == context.vmemmap.page_addresses(pfns)
        return bool(good.all())

    def read(self, first: int, count: int) -> StructPages:
        """Some struct pages that lie behind each other."""
        pfns: Int64Array = np.arange(first, first + count, dtype=np.int64)
        return self._context.vmemmap.read_pages(pfns)

    def heads_of(self, first: int, pages: StructPages) -> tuple[BoolArray, U64Array]:
        """Which of the struct pages from *first* on are tails, and of which heads."""
        context = self._context
        infos = context.vmemmap.tail_words(pages)
        pfns = np.arange(first, first + len(infos), dtype=np.int64)
        are_tails: BoolArray = (infos & np.uint64(1)) != 0
        return are_tails, context.hvo.heads.of_tails(pfns, infos)

    def lead_to(self, head: int, first: int, pages: StructPages) -> BoolArray:
        """Which of the struct pages from *first* on are tails of a head."""
        are_tails, heads = self.heads_of(first, pages)
        address = np.uint64(self._context.vmemmap.page_address(head))
        return are_tails & (heads == address)

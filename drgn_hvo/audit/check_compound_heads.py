# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Tails without a head
--------------------

With ``--deep`` every tail in all of vmemmap is resolved.
"""

from __future__ import annotations

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.booting import BOOTING
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding, Place
from drgn_hvo.audit.scan import BlankSlices, Rows, SlicePages
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.kernel.arrays import (
    BoolArray,
    Int64Array,
    U64Array,
    distinct_index,
    is_in,
    ranges,
)
from drgn_hvo.kernel.unread import NOT_IN_DUMP, Need, Unread
from drgn_hvo.memmap.vmemmap import StructPages

__all__ = ("CompoundHeads",)


_FAR = "pages of vmemmap far behind all zones"

# More pages than any folio has: for heads of which nothing is known.
_ANY_ORDER = 1 << 32


class CompoundHeads:
    """``compound-heads``: every tail in vmemmap."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._vmemmap = context.vmemmap
        firsts, ends = self._vmemmap.run_slices
        # Slices that share a frame hold the same words: the rules on shared tail
        # pages and on mappings decide those.
        single = self._vmemmap.runs.step == 1
        end = context.hvo.believable_end_pfn * context.size
        end_slice = -(-end // context.page_size)
        believed = np.minimum(ends, np.maximum(firsts, end_slice))
        self._far = int((ends - believed)[single].sum())
        self.slices = ranges(firsts[single], (believed - firsts)[single])
        self._blank = BlankSlices(context)
        self._seen = self._unseen = self._unseen_heads = 0
        # The heads of the batch before, by PFN, and how many pages each covers: their
        # tails may go on in the next batch.
        self._last = np.zeros(0, dtype=np.int64)
        self._last_covers = np.zeros(0, dtype=np.int64)

    def look(self, pages: SlicePages, rows: Rows, _mine: slice) -> None:
        """Resolve all tails."""
        present, infos = pages.present[rows], pages.infos[rows]
        self._unseen += int((~present).sum())
        self._blank.look(pages, rows)
        self._seen += int(present.sum()) * infos.shape[1]
        tails = (infos & np.uint64(1)) != 0
        tails &= (infos != np.uint64(ALL_ONES)) & present[:, None]
        tails &= ~self._is_exempt(pages.flags[rows])
        if tails.any():
            self._check_tails(pages, pages.pfns(rows)[tails], infos[tails])

    def report(self) -> None:
        """Add what was counted to the audit."""
        audit = self._context.audit
        audit.missing(Need.ALL_STRUCT_PAGES, "pages of vmemmap", self._unseen)
        audit.blank(Need.ALL_STRUCT_PAGES, "pages of vmemmap", self._blank.count())
        audit.missing(Need.ALL_STRUCT_PAGES, "heads of tails", self._unseen_heads)
        audit.count("struct_pages", self._seen)
        if self._far:
            why = "were not looked at: page tables have more than any memory needs"
            far = Unread(Need.ALL_STRUCT_PAGES, _FAR, why, self._far)
            audit.unread(far)

    def _is_exempt(self, flags: U64Array) -> BoolArray:
        """ZONE_DEVICE: device DAX shares tails in its own way."""
        layout = self._context.hvo.mmzone.flags_layout
        device = self._context.kernel.constant("ZONE_DEVICE")
        if layout is None or device is None:
            return np.zeros(flags.shape, dtype=np.bool_)
        return layout.zonenums(flags) == device

    def _check_tails(
        self, pages: SlicePages, pfns: Int64Array, infos: U64Array
    ) -> None:
        context = self._context
        size, base = np.uint64(context.size), np.uint64(self._vmemmap.base)
        heads = context.hvo.heads.of_tails(pfns, infos)
        # Tails of one folio lie behind each other.
        new = np.concatenate(([True], heads[1:] != heads[:-1]))
        offset = heads[new] - base
        inside = (offset % size == 0) & (
            offset // size < np.uint64(self._vmemmap.end_pfn)
        )
        distinct = np.where(inside, (offset // size).astype(np.int64), -1)
        index = np.cumsum(new) - 1
        head_pfns = distinct[index]
        covers = self._cover(pages, distinct)[index]
        wrong = (head_pfns < 0) | (head_pfns > pfns) | (pfns >= head_pfns + covers)
        doubtful = wrong & (head_pfns <= pfns)
        if context.transitions.are_orders_reset:
            doubtful &= covers == 0
        wrong &= ~self._are_in_transition(np.where(doubtful, head_pfns, -1))
        wrong &= ~self._are_left_of_larger(pfns, np.where(wrong, head_pfns, -1))
        if context.is_booting is not False and wrong.any():
            # Of a huge page from memblock nobody has made most struct pages, see
            # memblock_reserved_mark_noinit() (since v6.7), until hugetlb does.
            context.audit.undecide("compound-heads", BOOTING, int(wrong.sum()))
            return
        for i in np.flatnonzero(wrong).tolist():
            self._add(int(pfns[i]), int(infos[i]), int(head_pfns[i]))

    def _are_in_transition(self, pfns: Int64Array) -> BoolArray:
        """
        Which heads a processor was making or undoing; where that was not all read, the
        rule is undecided.
        """
        held: list[int] = []
        for pfn in distinct_index(pfns[pfns >= 0])[0].tolist():
            holds = self._context.transitions.holds(pfn)
            if holds is None:
                self._undecide("struct pages behind a head that may be in transition")
            if holds is not False:
                held.append(pfn)
        return is_in(pfns, np.array(held, dtype=np.int64))

    def _are_left_of_larger(self, pfns: Int64Array, heads: Int64Array) -> BoolArray:
        """Which tails are left of a huge page that is being demoted."""
        left = np.zeros(len(pfns), dtype=np.bool_)
        for head in distinct_index(heads[heads >= 0])[0].tolist():
            rest = self._context.transitions.splits.rest(head)
            if rest is None:
                self._undecide("struct pages of a huge page that may be demoted")
                left |= heads == head
            else:
                inside = (rest.first <= pfns) & (pfns < rest.end)
                left |= (heads == head) & inside
        return left

    def _undecide(self, what: str) -> None:
        self._context.audit.undecide("compound-heads", f"{what} {NOT_IN_DUMP}")

    def _cover(self, pages: SlicePages, pfns: Int64Array) -> Int64Array:
        """How many pages each head covers, 0 if it is no head."""
        distinct, index = distinct_index(pfns)
        known = is_in(distinct, self._last)
        covers = np.empty(len(distinct), dtype=np.int64)
        places = np.searchsorted(self._last, distinct[known])
        covers[known] = self._last_covers[places]
        covers[~known] = self._read_covers(distinct[~known], pages)
        self._last, self._last_covers = distinct, covers
        return covers[index]

    def _read_covers(self, pfns: Int64Array, pages: SlicePages) -> Int64Array:
        rows = pages.read_heads(pfns)
        first = StructPages(rows.data[:, : self._context.size], rows.present)
        mask = np.uint64(self._context.kernel.PG_head_mask)
        is_head = rows.present & ((self._vmemmap.flags(first) & mask) != 0)
        orders = self._context.hvo.fields.orders(rows.data)
        if orders is None:
            reason = "nothing says where folios keep their order"
            self._context.audit.undecide("compound-heads", reason)
            return np.full(len(pfns), _ANY_ORDER, dtype=np.int64)
        # What an ELF core leaves out reads as zeros.
        unseen = ~rows.present | ~np.any(first.data, axis=1)
        unseen &= pfns >= 0
        self._unseen_heads += int(unseen.sum())
        largest = self._context.geometry.largest_order
        sane = is_head & (orders > 0) & (orders <= largest)
        covers = np.where(sane, 1 << np.where(sane, orders, 0), 0)
        return np.where(unseen, _ANY_ORDER, covers)

    def _add(self, pfn: int, actual: int, head_pfn: int) -> None:
        context = self._context
        folios = context.hugetlb.folios
        owner = context.folio_of(pfn)
        folio = head_pfn if owner is None else int(folios.head_pfn[owner])
        where = f"PFN {head_pfn}" if head_pfn >= 0 else "outside of vmemmap"
        context.audit.add(
            Finding(
                "compound-heads",
                f"the tail of PFN {pfn} resolves to {where}, which is no head that "
                "covers it",
                subjects.CompoundPage(folio),
                because=(
                    subjects.FolioHead(folio),
                    subjects.FolioTails(folio),
                    subjects.HeadFrame(folio),
                    subjects.StrayHead(folio),
                    subjects.FormerHeads(),
                ),
                affected=int(owner is not None),
                place=Place(head_pfn=None if head_pfn < 0 else head_pfn).at(
                    context.word_spot(pfn, context.kernel.struct_page.offset), pfn=pfn
                ),
                actual=actual,
            )
        )

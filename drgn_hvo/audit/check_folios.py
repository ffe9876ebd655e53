# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Struct pages of folios
----------------------

The heads of hugetlb folios, and the tails in the pages of vmemmap that they have to
themselves. The rules on pages that folios share are those of shared tail pages.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.check_identity import check_cma
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.scan import Rows, SlicePages
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array, ranges
from drgn_hvo.kernel.unread import Need

__all__ = ("FolioTailInfos", "check_folios")


def check_folios(context: Context, readable: BoolArray) -> None:
    """
    Decide ``folio-head``, but for the part of it that is about single words.

    :param readable: Folios whose own first struct pages can be read.
    """
    _Heads(context, readable).check()
    check_cma(context, readable)


class _Heads:
    def __init__(self, context: Context, readable: BoolArray) -> None:
        self._context = context
        self._readable = readable
        self._folios = context.hugetlb.folios
        self._words = context.tail_words

    def _add_head(
        self,
        i: int,
        what: str,
        offset: int,
        expected: Optional[int],
        actual: Optional[int],
    ) -> None:
        head_pfn = int(self._folios.head_pfn[i])
        self._context.audit.add(
            Finding(
                "folio-head",
                f"the head of the folio of PFN {head_pfn} {what}",
                subjects.FolioHead(head_pfn),
                because=(subjects.HeadFrame(head_pfn),),
                place=self._context.place(i).at(
                    self._context.word_spot(head_pfn, offset), pfn=head_pfn
                ),
                expected=expected,
                actual=actual,
            )
        )

    def check(self) -> None:
        folios, context = self._folios, self._context
        page, fields = context.kernel.struct_page, context.hvo.fields
        present = self._readable
        mask = context.kernel.PG_head_mask
        for i in self._where(present & ~folios.PG_head):
            flags = int(folios.flags[i])
            self._add_head(i, "has no PG_head", page.flags, flags | mask, flags)
        unaligned = folios.head_pfn % (1 << folios.order) != 0
        for i in self._where(present & unaligned):
            self._add_head(
                i, f"is not aligned to order {folios.order[i]}", 0, None, None
            )
        if folios.own_order is not None and fields.order_place is not None:
            for i in self._where(present & (folios.own_order != folios.order)):
                own, order = int(folios.own_order[i]), int(folios.order[i])
                what = f"says that it is of order {own}, not {order}"
                self._add_head(i, what, fields.order_place[0], order, own)
        if folios.is_hugetlb is not None and fields.hugetlb_place is not None:
            for i in self._where(present & ~folios.is_hugetlb):
                if fields.is_typed_last and context.in_transition[i]:
                    context.audit.transitional.add(int(folios.head_pfn[i]))
                    continue
                self._add_head(
                    i, "is not of type hugetlb", fields.hugetlb_place[0], None, None
                )
        for i in self._where(present & (folios.next_info != self._words)):
            self._add_head(
                i,
                "has no tail of its own behind it",
                context.size + page.offset,
                int(self._words[i]),
                int(folios.next_info[i]),
            )

    def _where(self, wrong: BoolArray) -> list[int]:
        return np.flatnonzero(wrong).tolist()


class FolioTailInfos:
    """
    ``folio-tail-info``: tails from the third struct page on (the second is the head's
    business), in the private slices, and in all slices of folios that share none.

    :param readable: Folios whose own first struct pages can be read.
    """

    def __init__(self, context: Context, readable: BoolArray) -> None:
        self._context = context
        self._folios = folios = context.hugetlb.folios
        self._words = context.tail_words
        per_slice = context.geometry.pages_per_slice
        first = folios.head_pfn * context.size // context.page_size
        own = folios.slices * (context.geometry.power_of_2 and folios.shared_ptes == 0)
        private = np.minimum(context.layout.tails.private_slices, folios.slices)
        counts = np.where(readable, np.maximum(own, private), 0)
        # Tails in the head's own page of vmemmap were compared when the head was read.
        known = folios.uniform & (folios.tail_info == self._words) & (counts > 0)
        known &= 1 << folios.order >= per_slice
        slices = ranges(first + known, counts - known)
        owner = np.repeat(np.arange(len(folios), dtype=np.int64), counts - known)
        # Damaged folios may overlap; then their slices are not in order.
        order = np.argsort(slices, kind="stable")
        self.slices = slices[order]
        self._owner = owner[order]
        self._unseen = 0
        self._seen = int(known.sum()) * (per_slice - 2)
        # Folio, PFN and tail word of each that is wrong.
        self._wrong: list[tuple[Int64Array, Int64Array, U64Array]] = []

    def look(self, pages: SlicePages, rows: Rows, mine: slice) -> None:
        """Compare all words with the one that the folio's tails hold."""
        owner, infos = self._owner[mine], pages.infos[rows]
        unseen = ~pages.present[rows] | pages.zeros[rows]
        self._unseen += int(unseen.sum())
        # Which entries of each row are tails of the folio, from *first* to *end*.
        start = pages.first_pfns[rows] - self._folios.head_pfn[owner]
        first = np.maximum(2 - start, 0)
        end = np.minimum((1 << self._folios.order[owner]) - start, infos.shape[1])
        self._seen += int(np.maximum(end - first, 0)[~unseen].sum())
        wrong = infos != self._words[owner][:, None]
        suspect = np.flatnonzero(wrong.any(axis=1) & ~unseen)
        entries = np.arange(infos.shape[1], dtype=np.int64)[None, :]
        wrong = wrong[suspect] & (entries >= first[suspect, None])
        row, entry = np.nonzero(wrong & (entries < end[suspect, None]))
        row = suspect[row]
        pfns = self._folios.head_pfn[owner[row]] + start[row] + entry
        self._wrong.append((owner[row], pfns, infos[row, entry]))

    def report(self) -> None:
        """Add what was found to the audit."""
        audit = self._context.audit
        audit.missing(Need.FOLIO_TAILS, "pages of vmemmap of folios", self._unseen)
        audit.count("struct_pages", self._seen)
        if not self._wrong:
            return
        owner, pfns, infos = (np.concatenate(part) for part in zip(*self._wrong))
        order = np.lexsort((pfns, owner))
        # All wrong tails of a folio are one finding, about the first.
        _, firsts, counts = np.unique(
            owner[order], return_index=True, return_counts=True
        )
        for first, count in zip(order[firsts].tolist(), counts.tolist()):
            self._add_tail(
                int(owner[first]), int(pfns[first]), int(infos[first]), count
            )

    def _add_tail(self, i: int, pfn: int, actual: int, count: int) -> None:
        context = self._context
        head_pfn, offset = (
            int(self._folios.head_pfn[i]),
            context.kernel.struct_page.offset,
        )
        context.audit.add(
            Finding(
                "folio-tail-info",
                f"the tail of PFN {pfn} does not resolve to its head, PFN {head_pfn}",
                subjects.FolioTails(head_pfn),
                because=(
                    subjects.HeadFrame(head_pfn),
                    subjects.FolioHead(head_pfn),
                    subjects.StrayHead(head_pfn),
                ),
                folded=count - 1,
                place=context.place(i).at(context.word_spot(pfn, offset), pfn=pfn),
                expected=int(self._words[i]),
                actual=actual,
            )
        )

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Heads without a folio
---------------------

Struct pages with ``PG_head`` where HVO ever split vmemmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.check_shared_tails import BootTail
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.defects import BOOT_TAIL_REFCOUNT
from drgn_hvo.audit.findings import NOWHERE, Finding, Place, Spot
from drgn_hvo.audit.scan import BlankSlices, Rows, SlicePages
from drgn_hvo.kernel.arrays import (
    BoolArray,
    Int64Array,
    U64Array,
    column,
    joined,
    ranges,
    without,
)
from drgn_hvo.kernel.unread import NOT_IN_DUMP, Need

__all__ = ("StrayHeads",)


def _own_heads(
    context: Context, pfns: Int64Array, behind: U64Array, orders: Int64Array
) -> BoolArray:
    """
    Which struct pages with ``PG_head`` are heads: aligned to their order, with a tail
    of their own behind them.

    :param behind: The tail words of the struct pages behind them.
    """
    heads = context.hvo.heads.of_tails(pfns + 1, behind)
    own = heads == context.vmemmap.page_addresses(pfns)
    sane = (orders > 0) & (orders <= context.geometry.largest_order)
    aligned = sane & (pfns % (1 << np.where(sane, orders, 0)) == 0)
    return ((behind & np.uint64(1)) != 0) & own & aligned


class StrayHeads:
    """
    ``stray-head``: struct pages with ``PG_head`` where HVO ever split vmemmap.

    :param boot_tails: Shared tail pages whose reference counts former huge pages can
        have.
    """

    def __init__(self, context: Context, boot_tails: Sequence[BootTail]) -> None:
        self._context = context
        self._boot_tails = boot_tails
        self._vmemmap = context.vmemmap
        # Struct pages with PG_head that belong to no folio, by PFN, and whether they
        # have the type hugetlb.
        self._loose: dict[int, bool] = {}
        self._unseen = 0
        self._blank = BlankSlices(context)
        self.slices = self._split_slices()

    def _split_slices(self) -> Int64Array:
        """
        Slices with an entry of their own, but not those of optimized folios behind
        the first: the rules on mappings decide those.
        """
        firsts, ends = self._vmemmap.run_slices
        split = self._vmemmap.runs.level == 0
        folios = self._context.hugetlb.folios
        shared = folios.tail_slices
        start = folios.head_pfn * self._context.size // self._context.page_size
        mine = self._context.hugetlb.optimized_mapping[shared.folio]
        taken = start[shared.folio[mine]] + shared.first[mine]
        known = start[self._are_known()]
        within = self._context.within
        if within is None or not len(split):
            pieces = joined(firsts[split], ends[split])
        else:
            runs, mapped = self._vmemmap.slices_to_runs(within)
            within = within[mapped & split[runs]]
            pieces = joined(within, within + 1)
        first, end = without(
            *pieces,
            joined(
                np.concatenate((taken, known)),
                np.concatenate((taken + shared.count[mine], known + 1)),
            ),
        )
        return ranges(first, end - first)

    def _are_known(self) -> BoolArray:
        """Folios whose first slice has just their own head, as was seen with it."""
        folios = self._context.hugetlb.folios
        if folios.own_order is None:
            return np.zeros(len(folios), dtype=np.bool_)
        own = _own_heads(
            self._context, folios.head_pfn, folios.next_info, folios.own_order
        )
        return folios.quiet & own

    def look(self, pages: SlicePages, rows: Rows, _mine: slice) -> None:
        """Find heads that are none."""
        context, fields = self._context, self._context.hvo.fields
        self._unseen += int((~pages.present[rows]).sum())
        self._blank.look(pages, rows)
        pfns = pages.pfns(rows)[pages.heads[rows]]
        heads = pages.read_heads(pfns)
        orders = fields.orders(heads.data)
        if orders is None:
            reason = "nothing says where folios keep their order"
            context.audit.undecide("stray-head", reason)
            return
        offset = context.size + context.kernel.struct_page.offset
        behind = fields.words(heads.data, offset, 8)
        hugetlb = fields.are_hugetlb(heads.data)
        wrong = heads.present & ~_own_heads(context, pfns, behind, orders)
        for i in np.flatnonzero(wrong).tolist():
            is_hugetlb = hugetlb is not None and bool(hugetlb[i])
            self._found(int(pfns[i]), is_hugetlb)

    def report(self) -> None:
        """Add what was found to the audit."""
        audit, what = self._context.audit, "pages of vmemmap that HVO has split"
        audit.missing(Need.SPLIT_STRUCT_PAGES, what, self._unseen)
        audit.blank(Need.SPLIT_STRUCT_PAGES, what, self._blank.count())
        self._add_loose()

    def _found(self, pfn: int, is_hugetlb: bool) -> None:
        context = self._context
        folios = context.hugetlb.folios
        owner = context.folio_of(pfn)
        head_pfn = None if owner is None else int(folios.head_pfn[owner])
        if head_pfn == pfn:
            return  # folio-head has said what is wrong with it
        if head_pfn is None:
            self._loose[pfn] = is_hugetlb
            return
        self._add(pfn, head_pfn)

    def _add(self, pfn: int, head_pfn: Optional[int]) -> None:
        subject = pfn if head_pfn is None else head_pfn
        spot = self._flags_spot(pfn)
        self._context.audit.add(
            Finding(
                "stray-head",
                f"the struct page of PFN {pfn} has PG_head, but is no head: it is not "
                "aligned to its order, or no tail of its own is behind it",
                subjects.StrayHead(subject),
                because=self._frame_owner(pfn),
                affected=0 if head_pfn is None else 1,
                place=Place(head_pfn=head_pfn).at(spot, pfn=pfn),
                expected=self._without_PG_head(spot.value),
                actual=spot.value,
            )
        )

    def _add_loose(self) -> None:
        """
        Former folios, restored by a kernel that left copies of their heads in all
        their pages of vmemmap, are one finding; other heads are one each.
        """
        orders = [hstate.order for hstate in self._context.hugetlb.hstates]
        order = min(orders, default=0)
        former = {pfn >> order for pfn, hugetlb in self._loose.items() if hugetlb}
        restored = [pfn for pfn in self._loose if pfn >> order in former]
        self._add_untyped([pfn for pfn in self._loose if pfn >> order not in former])
        if restored and not self._context.hvo.unread_lists:
            self._add_restored(restored, len(former))
            return
        # They may be folios on lists that could not be read, and no former ones.
        for pfn in restored:
            self._add(pfn, pfn >> order << order)

    def _add_untyped(self, pfns: list[int]) -> None:
        """
        Heads that have no type: of former huge pages that were freed with reference
        counts of a shared tail page, of compound pages in transition, or damaged.
        """
        context = self._context
        lost = [pfn for pfn in pfns if self._boot_tails and self._was_counted(pfn)]
        if lost:
            self._add_lost(lost)
        for pfn in sorted(set(pfns) - set(lost)):
            holds = context.transitions.holds(pfn)
            if holds is None:
                what = "struct pages behind a head that may be in transition"
                context.audit.undecide("stray-head", f"{what} {NOT_IN_DUMP}")
            elif not holds:
                self._add(pfn, None)

    def _was_counted(self, pfn: int) -> bool:
        """
        Whether a page was freed as a huge page, but what were its tails have reference
        count 1, so that free_pages_prepare() gave it up: behind the first slice those
        of a gigantic page, in the first slice those of a page that one was demoted to.
        """
        refcount = self._context.kernel.struct_page.refcount
        behind = self._context.geometry.pages_per_slice
        pages = self._vmemmap.read_pages(np.array([pfn + 1, pfn + behind]))
        if refcount is None:
            return False
        counts = column(pages.data, refcount, self._context.kernel.reader.u32)
        tails = (self._vmemmap.tail_words(pages) & np.uint64(1)) != 0
        return bool((pages.present & ~tails & (counts == 1)).any())

    def _add_lost(self, pfns: list[int]) -> None:
        spot = self._flags_spot(pfns[0])
        self._context.audit.add(
            Finding(
                "stray-head",
                f"{len(pfns)} struct pages from PFN {pfns[0]} on have PG_head, but "
                "belong to no folio: heads of huge pages whose memory was lost when "
                "they were freed, since tails had reference counts",
                subjects.LostHeads(),
                because=tuple(tail.subject for tail in self._boot_tails),
                defect=BOOT_TAIL_REFCOUNT,
                folded=len(pfns) - 1,
                affected=len(pfns),
                place=NOWHERE.at(spot, pfn=pfns[0]),
                expected=self._without_PG_head(spot.value),
                actual=spot.value,
            )
        )

    def _frame_owner(self, pfn: int) -> tuple[subjects.Subject, ...]:
        """The folio whose head lies in the frame behind a struct page."""
        mapping = self._vmemmap.mapping(
            pfn * self._context.size // self._context.page_size
        )
        folios = self._context.hugetlb.folios
        if mapping is None:
            return ()
        owners = folios.head_pfn[folios.head_frame == mapping.pfn]
        return tuple(subjects.HeadFrame(head) for head in owners.tolist())

    def _flags_spot(self, pfn: int) -> Spot:
        context = self._context
        page = self._vmemmap.read_pages(np.array([pfn], dtype=np.int64))
        flags = int(self._vmemmap.flags(page)[0])
        offset = context.kernel.struct_page.flags
        return replace(context.word_spot(pfn, offset), value=flags)

    def _without_PG_head(self, flags: Optional[int]) -> Optional[int]:
        # PG_head has the same bit in every word of flags.
        return None if flags is None else flags & ~self._context.kernel.PG_head_mask

    def _add_restored(self, pfns: list[int], former: int) -> None:
        spot = self._flags_spot(pfns[0])
        self._context.audit.add(
            Finding(
                "stray-head",
                f"{len(pfns)} struct pages from PFN {pfns[0]} on have PG_head, but "
                f"belong to no folio: heads of {former} former huge pages, and copies",
                subjects.FormerHeads(),
                because=self._frame_owner(pfns[0]),
                defect="restored-fake-heads",
                folded=len(pfns) - 1,
                affected=former,
                place=NOWHERE.at(spot, pfn=pfns[0]),
                expected=self._without_PG_head(spot.value),
                actual=spot.value,
            )
        )

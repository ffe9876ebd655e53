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
import numpy.typing as npt

from drgn_hvo.audit import Finding
from drgn_hvo.checks.context import Context
from drgn_hvo.memory import BoolArray, Int64Array, ranges
from drgn_hvo.pagetable import U64Array

__all__ = ("check_folios",)

# Pages of vmemmap are read so many at a time: 16 MiB of them.
_SLICES_PER_BATCH = 4096


def check_folios(context: Context) -> None:
    """Decide ``folio-head`` and ``folio-tail-info``."""
    folios = context.hugetlb.folios
    context.audit.missing(
        "first struct pages of folios",
        int((~folios.present).sum()),
        "folio-head",
        "folio-tail-info",
        "folio-optimized-flag",
        "folio-list",
    )
    checks = _Folios(context)
    checks.check_heads()
    checks.check_tails()


class _Folios:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._folios = context.hugetlb.folios
        self._words = self._tail_words()

    def _tail_words(self) -> U64Array:
        """The word that all tails of each folio hold."""
        folios, context = self._folios, self._context
        if context.layout.encoding.has_mask:
            shift = folios.order + (context.size.bit_length() - 1)
            masks = np.uint64((1 << 64) - 1) << shift.astype(np.uint64)
            return masks | np.uint64(1)
        offset = folios.head_pfn.astype(np.uint64) * np.uint64(context.size)
        return (offset + np.uint64(context.vmemmap.base)) | np.uint64(1)

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
                ("folio", head_pfn),
                because=(("head-frame", head_pfn),),
                pfn=head_pfn,
                expected=expected,
                actual=actual,
                **self._context.word_place(head_pfn, offset),  # type: ignore[arg-type]
                **self._context.place(i),  # type: ignore[arg-type]
            )
        )

    def check_heads(self) -> None:
        folios, context = self._folios, self._context
        page, fields = context.kernel.struct_page, context.hvo.fields
        present = context.readable
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

    def check_tails(self) -> None:
        """
        Tails from the third struct page on (the second is the head's business): in
        the first slice, and in all slices of folios that share none.
        """
        folios, context = self._folios, self._context
        first = folios.head_pfn * context.size // context.page_size
        own = folios.slices * (context.geometry.power_of_2 and folios.shared_ptes == 0)
        counts = np.where(context.readable, np.maximum(own, 1), 0)
        slices = ranges(first, counts)
        owner = np.repeat(np.arange(len(folios), dtype=np.int64), counts)
        for start in range(0, len(slices), _SLICES_PER_BATCH):
            batch = slice(start, start + _SLICES_PER_BATCH)
            self._check_slices(slices[batch], owner[batch])

    def _check_slices(self, slices: Int64Array, owner: Int64Array) -> None:
        context, folios = self._context, self._folios
        per_slice = context.geometry.pages_per_slice
        pfns = slices * context.page_size // context.size
        pages = context.vmemmap.read_pages(pfns, per_slice)
        rows = pages.data.reshape(len(slices), per_slice, context.size)
        infos = self._infos(rows)
        # Entries of this page that belong to the folio.
        place = pfns[:, None] + np.arange(per_slice, dtype=np.int64)[None, :]
        place = place - folios.head_pfn[owner][:, None]
        inside = (place > 1) & (place < (1 << folios.order[owner])[:, None])
        zeros = ~np.any(pages.data, axis=1)
        unseen = ~pages.present | zeros
        context.audit.missing(
            "pages of vmemmap of folios", int(unseen.sum()), "folio-tail-info"
        )
        counted = int(inside[~unseen].sum())
        context.audit.checked["struct_pages"] = (
            context.audit.checked.get("struct_pages", 0) + counted
        )
        wrong = inside & (infos != self._words[owner][:, None]) & ~unseen[:, None]
        row, entry = np.nonzero(wrong)
        # Of a folio with a thousand wrong tails, one is told and the others counted.
        _, firsts, counts = np.unique(owner[row], return_index=True, return_counts=True)
        for first, count in zip(firsts.tolist(), counts.tolist()):
            at, behind = int(row[first]), int(entry[first])
            self._add_tail(
                int(owner[at]), int(pfns[at]) + behind, int(infos[at, behind]), count
            )

    def _infos(self, rows: npt.NDArray[np.uint8]) -> U64Array:
        kernel = self._context.kernel
        at = kernel.struct_page.offset
        field = np.ascontiguousarray(rows[:, :, at : at + 8])
        return field.view(kernel.reader.u64)[:, :, 0].astype(np.uint64, copy=False)

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
                ("folio-tail", head_pfn),
                because=(
                    ("head-frame", head_pfn),
                    ("folio", head_pfn),
                    ("stray-head", head_pfn),
                ),
                folded=count - 1,
                pfn=pfn,
                expected=int(self._words[i]),
                actual=actual,
                **context.word_place(pfn, offset),  # type: ignore[arg-type]
                **context.place(i),  # type: ignore[arg-type]
            )
        )

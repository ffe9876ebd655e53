# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mappings of vmemmap
-------------------

What the page tables of vmemmap say of every folio, against what its generation of
HVO makes of them.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.check_head_frames import check_head_frames
from drgn_hvo.audit.check_stray_tails import check_strays
from drgn_hvo.audit.check_tail_frames import check_tail_frames
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.folio_mappings import FolioMappings
from drgn_hvo.kernel.arrays import BoolArray
from drgn_hvo.memmap.shared_tails import Slot

__all__ = ("check_mappings",)


def check_mappings(context: Context, wrong_slots: AbstractSet[Slot]) -> BoolArray:
    """
    Decide the ``vmemmap-`` rules on slices, and those on optimized folios.

    :param wrong_slots: Slots of ``vmemmap_tails[]`` that are known to be wrong.
    :return: The folios whose own first struct pages can be read, see
        :func:`~drgn_hvo.audit.check_head_frames.check_head_frames()`.
    """
    folios = context.hugetlb.folios
    context.audit.checked.update(
        folios=len(folios),
        optimized_folios=int(context.hugetlb.optimized_mapping.sum()),
        vmemmap_ptes=int(folios.mapped.sum()),
    )
    mappings = FolioMappings(context)
    readable = check_head_frames(mappings)
    check = _Flags(mappings, readable)
    check.check_flag()
    check_tail_frames(mappings, wrong_slots)
    check.check_unoptimized()
    check_strays(mappings, readable, wrong_slots)
    context.audit.transitional |= mappings.excused()
    return readable


class _Flags:
    """What ``HPG_vmemmap_optimized`` of each folio says, against its mapping."""

    def __init__(self, mappings: FolioMappings, readable: BoolArray) -> None:
        self._mappings = mappings
        self._readable = readable
        self._context = context = mappings.context
        self._audit = context.audit
        self._folios = context.hugetlb.folios

    def check_flag(self) -> None:
        """Decide ``folio-optimized-flag``."""
        flag = self._context.hugetlb.has_hpg_flag("vmemmap_optimized")
        if flag is None:
            self._audit.undecide("folio-optimized-flag", "bit of the flag not known")
            return
        mapping = self._context.hugetlb.optimized_mapping
        wrong = (flag != mapping) & self._readable
        for i in np.flatnonzero(wrong).tolist():
            if self._mappings.is_excused(i):
                continue
            private = int(self._folios.private[i])
            bit = 1 << self._context.hugetlb.hpg_flags["vmemmap_optimized"]
            has = "has" if flag[i] else "lacks"
            but = "maps" if mapping[i] else "does not map"
            offset = self._context.kernel.struct_page.require("private")
            head_pfn = int(self._folios.head_pfn[i])
            self._audit.add(
                Finding(
                    "folio-optimized-flag",
                    f"the folio of PFN {head_pfn} {has} HPG_vmemmap_optimized, but "
                    f"{but} shared frames",
                    subjects.OptimizedFlag(head_pfn),
                    because=(subjects.HeadFrame(head_pfn),),
                    defect="restored-fake-heads" if self._is_copy(i) else None,
                    expected=private ^ bit,
                    actual=private,
                    place=self._context.place(i).at(
                        self._context.word_spot(head_pfn, offset), pfn=head_pfn
                    ),
                )
            )

    def _is_copy(self, i: int) -> bool:
        """
        Whether struct pages of a folio that shares none are copies of another's head,
        whose flags it then has: a tail at the start of the second slice has PG_head.
        """
        context = self._context
        if not context.layout.tails.has_fake_heads or self._folios.slices[i] < 2:
            return False
        tail = int(self._folios.head_pfn[i]) + context.geometry.pages_per_slice
        page = context.vmemmap.read_pages(np.array([tail], dtype=np.int64))
        flags = int(context.vmemmap.flags(page)[0])
        if self._mappings.optimized[i]:
            return False
        return bool(flags & context.kernel.PG_head_mask)

    def check_unoptimized(self) -> None:
        """Decide ``folio-unoptimized``, of pages of vmemmap that are mapped."""
        flag = self._context.hugetlb.has_hpg_flag("vmemmap_optimized")
        plain = ~self._mappings.optimized & self._readable
        if flag is not None:
            plain &= ~flag
        slices = self._folios.tail_slices
        for pair in np.flatnonzero(plain[slices.folio] & ~slices.writable).tolist():
            i, first = int(slices.folio[pair]), int(slices.first[pair])
            head_pfn = int(self._folios.head_pfn[i])
            spot = self._context.entry_spot(int(self._mappings.first_slice[i]) + first)
            self._audit.add(
                Finding(
                    "folio-unoptimized",
                    f"slice {first} of the folio of PFN {head_pfn}, which is not "
                    "optimized, is read-only",
                    subjects.PlainFrames(head_pfn),
                    folded=int(slices.count[pair]) - 1,
                    place=self._context.place(i).at(spot, pfn=int(slices.pfn[pair])),
                    actual=spot.value,
                )
            )

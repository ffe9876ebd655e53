# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Huge pages in transition
------------------------

While HVO remaps the vmemmap of a huge page, nobody but the code that does it can reach
the page: it is on no list and frozen. How far that code has come is seen in the page
tables, where only what :data:`REMAPPINGS` has can be left; anything else is damage,
also of a page that is in transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drgn_hvo.kernel.arrays import BoolArray, Int64Array
from drgn_hvo.memmap.pools import NO_LIST

if TYPE_CHECKING:
    from drgn_hvo.audit.context import Context

__all__ = (
    "REMAPPINGS",
    "Remapping",
    "have_own_frames",
    "held_by_nobody",
    "huge_pages_in_transition",
)


@dataclass(frozen=True)
class Remapping:
    """
    A stretch of kernel code that leaves vmemmap of a huge page half remapped: some
    slices behind the first map the shared frame, read-only, all others have frames of
    their own, writable. Each entry is stored as a whole, by ``set_pte_at()``.

    :param source: Where the kernel does it, and in which order it stores.
    :param from_first: Whether the slices that share begin behind the first slice.
    :param to_last: Whether they reach to the last slice.
    """

    source: str
    from_first: bool
    to_last: bool


REMAPPINGS = (
    Remapping(
        "vmemmap_remap_free() (mm/hugetlb_vmemmap.c): vmemmap_remap_pte() maps slice 1 "
        "to the last one to the shared frame, behind slice 0, which gets a copy of the "
        "head since v6.2; HPG_vmemmap_optimized is set first, in 6.1 last",
        from_first=True,
        to_last=False,
    ),
    Remapping(
        "vmemmap_remap_alloc() (mm/hugetlb_vmemmap.c): vmemmap_restore_pte() fills a "
        "frame and maps it, slice 1 to the last one; HPG_vmemmap_optimized goes last",
        from_first=False,
        to_last=True,
    ),
    Remapping(
        "vmemmap_remap_free(), if the next page table to split needs memory that there "
        "is not: vmemmap_restore_pte() begins again with slice 0, and the slices of "
        "that table and behind it never shared",
        from_first=False,
        to_last=False,
    ),
)


def huge_pages_in_transition(context: Context) -> BoolArray:
    """
    Which folios are caught between two states: held by nobody, although no list is
    damaged, and remapped as one of :data:`REMAPPINGS` leaves them.
    """
    flying = context.held_by_nobody
    return flying & _are_half_remapped(context) if flying.any() else flying


def held_by_nobody(context: Context) -> BoolArray:
    """Which folios only the code that makes or undoes them can reach."""
    folios = context.hugetlb.folios
    if any(a_list.is_damaged for a_list in context.hugetlb.lists):
        return np.zeros(len(folios), dtype=np.bool_)
    aligned = folios.head_pfn % (1 << folios.order) == 0
    # Since Linux kernel commit bd225530a4c7 ("mm/hugetlb_vmemmap: fix race with
    # speculative PFN walkers") (in v6.11) folios are frozen meanwhile; before,
    # remove_hugetlb_folio() gave them the reference that freeing them drops.
    most = 1 if context.hvo.fields.is_type_behind_head else 0
    frozen = (folios.refcount >= 0) & (folios.refcount <= most)
    flying = folios.present & folios.PG_head & (folios.on_list == NO_LIST)
    return flying & frozen & aligned


def have_own_frames(context: Context) -> BoolArray:
    """Which slices of ``Folios.tail_slices`` have frames of their own, writable."""
    slices = context.hugetlb.folios.tail_slices
    return (slices.shared == 0) & slices.writable


def _share_rightly(context: Context) -> BoolArray:
    slices = context.hugetlb.folios.tail_slices
    right = slices.pfn == context.expected_frames[slices.folio]
    right &= (slices.level == 0) & ((slices.step == 0) | (slices.count == 1))
    return right if context.hugetlb.tails_are_writable else right & ~slices.writable


def _are_half_remapped(context: Context) -> BoolArray:
    """
    Whether slices that share and slices that do not lie as one of :data:`REMAPPINGS`
    leaves them. Slices that are neither are damaged, and told by the rules on them.
    """
    folios = context.hugetlb.folios
    own = _Extent.of(context, have_own_frames(context))
    shared = _Extent.of(context, _share_rightly(context))
    fits = (own.count == 0) | (shared.count == 0)
    for one in REMAPPINGS:
        if one.from_first:
            fits |= shared.end <= own.first
        elif one.to_last:
            fits |= own.end <= shared.first
        else:
            together = shared.end - shared.first == shared.count
            fits |= together & _begins_table(context, shared.end)
    # Without its node, nothing tells which frame a folio should share.
    fits |= context.nids < 0
    return fits & folios.present


@dataclass(frozen=True)
class _Extent:
    """
    Slices of one kind, by folio.

    :param first: The first one, counted from the folio's first slice.
    :param end: The one behind the last.
    :param count: How many there are.
    """

    first: Int64Array
    end: Int64Array
    count: Int64Array

    @classmethod
    def of(cls, context: Context, which: BoolArray) -> _Extent:
        """Of some of the slices of ``Folios.tail_slices``."""
        folios = context.hugetlb.folios
        slices = folios.tail_slices
        folio, start = slices.folio[which], slices.first[which]
        first = folios.slices.copy()
        end, count = np.zeros_like(first), np.zeros_like(first)
        np.minimum.at(first, folio, start)
        np.maximum.at(end, folio, start + slices.count[which])
        np.add.at(count, folio, slices.count[which])
        return cls(first, end, count)


def _begins_table(context: Context, slices: Int64Array) -> BoolArray:
    """Whether the entry of a slice of each folio is the first one of a page table."""
    folios, page_table = context.hugetlb.folios, context.kernel.page_table_format
    if page_table is None:
        return np.zeros(len(slices), dtype=np.bool_)
    entries = folios.head_pfn * context.size // context.page_size + slices
    # Of a table, whose entries are a power of two.
    entries += context.vmemmap.base // context.page_size % page_table.pages(1)
    begins: BoolArray = entries % page_table.pages(1) == 0
    return begins

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Why huge pages are not optimized
--------------------------------

Told from what is still to be seen of each: its size, the kernel, whose memory its
vmemmap is in, and whether vmemmap was ever split there. What happened when a huge page
was allocated is not recorded, so some reasons name all that they can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.kernel.arrays import BoolArray, Int64Array, distinct, is_in
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("REASONS", "NotOptimized", "reason_of_all", "why_not_optimized")

#: Reasons by name, the first that holds for a huge page is told.
REASONS = {
    "not-read": "page tables or struct pages that would tell were not read",
    "in-transition": "a processor was changing it",
    "too-small": "all of its struct pages fit in one page of vmemmap",
    "not-built": "this kernel was built without HVO",
    # hugetlb_vmemmap_optimizable().
    "odd-size": "a struct page of this kernel is no power of two in size",
    # vmemmap_pmd_entry() in mm/hugetlb_vmemmap.c refuses PageVmemmapSelfHosted().
    "self-hosted": "its vmemmap lies in the memory that it describes "
    "(memory_hotplug.memmap_on_memory)",
    # __hugetlb_vmemmap_optimize_folio() splits first; what is mapped as a whole was
    # never tried, or there was no memory for a page table.
    "never-split": "HVO was off when it was allocated, or there was no memory to split "
    "vmemmap",
    # hugetlb_vmemmap_restore_folio(), or vmemmap was split for a neighbour.
    "restored": "HVO was off when it was allocated, or was undone",
}


@dataclass(frozen=True)
class NotOptimized:
    """
    Huge pages of one order and node that are not optimized for one reason.

    :param nid: ``None`` if nothing tells the node.
    :param reason: A key of :data:`REASONS`.
    """

    nid: Optional[int]
    order: int
    reason: str
    count: int


def why_not_optimized(hvo: Hvo) -> list[NotOptimized]:
    """The reasons of all huge pages that are not optimized, by order and node."""
    reasons = _reasons(hvo)
    folios, nids = hvo.hugetlb.folios, hvo.folio_nids
    which = np.flatnonzero(reasons >= 0)
    keys = np.stack((folios.order[which], nids[which], reasons[which]), axis=1)
    rows, counts = np.unique(keys, axis=0, return_counts=True)
    names = list(REASONS)
    return [
        NotOptimized(None if nid < 0 else nid, order, names[reason], count)
        for (order, nid, reason), count in zip(rows.tolist(), counts.tolist())
    ]


def reason_of_all(hvo: Hvo, order: int) -> Optional[str]:
    """
    The reason of all huge pages of an order that are not optimized, ``None`` if each
    has its own.
    """
    geometry = hvo.kernel.geometry
    holds = {
        "too-small": geometry.struct_page_size << order < 2 * geometry.page_size,
        "not-built": hvo.is_built is False,
        "odd-size": not geometry.power_of_2,
    }
    return next((reason for reason, held in holds.items() if held), None)


def _reasons(hvo: Hvo) -> Int64Array:
    """For each folio the index of its reason, -1 for one that is optimized."""
    found, names = hvo.hugetlb, list(REASONS)
    folios, geometry = found.folios, hvo.kernel.geometry
    reasons = np.full(len(folios), -1, dtype=np.int64)
    undecided = ~found.optimized_mapping
    no_mappings = not hvo.vmemmap.has_mappings
    holds: dict[str, BoolArray] = {
        "too-small": folios.slices < 2,
        "not-built": np.full(len(folios), hvo.is_built is False),
        "odd-size": np.full(len(folios), not geometry.power_of_2),
        "not-read": ~folios.present | no_mappings | (folios.mapped < folios.slices),
        "in-transition": found.in_transition,
    }
    for name, which in holds.items():
        reasons[undecided & which] = names.index(name)
        undecided &= ~which
    if not undecided.any():
        return reasons
    self_hosted, unknown = _self_hosted(hvo, undecided)
    for name, which in (
        ("self-hosted", self_hosted),
        ("not-read", unknown),
        ("never-split", _levels(hvo, folios.head_pfn) > 0),
        ("restored", np.full(len(folios), True)),
    ):
        reasons[undecided & which] = names.index(name)
        undecided &= ~which
    return reasons


def _levels(hvo: Hvo, head_pfns: Int64Array) -> Int64Array:
    """The level of the page table entry that maps the first slice of each folio."""
    vmemmap = hvo.vmemmap
    _, ends = vmemmap.run_slices
    slices = head_pfns * vmemmap.size // vmemmap.page_size
    runs = np.searchsorted(ends, slices, side="right")
    return vmemmap.runs.level[np.minimum(runs, len(ends) - 1)].astype(np.int64)


def _self_hosted(hvo: Hvo, which: BoolArray) -> tuple[BoolArray, BoolArray]:
    """
    Which folios have their vmemmap in memory that PageVmemmapSelfHosted() marks, and of
    which that cannot be told, since the struct page of the frame was not read.
    """
    bit = hvo.kernel.constant("PG_vmemmap_self_hosted")
    frames = np.where(which, hvo.hugetlb.folios.head_frame, -1)
    if bit is None or not 0 <= bit < 64:
        none = np.zeros(len(frames), dtype=np.bool_)
        return none, none
    asked = distinct(frames[frames >= 0])
    pages = hvo.vmemmap.read_pages(asked)
    known = pages.present & pages.data.any(axis=1)
    marked = known & ((hvo.vmemmap.flags(pages) & np.uint64(1 << bit)) != 0)
    return which & is_in(frames, asked[marked]), which & is_in(frames, asked[~known])

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mappings of folios
------------------

How the pages of vmemmap that hold the struct pages of folios are mapped, as the checks
of mappings need it.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import NOWHERE, Finding, Spot
from drgn_hvo.audit.folio_transitions import have_own_frames
from drgn_hvo.kernel.arrays import BoolArray
from drgn_hvo.memmap.shared_tails import Slot

__all__ = ("FolioMappings",)


class FolioMappings:
    """
    How the vmemmap of the folios of one audit is mapped, in arrays by folio, and what
    several checks say of it.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._folios = context.hugetlb.folios
        #: The page of vmemmap that the head begins, by index.
        self.first_slice = self._folios.head_pfn * context.size // context.page_size
        #: The frame that slices behind the private ones should map, -1 if none.
        self.expected = context.expected_frames
        #: Of ``Folios.tail_slices``: which have frames of their own, writable.
        self.are_own = have_own_frames(context)
        self._excused = np.zeros(len(self._folios), dtype=np.bool_)
        self._told_entries: set[int] = set()

    @property
    def optimized(self) -> BoolArray:
        """Which folios share frames of vmemmap, by the page tables."""
        return self.context.hugetlb.optimized_mapping

    def slot_of(self, i: int) -> Slot:
        """The slot that a folio uses; without slots, node and zone that it lies in."""
        array = self.context.layout.tails.array
        nid, zone = int(self.context.nids[i]), int(self.context.zones[i])
        owner = (nid, zone) if array is None else array.owner_of(nid, zone)
        return Slot(*owner, int(self._folios.order[i]))

    def is_excused(self, i: int) -> bool:
        """Whether what is irregular about a folio is that it is in transition."""
        if self.context.in_transition[i]:
            self.excuse(i)
            return True
        return False

    def excuse(self, i: int) -> None:
        """Note that something irregular about a folio is not held against it."""
        self._excused[i] = True

    def excused(self) -> set[int]:
        """The heads of folios of which something was excused."""
        return set(self._folios.head_pfn[self._excused].tolist())

    def with_frame(self, entry: Optional[int], pfn: int) -> Optional[int]:
        """An entry of the lowest level with another frame; ``None`` if not known."""
        page_table = self.context.kernel.page_table_format
        if entry is None or page_table is None:
            return None
        return page_table.with_frame(entry, 0, pfn)

    def is_told_above(self, slice_: int) -> bool:
        """
        Whether what is wrong with how a slice is mapped is an entry of a higher table,
        which is one finding for all that it maps.
        """
        context, entry = self.context, self.context.barrier(slice_)
        page_table = context.kernel.page_table_format
        if entry is None or page_table is None:
            return False
        if entry.address in self._told_entries:
            return True
        self._told_entries.add(entry.address)
        pages = page_table.pages(entry.level)
        start = slice_ - (context.slice_address(slice_) // context.page_size) % pages
        inside = (self.first_slice >= start) & (self.first_slice < start + pages)
        present = page_table.decode(entry.value, entry.level).present
        how = "allows no writes" if present else "maps nothing"
        context.audit.add(
            Finding(
                "vmemmap-head-frame",
                f"the entry of level {entry.level + 1} of the page tables that maps "
                f"{pages} pages of vmemmap from {context.slice_address(start):#x} on "
                f"{how}",
                subjects.TableEntry(entry.address),
                affected=int(inside.sum()),
                place=NOWHERE.at(Spot(context.slice_address(start), entry.address)),
                expected=(
                    page_table.with_table_write(entry.value, entry.level)
                    if present
                    else None
                ),
                actual=entry.value,
            )
        )
        return True

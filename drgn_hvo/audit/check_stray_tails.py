# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Strays on shared tail pages
---------------------------

Pages of vmemmap that map a shared tail page without being those of its folios.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Optional

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.booting import BOOTING
from drgn_hvo.audit.findings import Finding, Place
from drgn_hvo.audit.folio_mappings import FolioMappings
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, is_in, ranges
from drgn_hvo.kernel.unread import NOT_ALL_ZONES
from drgn_hvo.memmap.shared_tails import SharedTail, Slot

__all__ = ("check_strays",)

# How many strays of one shared tail page are looked at one by one.
_MAX_STRAYS = 64


def check_strays(
    mappings: FolioMappings, readable: BoolArray, wrong_slots: AbstractSet[Slot]
) -> None:
    """
    Decide ``stray-shared-tail``.

    :param readable: Folios whose own struct pages can be read; what others map is not
        held against them.
    :param wrong_slots: Slots that are known to be wrong, so that who maps what they
        name tells nothing.
    """
    check = _Strays(mappings, readable)
    for tail in mappings.context.shared_tails:
        if tail.pfn is not None and tail.key not in wrong_slots:
            check.check(tail, tail.pfn)


class _Strays:
    def __init__(self, mappings: FolioMappings, readable: BoolArray) -> None:
        self._mappings = mappings
        self._readable = readable
        self._context = context = mappings.context
        self._audit = context.audit
        self._folios = context.hugetlb.folios

    def check(self, tail: SharedTail, pfn: int) -> None:
        """
        Slices that map a shared tail page and are of no folio that should.

        :param pfn: Of the page.
        """
        slices = self._folios.tail_slices
        owner = (self._mappings.expected == pfn) | ~self._readable
        owner |= self._context.nids < 0
        rightful = owner[slices.folio] & (slices.pfn == pfn)
        rightful &= (self._folios.order[slices.folio] == tail.order) & (
            (slices.step == 0) | (slices.count == 1)
        )
        if int(slices.count[rightful].sum()) == tail.mapped_by:
            return
        known = ranges(
            self._mappings.first_slice[slices.folio[rightful]] + slices.first[rightful],
            slices.count[rightful],
        )
        strays = self._context.vmemmap.slices_on(pfn)
        strays = strays[~is_in(strays, np.sort(known))]
        if self._context.within is not None:
            strays = strays[is_in(strays, self._context.within)]
        if tail.boot is not False and self._context.is_booting is not False:
            # Huge pages of memblock memory share before they have a head.
            self._audit.undecide("stray-shared-tail", BOOTING, len(strays))
            return
        zones = self._context.hvo.mmzone
        if len(strays) and not zones.knows_all_zones and self._may_be_of_devices(tail):
            self._audit.undecide("stray-shared-tail", NOT_ALL_ZONES, len(strays))
            return
        strays = strays[~self._are_of_devices(tail, strays)]
        for slice_ in strays[:_MAX_STRAYS].tolist():
            self._add_stray(tail, slice_)
        self._add_strays(tail, strays[_MAX_STRAYS:])

    def _may_be_of_devices(self, tail: SharedTail) -> bool:
        context, array = self._context, self._context.layout.tails.array
        device = context.kernel.constant("ZONE_DEVICE")
        is_allocated = array is not None and array.is_allocated
        return is_allocated and device is not None and tail.zone_index == device

    def _are_of_devices(self, tail: SharedTail, slices: Int64Array) -> BoolArray:
        """
        Which slices behind the first of a compound page of a device share a tail of
        ZONE_DEVICE, as those of device DAX do where the array is allocated.
        """
        context, array = self._context, self._context.layout.tails.array
        if array is None or not array.is_allocated:
            return np.zeros(len(slices), dtype=np.bool_)
        if tail.zone_index != context.kernel.constant("ZONE_DEVICE"):
            return np.zeros(len(slices), dtype=np.bool_)
        pfns = slices * context.page_size // context.size
        behind = pfns % (1 << tail.order) != 0
        held = np.zeros(len(slices), dtype=np.bool_)
        for zone in context.hvo.mmzone.zones:
            if (zone.nid, zone.index) == (tail.nid, tail.zone_index):
                held |= zone.holds(pfns)
        return behind & held

    def _add_strays(self, tail: SharedTail, strays: Int64Array) -> None:
        """Add many as one, which is counted like the others before it."""
        if not len(strays):
            return
        folios = self._folios
        pfns = strays * self._context.page_size // self._context.size
        owner = np.searchsorted(folios.head_pfn, pfns, side="right") - 1
        owned = owner >= 0
        owned[owned] = (
            pfns[owned] < (folios.head_pfn + (1 << folios.order))[owner[owned]]
        )
        self._add_stray(
            tail,
            int(strays[0]),
            folded=len(strays) - 1,
            affected=len(np.unique(owner[owned])),
        )

    def _add_stray(
        self,
        tail: SharedTail,
        slice_: int,
        *,
        folded: int = 0,
        affected: Optional[int] = None,
    ) -> None:
        pfn = slice_ * self._context.page_size // self._context.size
        head_pfn = pfn >> tail.order << tail.order
        owner = self._context.folio_of(pfn)
        if owner is not None:
            head_pfn = int(self._folios.head_pfn[owner])
        zone = self._context.zone_name(tail.nid, tail.zone_index)
        spot = self._context.entry_spot(slice_)
        place = Place(
            nid=tail.nid,
            zone=zone,
            order=tail.order,
            head_pfn=None if owner is None else head_pfn,
        )
        self._audit.add(
            Finding(
                "stray-shared-tail",
                f"the slice of PFN {pfn} maps the shared tail page of order "
                f"{tail.order}, but belongs to no optimized folio of it",
                subjects.StraySlice(slice_),
                because=(
                    subjects.HeadFrame(head_pfn),
                    subjects.TailFrames(head_pfn),
                    subjects.FolioHead(head_pfn),
                    subjects.FolioLists(head_pfn),
                ),
                affected=int(owner is not None) if affected is None else affected,
                folded=folded,
                place=place.at(spot, pfn=tail.pfn),
                actual=spot.value,
            )
        )

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Orders of sections
------------------

What ``mem_section`` says of the compound pages in a section, against these pages and
against the other sections of a gigantic page.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding, Place
from drgn_hvo.errors import DetectionError
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.kernel.unread import NOT_IN_DUMP, Need, Unread
from drgn_hvo.memmap.folio_fields import HEAD_PAGES
from drgn_hvo.memmap.sections import SectionOrders, section_orders

__all__ = ("check_sections",)

# How many pages of a section of a device are asked for the order of their compound
# page: one of these may be damaged.
_ASKED = 8


def check_sections(context: Context) -> None:
    """Decide ``section-order``."""
    hvo = context.hvo
    try:
        found = section_orders(context.vmemmap, hvo.believable_end_pfn, context.within)
    except DetectionError as e:
        context.audit.undecide("section-order", str(e))
        return
    if found is None:
        reason = "struct mem_section of this kernel has no compound_page_order"
        context.audit.skipped["section-order"] = reason
        return
    for why, count in found.unread.items():
        context.audit.unread(Unread(Need.SECTIONS, "sections", why, count))
    check = _Sections(context, found)
    check.check_memory()
    check.check_devices()


class _Sections:
    def __init__(self, context: Context, found: SectionOrders) -> None:
        self._context = context
        self._found = found
        self._nids, self._zones = self._places()
        device = context.kernel.constant("ZONE_DEVICE")
        known = (found.orders >= 0) & (self._zones >= 0)
        is_device = np.zeros(len(known), dtype=np.bool_)
        if device is not None:
            is_device = self._zones == device
        self._of_devices = known & is_device
        self._of_memory = known & ~is_device

    def _places(self) -> tuple[Int64Array, Int64Array]:
        """Node and zone of the first page of each section, -1 where not known."""
        context, pfns = self._context, self._found.first_pfns
        mmzone, layout = context.hvo.mmzone, context.hvo.mmzone.flags_layout
        nids, zones = mmzone.places(pfns)
        unsure = np.flatnonzero(nids < 0)
        if len(unsure) and layout is not None:
            pages = context.vmemmap.read_pages(pfns[unsure])
            flags = context.vmemmap.flags(pages)
            there = pages.present & pages.data.any(axis=1)
            nids[unsure] = np.where(there, layout.nids(flags), -1)
            zones[unsure] = np.where(there, layout.zonenums(flags), -1)
        unknown = int(((zones < 0) & (self._found.orders >= 0)).sum())
        context.audit.missing(Need.SECTIONS, "zones of sections", unknown)
        return nids, zones

    def check_memory(self) -> None:
        """
        Sections of memory: hugetlb_vmemmap_optimize_bootmem_page() sets the order in
        all sections of a gigantic page, and those that were added later have none.
        """
        found, expected = self._found, np.zeros_like(self._found.orders)
        early = self._of_memory & found.early
        for order in self._gigantic_orders():
            groups = found.numbers >> (order - found.section_bits)
            for group in np.unique(groups[early & (found.orders == order)]).tolist():
                members = early & (groups == group)
                if 2 * int((found.orders[members] == order).sum()) > int(members.sum()):
                    expected[members] = order
        for i in np.flatnonzero(self._of_memory & (found.orders != expected)).tolist():
            self._add(i, int(expected[i]), "its memory")

    def _gigantic_orders(self) -> list[int]:
        pools, bits = self._context.hvo.pools.hstates, self._found.section_bits
        return sorted({h.order for h in pools if h.order >= bits})

    def check_devices(self) -> None:
        """Sections of devices: the order of their compound pages, if these share."""
        unseen = 0
        for i in np.flatnonzero(self._of_devices).tolist():
            order = self._seen_order(i)
            if order is None:
                unseen += 1
                continue
            recorded = int(self._found.orders[i])
            if not recorded and not self._shares(i):
                continue  # compound or not, they have all their pages of vmemmap
            if recorded != order:
                self._add(i, order, "the compound pages in it")
        if unseen:
            why = f"struct pages of devices {NOT_IN_DUMP}"
            self._context.audit.undecide("section-order", why, unseen)

    def _seen_order(self, i: int) -> Optional[int]:
        """
        The order of most compound pages in a section, 0 if there are none; ``None`` if
        none of them was read.
        """
        context, bits = self._context, self._found.section_bits
        step = (1 << bits) // _ASKED
        pfns = self._found.first_pfns[i] + step * np.arange(_ASKED, dtype=np.int64)
        heads = context.hvo.heads.many(pfns)
        known = heads[heads != np.uint64(ALL_ONES)].astype(np.int64)
        rows = context.vmemmap.read_pages(known, HEAD_PAGES)
        orders = context.hvo.fields.orders(rows.data)
        if orders is None or not rows.present.any():
            return None
        mask = np.uint64(context.kernel.PG_head_mask)
        is_head = (context.vmemmap.flags(rows) & mask) != 0
        orders = np.where(is_head, orders, 0)[rows.present]
        values, counts = np.unique(orders, return_counts=True)
        return int(values[int(np.argmax(counts))])

    def _shares(self, i: int) -> bool:
        """Whether pages of vmemmap of a section map frames that others do, too."""
        context, bits = self._context, self._found.section_bits
        first = self._found.first_pfns[i] * context.size // context.page_size
        count = (context.size << bits) // context.page_size
        slices = np.arange(first, first + count, dtype=np.int64)
        frames, mapped = context.vmemmap.frames(slices)
        return len(context.vmemmap.shared_among(frames[mapped])) > 0

    def _add(self, i: int, expected: int, what: str) -> None:
        found, context = self._found, self._context
        address, nid = int(found.addresses[i]), int(self._nids[i])
        number, order = int(found.numbers[i]), int(found.orders[i])
        context.audit.add(
            Finding(
                "section-order",
                f"section {number} is of compound pages of order {order}, but {what} "
                f"{'has' if what == 'its memory' else 'have'} "
                f"{f'order {expected}' if expected else 'none'}",
                subjects.SectionOrder(number),
                affected=0,
                place=Place(
                    nid=nid,
                    zone=context.zone_name(nid, int(self._zones[i])),
                    pfn=int(found.first_pfns[i]),
                    address=address,
                    physical_address=context.translate(address),
                ),
                expected=expected,
                actual=order,
            )
        )

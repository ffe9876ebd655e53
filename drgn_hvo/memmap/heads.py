# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Heads of compound pages
-----------------------

What a head says of itself, wherever it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.memmap.folio_fields import HEAD_PAGES
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("Head", "read_head")


@dataclass(frozen=True)
class Head:
    """What the struct pages of a head say; ``None`` is not known."""

    pfn: int
    PG_head: bool
    order: Optional[int]
    hugetlb: Optional[bool]
    nid: Optional[int]
    zone: Optional[str]


def read_head(hvo: Hvo, pfn: int) -> Optional[Head]:
    """
    Read a head, or a page that is its own head.

    :return: ``None`` if the dump does not have it.
    """
    vmemmap = hvo.vmemmap
    first = vmemmap.read_pages(np.array([pfn], dtype=np.int64))
    if not first.present[0]:
        return None
    flags = vmemmap.flags(first)
    order: Optional[int] = 0
    hugetlb: Optional[bool] = False
    PG_head = bool(int(flags[0]) & hvo.kernel.PG_head_mask)
    if PG_head:
        # Only a head may be read together with what lies behind it.
        rows = vmemmap.read_pages(np.array([pfn], dtype=np.int64), HEAD_PAGES)
        orders = hvo.fields.orders(rows.data) if rows.present[0] else None
        hugetlbs = hvo.fields.are_hugetlb(rows.data) if rows.present[0] else None
        order = None if orders is None else int(orders[0])
        hugetlb = None if hugetlbs is None else bool(hugetlbs[0])
    nid = zone = None
    layout = hvo.mmzone.flags_layout if hvo.has_hugetlb else None
    if layout is not None:
        nid = int(layout.nids(flags)[0])
        zone = hvo.mmzone.zone_name(nid, int(layout.zonenums(flags)[0]))
    return Head(pfn, PG_head, order, hugetlb, nid, zone)

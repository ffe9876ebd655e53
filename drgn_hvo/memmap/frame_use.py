# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a frame of vmemmap is
--------------------------

A page of memory can itself hold struct pages: those of a stretch of PFNs, those with
the head of a huge page, or the tails that huge pages share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np

from drgn_hvo.memmap.hvo import Hvo

__all__ = ("FrameUse", "frame_use")


@dataclass(frozen=True)
class FrameUse:
    """
    What a page is to vmemmap.

    :param kind: ``shared-tail``, ``head`` (with the struct pages of a huge page's head)
        or ``struct-pages``.
    :param first_pfn: Of the struct pages in it; of a shared tail, ``None``.
    :param nid: Of the slot that names a shared tail page, as *zone* and *order*.
    :param order: Of the huge pages that share it, or of the one whose head it holds.
    :param mapped_by: How many slices map it; ``None`` if not all mappings are known.
    :param huge_pages: How many huge pages these belong to.
    """

    kind: Literal["shared-tail", "head", "struct-pages"]
    first_pfn: Optional[int]
    last_pfn: Optional[int]
    nid: Optional[int]
    zone: Optional[str]
    order: Optional[int]
    mapped_by: Optional[int]
    huge_pages: Optional[int]


def frame_use(hvo: Hvo, pfn: int) -> Optional[FrameUse]:
    """What a page is to vmemmap, ``None`` if it holds no struct pages."""
    vmemmap = hvo.vmemmap
    if not vmemmap.has_mappings:
        return None
    slices = vmemmap.slices_on(pfn)
    are_all = vmemmap.has_all_mappings
    for tail in hvo.shared_tails if hvo.has_hugetlb else ():
        if tail.pfn == pfn:
            zone = None
            if tail.zone_index is not None:
                zone = hvo.mmzone.zone_name(tail.nid, tail.zone_index)
            count = hvo.kernel.geometry.slices(tail.order)
            heads = int(np.count_nonzero(np.diff(slices // count, prepend=-1)))
            return FrameUse(
                "shared-tail",
                None,
                None,
                tail.nid,
                zone,
                tail.order,
                len(slices) if are_all else None,
                heads if are_all else None,
            )
    if not len(slices):
        return None
    first = -(-int(slices[0]) * vmemmap.page_size // vmemmap.size)
    last = ((int(slices[0]) + 1) * vmemmap.page_size - 1) // vmemmap.size
    one = hvo.covering.of(first) if hvo.has_hugetlb else None
    is_head = one is not None and one.head_pfn == first
    return FrameUse(
        "head" if is_head else "struct-pages",
        first,
        last,
        None,
        None,
        one.order if one is not None and is_head else None,
        len(slices) if are_all else None,
        None,
    )

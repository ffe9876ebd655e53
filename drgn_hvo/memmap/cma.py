# SPDX-License-Identifier: LGPL-2.1-or-later

"""
CMA areas of hugetlb
--------------------

Where huge pages with ``HPG_cma`` come from: ``hugetlb_cma_alloc_folio()``.
"""

from __future__ import annotations

from collections.abc import Iterable

from drgn import Object

from drgn_hvo.kernel.bound import Kernel

__all__ = ("hugetlb_cma_ranges",)

# CMA_MAX_RANGES.
_MAX_RANGES = 8


def _ranges_of(area: Object) -> list[tuple[int, int]]:
    if not hasattr(area, "ranges"):
        start = area.base_pfn.value_()
        return [(start, start + area.count.value_())]
    # Since v6.15 an area may have several.
    count = min(max(area.nranges.value_(), 0), _MAX_RANGES)
    pairs = ((one.base_pfn.value_(), one.count.value_()) for one in area.ranges[:count])
    return [(start, start + length) for start, length in pairs]


def hugetlb_cma_ranges(kernel: Kernel, nids: Iterable[int]) -> list[tuple[int, int]]:
    """
    First PFNs and ends of the CMA areas that huge pages are taken from.

    :raises FaultError: if they are not in the dump.
    :raises UnavailableError: if nothing describes them.
    """
    try:
        areas = kernel.prog["hugetlb_cma"]
    except LookupError:
        return []  # CONFIG_CMA=n
    found = []
    for nid in nids:
        if kernel.known_words.value(areas[nid]):
            found += _ranges_of(areas[nid])
    return found

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
States of huge pages
--------------------

What becomes of memory, in the few words that a picture has room for: of each huge page
whether it is optimized and in use, and what all other memory is. A huge page that is on
no list and not optimized is found by nothing short of reading all of vmemmap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drgn_hvo.kernel.arrays import BoolArray, Int64Array
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.hwpoison import are_hwpoisoned
from drgn_hvo.memmap.pools import ACTIVE_LIST, FREE_LIST

__all__ = (
    "HOLE",
    "KINDS",
    "NO_HUGE_PAGE",
    "UNKNOWN",
    "Kind",
    "huge_page_kinds",
)


@dataclass(frozen=True)
class Kind:
    """
    A kind of memory.

    :param letter: Stands for it where there are no colours.
    :param name: What it is in few words.
    """

    letter: str
    name: str
    text: str


#: All kinds; the ones before :data:`UNKNOWN` are of huge pages.
KINDS = (
    Kind("O", "optimized, in use", "huge page, optimized, in use"),
    Kind("F", "optimized, free", "huge page, optimized, free"),
    Kind("P", "not optimized, in use", "huge page, not optimized, in use"),
    Kind("N", "not optimized, free", "huge page, not optimized, free"),
    Kind("T", "on no list", "huge page on no list: in transition, or isolated"),
    Kind("X", "hardware-poisoned", "huge page in which memory failed"),
    Kind("?", "unknown", "unknown: what would tell was not read"),
    Kind("\u00b7", "other memory", "other memory: no huge page was found there"),
    Kind("", "no memory", "no memory, or none with struct pages"),
)
(
    _USED_OPTIMIZED,
    _FREE_OPTIMIZED,
    _USED_PLAIN,
    _FREE_PLAIN,
    _ON_NO_LIST,
    _HWPOISONED,
    UNKNOWN,
    NO_HUGE_PAGE,
    HOLE,
) = range(len(KINDS))


def huge_page_kinds(hvo: Hvo) -> Int64Array:
    """For each folio of ``hvo.hugetlb``, the index of its kind."""
    found = hvo.hugetlb
    folios = found.folios
    optimized = found.optimized_mapping
    is_free = folios.on_list == FREE_LIST
    is_used = folios.on_list == ACTIVE_LIST
    kinds = np.full(len(folios), UNKNOWN, dtype=np.int64)
    known = folios.present & (optimized | _are_mapped(hvo))
    for kind, which in (
        (_USED_OPTIMIZED, is_used & optimized),
        (_FREE_OPTIMIZED, is_free & optimized),
        (_USED_PLAIN, is_used & ~optimized),
        (_FREE_PLAIN, is_free & ~optimized),
    ):
        kinds[known & which] = kind
    if not hvo.unread_lists:
        # Otherwise it may be on what was not read.
        kinds[folios.present & ~is_free & ~is_used] = _ON_NO_LIST
    poisoned = are_hwpoisoned(hvo)
    if poisoned is not None:
        kinds[poisoned] = _HWPOISONED
    return kinds


def _are_mapped(hvo: Hvo) -> BoolArray:
    """Of which folios it is known how all of their struct pages are mapped."""
    folios = hvo.hugetlb.folios
    if not hvo.vmemmap.has_mappings:
        # What fits into one page of vmemmap has nothing to share.
        return folios.slices < 2
    return (folios.mapped >= folios.slices) | hvo.vmemmap.has_all_mappings

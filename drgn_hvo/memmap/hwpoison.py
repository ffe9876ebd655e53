# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Hardware-poisoned huge pages
----------------------------

A memory failure in a huge page sets ``PG_hwpoison`` of its head, since HVO leaves no
struct page for most tails; which of its pages failed is in a list that begins in the
folio (``struct raw_hwp_page``, :linux:`mm/hugetlb.c` and :linux:`mm/memory-failure.c`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object, offsetof
import numpy as np

from drgn_hvo.kernel.arrays import BoolArray
from drgn_hvo.kernel.shapes import POINTER, fault_of
from drgn_hvo.kernel.unread import why
from drgn_hvo.memmap.hvo import Hvo

__all__ = (
    "HwpoisonedFolio",
    "PG_hwpoison_mask",
    "are_hwpoisoned",
    "hwpoisoned_folios",
    "raw_hwp_pages",
)


@dataclass(frozen=True)
class HwpoisonedFolio:
    """
    A huge page in which memory failed.

    :param raw_pages: PFNs of the pages that failed, ascending; ``None`` if they are
        not known.
    :param unknown: Why they are not known, or may be more.
    """

    head_pfn: int
    order: int
    raw_pages: Optional[tuple[int, ...]]
    unknown: Optional[str] = None


def PG_hwpoison_mask(hvo: Hvo) -> Optional[int]:
    """``1 << PG_hwpoison``; ``None`` if this kernel was built without it."""
    bit = hvo.kernel.constant("PG_hwpoison")
    if bit is None:
        bit = hvo.kernel.vmcoreinfo.number("PG_hwpoison")
    return None if bit is None or not 0 <= bit < 64 else 1 << bit


def are_hwpoisoned(hvo: Hvo) -> Optional[BoolArray]:
    """
    Which folios of ``hvo.hugetlb`` have ``PG_hwpoison``, false for those whose heads
    could not be read; ``None`` if nothing tells the flag.
    """
    mask = PG_hwpoison_mask(hvo)
    folios = hvo.hugetlb.folios
    if mask is None and hvo.kernel.type("enum pageflags") is not None:
        # Built without CONFIG_MEMORY_FAILURE: nothing can be.
        return np.zeros(len(folios), dtype=np.bool_)
    if mask is None:
        return None
    return folios.present & ((folios.flags & np.uint64(mask)) != 0)


def hwpoisoned_folios(hvo: Hvo) -> list[HwpoisonedFolio]:
    """All hardware-poisoned huge pages whose heads could be read, by PFN."""
    which = are_hwpoisoned(hvo)
    if which is None or not which.any():
        return []
    folios = hvo.hugetlb.folios
    return [
        raw_hwp_pages(hvo, int(folios.head_pfn[i]), int(folios.order[i]))
        for i in np.flatnonzero(which).tolist()
    ]


def raw_hwp_pages(hvo: Hvo, head_pfn: int, order: int) -> HwpoisonedFolio:
    """
    The pages of a hardware-poisoned huge page that failed: ``raw_hwp_list_head()`` and
    what hangs on it.
    """
    unknown: Optional[str] = None
    pfns: set[int] = set()
    try:
        first = _first_raw_hwp(hvo, head_pfn)
        if first is None:
            return HwpoisonedFolio(
                head_pfn, order, None, "nothing tells where this kernel lists them"
            )
        unknown = _follow(hvo, first, head_pfn, order, pfns)
    except LookupError:
        unknown = "there are no types of the list"
    except FaultError as e:
        unknown = f"the list is {why(e)}"
    known = tuple(sorted(pfns)) if pfns or unknown is None else None
    return HwpoisonedFolio(head_pfn, order, known, unknown)


def _first_raw_hwp(hvo: Hvo, head_pfn: int) -> Optional[int]:
    """The first entry of the list, 0 if it is empty."""
    kernel = hvo.kernel
    folio, page = kernel.type("struct folio"), kernel.type("struct page")
    if folio is not None and not fault_of(folio, "_hugetlb_hwpoison", POINTER):
        offset = offsetof(folio, "_hugetlb_hwpoison")
    else:
        # SUBPAGE_INDEX_HWPOISON, before v6.2.
        index = kernel.constant("SUBPAGE_INDEX_HWPOISON")
        if index is None or page is None:
            return None
        offset = index * hvo.vmemmap.size + offsetof(page, "private")
    address = hvo.vmemmap.page_address(head_pfn) + offset
    return int(kernel.prog.read_u64(address))


def _follow(
    hvo: Hvo, entry: int, head_pfn: int, order: int, pfns: set[int]
) -> Optional[str]:
    """
    Follow the list, and add the PFNs.

    :return: Why there may be more, if there may.
    """
    prog = hvo.kernel.prog
    # Each page fails once.
    for _ in range(1 << order):
        if not entry:
            return None
        node = Object(prog, "struct raw_hwp_page", address=entry)
        pfn = hvo.vmemmap.page_pfn(node.page.value_())
        if pfn is None or not head_pfn <= pfn < head_pfn + (1 << order):
            return f"the list leads to {node.page.value_():#x}, no page of it"
        pfns.add(pfn)
        entry = node.node.next.value_()
    return "the list has no end" if entry else None

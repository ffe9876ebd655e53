# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Members of folios
-----------------

What a hugetlb folio has in the members of ``struct folio`` behind its head, and which
flags it never has: facts about kernels, as data.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Literal, Optional

__all__ = (
    "MEMBERS",
    "NO_HEAD_FLAGS",
    "OVERLAYS",
    "PAGE_MEMBERS",
    "SUBPAGE_INDICES",
    "USED_HPG_FLAGS",
    "FolioMember",
    "Kind",
    "Verdict",
    "When",
)

#: Which rule decides a field: folio-head, or the rule whose name ends so behind
#: folio-tail-.
Verdict = Literal["head", "mapping", "mapcount", "flags", "refcount", "rest"]

#: When a field is fixed: always, only in a folio on a free list, which nobody uses,
#: only if no memory of the folio has failed, or never: of a pointer, only that it is
#: aligned.
When = Literal["always", "free", "unpoisoned", "never"]

#: What a field holds: a number, the flags of a tail, links that lead to themselves, the
#: number of pages of the folio, or a pointer, which is NULL where it is fixed.
Kind = Literal["number", "flags", "links", "pages", "pointer"]


@dataclass(frozen=True)
class FolioMember:
    """
    What a hugetlb folio has in a member of ``struct folio``.

    :param value: In all of its bytes, as a number.
    :param source: The kernel function that makes it so.
    :param only_with: Type and member of kernels that do so.
    :param not_with: Another member of ``struct folio``, of kernels that need not.
    """

    verdict: Verdict
    kind: Kind
    when: When
    value: int
    source: str
    only_with: Optional[tuple[str, str]] = None
    not_with: Optional[str] = None


_HEAD = "prep_compound_head()"
# A folio that is freed has no mappings and no pins: VM_BUG_ON_FOLIO() there.
_UNUSED = f"{_HEAD}, free_huge_folio(); hugetlb_add_file_rmap() counts mappings"

#: By name.
MEMBERS: dict[str, FolioMember] = {
    "_total_mapcount": FolioMember("mapcount", "number", "free", -1, _UNUSED),
    "_large_mapcount": FolioMember("mapcount", "number", "free", -1, _UNUSED),
    "_entire_mapcount": FolioMember("mapcount", "number", "free", -1, _UNUSED),
    # Of pages that are mapped one by one, which those of hugetlb never are. Since v6.15
    # there is CONFIG_NO_PAGE_MAPCOUNT, which no type shows.
    "_nr_pages_mapped": FolioMember(
        "mapcount", "number", "always", 0, _HEAD, not_with="_mm_ids"
    ),
    "_subpages_mapcount": FolioMember("mapcount", "number", "always", 0, _HEAD),
    "_pincount": FolioMember(
        "rest", "number", "free", 0, f"{_HEAD}; pins of try_grab_folio()"
    ),
    # Since Linux kernel commit 6af8cb80d3a9 ("mm/rmap: basic MM owner tracking for
    # large folios (!hugetlb)") (in v6.15), with CONFIG_MM_ID.
    "_mm_id_mapcount": FolioMember(
        "mapcount",
        "number",
        "always",
        -1,
        _HEAD,
        only_with=("struct mm_struct", "mm_id"),
    ),
    "_mm_ids": FolioMember("rest", "number", "always", 0, _HEAD),
    "_mapcount_1": FolioMember(
        "mapcount", "number", "always", -1, "__init_single_page()"
    ),
    "_refcount_1": FolioMember(
        "refcount", "number", "always", 0, "set_page_count(p, 0)"
    ),
    "_folio_nr_pages": FolioMember("rest", "pages", "always", 0, "folio_set_order()"),
    "_nr_pages": FolioMember("rest", "pages", "always", 0, "folio_set_order()"),
    "_deferred_list": FolioMember("rest", "links", "always", 0, _HEAD),
    "_hugetlb_subpool": FolioMember("rest", "pointer", "free", 0, "free_huge_folio()"),
    "_hugetlb_cgroup": FolioMember(
        "rest", "pointer", "free", 0, "hugetlb_cgroup_uncharge_folio()"
    ),
    "_hugetlb_cgroup_rsvd": FolioMember(
        "rest", "pointer", "free", 0, "hugetlb_cgroup_uncharge_folio_rsvd()"
    ),
    # folio_set_hugetlb_hwpoison() sets PG_hwpoison of the head first.
    "_hugetlb_hwpoison": FolioMember(
        "rest", "pointer", "unpoisoned", 0, "folio_set_hugetlb_hwpoison()"
    ),
}

#: As MEMBERS, of ``struct page`` of the first tail, up to v6.0.
PAGE_MEMBERS: dict[str, FolioMember] = {
    "compound_mapcount": FolioMember("mapcount", "number", "free", -1, _UNUSED),
    "compound_nr": FolioMember("rest", "pages", "always", 0, "set_compound_order()"),
}

#: Other names of bytes that have names already, and those of flags and tail words.
OVERLAYS = re.compile(r"__page_\d|_usable_\d|_flags_\d\w?|_head_\d\w?|__head|_mm_id")

#: The private words of these tails held fields of hugetlb before struct folio named
#: them: include/linux/hugetlb.h up to v6.2.
SUBPAGE_INDICES = (
    "SUBPAGE_INDEX_SUBPOOL",
    "SUBPAGE_INDEX_CGROUP",
    "SUBPAGE_INDEX_CGROUP_RSVD",
    "SUBPAGE_INDEX_HWPOISON",
)


#: Page flags that no hugetlb folio has: it is on no LRU list, is never written back or
#: reclaimed, has no buffers, and mlock_fixup() leaves its mappings alone. Of those that
#: bootmem gave, hugetlb_folio_init_vmemmap() takes the last.
NO_HEAD_FLAGS = (
    "PG_writeback",
    "PG_lru",
    "PG_slab",
    "PG_private",
    "PG_private_2",
    "PG_reclaim",
    "PG_swapbacked",
    "PG_unevictable",
    "PG_dropbehind",
    "PG_mlocked",
    "PG_uncached",
    "PG_reserved",
)

#: HPG_ flags of folios in use: free_huge_folio() clears them, and what is temporary is
#: never put on a free list.
USED_HPG_FLAGS = ("restore_reserve", "migratable", "temporary")

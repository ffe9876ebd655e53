# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where a guest is stopped
------------------------

The kernel's functions that change what an audit looks at, as data, and the page
allocations that are made to fail. Names differ by kernel; the first one that a kernel
has is taken, and compilers leave out what they inline.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("AT_BOOT", "FAILURES", "GIGANTIC", "POOLS", "Stop")

# The page allocator, the outermost first: what a caller was compiled to call.
_ALLOCATORS = (
    "alloc_pages_noprof",
    "alloc_pages",
    "get_free_pages_noprof",
    "__get_free_pages",
    "__alloc_pages_noprof",
    "__alloc_pages",
    "alloc_frozen_pages_noprof",
    "__alloc_frozen_pages_noprof",
    "alloc_pages_node_noprof",
)


@dataclass(frozen=True)
class Stop:
    """
    A function at whose first instruction a guest is stopped, to be stepped through.

    :param names: What kernels call it, the newest first.
    :param reason: What it leaves between two instructions.
    :param dense: How many of the first instructions are audited one by one.
    :param stride: Behind them, one of this many.
    :param most: How many instants there are at most.
    :param inside: If not empty, stop only after one of these functions was called.
    :param order: Only where its second argument, an order, is at least that.
    :param fails: Whether the function returns ``NULL`` at once, and the one that it is
        called inside of is stepped through.
    """

    names: tuple[str, ...]
    reason: str
    dense: int = 40
    stride: int = 7
    most: int = 60
    inside: tuple[str, ...] = ()
    order: int = 0
    fails: bool = False

    @property
    def name(self) -> str:
        """For the table that is printed."""
        return f"{self.inside[0]}, no memory" if self.fails else self.names[0]


_RESTORE = (
    "__hugetlb_vmemmap_restore_folio",
    "hugetlb_vmemmap_restore_folio",
    "hugetlb_vmemmap_restore",
)
_OPTIMIZE = (
    "__hugetlb_vmemmap_optimize_folio",
    "hugetlb_vmemmap_optimize_folio",
    "hugetlb_vmemmap_optimize",
)
_SPLIT = (
    "vmemmap_split_pmd",
    "__split_vmemmap_huge_pmd",
    "split_vmemmap_huge_pmd",
    "vmemmap_pmd_entry",
    "vmemmap_remap_range",
)
_PMD_ORDER = 9
_FREE = ("__free_frozen_pages", "free_frozen_pages", "free_unref_page")
_FREE_TO_BUDDY = (
    "__update_and_free_hugetlb_folio",
    "update_and_free_hugetlb_folio",
    "__update_and_free_page",
    "update_and_free_pages_bulk",
    "__nr_hugepages_store_common",
    "nr_hugepages_store_common",
    "set_max_huge_pages",
)
_PREPARE = (
    "account_new_hugetlb_folio",
    "init_new_hugetlb_folio",
    "__prep_new_hugetlb_folio",
    "prep_new_hugetlb_folio",
    "__prep_new_huge_page",
    "prep_new_huge_page",
    "prep_and_add_allocated_folios",
    "add_hugetlb_folio",
)

#: While pools of 2 MiB pages grow and shrink.
POOLS = (
    Stop(
        ("prep_compound_page",),
        "PG_head, then the tails one by one, then the order",
        dense=24,
        stride=97,
        order=_PMD_ORDER,
    ),
    Stop(
        ("prep_compound_page",),
        "a small compound page of any other user",
        order=1,
    ),
    Stop(
        ("free_pages_prepare", "__free_pages_ok", *_FREE),
        "the order is cleared, then the tails one by one",
        dense=24,
        stride=97,
        order=_PMD_ORDER,
        inside=_FREE_TO_BUDDY,
    ),
    Stop(
        _FREE,
        "a small compound page of any other user",
        order=1,
    ),
    Stop(
        (
            "alloc_buddy_hugetlb_folio",
            "alloc_buddy_huge_page",
            "only_alloc_fresh_hugetlb_folio",
            "alloc_pool_huge_folio",
        ),
        "the way of a page out of the buddy allocator, which becomes compound on it",
        dense=10,
        stride=113,
    ),
    Stop(
        ("vmemmap_remap_pte",),
        "one entry of vmemmap after the other leads to the shared tail page",
        dense=30,
        stride=11,
    ),
    Stop(
        ("vmemmap_restore_pte",),
        "a page is filled with tails, then its entry leads to it",
        dense=30,
        stride=37,
    ),
    Stop(
        _SPLIT,
        "a table of 512 entries is filled, then takes the place of one huge entry",
        dense=16,
        stride=97,
    ),
    Stop(
        _OPTIMIZE,
        "HPG_vmemmap_optimized, then the entries; the head is copied in between",
        dense=20,
        stride=53,
    ),
    Stop(
        _RESTORE,
        "entry after entry is restored, HPG_vmemmap_optimized is cleared last",
        dense=20,
        stride=61,
    ),
    Stop(
        ("enqueue_hugetlb_folio", "enqueue_huge_page"),
        "list, counters and HPG_freed one after the other, under hugetlb_lock",
    ),
    Stop(
        (
            "remove_hugetlb_folio",
            "__remove_hugetlb_folio",
            "remove_hugetlb_page",
            "__remove_hugetlb_page",
            "remove_pool_huge_page",
        ),
        "list, counters and the type one after the other, under hugetlb_lock",
    ),
    Stop(
        _PREPARE,
        "a compound page becomes a huge page: type, node, list",
        stride=31,
    ),
    Stop(
        (
            "dequeue_hugetlb_folio_node_exact",
            "dequeue_hugetlb_folio_nodemask",
            "dequeue_huge_page_node_exact",
            "dequeue_hugetlb_folio_vma",
            "dequeue_huge_page_nodemask",
            "dequeue_huge_page_vma",
        ),
        "from the free list to the active one",
    ),
    Stop(
        ("free_huge_folio", "free_huge_page"),
        "from the active list to the free one, or out of the pool",
        stride=13,
    ),
    Stop(
        ("remove_pool_hugetlb_folio", "remove_pool_huge_page", "adjust_pool_surplus"),
        "a pool shrinks by one: the next node that has a free one",
        stride=13,
    ),
)

#: Allocations that fail while pools grow and shrink.
FAILURES = (
    Stop(
        _ALLOCATORS,
        "no memory for the tails of a folio that is restored: it stays optimized",
        stride=23,
        inside=_RESTORE,
        fails=True,
    ),
    Stop(
        _ALLOCATORS,
        "no memory for a head or a table: a folio is not optimized, or half of it is "
        "restored",
        stride=23,
        inside=_OPTIMIZE,
        fails=True,
    ),
    Stop(
        _ALLOCATORS,
        "no memory for the table of a huge entry of vmemmap: it is not split",
        stride=23,
        inside=_SPLIT,
        fails=True,
    ),
)

#: While a 1 GiB page is demoted to 2 MiB ones.
GIGANTIC = (
    Stop(
        (
            "demote_free_hugetlb_folios",
            "demote_pool_huge_page",
            "demote_pool_hugetlb_folio",
            "demote_free_huge_page",
            "demote_store",
        ),
        "out of one pool, in parts into the other",
        dense=20,
        stride=61,
    ),
    Stop(
        (
            "__destroy_compound_gigantic_folio",
            "destroy_compound_gigantic_folio_for_demote",
            "destroy_compound_hugetlb_folio_for_demote",
            "destroy_compound_gigantic_page_for_demote",
            "__destroy_compound_gigantic_page",
        ),
        "262,143 tails are cleared one by one",
        dense=16,
        stride=97,
    ),
    Stop(
        ("prep_compound_page",),
        "the parts of a 1 GiB page become compound pages, one after the other",
        dense=16,
        stride=97,
    ),
    Stop(_PREPARE, "the parts become huge pages, not counted yet", stride=31),
    Stop(
        ("enqueue_hugetlb_folio", "enqueue_huge_page"),
        "the parts come into their pool",
    ),
)

#: While a kernel boots with a 1 GiB page.
AT_BOOT = (
    Stop(
        (
            "hugetlb_folio_init_tail_vmemmap",
            "__prep_compound_gigantic_folio",
            "prep_compound_gigantic_folio",
            "prep_compound_gigantic_page",
            "__prep_compound_gigantic_page",
        ),
        "tails of a page from memblock, one by one",
        dense=16,
        stride=83,
    ),
    Stop(
        (
            "prep_and_add_bootmem_folios",
            "gather_bootmem_prealloc_node",
            "gather_bootmem_prealloc_parallel",
            "gather_bootmem_prealloc",
        ),
        "huge pages from memblock come into their pool",
        dense=10,
        stride=61,
    ),
    Stop(
        _PREPARE,
        "the first 2 MiB pages, while the kernel boots",
        dense=20,
        stride=31,
    ),
)

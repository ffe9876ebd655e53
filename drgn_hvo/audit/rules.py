# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Rules
-----

What holds in a healthy kernel, as data: the audit, its output and its
documentation all use this table. Rules stand in the order of causes: what breaks a
rule further down may be the consequence of one further up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Optional

from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.layout import Layout

__all__ = (
    "RULES",
    "RULE_BY_ID",
    "Check",
    "Need",
    "Rule",
    "RuleId",
    "SubjectKind",
    "rules_on",
)

#: The names of all rules: mypy refuses any other.
RuleId = Literal[
    "vmemmap-alignment",
    "hstate-identity",
    "section-order",
    "shared-tail-entry",
    "shared-tail-unique",
    "shared-tail-info",
    "shared-tail-mapping",
    "shared-tail-mapcount",
    "shared-tail-flags",
    "shared-tail-refcount",
    "shared-tail-rest",
    "vmemmap-entry-bits",
    "vmemmap-tail-frame",
    "vmemmap-tail-writable",
    "vmemmap-head-frame",
    "folio-head",
    "folio-node",
    "folio-tail-info",
    "folio-tail-mapping",
    "folio-tail-mapcount",
    "folio-tail-flags",
    "folio-tail-refcount",
    "folio-tail-rest",
    "folio-optimized-flag",
    "folio-unoptimized",
    "folio-list",
    "hstate-lists",
    "hstate-counters",
    "hstate-reserve",
    "stray-shared-tail",
    "stray-head",
    "compound-heads",
]

#: The names of what decides rules: each decides one or more of them in one go.
Check = Literal[
    "alignment",
    "hstate-identities",
    "sections",
    "shared-tails",
    "entry-bits",
    "mappings",
    "folio-heads",
    "folio-nodes",
    "pools",
    "reserves",
    "folio-tails",
    "private-tails",
    "stray-heads",
    "compound-heads",
]

#: What a rule is about: one of these holds or breaks it.
SubjectKind = Literal[
    "vmemmap", "section", "slot", "folio", "hstate", "slice", "struct page"
]


# What rules about all folios need: it tells which folios there are.
_FOLIOS = (Need.PAGE_TABLES, Need.NODES, Need.POOLS, Need.LISTS)

# Private tails are read together with the head, in the same page of vmemmap.
_PRIVATE_TAILS = (*_FOLIOS, Need.FOLIO_HEADS)


def _always(_layout: Layout) -> Optional[str]:
    return None


def _with_masks(layout: Layout) -> Optional[str]:
    return None if layout.encoding.has_mask else "tails hold pointers in this kernel"


def _with_shared_tails(layout: Layout) -> Optional[str]:
    if layout.tails.kind == "shared":
        return None
    return "this kernel has no shared tail pages"


def _with_hvo(layout: Layout) -> Optional[str]:
    if layout.tails.kind in ("shared", "fake-head", "first-tail"):
        return None
    return "this kernel was built without HVO"


@dataclass(frozen=True)
class LockExcuse:
    """
    What the holder of hugetlb_lock leaves half done that breaks a rule.

    :param what: What it is, and which code does it in which order.
    :param most: How many times it can be seen at once; 0 if that has no limit.
    """

    what: str
    most: int = 0


@dataclass(frozen=True)
class Rule:
    """
    A rule of the audit.

    :param holds: What holds.
    :param source: The kernel function that makes it so.
    :param applies: Says why it means nothing for a layout, ``None`` if it does.
    :param decide: The checks that decide it, each some part of it.
    :param subject: What it is about.
    :param needs: What has to be read for that, beyond what tells the layout.
    :param severity: Of what breaks it: ``"error"`` or ``"warning"``.
    :param deep: Whether only ``--deep`` checks it.
    :param locked: What is excused, and counted, while hugetlb_lock is held, and not
        decided where nothing tells whether it is; without this, the lock excuses
        nothing.
    :param in_transition: What is excused of pages that the kernel is changing, and
        what damage cannot be told from that.
    """

    id: RuleId
    holds: str
    source: str
    applies: Callable[[Layout], Optional[str]]
    decide: tuple[Check, ...]
    subject: SubjectKind
    needs: tuple[Need, ...]
    severity: str = "error"
    deep: bool = False
    locked: Optional[LockExcuse] = None
    in_transition: str = ""


# Texts of several rules.
_HALF_REMAPPED = (
    "of a huge page that nobody holds, on no list and frozen (in 6.1 with one "
    "reference), the slices with frames of their own, if they are the first ones or "
    "the last ones: HVO is remapping it"
)
_NOT_YET_OR_NO_LONGER = (
    "a head without a type and without an order, or with tails missing, whose tails "
    "are the first ones or the last ones of such a page, or of a piece of a page that "
    "is being split up; PG_head of an order-0 page that is free, which damage set, "
    "looks the same as the first store of prep_compound_page()"
)

RULES = (
    Rule(
        "vmemmap-alignment",
        "the struct page of PFN 0 is aligned to MAX_FOLIO_NR_PAGES * sizeof(struct "
        "page), so that masks work for every order",
        "sparse_init(): VM_WARN_ON_ONCE(), silent on production kernels",
        _with_masks,
        decide=("alignment",),
        subject="vmemmap",
        needs=(),
    ),
    Rule(
        "hstate-identity",
        "order, mask and name of a pool say one size, demote_order is 0 or that of a "
        "smaller pool, hugetlb_max_hstate is how many pools hstates[] has, and every "
        "optimized folio has a pool of its order",
        "hugetlb_add_hstate(), hugetlb_init_hstates(), demote_size_store()",
        _always,
        decide=("hstate-identities",),
        subject="hstate",
        needs=(Need.POOLS, Need.POOL_IDENTITY),
    ),
    Rule(
        "section-order",
        "mem_section.compound_page_order of a section of a device is that of its "
        "compound pages, or 0 if these share no pages of vmemmap; of memory that is "
        "there since boot it is that of a gigantic pool, the same in all sections of "
        "such a page, or 0, and of memory that was added later 0",
        "section_set_compound_order_range(): section_activate(), "
        "hugetlb_vmemmap_optimize_bootmem_page()",
        _always,
        decide=("sections",),
        subject="section",
        needs=(Need.PAGE_TABLES, Need.NODES, Need.POOLS, Need.SECTIONS),
    ),
    Rule(
        "shared-tail-entry",
        "a used slot of vmemmap_tails[] names a RAM frame whose own struct page is an "
        "allocated order-0 kernel page (reference count >= 1, or reserved; untyped, "
        "not free, not poisoned), on any node or zone",
        "vmemmap_get_tail()",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_STRUCT_PAGES),
    ),
    Rule(
        "shared-tail-unique",
        "no frame serves two slots",
        "vmemmap_get_tail(): cmpxchg()",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS),
    ),
    Rule(
        "shared-tail-info",
        "every struct page in a shared tail page holds that order's mask, bit 0 set",
        "init_compound_tail() -> set_compound_head()",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_FRAMES),
    ),
    Rule(
        "shared-tail-mapping",
        "every struct page in a shared tail page has mapping TAIL_MAPPING",
        "init_compound_tail() -> prep_compound_tail()",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_FRAMES),
    ),
    Rule(
        "shared-tail-mapcount",
        "every struct page in a shared tail page has the initial _mapcount: -1, or 0 "
        "where the array is in pglist_data",
        "init_compound_tail()",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_FRAMES),
    ),
    Rule(
        "shared-tail-flags",
        "every struct page in a shared tail page has the node and zone bits of its "
        "owner (none where the array is in pglist_data) and no page flag; last_cpupid "
        "and KASAN bits do not count",
        "init_compound_tail() -> set_page_node(), set_page_zone()",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_FRAMES),
    ),
    Rule(
        "shared-tail-refcount",
        "every struct page in a shared tail page has _refcount 0",
        "vmemmap_get_tail(): __GFP_ZERO",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_FRAMES),
        severity="warning",
    ),
    Rule(
        "shared-tail-rest",
        "all other words of a shared tail page are 0; lru.prev is exempt in those "
        "allocated at boot",
        "vmemmap_get_tail(): __GFP_ZERO",
        _with_shared_tails,
        decide=("shared-tails",),
        subject="slot",
        needs=(Need.NODES, Need.SLOTS, Need.TAIL_STRUCT_PAGES, Need.TAIL_FRAMES),
    ),
    Rule(
        "vmemmap-entry-bits",
        "page table entries of vmemmap have the same bits for user, cache, global and "
        "execute, as most of them have; address, accessed, dirty and write bits have "
        "other rules, or none",
        "vmemmap_populate(), __vmemmap_split_pmd(), vmemmap_remap_pte(): PAGE_KERNEL",
        _with_hvo,
        decide=("entry-bits",),
        subject="slice",
        needs=(Need.PAGE_TABLES,),
    ),
    Rule(
        "vmemmap-tail-frame",
        "slices 1 to n of an optimized folio map the shared tail page of its zone (or "
        "node) and order; before 7.1 its own head frame",
        "vmemmap_remap_pte()",
        _with_hvo,
        decide=("mappings",),
        subject="folio",
        needs=(*_FOLIOS, Need.SLOTS, Need.FOLIO_ZONES),
        in_transition=_HALF_REMAPPED,
    ),
    Rule(
        "vmemmap-tail-writable",
        "those slices are mapped, by base-page entries, read-only",
        "vmemmap_remap_pte(): PAGE_KERNEL_RO",
        _with_hvo,
        decide=("mappings",),
        subject="folio",
        needs=_FOLIOS,
        in_transition="while booting, huge pages of memblock memory that nobody holds: "
        "hugetlb_vmemmap_optimize_bootmem_folios() makes what they share read-only",
    ),
    Rule(
        "vmemmap-head-frame",
        "slice 0 of a folio, and slice 1 where HVO keeps that, too (v5.14 to v5.17), "
        "is mapped writable, and no slice of anything else maps its frame",
        "vmemmap_remap_free()",
        _always,
        decide=("mappings",),
        subject="folio",
        needs=_FOLIOS,
    ),
    Rule(
        "folio-head",
        "the head of a hugetlb folio is naturally aligned, has PG_head, the hugetlb "
        "type and its pool's order, and the next struct page is its tail; it has no "
        "page flag of an LRU or bootmem page, no HPG_ flag that does not exist, has "
        "HPG_cma only in a CMA area, no bits below its type and, on a free list, "
        "nothing of a user",
        "prep_compound_page(), folio_set_order(), __folio_set_hugetlb(), "
        "init_new_hugetlb_folio(), free_huge_folio()",
        _always,
        decide=("folio-heads", "private-tails"),
        subject="folio",
        needs=(*_FOLIOS, Need.FOLIO_HEADS),
        in_transition="before v6.6, the type of a huge page that HVO is remapping",
    ),
    Rule(
        "folio-node",
        "the head of a folio names the node and zone whose range holds it; where zones "
        "interleave, one of those",
        "set_page_links(); zone_spans_pfn()",
        _always,
        decide=("folio-nodes",),
        subject="folio",
        needs=(*_FOLIOS, Need.FOLIO_HEADS, Need.SLOTS),
    ),
    Rule(
        "folio-tail-info",
        "the tails in a folio's own pages of vmemmap resolve to its head",
        "prep_compound_tail()",
        _always,
        decide=("folio-tails",),
        subject="folio",
        needs=(*_FOLIOS, Need.FOLIO_HEADS, Need.FOLIO_TAILS),
    ),
    Rule(
        "folio-tail-mapping",
        "the tails in the page of vmemmap that a folio's head begins have mapping "
        "TAIL_MAPPING, where no field of the folio is",
        "prep_compound_tail()",
        _always,
        decide=("private-tails",),
        subject="folio",
        needs=_PRIVATE_TAILS,
    ),
    Rule(
        "folio-tail-mapcount",
        "those tails have _mapcount -1; the folio's own mapcounts behind its head are "
        "-1 if it is on a free list",
        "__init_single_page(), prep_compound_head(), free_huge_folio()",
        _always,
        decide=("private-tails",),
        subject="folio",
        needs=_PRIVATE_TAILS,
    ),
    Rule(
        "folio-tail-flags",
        "those tails have the node and zone bits of their head and no page flag; the "
        "order in the first one's, last_cpupid and KASAN bits do not count",
        "set_page_links(), free_tail_page_prepare(): PAGE_FLAGS_CHECK_AT_PREP",
        _always,
        decide=("private-tails",),
        subject="folio",
        needs=_PRIVATE_TAILS,
    ),
    Rule(
        "folio-tail-refcount",
        "those tails have _refcount 0",
        "__free_pages_core(), prep_compound_gigantic_folio(): set_page_count(p, 0)",
        _always,
        decide=("private-tails",),
        subject="folio",
        needs=_PRIVATE_TAILS,
    ),
    Rule(
        "folio-tail-rest",
        "those tails have no private word and no memcg; of the folio's fields behind "
        "its head, the number of its pages is right, _deferred_list is empty, pointers "
        "are aligned, and what belongs to a user is 0 if it is on a free list",
        "prep_compound_tail(), prep_compound_head(), folio_set_order(), "
        "free_huge_folio()",
        _always,
        decide=("private-tails",),
        subject="folio",
        needs=_PRIVATE_TAILS,
    ),
    Rule(
        "folio-optimized-flag",
        "HPG_vmemmap_optimized agrees with the page table entries (a folio with "
        "reference count 0 on no list may be in transition)",
        "__hugetlb_vmemmap_optimize_folio()",
        _always,
        decide=("mappings",),
        subject="folio",
        needs=(*_FOLIOS, Need.FOLIO_HEADS),
        in_transition="the flag of such a huge page",
    ),
    Rule(
        "folio-unoptimized",
        "a folio that is not optimized has every page of vmemmap to itself, writable",
        "hugetlb_vmemmap_restore_folio()",
        _always,
        decide=("mappings",),
        subject="folio",
        needs=(*_FOLIOS, Need.FOLIO_HEADS),
    ),
    Rule(
        "folio-list",
        "a folio on a free list has HPG_freed, reference count 0 and that list's node; "
        "one on the active list has no HPG_freed",
        "enqueue_hugetlb_folio(), dequeue_hugetlb_folio_node_exact()",
        _always,
        decide=("pools",),
        subject="folio",
        needs=(Need.NODES, Need.POOLS, Need.LISTS, Need.FOLIO_HEADS, Need.FOLIO_ZONES),
        locked=LockExcuse(
            "HPG_freed: enqueue_hugetlb_folio() sets it behind list_move(), "
            "dequeue_hugetlb_folio() clears it behind",
            most=1,
        ),
    ),
    Rule(
        "hstate-lists",
        "each list of a pool is well formed, and no folio is on two",
        "list_add(), list_move()",
        _always,
        decide=("pools",),
        subject="hstate",
        needs=(Need.NODES, Need.POOLS, Need.LISTS),
        locked=LockExcuse(
            "a link that leads past one entry, or back to another: __list_add() stores "
            "four words, __list_del() two",
            most=1,
        ),
    ),
    Rule(
        "hstate-counters",
        "totals of a pool are the sum of its nodes, the free count is the length of "
        "the free lists, and the total is not below the folios on lists (a warning if "
        "hugetlb_lock is held)",
        "__prep_account_new_huge_page(), enqueue_hugetlb_folio()",
        _always,
        decide=("pools",),
        subject="hstate",
        needs=(Need.NODES, Need.POOLS, Need.LISTS, Need.COUNTERS),
        locked=LockExcuse(
            "a difference of one while a huge page is seen on its way between lists: "
            "enqueue_hugetlb_folio() and remove_hugetlb_folio() store the total and "
            "that of the node behind the links",
            # The free and all huge pages, each in total and of a node.
            most=4,
        ),
    ),
    Rule(
        "hstate-reserve",
        "the huge pages of a pool that are reserved are not less than none, and not "
        "more than are free",
        "hugetlb_acct_memory(), gather_surplus_pages(), alloc_hugetlb_folio()",
        _always,
        decide=("reserves",),
        subject="hstate",
        needs=(Need.POOLS, Need.COUNTERS),
        severity="warning",
        locked=LockExcuse(
            "more reserved than free: dequeue_hugetlb_folio() counts the free ones "
            "down first, gather_surplus_pages() the reserved ones up"
        ),
    ),
    Rule(
        "stray-shared-tail",
        "every slice that maps the shared tail page of a zone and order is slice >= 1 "
        "of an aligned, optimized folio of that zone and order",
        "vmemmap_remap_pte()",
        _with_shared_tails,
        decide=("mappings",),
        subject="slice",
        needs=(*_FOLIOS, Need.SLOTS, Need.FOLIO_ZONES),
    ),
    Rule(
        "stray-head",
        "every struct page with PG_head, where vmemmap was ever split for HVO, is "
        "aligned to its order with its own tail behind it, or is a fake head inside an "
        "optimized folio",
        "prep_compound_page(), reset_struct_pages()",
        _with_hvo,
        decide=("stray-heads",),
        subject="struct page",
        needs=(Need.PAGE_TABLES, Need.SPLIT_STRUCT_PAGES),
        in_transition=_NOT_YET_OR_NO_LONGER,
    ),
    Rule(
        "compound-heads",
        "every initialised tail in all of vmemmap resolves to a head whose order "
        "covers it",
        "prep_compound_tail()",
        _always,
        decide=("compound-heads",),
        subject="struct page",
        needs=(Need.ALL_STRUCT_PAGES,),
        deep=True,
        in_transition="tails of such heads",
    ),
)

#: All rules by name.
RULE_BY_ID = {rule.id: rule for rule in RULES}


def rules_on(subject: SubjectKind) -> tuple[RuleId, ...]:
    """The names of the rules about one kind of subject, in the order of the table."""
    return tuple(rule.id for rule in RULES if rule.subject == subject)

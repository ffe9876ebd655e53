# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is kept of symbols and types
---------------------------------

The names that the commands, and drgn's helpers for memory management, ask for:
``drgn-hvo extract --small`` keeps these. A name that is in :data:`NAMES` and not in
such tables is not in the kernel either; of any other name they tell nothing.
"""

from __future__ import annotations

from drgn_hvo.kernel.variables import VARIABLES

__all__ = (
    "NAMES",
    "OMITTED",
    "TYPES",
)


#: The name of the symbol that stands for all that were cut away behind another.
OMITTED = "drgn_hvo_symbols_omitted"


SYMBOLS = frozenset(VARIABLES) | {
    "__start_BTF",
    "__stop_BTF",
    # The switch of HVO before v5.18, and the static key of fake heads in v5.18.
    "hugetlb_free_vmemmap_enabled",
    "hugetlb_free_vmemmap_enabled_key",
    "mem_section",
    # drgn tells by it whether there is a vmemmap.
    "vmemmap_populate",
}


# Enumerators, each of which is kept with its enumeration.
CONSTANTS = frozenset(
    {
        "HUGETLB_PAGE_DTOR",
        "NR_NODE_STATES",
        "NR_VM_NODE_STAT_ITEMS",
        "NR_VM_ZONE_STAT_ITEMS",
        "N_ONLINE",
        "PGTY_hugetlb",
        "PGTY_slab",
        "PG_dropbehind",
        "PG_has_hwpoisoned",
        "PG_head",
        "PG_hugetlb",
        "PG_hwpoison",
        "PG_large_rmappable",
        "PG_lru",
        "PG_mlocked",
        "PG_private",
        "PG_private_2",
        "PG_reclaim",
        "PG_reserved",
        "PG_slab",
        "PG_swapbacked",
        "PG_uncached",
        "PG_unevictable",
        "PG_vmemmap_self_hosted",
        "PG_writeback",
        "SECTION_MARKED_PRESENT_BIT",
        "SUBPAGE_INDEX_CGROUP",
        "SUBPAGE_INDEX_CGROUP_RSVD",
        "SUBPAGE_INDEX_HWPOISON",
        "SUBPAGE_INDEX_SUBPOOL",
        "SYSTEM_RUNNING",
        "ZONE_DEVICE",
        "__MAX_NR_ZONES",
        "__NR_PAGEFLAGS",
    }
)


#: Tags and typedefs that are kept, with all that they contain; what they only point
#: to becomes a declaration.
TYPES = frozenset(
    {
        "folio",
        "hstate",
        "hugetlb_cgroup",
        "hugetlb_page_flags",
        "list_head",
        "mem_section",
        "mm_struct",
        "node_states",
        "nodemask_t",
        "page",
        "pageflags",
        "pagetype",
        "pglist_data",
        "phys_addr_t",
        "pgprot_t",
        "spinlock_t",
        "static_key_false",
        "system_states",
        "atomic_long_t",
        "s64",
        "u64",
        "zone",
        "zone_type",
    }
)


#: Names whose absence from cut tables is an answer.
NAMES = SYMBOLS | CONSTANTS

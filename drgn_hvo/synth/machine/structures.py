# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Structures of the kernel
------------------------

What C declares in each generation, as far as a reader of hugetlb and vmemmap needs
it: the members are the kernel's (:linux:`include/linux/mm_types.h`,
:linux:`include/linux/mmzone.h`, :linux:`include/linux/hugetlb.h`), what lies between
them is filled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Optional

from drgn_hvo.synth.described.generations import Generation
from drgn_hvo.synth.machine.basic_types import (
    ATOMIC_LONG_T,
    ATOMIC_T,
    LIST_HEAD,
    LLIST_NODE,
    PGD_T,
    PHYS_ADDR_T,
    RAW_HWP_PAGE,
    SPINLOCKS,
    STATIC_KEY_FALSE,
    SUBPAGE_INDEX,
)
from drgn_hvo.synth.machine.ctype import (
    BOOL,
    CHAR,
    INT,
    UINT,
    ULONG,
    USHORT,
    Base,
    Compound,
    CType,
    Enum,
    Typedef,
    array,
    filler,
    pointer,
    struct,
    typedef,
)
from drgn_hvo.synth.machine.folio_types import folio_struct, page_struct

__all__ = ("FIELDS", "Fields", "Structures", "structures")

FREE_AREA_LISTS = {
    "5.15": 5,
    "6.1": 5,
    "6.4": 5,
    "6.6": 5,
    "6.11": 5,
    "6.12": 5,
    "7.2": 6,
}
FREE_AREA_ORDERS = 11
HUGE_MAX_HSTATE = 2
HSTATE_NAME_LEN = 32
UTS_LEN = 65

# The zones of a kernel without CONFIG_HIGHMEM; ZONE_DEVICE is the only option.
ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable", "Device")

_PAGEFLAGS_6_1 = (
    "locked", "referenced", "uptodate", "dirty", "lru", "active", "workingset",
    "waiters", "error", "slab", "owner_priv_1", "arch_1", "reserved", "private",
    "private_2", "writeback", "head", "mappedtodisk", "reclaim", "swapbacked",
    "unevictable", "mlocked", "uncached", "hwpoison",
)  # fmt: skip
# Up to v6.9, where PG_slab became a type of pages.
_PAGEFLAGS_6_6 = (
    "locked", "writeback", "referenced", "uptodate", "dirty", "lru", "head",
    "waiters", "active", "workingset", "error", "slab", "owner_priv_1", "arch_1",
    "reserved", "private", "private_2", "mappedtodisk", "reclaim", "swapbacked",
    "unevictable", "mlocked", "uncached", "hwpoison",
)  # fmt: skip
_PAGEFLAGS_6_11 = tuple(name for name in _PAGEFLAGS_6_6 if name != "slab")
_PAGEFLAGS_6_12 = (
    "locked", "writeback", "referenced", "uptodate", "dirty", "lru", "head",
    "waiters", "active", "workingset", "owner_priv_1", "owner_2", "arch_1",
    "reserved", "private", "private_2", "reclaim", "swapbacked", "unevictable",
    "mlocked", "hwpoison",
)  # fmt: skip
_PAGEFLAGS_7_2 = (*_PAGEFLAGS_6_12[:-2], "dropbehind", "mlocked", "hwpoison")


@dataclass(frozen=True)
class Fields:
    """
    How the kernels of one time shape pages and folios.

    :param page_flags: Names of the bits of ``page->flags`` from bit 0 on.
    :param hugetlb: What makes a folio hugetlb: a ``"destructor"`` in the first tail; a
        ``"flag"`` there since 9c5ccf2db04b ("mm: remove HUGETLB_PAGE_DTOR") (in v6.6);
        a ``"type bit"`` in the head since d99e3140a4d3 ("mm: turn folio_test_hugetlb
        into a PageType") (in v6.10); a ``"type"`` there since v6.12.
    :param order_member: The member of ``struct folio`` that holds its order.
    :param nr_pages_member: The member that holds the number of its pages.
    :param metadata_pages: How many tails hold fields of the folio, so that their
        ``mapping`` is not TAIL_MAPPING.
    :param last_cpupid_bits: Width of that part of ``page->flags``, below the zone.
    """

    page_flags: tuple[str, ...]
    hugetlb: str
    order_member: str
    nr_pages_member: str
    metadata_pages: int
    last_cpupid_bits: int

    @property
    def hugetlb_type(self) -> bool:
        """Whether ``PGTY_hugetlb`` and its like are in the head."""
        return self.hugetlb == "type"

    @property
    def page_types(self) -> dict[str, int]:
        """``page_type`` of those that have one."""
        if self.hugetlb == "type":
            return {name: value << 24 for name, value in PAGE_TYPES.items()}
        if self.hugetlb == "type bit":
            return {name: ~bit & 0xFFFFFFFF for name, bit in PAGE_TYPE_BITS.items()}
        return {"buddy": _BUDDY_MAPCOUNT, "offline": _OFFLINE_MAPCOUNT}


FIELDS: dict[str, Fields] = {
    "5.15": Fields(
        _PAGEFLAGS_6_1, "destructor", "_folio_order", "_folio_nr_pages", 1, 21
    ),
    "6.1": Fields(
        _PAGEFLAGS_6_1, "destructor", "_folio_order", "_folio_nr_pages", 1, 21
    ),
    "6.4": Fields(
        _PAGEFLAGS_6_1, "destructor", "_folio_order", "_folio_nr_pages", 2, 21
    ),
    "6.6": Fields(_PAGEFLAGS_6_6, "flag", "_flags_1", "_folio_nr_pages", 2, 21),
    "6.11": Fields(_PAGEFLAGS_6_11, "type bit", "_flags_1", "_folio_nr_pages", 2, 21),
    "6.12": Fields(_PAGEFLAGS_6_12, "type", "_flags_1", "_folio_nr_pages", 3, 21),
    "7.2": Fields(_PAGEFLAGS_7_2, "type", "_flags_1", "_nr_pages", 3, 21),
}
#: Second names of bits of ``page->flags``, in the first tail, while hugetlb had one.
SECOND_FLAGS = {
    "has_hwpoisoned": "error",
    "hugetlb": "active",
    "large_rmappable": "workingset",
}

#: ``PGTY_*`` of :linux:`include/linux/page-flags.h`, since v6.12.
PAGE_TYPES = {
    "buddy": 0xF0,
    "offline": 0xF1,
    "table": 0xF2,
    "guard": 0xF3,
    "hugetlb": 0xF4,
    "slab": 0xF5,
}
#: ``enum pagetype`` of v6.11: the bit that is clear, of those that all others have set.
PAGE_TYPE_BITS = {
    "buddy": 0x40000000,
    "offline": 0x20000000,
    "table": 0x10000000,
    "guard": 0x08000000,
    "hugetlb": 0x04000000,
    "slab": 0x02000000,
    "zsmalloc": 0x01000000,
}
_PAGE_TYPE_BASE = 0x80000000
# PAGE_TYPE_BASE without PG_buddy and PG_offline, up to v6.9.
_BUDDY_MAPCOUNT = 0xFFFFFF7F
_OFFLINE_MAPCOUNT = 0xFFFFFEFF
#: ``enum compound_dtor_id``, up to v6.5.
COMPOUND_DTORS = {
    "NULL_COMPOUND": 0,
    "COMPOUND_PAGE": 1,
    "HUGETLB_PAGE": 2,
    "TRANSHUGE_PAGE": 3,
}
#: ``enum hugetlb_page_flags``.
HPG_FLAGS = (
    "restore_reserve",
    "migratable",
    "temporary",
    "freed",
    "vmemmap_optimized",
    "raw_hwp_unreliable",
)


@dataclass(frozen=True)
class Structures:
    """
    The types of one generation that others refer to by name.

    :param folio: What the first struct pages hold of a folio; a type of the kernel only
        since v5.16.
    """

    page: Compound
    folio: Compound
    zone: Compound
    pglist_data: Compound
    hstate: Compound
    free_area: Compound
    mem_section: Compound
    mem_section_usage: Compound
    mm_struct: Compound
    uts_namespace: Compound
    nodemask_t: Typedef
    spinlock_t: Optional[Typedef]
    fields: Fields
    all: tuple[CType, ...]

    def page_flag(self, name: str) -> int:
        """``1 << PG_name``; 0 where the kernel has none of that name."""
        flags = self.fields.page_flags
        return 1 << flags.index(name) if name in flags else 0


def _tails_array(generation: Generation) -> CType:
    element = ULONG if generation.element_is_pfn else pointer("struct page")
    if generation.array_is_allocated:
        return pointer(element)
    return array(element, generation.slots)


def _zone(generation: Generation, free_area: Compound, locks: str) -> Compound:
    nr_zones = len(ZONE_NAMES) - (not generation.zone_device)
    members: list[tuple[Optional[str], CType]] = [
        ("_watermark", array(ULONG, 4)),
        ("watermark_boost", ULONG),
        ("nr_reserved_highatomic", ULONG),
        ("lowmem_reserve", array(Base("long int", 8, signed=True), nr_zones)),
        ("node", INT),
        ("zone_pgdat", pointer("struct pglist_data")),
        ("zone_start_pfn", ULONG),
        ("managed_pages", ATOMIC_LONG_T),
        ("spanned_pages", ULONG),
        ("present_pages", ULONG),
        ("name", pointer(CHAR)),
        ("initialized", INT),
        ("free_area", array(free_area, FREE_AREA_ORDERS)),
        ("flags", ULONG),
        ("lock", SPINLOCKS[locks] or filler(1)),
        ("vm_stat", array(ATOMIC_LONG_T, generation.zone_stats)),
    ]
    if generation.array == "zone":
        members.append(("vmemmap_tails", _tails_array(generation)))
    # ____cacheline_internodealigned_in_smp
    return struct("zone", *members, align=64)


def _pglist_data(generation: Generation, zone: Compound) -> Compound:
    nr_zones = len(ZONE_NAMES) - (not generation.zone_device)
    members: list[tuple[Optional[str], CType]] = [
        ("node_zones", array(zone, nr_zones)),
        ("node_zonelists", filler(generation.pgdat_zonelists)),
        ("nr_zones", INT),
        ("node_start_pfn", ULONG),
        ("node_present_pages", ULONG),
        ("node_spanned_pages", ULONG),
        ("node_id", INT),
        ("flags", ULONG),
        ("vm_stat", array(ATOMIC_LONG_T, 40)),
    ]
    if generation.array == "pglist_data":
        members.append(("vmemmap_tails", _tails_array(generation)))
    return struct("pglist_data", *members, align=64)


def _hstate(generation: Generation) -> Compound:
    nodes = generation.max_numnodes
    # Since v5.16.
    demotes = () if generation.fields == "5.15" else (("demote_order", UINT),)
    return struct(
        "hstate",
        ("resize_lock", filler(generation.hstate_lock)),
        ("next_nid_to_alloc", INT),
        ("next_nid_to_free", INT),
        ("order", UINT),
        *demotes,
        ("mask", ULONG),
        ("max_huge_pages", ULONG),
        ("nr_huge_pages", ULONG),
        ("free_huge_pages", ULONG),
        ("resv_huge_pages", ULONG),
        ("surplus_huge_pages", ULONG),
        ("nr_overcommit_huge_pages", ULONG),
        ("hugepage_activelist", LIST_HEAD),
        ("hugepage_freelists", array(LIST_HEAD, nodes)),
        ("max_huge_pages_node", array(UINT, nodes)),
        ("nr_huge_pages_node", array(UINT, nodes)),
        ("free_huge_pages_node", array(UINT, nodes)),
        ("surplus_huge_pages_node", array(UINT, nodes)),
        ("name", array(CHAR, HSTATE_NAME_LEN)),
    )


def _enums(generation: Generation, fields: Fields) -> list[Enum]:
    flags = [(f"PG_{name}", bit) for bit, name in enumerate(fields.page_flags)]
    second: list[tuple[str, int]] = []
    if fields.order_member == "_flags_1" and fields.hugetlb != "type":
        second = [
            (f"PG_{name}", fields.page_flags.index(bit))
            for name, bit in SECOND_FLAGS.items()
            if name != "hugetlb" or fields.hugetlb == "flag"
        ]
    zones = ["DMA", "DMA32", "NORMAL", "MOVABLE", "DEVICE"]
    zones = zones if generation.zone_device else zones[:-1]
    zone_type = [(f"ZONE_{name}", i) for i, name in enumerate(zones)]
    enums = [
        Enum("pageflags", (*flags, ("__NR_PAGEFLAGS", len(flags)), *second)),
        Enum("zone_type", (*zone_type, ("__MAX_NR_ZONES", len(zones)))),
        Enum(
            "node_states",
            (
                ("N_POSSIBLE", 0),
                ("N_ONLINE", 1),
                ("N_NORMAL_MEMORY", 2),
                ("N_HIGH_MEMORY", 2),
                ("N_MEMORY", 3),
                ("N_CPU", 4),
                ("N_GENERIC_INITIATOR", 5),
                ("NR_NODE_STATES", 6),
            ),
        ),
        Enum(
            "hugetlb_page_flags",
            (
                *((f"HPG_{name}", bit) for bit, name in enumerate(HPG_FLAGS)),
                ("__NR_HPAGEFLAGS", len(HPG_FLAGS)),
            ),
        ),
    ]
    if fields.hugetlb_type:
        types = ((f"PGTY_{name}", value) for name, value in PAGE_TYPES.items())
        enums.append(Enum("pagetype", (*types, ("PGTY_mapcount_underflow", 0xFF))))
    elif fields.hugetlb == "type bit":
        bits = ((f"PG_{name}", bit) for name, bit in PAGE_TYPE_BITS.items())
        enums.append(Enum("pagetype", (*bits, ("PAGE_TYPE_BASE", _PAGE_TYPE_BASE))))
    elif fields.hugetlb == "destructor":
        dtors = ((f"{name}_DTOR", value) for name, value in COMPOUND_DTORS.items())
        enums.append(Enum("compound_dtor_id", (*dtors, ("NR_COMPOUND_DTORS", 4))))
        if generation.lists_failed and generation.fields == "6.1":
            enums.append(Enum(None, tuple(SUBPAGE_INDEX.items())))
    return enums


def _mem_section(generation: Generation) -> Compound:
    members: list[tuple[Optional[str], CType]] = [
        ("section_mem_map", ULONG),
        ("usage", pointer("struct mem_section_usage")),
    ]
    if generation.array_is_allocated:
        # SECTION_ROOT_MASK wants a power of two.
        members += [("compound_page_order", UINT), ("pad", ULONG)]
    return struct("mem_section", *members)


def _uts_namespace() -> Compound:
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    utsname = struct("new_utsname", *((n, array(CHAR, UTS_LEN)) for n in names))
    return struct("uts_namespace", ("name", utsname), ("user_ns", pointer()))


@cache
def structures(generation: Generation, locks: str = "queued") -> Structures:
    """
    The types of a generation.

    :param locks: A key of :data:`SPINLOCKS`.
    """
    fields = FIELDS[generation.fields]
    page = page_struct(generation)
    free_list = array(LIST_HEAD, FREE_AREA_LISTS[generation.fields])
    free_area = struct("free_area", ("free_list", free_list), ("nr_free", ULONG))
    zone = _zone(generation, free_area, locks)
    spinlock = SPINLOCKS[locks]
    mask = array(ULONG, generation.max_numnodes // 64)
    nodemask_t = typedef("nodemask_t", struct(None, ("bits", mask)))
    usage = struct(
        "mem_section_usage",
        ("subsection_map", array(ULONG, 1)),
        ("pageblock_flags", array(ULONG, 0)),
    )
    mem_section = _mem_section(generation)
    mm_members: list[tuple[Optional[str], CType]] = [
        ("mm_count", ATOMIC_T),
        ("mm_mt", filler(2)),
        ("task_size", ULONG),
        ("pgd", pointer(PGD_T)),
        ("mm_users", ATOMIC_T),
    ]
    if generation.fields == "7.2":
        mm_members.append(("mm_id", INT))  # CONFIG_MM_ID
    mm_struct = struct("mm_struct", *mm_members)
    hugetlb_cgroup = struct(
        "hugetlb_cgroup", ("css", filler(8)), ("hugepage", filler(HUGE_MAX_HSTATE))
    )
    folio = folio_struct(generation, page)
    hstate = _hstate(generation)
    pglist_data = _pglist_data(generation, zone)
    uts_namespace = _uts_namespace()
    others: tuple[CType, ...] = (
        CHAR,
        USHORT,
        UINT,
        BOOL,
        PHYS_ADDR_T,
        LLIST_NODE,
        *((spinlock,) if spinlock else ()),
        *((RAW_HWP_PAGE,) if generation.lists_failed else ()),
        STATIC_KEY_FALSE,
        hugetlb_cgroup,
        nodemask_t,
        usage,
        mem_section,
        mm_struct,
        uts_namespace,
    )
    return Structures(
        page=page,
        folio=folio,
        zone=zone,
        pglist_data=pglist_data,
        hstate=hstate,
        free_area=free_area,
        mem_section=mem_section,
        mem_section_usage=usage,
        mm_struct=mm_struct,
        uts_namespace=uts_namespace,
        nodemask_t=nodemask_t,
        spinlock_t=spinlock,
        fields=fields,
        all=(
            *others,
            *_enums(generation, fields),
            hstate,
            pglist_data,
            page if generation.fields == "5.15" else folio,
        ),
    )

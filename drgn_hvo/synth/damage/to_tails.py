# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damage to shared tails
----------------------

Words of shared tail pages, and the slots of ``vmemmap_tails[]``: each function makes
the changes of one entry of :data:`~drgn_hvo.synth.damage.faults.FAULTS`, which says
what they are.
"""

from __future__ import annotations

from drgn_hvo.formats.tail_words import set_compound_head
from drgn_hvo.synth.damage.targets import Change, Targets
from drgn_hvo.synth.machine.struct_pages import flags_shifts

__all__ = (
    "boot_overwritten",
    "head_mask",
    "slot_free",
    "slot_out_of_range",
    "slot_pfn_0",
    "slot_wrong",
    "tail_bit_cleared",
    "tail_flag",
    "tail_mapcount",
    "tail_mapping",
    "tail_node",
    "tail_pointer",
    "tail_refcount",
    "tail_rest",
    "tail_wrong_order",
    "tail_zone",
    "two_slots",
)

Changes = list[Change]


def tail_bit_cleared(t: Targets) -> Changes:
    return [t.flip(t.tail_field("tail_word"), 1, "bit 0 of a tail's word")]


def tail_wrong_order(t: Targets) -> Changes:
    g = t.plan.generation
    word = set_compound_head(g.geometry, 0, t.tail().order + 1, True)
    return [t.word(t.tail_field("tail_word"), word, "mask of the next order")]


def tail_pointer(t: Targets) -> Changes:
    if t.plan.generation.shared:
        address = t.tail_field("tail_word")
        head = t.optimized_head()
    else:
        head = t.optimized_head()
        address = t.page_field(head + t.INDEX, "tail_word")
    word = t.plan.space.page_address(head) | 1
    return [t.word(address, word, "a pointer where tails hold masks")]


def head_mask(t: Targets) -> Changes:
    placed = t.any_folio()
    word = set_compound_head(t.plan.generation.geometry, 0, placed.group.order, True)
    address = t.page_field(placed.first_pfn + t.INDEX, "tail_word")
    return [t.word(address, word, "a mask where tails hold pointers")]


def tail_mapping(t: Targets) -> Changes:
    return [t.word(t.tail_field("mapping"), 0, "mapping of a shared tail")]


def tail_mapcount(t: Targets) -> Changes:
    return [t.flip(t.tail_field("_mapcount"), 0x7, "_mapcount of a shared tail", 4)]


def tail_refcount(t: Targets) -> Changes:
    return [t.word(t.tail_field("_refcount"), 1, "_refcount of a shared tail", 4)]


def tail_node(t: Targets) -> Changes:
    node, _, _ = flags_shifts(t.plan)
    return [t.flip(t.tail_field("flags"), 1 << node, "the node of a shared tail")]


def tail_zone(t: Targets) -> Changes:
    _, zone, _ = flags_shifts(t.plan)
    return [t.flip(t.tail_field("flags"), 1 << zone, "the zone of a shared tail")]


def tail_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("dirty")
    return [t.flip(t.tail_field("flags"), bit, "PG_dirty of a shared tail")]


def tail_rest(t: Targets) -> Changes:
    return [t.flip(t.tail_field("index"), 1 << 20, "a bit of index of a shared tail")]


def boot_overwritten(t: Targets) -> Changes:
    """``__init_single_page()`` through the aliases, as in the seed series."""
    tail = t.tail()
    g = t.plan.generation
    zone = t.plan.zone_of(tail.last_alias)
    node_shift, zone_shift, _ = flags_shifts(t.plan)
    page = bytearray()
    for i in range(g.geometry.pages_per_slice):
        one = bytearray(t.size)
        lru = t.packed(t.lru(tail.last_alias + i), 8)
        at = t.page.offset("lru")
        one[at : at + 16] = lru * 2
        flags = zone.nid << node_shift | zone.index << zone_shift
        one[0:8] = t.packed(flags, 8)
        at = t.page.offset("_mapcount")
        one[at : at + 8] = t.packed(0xFFFFFFFF, 4) + t.packed(1, 4)
        page += one
    what = "every tail of a shared page, by memmap_init()"
    return [Change(tail.pfn * t.plan.page_size, bytes(page), what)]


def _slot(t: Targets, pfn: int, what: str) -> Changes:
    return [t.word(t.slot(), t.slot_value(pfn), what)]


def slot_wrong(t: Targets) -> Changes:
    return _slot(t, t.kernel_frame(), "the slot names a frame of other data")


def slot_free(t: Targets) -> Changes:
    return _slot(t, t.free_frame(), "the slot names a free page")


def slot_out_of_range(t: Targets) -> Changes:
    pfn = t.plan.max_pfn + (1 << 20)
    return _slot(t, pfn, "the slot names a page beyond memory")


def slot_pfn_0(t: Targets) -> Changes:
    return _slot(t, 0, "the slot names PFN 0")


def two_slots(t: Targets) -> Changes:
    tail = t.tail()
    g = t.plan.generation
    # The last slot has one in front of it only.
    other = tail.order + (1 if tail.order < g.min_order + g.slots - 1 else -1)
    address = t.slot(other)
    return [t.word(address, t.slot_value(tail.pfn), "the slot of the next order")]

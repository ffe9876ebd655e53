# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damage to folios
----------------

Words of heads and of private tails: each function makes the changes
of one entry of :data:`~drgn_hvo.synth.damage.faults.FAULTS`, which says what they are.
"""

from __future__ import annotations

from drgn_hvo.formats.tail_words import set_compound_head
from drgn_hvo.synth.damage.targets import Change, Targets
from drgn_hvo.synth.machine.struct_pages import flags_shifts
from drgn_hvo.synth.machine.structures import HPG_FLAGS

__all__ = (
    "fake_heads_left",
    "flag_only",
    "head_flag",
    "head_node",
    "head_type",
    "head_zone",
    "hpg_unknown",
    "mapping_only",
    "no_PG_head",
    "not_freed",
    "private_flag",
    "private_mapcount",
    "private_mapping",
    "private_node",
    "private_refcount",
    "private_rest",
    "private_tail",
    "second_flag",
    "second_mapcount",
    "second_mapping",
    "second_refcount",
    "second_tail",
    "slab_tail",
    "stray_head",
    "wrong_nr_pages",
    "wrong_order",
)

Changes = list[Change]


def no_PG_head(t: Targets) -> Changes:
    pfn = t.any_folio().first_pfn
    bit = t.plan.structures.page_flag("head")
    return [t.flip(t.page_field(pfn, "flags"), bit, "PG_head of a folio")]


def head_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("lru")
    address = t.page_field(t.any_folio().first_pfn, "flags")
    return [t.flip(address, bit, "PG_lru of a folio")]


def hpg_unknown(t: Targets) -> Changes:
    address = t.page_field(t.any_folio().first_pfn, "private")
    bit = 1 << len(HPG_FLAGS)
    return [t.flip(address, bit, "an HPG_ flag that does not exist")]


def head_type(t: Targets) -> Changes:
    address = t.page_field(t.any_folio().first_pfn, "_mapcount")
    return [t.flip(address, 1 << 4, "a low bit of the type of a folio", 4)]


def wrong_order(t: Targets) -> Changes:
    pfn = t.any_folio().first_pfn
    folio = t.plan.structures.folio
    where = folio.offset(t.plan.structures.fields.order_member)
    address = t.machine.page_physical(pfn + 1) + where - t.size
    if t.plan.order == ">":
        # The order is the lowest byte of its member.
        _, member = folio.find(t.plan.structures.fields.order_member)
        address += member.size - 1
    return [t.flip(address, 1, "the order in the first tail of a folio", 1)]


def head_node(t: Targets) -> Changes:
    node, _, _ = flags_shifts(t.plan)
    address = t.page_field(t.any_folio().first_pfn, "flags")
    return [t.flip(address, 1 << node, "the node of a head")]


def head_zone(t: Targets) -> Changes:
    _, zone, _ = flags_shifts(t.plan)
    address = t.page_field(t.any_folio().first_pfn, "flags")
    return [t.flip(address, 1 << zone, "the zone of a head")]


def private_tail(t: Targets) -> Changes:
    placed = t.any_folio()
    g = t.plan.generation
    pfn = placed.first_pfn + t.INDEX
    elsewhere = t.plan.space.page_address(placed.first_pfn - (1 << placed.group.order))
    word = set_compound_head(g.geometry, elsewhere, 3, g.has_mask)
    return [t.word(t.page_field(pfn, "tail_word"), word, "word of a folio's own tail")]


def _private_field(t: Targets, member: str, index: int = Targets.INDEX) -> int:
    """A field of a struct page in the page of vmemmap of a folio's head."""
    return t.page_field(t.any_folio().first_pfn + index, member)


def private_mapping(t: Targets) -> Changes:
    return [t.word(_private_field(t, "mapping"), 0, "mapping of a folio's own tail")]


def private_mapcount(t: Targets) -> Changes:
    address = _private_field(t, "_mapcount")
    return [t.flip(address, 0x7, "_mapcount of a folio's own tail", 4)]


def private_refcount(t: Targets) -> Changes:
    """What a stray ``get_page()`` does."""
    address = _private_field(t, "_refcount", 1)
    return [t.word(address, 1, "_refcount of a folio's first tail", 4)]


def private_node(t: Targets) -> Changes:
    node, _, _ = flags_shifts(t.plan)
    address = _private_field(t, "flags")
    return [t.flip(address, 1 << node, "the node of a folio's own tail")]


def private_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("dirty")
    address = _private_field(t, "flags")
    return [t.flip(address, bit, "PG_dirty of a folio's own tail")]


def private_rest(t: Targets) -> Changes:
    address = _private_field(t, "private")
    return [t.flip(address, 1 << 20, "a bit of private of a folio's own tail")]


# The second page of those that have two to themselves.


def _second_field(t: Targets, member: str) -> int:
    pfn = t.optimized_head() + t.plan.generation.geometry.pages_per_slice + t.INDEX
    return t.page_field(pfn, member)


def second_tail(t: Targets) -> Changes:
    head = t.optimized_head()
    order = t.optimized().placed.group.order
    word = t.plan.space.page_address(head - (1 << order)) | 1
    address = _second_field(t, "tail_word")
    return [t.word(address, word, "word of a tail in a folio's second page")]


def second_mapping(t: Targets) -> Changes:
    address = _second_field(t, "mapping")
    return [t.word(address, 0, "mapping of a tail in a folio's second page")]


def second_mapcount(t: Targets) -> Changes:
    address = _second_field(t, "_mapcount")
    return [t.flip(address, 0x7, "_mapcount of a tail in a folio's second page", 4)]


def second_refcount(t: Targets) -> Changes:
    address = _second_field(t, "_refcount")
    return [t.word(address, 1, "_refcount of a tail in a folio's second page", 4)]


def second_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("dirty")
    address = _second_field(t, "flags")
    return [t.flip(address, bit, "PG_dirty of a tail in a folio's second page")]


def wrong_nr_pages(t: Targets) -> Changes:
    folio = t.plan.structures.folio
    where = folio.offset(t.plan.structures.fields.nr_pages_member)
    head = t.machine.page_physical(t.any_folio().first_pfn)
    return [t.flip(head + where, 1 << 3, "the number of pages of a folio", 4)]


def _hpg_optimized(t: Targets, pfn: int) -> Changes:
    bit = 1 << HPG_FLAGS.index("vmemmap_optimized")
    address = t.page_field(pfn, "private")
    return [t.flip(address, bit, "HPG_vmemmap_optimized of a folio")]


def not_freed(t: Targets) -> Changes:
    """What enqueue_hugetlb_folio() sets behind list_move()."""
    placed, _ = t.free_list()
    bit = 1 << HPG_FLAGS.index("freed")
    address = t.page_field(placed.first_pfn, "private")
    return [t.flip(address, bit, "HPG_freed of a folio on a free list")]


def slab_tail(t: Targets) -> Changes:
    """In a compound page that is no huge page, so that only all of vmemmap shows it."""
    pfn = t.slab().first_pfn
    g = t.plan.generation
    elsewhere = t.plan.space.page_address(t.kernel_frame())
    # The mask of the first order by which it is no part of its slab.
    order = next(order for order in range(64) if pfn >> order << order != pfn)
    word = set_compound_head(g.geometry, elsewhere, order, g.has_mask)
    return [t.word(t.page_field(pfn + 3, "tail_word"), word, "word of a slab's tail")]


def flag_only(t: Targets) -> Changes:
    return _hpg_optimized(t, t.unoptimized().first_pfn)


def mapping_only(t: Targets) -> Changes:
    return _hpg_optimized(t, t.optimized_head())


def fake_heads_left(t: Targets) -> Changes:
    """What restoring left on 6.12.115: copies of the head in all frames."""
    placed = t.restored()
    head = t.machine.page_physical(placed.first_pfn)
    per_slice = t.plan.generation.geometry.pages_per_slice
    copy = t.machine.image.read(head, 3 * t.size)
    return [
        Change(t.machine.page_physical(pfn), copy, "first struct pages of a slice")
        for pfn in range(
            placed.first_pfn + per_slice,
            placed.first_pfn + (1 << placed.group.order),
            per_slice,
        )
    ]


def stray_head(t: Targets) -> Changes:
    """PG_head on a page that no compound page begins with."""
    pfn = t.order_0_slice() + 1
    bit = t.plan.structures.page_flag("head")
    return [t.flip(t.page_field(pfn, "flags"), bit, "PG_head of an order-0 page")]

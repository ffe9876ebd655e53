# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Faults
------

Damage by name: what is changed in an otherwise healthy machine, and which rule of
the audit should notice it first. A fault exists for every generation in which it
makes sense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Optional

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.tail_words import set_compound_head
from drgn_hvo.synth.damage.targets import Change, Targets
from drgn_hvo.synth.described.description import Description
from drgn_hvo.synth.described.generations import Generation
from drgn_hvo.synth.machine.machine import Machine, build_machine
from drgn_hvo.synth.machine.struct_pages import flags_shifts
from drgn_hvo.synth.machine.structures import HPG_FLAGS

__all__ = ("FAULTS", "AppliedFault", "Fault", "make_machine")

Changes = list[Change]


def _misaligned_by(g: Generation) -> int:
    """How much too high vmemmap is, so that the two largest orders' masks fail."""
    return g.struct_page_size << g.max_order - 2


def _hvo(g: Generation) -> bool:
    return g.can_optimize


def _shared(g: Generation) -> bool:
    return g.can_optimize and g.shared


def _fake(g: Generation) -> bool:
    return g.can_optimize and g.fake_heads


def _pointer(g: Generation) -> bool:
    return not g.has_mask


def _mask(g: Generation) -> bool:
    return g.has_mask


def _any(_: Generation) -> bool:
    return True


@dataclass(frozen=True)
class Fault:
    """
    Damage with a name.

    :param what: What is changed.
    :param rule: The rule that should notice first; ``None`` if none can, because
        something is not in the dump.
    :param possible: In which generations it makes sense.
    :param find: The changes for a machine; raises :exc:`UsageError` if the machine
        has nothing to change.
    :param consequences: Rules that break because of it.
    """

    name: str
    what: str
    rule: Optional[str]
    possible: Callable[[Generation], bool]
    find: Callable[[Targets], Changes]
    consequences: tuple[str, ...] = ()


@dataclass(frozen=True)
class AppliedFault:
    """A fault in a machine: addresses, and the bytes before and after."""

    fault: Fault
    changes: tuple[tuple[Change, bytes], ...]


# Shared tails.


def _tail_bit_cleared(t: Targets) -> Changes:
    return [t.flip(t.tail_field("tail_word"), 1, "bit 0 of a tail's word")]


def _tail_wrong_order(t: Targets) -> Changes:
    g = t.plan.generation
    word = set_compound_head(g.geometry, 0, t.tail().order + 1, True)
    return [t.word(t.tail_field("tail_word"), word, "mask of the next order")]


def _tail_pointer(t: Targets) -> Changes:
    if t.plan.generation.shared:
        address = t.tail_field("tail_word")
        head = t.optimized_head()
    else:
        head = t.optimized_head()
        address = t.page_field(head + t.INDEX, "tail_word")
    word = t.plan.space.page_address(head) | 1
    return [t.word(address, word, "a pointer where tails hold masks")]


def _head_mask(t: Targets) -> Changes:
    placed = t.any_folio()
    word = set_compound_head(t.plan.generation.geometry, 0, placed.group.order, True)
    address = t.page_field(placed.first_pfn + t.INDEX, "tail_word")
    return [t.word(address, word, "a mask where tails hold pointers")]


def _tail_mapping(t: Targets) -> Changes:
    return [t.word(t.tail_field("mapping"), 0, "mapping of a shared tail")]


def _tail_mapcount(t: Targets) -> Changes:
    return [t.flip(t.tail_field("_mapcount"), 0x7, "_mapcount of a shared tail", 4)]


def _tail_refcount(t: Targets) -> Changes:
    return [t.word(t.tail_field("_refcount"), 1, "_refcount of a shared tail", 4)]


def _tail_node(t: Targets) -> Changes:
    node, _, _ = flags_shifts(t.plan)
    return [t.flip(t.tail_field("flags"), 1 << node, "the node of a shared tail")]


def _tail_zone(t: Targets) -> Changes:
    _, zone, _ = flags_shifts(t.plan)
    return [t.flip(t.tail_field("flags"), 1 << zone, "the zone of a shared tail")]


def _tail_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("dirty")
    return [t.flip(t.tail_field("flags"), bit, "PG_dirty of a shared tail")]


def _tail_rest(t: Targets) -> Changes:
    return [t.flip(t.tail_field("index"), 1 << 20, "a bit of index of a shared tail")]


def _boot_overwritten(t: Targets) -> Changes:
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


def _slot_wrong(t: Targets) -> Changes:
    return _slot(t, t.kernel_frame(), "the slot names a frame of other data")


def _slot_free(t: Targets) -> Changes:
    return _slot(t, t.free_frame(), "the slot names a free page")


def _slot_out_of_range(t: Targets) -> Changes:
    pfn = t.plan.max_pfn + (1 << 20)
    return _slot(t, pfn, "the slot names a page beyond memory")


def _slot_pfn_0(t: Targets) -> Changes:
    return _slot(t, 0, "the slot names PFN 0")


def _two_slots(t: Targets) -> Changes:
    tail = t.tail()
    g = t.plan.generation
    # The last slot has one in front of it only.
    other = tail.order + (1 if tail.order < g.min_order + g.slots - 1 else -1)
    address = t.slot(other)
    return [t.word(address, t.slot_value(tail.pfn), "the slot of the next order")]


# Page tables.


def _pte_foreign(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 3)
    value = t.page_table.with_frame(t.read_entry(entry), 0, t.kernel_frame())
    return [t.entry(entry, value, "entry of slice 3 of a folio")]


def _pte_writable(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 3)
    if t.page_table.tails_are_writable:
        architecture = t.plan.description.architecture
        raise UsageError(f"shared tails are writable on {architecture} anyway")
    value = t.page_table.with_write(t.read_entry(entry), 0, allowed=True)
    return [t.entry(entry, value, "writable bit of slice 3 of a folio")]


def _pte_none(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 3)
    empty = t.page_table.protections.empty
    return [t.entry(entry, empty[0] if empty else 0, "entry of slice 3 of a folio")]


def _entry_bits(t: Targets) -> Changes:
    """Such as the bit for user mode."""
    entry, page_table = t.machine.slice_entry(t.optimized_head(), 3), t.page_table
    shared = page_table.shared_bits(0, is_mapping=True)
    shared &= ~page_table.protections.kernel
    for form in page_table.levels[0].present:
        shared &= ~form.mask
    value = t.read_entry(entry) ^ (shared & -shared)
    return [t.entry(entry, value, "a bit of the entry of slice 3 of a folio")]


def _head_shared(t: Targets) -> Changes:
    one = t.machine.slice_entry(t.optimized_head(0))
    two = t.machine.slice_entry(t.optimized_head(1))
    return [t.entry(two, t.read_entry(one), "entry of slice 0 of a folio")]


def _head_read_only(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head())
    value = t.page_table.with_write(t.read_entry(entry), 0, allowed=False)
    return [t.entry(entry, value, "writable bit of slice 0 of a folio")]


def _stray(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.order_0_slice())
    value = t.read_entry(t.machine.slice_entry(t.optimized_head(), 1))
    return [t.entry(entry, value, "entry of a slice of order-0 pages")]


# Folios.


def _no_PG_head(t: Targets) -> Changes:
    pfn = t.any_folio().first_pfn
    bit = t.plan.structures.page_flag("head")
    return [t.flip(t.page_field(pfn, "flags"), bit, "PG_head of a folio")]


def _head_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("lru")
    address = t.page_field(t.any_folio().first_pfn, "flags")
    return [t.flip(address, bit, "PG_lru of a folio")]


def _hpg_unknown(t: Targets) -> Changes:
    address = t.page_field(t.any_folio().first_pfn, "private")
    bit = 1 << len(HPG_FLAGS)
    return [t.flip(address, bit, "an HPG_ flag that does not exist")]


def _head_type(t: Targets) -> Changes:
    address = t.page_field(t.any_folio().first_pfn, "_mapcount")
    return [t.flip(address, 1 << 4, "a low bit of the type of a folio", 4)]


def _wrong_order(t: Targets) -> Changes:
    pfn = t.any_folio().first_pfn
    folio = t.plan.structures.folio
    where = folio.offset(t.plan.structures.fields.order_member)
    address = t.machine.page_physical(pfn + 1) + where - t.size
    if t.plan.order == ">":
        # The order is the lowest byte of its member.
        _, member = folio.find(t.plan.structures.fields.order_member)
        address += member.size - 1
    return [t.flip(address, 1, "the order in the first tail of a folio", 1)]


def _head_node(t: Targets) -> Changes:
    node, _, _ = flags_shifts(t.plan)
    address = t.page_field(t.any_folio().first_pfn, "flags")
    return [t.flip(address, 1 << node, "the node of a head")]


def _head_zone(t: Targets) -> Changes:
    _, zone, _ = flags_shifts(t.plan)
    address = t.page_field(t.any_folio().first_pfn, "flags")
    return [t.flip(address, 1 << zone, "the zone of a head")]


def _private_tail(t: Targets) -> Changes:
    placed = t.any_folio()
    g = t.plan.generation
    pfn = placed.first_pfn + t.INDEX
    elsewhere = t.plan.space.page_address(placed.first_pfn - (1 << placed.group.order))
    word = set_compound_head(g.geometry, elsewhere, 3, g.has_mask)
    return [t.word(t.page_field(pfn, "tail_word"), word, "word of a folio's own tail")]


def _private_field(t: Targets, member: str, index: int = Targets.INDEX) -> int:
    """A field of a struct page in the page of vmemmap of a folio's head."""
    return t.page_field(t.any_folio().first_pfn + index, member)


def _private_mapping(t: Targets) -> Changes:
    return [t.word(_private_field(t, "mapping"), 0, "mapping of a folio's own tail")]


def _private_mapcount(t: Targets) -> Changes:
    address = _private_field(t, "_mapcount")
    return [t.flip(address, 0x7, "_mapcount of a folio's own tail", 4)]


def _private_refcount(t: Targets) -> Changes:
    """What a stray ``get_page()`` does."""
    address = _private_field(t, "_refcount", 1)
    return [t.word(address, 1, "_refcount of a folio's first tail", 4)]


def _private_node(t: Targets) -> Changes:
    node, _, _ = flags_shifts(t.plan)
    address = _private_field(t, "flags")
    return [t.flip(address, 1 << node, "the node of a folio's own tail")]


def _private_flag(t: Targets) -> Changes:
    bit = t.plan.structures.page_flag("dirty")
    address = _private_field(t, "flags")
    return [t.flip(address, bit, "PG_dirty of a folio's own tail")]


def _private_rest(t: Targets) -> Changes:
    address = _private_field(t, "private")
    return [t.flip(address, 1 << 20, "a bit of private of a folio's own tail")]


def _wrong_nr_pages(t: Targets) -> Changes:
    folio = t.plan.structures.folio
    where = folio.offset(t.plan.structures.fields.nr_pages_member)
    head = t.machine.page_physical(t.any_folio().first_pfn)
    return [t.flip(head + where, 1 << 3, "the number of pages of a folio", 4)]


def _hpg_optimized(t: Targets, pfn: int) -> Changes:
    bit = 1 << HPG_FLAGS.index("vmemmap_optimized")
    address = t.page_field(pfn, "private")
    return [t.flip(address, bit, "HPG_vmemmap_optimized of a folio")]


def _flag_only(t: Targets) -> Changes:
    return _hpg_optimized(t, t.unoptimized().first_pfn)


def _mapping_only(t: Targets) -> Changes:
    return _hpg_optimized(t, t.optimized_head())


def _fake_heads_left(t: Targets) -> Changes:
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


def _stray_head(t: Targets) -> Changes:
    """PG_head on a page that no compound page begins with."""
    pfn = t.order_0_slice() + 1
    bit = t.plan.structures.page_flag("head")
    return [t.flip(t.page_field(pfn, "flags"), bit, "PG_head of an order-0 page")]


# Lists and counters.


def _list_next(t: Targets, following: Callable[[int], int], what: str) -> Changes:
    placed, _ = t.free_list()
    second = placed.heads()[1]
    return [t.word(t.page_field(second, "lru"), following(placed.first_pfn), what)]


def _list_loop(t: Targets) -> Changes:
    return _list_next(t, t.lru, "lru.next of the second folio: the first one")


def _list_bad(t: Targets) -> Changes:
    bad = 0x4141414141414140
    return _list_next(t, lambda _: bad, "lru.next of the second folio: no address")


def _two_lists(t: Targets) -> Changes:
    placed, _ = t.free_list()
    head = t.hstate(placed.group.order, "hugepage_activelist")
    what = "the active list begins with a free folio"
    return [t.word(head, t.lru(placed.first_pfn), what)]


def _counter_total(t: Targets) -> Changes:
    address = t.hstate(t.any_folio().group.order, "nr_huge_pages")
    return [t.word(address, t.read(address) + 1, "nr_huge_pages")]


def _counter_free(t: Targets) -> Changes:
    address = t.hstate(t.any_folio().group.order, "free_huge_pages")
    return [t.word(address, t.read(address) + 1, "free_huge_pages")]


def _hstate_field(t: Targets, member: str) -> int:
    return t.hstate(t.any_folio().group.order, member)


def _hstate_order(t: Targets) -> Changes:
    address = _hstate_field(t, "order")
    return [t.flip(address, 1 << 2, "order of a pool", 4)]


def _hstate_mask(t: Targets) -> Changes:
    return [t.flip(_hstate_field(t, "mask"), 1 << 21, "mask of a pool")]


def _hstate_name(t: Targets) -> Changes:
    address = _hstate_field(t, "name") + len("hugepages-")
    return [t.flip(address, 1 << 2, "name of a pool", 1)]


def _hstate_demotion(t: Targets) -> Changes:
    address = _hstate_field(t, "demote_order")
    return [t.flip(address, 1 << 1, "demote_order of a pool", 4)]


def _max_hstate(t: Targets) -> Changes:
    address = t.machine.kernel.physical("hugetlb_max_hstate")
    return [t.word(address, 0, "hugetlb_max_hstate", 4)]


def _reserve(t: Targets) -> Changes:
    address = _hstate_field(t, "resv_huge_pages")
    return [t.word(address, -1, "resv_huge_pages of a pool")]


# The dump.


def _nothing(_: Targets) -> Changes:
    return []


def _page_missing(t: Targets) -> Changes:
    t.machine.image.missing.add(t.machine.page_physical(t.any_folio().first_pfn) >> 12)
    return []


FAULTS: tuple[Fault, ...] = (
    Fault("tail-bit-cleared", "bit 0 of one shared tail is clear",
          "shared-tail-info", _shared, _tail_bit_cleared),
    Fault("tail-wrong-order", "one shared tail has the mask of another order",
          "shared-tail-info", _shared, _tail_wrong_order),
    Fault("tail-pointer", "one tail among masks holds a pointer",
          "shared-tail-info", _shared, _tail_pointer),
    Fault("private-tail-pointer", "one private tail among masks holds a pointer",
          "folio-tail-info", lambda g: _mask(g) and _fake(g), _tail_pointer),
    Fault("tail-mask", "one tail among pointers holds a mask",
          "folio-tail-info", _pointer, _head_mask,
          ("compound-heads",)),
    Fault("tail-mapping", "mapping of one shared tail is not TAIL_MAPPING",
          "shared-tail-mapping", _shared, _tail_mapping),
    Fault("tail-mapcount", "_mapcount of one shared tail is not the initial one",
          "shared-tail-mapcount", _shared, _tail_mapcount),
    Fault("tail-refcount", "_refcount of one shared tail is not 0",
          "shared-tail-refcount", _shared, _tail_refcount),
    Fault("tail-node", "one shared tail has the bits of another node",
          "shared-tail-flags", _shared, _tail_node),
    Fault("tail-zone", "one shared tail has the bits of another zone",
          "shared-tail-flags", _shared, _tail_zone),
    Fault("tail-page-flag", "one shared tail has a page flag",
          "shared-tail-flags", _shared, _tail_flag),
    Fault("tail-rest", "a bit is set in a word of a shared tail that must be 0",
          "shared-tail-rest", _shared, _tail_rest),
    Fault("boot-tail-overwritten", "memmap_init() wrote over a shared page of tails",
          "shared-tail-info", lambda g: _shared(g) and not g.tail_has_zone,
          _boot_overwritten,
          ("shared-tail-mapping", "shared-tail-flags", "shared-tail-refcount")),
    Fault("slot-wrong-frame", "a slot names a frame that holds other data",
          "shared-tail-entry", _shared, _slot_wrong,
          ("vmemmap-tail-frame", "shared-tail-info")),
    Fault("slot-free-frame", "a slot names a free page",
          "shared-tail-entry", _shared, _slot_free,
          ("shared-tail-info", "vmemmap-tail-frame")),
    Fault("slot-out-of-range", "a slot names a page beyond memory",
          "shared-tail-entry", _shared, _slot_out_of_range, ("vmemmap-tail-frame",)),
    Fault("slot-empty", "a slot holds PFN 0, which means empty, but folios use it",
          "vmemmap-tail-frame", lambda g: _shared(g) and g.element_is_pfn,
          _slot_pfn_0),
    Fault("slot-pfn-0", "a slot names the struct page of PFN 0",
          "shared-tail-entry", lambda g: _shared(g) and not g.element_is_pfn,
          _slot_pfn_0, ("vmemmap-tail-frame", "shared-tail-info")),
    Fault("two-slots", "two slots name one frame",
          "shared-tail-unique", _shared, _two_slots,
          ("shared-tail-info", "stray-shared-tail")),
    Fault("pte-foreign-frame", "a slice of a folio maps a frame of other data",
          "vmemmap-tail-frame", _hvo, _pte_foreign),
    Fault("pte-writable", "a slice of a folio that shares its frame is writable",
          "vmemmap-tail-writable", _hvo, _pte_writable),
    Fault("pte-bits", "a slice of a folio has other bits than its siblings",
          "vmemmap-entry-bits", _hvo, _entry_bits),
    Fault("pte-none", "a slice of a folio is not mapped",
          "vmemmap-tail-writable", _hvo, _pte_none, ("vmemmap-tail-frame",)),
    Fault("head-frame-shared", "two folios have one frame for their heads",
          "vmemmap-head-frame", _hvo, _head_shared,
          ("folio-tail-info", "hstate-lists", "vmemmap-tail-frame")),
    Fault("head-read-only", "the first slice of a folio is read-only",
          "vmemmap-head-frame", _hvo, _head_read_only),
    Fault("stray-shared-tail", "a slice of order-0 pages maps a shared page of tails",
          "stray-shared-tail", _shared, _stray,
          ("compound-heads",)),
    Fault("stray-fake-head", "a slice of order-0 pages maps the head of a folio",
          "vmemmap-head-frame", _fake, _stray, ("stray-head",)),
    Fault("head-without-PG_head", "the head of a folio has no PG_head",
          "folio-head", _any, _no_PG_head,
          ("compound-heads",)),
    Fault("head-with-PG_lru", "the head of a folio has PG_lru",
          "folio-head", _any, _head_flag),
    Fault("head-HPG-flag", "the head of a folio has an HPG_ flag that does not exist",
          "folio-head", _any, _hpg_unknown),
    Fault("head-type-bit", "a bit below the type of a head is wrong",
          "folio-head", _any, _head_type),
    Fault("folio-wrong-order", "a folio says that it is of another order",
          "folio-head", _any, _wrong_order,
          ("compound-heads",)),
    Fault("head-node", "the head of a folio names another node",
          "folio-node", _any, _head_node),
    Fault("head-zone", "the head of a folio names another zone",
          "folio-node", _any, _head_zone),
    Fault("private-tail", "a tail in a folio's own frame leads elsewhere",
          "folio-tail-info", _any, _private_tail,
          ("compound-heads",)),
    Fault("private-tail-mapping", "mapping of a folio's own tail is not TAIL_MAPPING",
          "folio-tail-mapping", _any, _private_mapping),
    Fault("private-tail-mapcount", "_mapcount of a folio's own tail is not -1",
          "folio-tail-mapcount", _any, _private_mapcount),
    Fault("private-tail-refcount", "_refcount of a folio's first tail is not 0",
          "folio-tail-refcount", _any, _private_refcount),
    Fault("private-tail-node", "a folio's own tail has the bits of another node",
          "folio-tail-flags", _any, _private_node),
    Fault("private-tail-flag", "a folio's own tail has a page flag",
          "folio-tail-flags", _any, _private_flag),
    Fault("private-tail-rest", "a bit is set in private of a folio's own tail",
          "folio-tail-rest", _any, _private_rest),
    Fault("folio-wrong-nr-pages", "a folio says that it has another number of pages",
          "folio-tail-rest", _any, _wrong_nr_pages),
    Fault("flag-without-remapping", "a folio with frames of its own is flagged",
          "folio-optimized-flag", _any, _flag_only),
    Fault("remapping-without-flag", "a folio that shares frames is not flagged",
          "folio-optimized-flag", _hvo, _mapping_only),
    Fault("fake-heads-left", "restoring left fake heads, as in 6.12.115",
          "stray-head", _fake, _fake_heads_left,
          ("folio-tail-info", "compound-heads")),
    Fault("stray-PG_head", "an order-0 page next to a folio has PG_head",
          "stray-head", _hvo, _stray_head, ("compound-heads",)),
    Fault("list-loop", "a free list leads back to its first folio",
          "hstate-lists", _any, _list_loop, ("hstate-counters",)),
    Fault("list-bad-pointer", "a free list leads to no folio",
          "hstate-lists", _any, _list_bad, ("hstate-counters",)),
    Fault("two-lists", "a free folio is on the active list, too",
          "hstate-lists", _any, _two_lists, ("folio-list",)),
    Fault("counter-total", "a pool counts more huge pages than its nodes",
          "hstate-counters", _any, _counter_total),
    Fault("counter-free", "a pool counts more free huge pages than its lists have",
          "hstate-counters", _any, _counter_free),
    Fault("hstate-order", "a pool says that its huge pages are of another order",
          "hstate-identity", _any, _hstate_order),
    Fault("hstate-mask", "the mask of a pool is that of another size",
          "hstate-identity", _any, _hstate_mask),
    Fault("hstate-name", "a pool is named after another size",
          "hstate-identity", _any, _hstate_name),
    Fault("hstate-demotion", "huge pages are demoted to an order that no pool has",
          "hstate-identity", _any, _hstate_demotion),
    Fault("pools-forgotten", "hugetlb_max_hstate is 0, as if there were no pool",
          "hstate-identity", _any, _max_hstate),
    Fault("reserve-underflow", "a pool has less than no huge page reserved",
          "hstate-reserve", _any, _reserve),
    Fault("vmemmap-misaligned", "vmemmap is not aligned to the largest folio",
          "vmemmap-alignment", lambda g: _mask(g) and g.array is not None, _nothing),
    Fault("page-missing", "the dump lacks the frame of a folio's head",
          None, _any, _page_missing),
    Fault("truncated", "the core breaks off in the middle", None, _any, _nothing),
)  # fmt: skip


def _fault(name: str) -> Fault:
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise UsageError(f"there is no fault {name!r}; drgn-hvo faults lists them")


def _apply(machine: Machine, fault: Fault) -> AppliedFault:
    changes = []
    for change in fault.find(Targets(machine)):
        old = machine.image.read(change.address, len(change.new))
        machine.image.write(change.address, change.new)
        changes.append((change, old))
    return AppliedFault(fault, tuple(changes))


def make_machine(
    description: Description, names: Iterable[str] = ()
) -> tuple[Machine, list[AppliedFault]]:
    """
    Build a machine and damage it.

    :param names: Of :data:`FAULTS`.
    :raises UsageError: if there is no such fault, or it makes no sense here.
    """
    faults = [_fault(name) for name in names]
    entry = description.kernel_generation
    for fault in faults:
        if not fault.possible(entry):
            raise UsageError(f"fault {fault.name} makes no sense with {entry.name}")
    wanted = {fault.name for fault in faults}
    offset = _misaligned_by(entry) if "vmemmap-misaligned" in wanted else 0
    machine = build_machine(description, offset)
    if "truncated" in wanted:
        machine = replace(machine, truncated=True)
    return machine, [_apply(machine, fault) for fault in faults]

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
from drgn_hvo.synth.damage import (
    to_folios,
    to_mappings,
    to_pools,
    to_sections,
    to_tails,
)
from drgn_hvo.synth.damage.targets import Change, Targets
from drgn_hvo.synth.described.description import Description
from drgn_hvo.synth.described.generations import Generation
from drgn_hvo.synth.machine.machine import Machine, build_machine

__all__ = ("FAULTS", "AppliedFault", "Fault", "make_machine")


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


def _two_private(g: Generation) -> bool:
    return g.can_optimize and g.private_slices == 2


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
    find: Callable[[Targets], list[Change]]
    consequences: tuple[str, ...] = ()


@dataclass(frozen=True)
class AppliedFault:
    """A fault in a machine: addresses, and the bytes before and after."""

    fault: Fault
    changes: tuple[tuple[Change, bytes], ...]


# Shared tails.


# Page tables.


# Folios.


# Lists and counters.


# The dump.


def _nothing(_: Targets) -> list[Change]:
    return []


def _page_missing(t: Targets) -> list[Change]:
    t.machine.image.missing.add(t.machine.page_physical(t.any_folio().first_pfn) >> 12)
    return []


FAULTS: tuple[Fault, ...] = (
    Fault("tail-bit-cleared", "bit 0 of one shared tail is clear",
          "shared-tail-info", _shared, to_tails.tail_bit_cleared),
    Fault("tail-wrong-order", "one shared tail has the mask of another order",
          "shared-tail-info", _shared, to_tails.tail_wrong_order),
    Fault("tail-pointer", "one tail among masks holds a pointer",
          "shared-tail-info", _shared, to_tails.tail_pointer),
    Fault("private-tail-pointer", "one private tail among masks holds a pointer",
          "folio-tail-info", lambda g: _mask(g) and _fake(g), to_tails.tail_pointer),
    Fault("tail-mask", "one tail among pointers holds a mask",
          "folio-tail-info", _pointer, to_tails.head_mask,
          ("compound-heads",)),
    Fault("tail-mapping", "mapping of one shared tail is not TAIL_MAPPING",
          "shared-tail-mapping", _shared, to_tails.tail_mapping),
    Fault("tail-mapcount", "_mapcount of one shared tail is not the initial one",
          "shared-tail-mapcount", _shared, to_tails.tail_mapcount),
    Fault("tail-refcount", "_refcount of one shared tail is not 0",
          "shared-tail-refcount", _shared, to_tails.tail_refcount),
    Fault("tail-node", "one shared tail has the bits of another node",
          "shared-tail-flags", _shared, to_tails.tail_node),
    Fault("tail-zone", "one shared tail has the bits of another zone",
          "shared-tail-flags", _shared, to_tails.tail_zone),
    Fault("tail-page-flag", "one shared tail has a page flag",
          "shared-tail-flags", _shared, to_tails.tail_flag),
    Fault("tail-rest", "a bit is set in a word of a shared tail that must be 0",
          "shared-tail-rest", _shared, to_tails.tail_rest),
    Fault("boot-tail-overwritten", "memmap_init() wrote over a shared page of tails",
          "shared-tail-info", lambda g: _shared(g) and not g.tail_has_zone,
          to_tails.boot_overwritten,
          ("shared-tail-mapping", "shared-tail-flags", "shared-tail-refcount")),
    Fault("slot-wrong-frame", "a slot names a frame that holds other data",
          "shared-tail-entry", _shared, to_tails.slot_wrong,
          ("vmemmap-tail-frame", "shared-tail-info")),
    Fault("slot-free-frame", "a slot names a free page",
          "shared-tail-entry", _shared, to_tails.slot_free,
          ("shared-tail-info", "vmemmap-tail-frame")),
    Fault("slot-out-of-range", "a slot names a page beyond memory",
          "shared-tail-entry", _shared, to_tails.slot_out_of_range,
          ("vmemmap-tail-frame",)),
    Fault("slot-empty", "a slot holds PFN 0, which means empty, but folios use it",
          "vmemmap-tail-frame", lambda g: _shared(g) and g.element_is_pfn,
          to_tails.slot_pfn_0),
    Fault("slot-pfn-0", "a slot names the struct page of PFN 0",
          "shared-tail-entry", lambda g: _shared(g) and not g.element_is_pfn,
          to_tails.slot_pfn_0, ("vmemmap-tail-frame", "shared-tail-info")),
    Fault("two-slots", "two slots name one frame",
          "shared-tail-unique", _shared, to_tails.two_slots,
          ("shared-tail-info", "stray-shared-tail")),
    Fault("pte-foreign-frame", "a slice of a folio maps a frame of other data",
          "vmemmap-tail-frame", _hvo, to_mappings.pte_foreign),
    Fault("pte-writable", "a slice of a folio that shares its frame is writable",
          "vmemmap-tail-writable", _hvo, to_mappings.pte_writable),
    Fault("pte-bits", "a slice of a folio has other bits than its siblings",
          "vmemmap-entry-bits", _hvo, to_mappings.entry_bits),
    Fault("pte-none", "a slice of a folio is not mapped",
          "vmemmap-tail-writable", _hvo, to_mappings.pte_none, ("vmemmap-tail-frame",)),
    Fault("head-frame-shared", "two folios have one frame for their heads",
          "vmemmap-head-frame", _hvo, to_mappings.head_shared,
          ("folio-tail-info", "hstate-lists", "vmemmap-tail-frame")),
    Fault("head-read-only", "the first slice of a folio is read-only",
          "vmemmap-head-frame", _hvo, to_mappings.head_read_only),
    Fault("second-read-only", "the second slice of a folio is read-only",
          "vmemmap-head-frame", _two_private, to_mappings.second_read_only),
    Fault("second-frame-shared", "two folios have one frame for their second slices",
          "vmemmap-head-frame", _two_private, to_mappings.second_shared,
          ("folio-tail-info", "vmemmap-tail-frame")),
    Fault("second-tail", "a tail in a folio's second page leads elsewhere",
          "folio-tail-info", _two_private, to_folios.second_tail, ("compound-heads",)),
    Fault("second-tail-mapping", "mapping of a tail there is not TAIL_MAPPING",
          "folio-tail-mapping", _two_private, to_folios.second_mapping),
    Fault("second-tail-mapcount", "_mapcount of a tail there is not -1",
          "folio-tail-mapcount", _two_private, to_folios.second_mapcount),
    Fault("second-tail-refcount", "_refcount of a tail there is not 0",
          "folio-tail-refcount", _two_private, to_folios.second_refcount),
    Fault("second-tail-flag", "a tail there has a page flag",
          "folio-tail-flags", _two_private, to_folios.second_flag),
    Fault("stray-shared-tail", "a slice of order-0 pages maps a shared page of tails",
          "stray-shared-tail", _shared, to_mappings.stray,
          ("compound-heads",)),
    Fault("stray-fake-head", "a slice of order-0 pages maps the head of a folio",
          "vmemmap-head-frame", _fake, to_mappings.stray, ("stray-head",)),
    Fault("head-without-PG_head", "the head of a folio has no PG_head",
          "folio-head", _any, to_folios.no_PG_head,
          ("compound-heads",)),
    Fault("head-with-PG_lru", "the head of a folio has PG_lru",
          "folio-head", _any, to_folios.head_flag),
    Fault("head-HPG-flag", "the head of a folio has an HPG_ flag that does not exist",
          "folio-head", _any, to_folios.hpg_unknown),
    Fault("head-type-bit", "a bit below the type of a head is wrong",
          "folio-head", _any, to_folios.head_type),
    Fault("folio-wrong-order", "a folio says that it is of another order",
          "folio-head", _any, to_folios.wrong_order,
          ("compound-heads",)),
    Fault("head-node", "the head of a folio names another node",
          "folio-node", _any, to_folios.head_node),
    Fault("head-zone", "the head of a folio names another zone",
          "folio-node", _any, to_folios.head_zone),
    Fault("private-tail", "a tail in a folio's own frame leads elsewhere",
          "folio-tail-info", _any, to_folios.private_tail,
          ("compound-heads",)),
    Fault("private-tail-mapping", "mapping of a folio's own tail is not TAIL_MAPPING",
          "folio-tail-mapping", _any, to_folios.private_mapping),
    Fault("private-tail-mapcount", "_mapcount of a folio's own tail is not -1",
          "folio-tail-mapcount", _any, to_folios.private_mapcount),
    Fault("private-tail-refcount", "_refcount of a folio's first tail is not 0",
          "folio-tail-refcount", _any, to_folios.private_refcount),
    Fault("private-tail-node", "a folio's own tail has the bits of another node",
          "folio-tail-flags", _any, to_folios.private_node),
    Fault("private-tail-flag", "a folio's own tail has a page flag",
          "folio-tail-flags", _any, to_folios.private_flag),
    Fault("private-tail-rest", "a bit is set in private of a folio's own tail",
          "folio-tail-rest", _any, to_folios.private_rest),
    Fault("folio-wrong-nr-pages", "a folio says that it has another number of pages",
          "folio-tail-rest", _any, to_folios.wrong_nr_pages),
    Fault("head-not-freed", "a folio on a free list has no HPG_freed",
          "folio-list", _any, to_folios.not_freed),
    Fault("plain-pte-read-only",
          "a slice of a folio that is not optimized is read-only",
          "folio-unoptimized", _hvo, to_mappings.plain_read_only),
    Fault("slab-tail", "a tail of a slab leads to a page that is no head",
          "compound-heads", _any, to_folios.slab_tail),
    Fault("flag-without-remapping", "a folio with frames of its own is flagged",
          "folio-optimized-flag", _any, to_folios.flag_only),
    Fault("remapping-without-flag", "a folio that shares frames is not flagged",
          "folio-optimized-flag", _hvo, to_folios.mapping_only),
    Fault("fake-heads-left", "restoring left fake heads, as in 6.12.115",
          "stray-head", _fake, to_folios.fake_heads_left,
          ("folio-tail-info", "compound-heads")),
    Fault("stray-PG_head", "an order-0 page next to a folio has PG_head",
          "stray-head", _hvo, to_folios.stray_head, ("compound-heads",)),
    Fault("list-loop", "a free list leads back to its first folio",
          "hstate-lists", _any, to_pools.list_loop, ("hstate-counters",)),
    Fault("list-bad-pointer", "a free list leads to no folio",
          "hstate-lists", _any, to_pools.list_bad, ("hstate-counters",)),
    Fault("two-lists", "a free folio is on the active list, too",
          "hstate-lists", _any, to_pools.two_lists, ("folio-list",)),
    Fault("counter-total", "a pool counts more huge pages than its nodes",
          "hstate-counters", _any, to_pools.counter_total),
    Fault("counter-free", "a pool counts more free huge pages than its lists have",
          "hstate-counters", _any, to_pools.counter_free),
    Fault("hstate-order", "a pool says that its huge pages are of another order",
          "hstate-identity", _any, to_pools.hstate_order),
    Fault("hstate-mask", "the mask of a pool is that of another size",
          "hstate-identity", _any, to_pools.hstate_mask),
    Fault("hstate-name", "a pool is named after another size",
          "hstate-identity", _any, to_pools.hstate_name),
    Fault("hstate-demotion", "huge pages are demoted to an order that no pool has",
          "hstate-identity", lambda g: g.fields != "5.15", to_pools.hstate_demotion),
    Fault("pools-forgotten", "hugetlb_max_hstate is 0, as if there were no pool",
          "hstate-identity", _any, to_pools.max_hstate),
    Fault("reserve-underflow", "a pool has less than no huge page reserved",
          "hstate-reserve", _any, to_pools.reserve),
    Fault("vmemmap-misaligned", "vmemmap is not aligned to the largest folio",
          "vmemmap-alignment", lambda g: _mask(g) and g.array is not None, _nothing),
    Fault("section-order", "a section says that it is of other compound pages",
          "section-order", lambda g: g.array_is_allocated, to_sections.section_order),
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

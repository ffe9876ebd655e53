# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damage to pools
---------------

Lists, counters and words of ``struct hstate``: each function makes the changes
of one entry of :data:`~drgn_hvo.synth.damage.faults.FAULTS`, which says what they are.
"""

from __future__ import annotations

from collections.abc import Callable

from drgn_hvo.synth.damage.targets import Change, Targets

__all__ = (
    "counter_free",
    "counter_total",
    "hstate_demotion",
    "hstate_mask",
    "hstate_name",
    "hstate_order",
    "list_bad",
    "list_loop",
    "max_hstate",
    "reserve",
    "two_lists",
)

Changes = list[Change]


def _list_next(t: Targets, following: Callable[[int], int], what: str) -> Changes:
    placed, _ = t.free_list()
    second = placed.heads()[1]
    return [t.word(t.page_field(second, "lru"), following(placed.first_pfn), what)]


def list_loop(t: Targets) -> Changes:
    return _list_next(t, t.lru, "lru.next of the second folio: the first one")


def list_bad(t: Targets) -> Changes:
    bad = 0x4141414141414140
    return _list_next(t, lambda _: bad, "lru.next of the second folio: no address")


def two_lists(t: Targets) -> Changes:
    placed, _ = t.free_list()
    head = t.hstate(placed.group.order, "hugepage_activelist")
    what = "the active list begins with a free folio"
    return [t.word(head, t.lru(placed.first_pfn), what)]


def counter_total(t: Targets) -> Changes:
    address = t.hstate(t.any_folio().group.order, "nr_huge_pages")
    return [t.word(address, t.read(address) + 1, "nr_huge_pages")]


def counter_free(t: Targets) -> Changes:
    address = t.hstate(t.any_folio().group.order, "free_huge_pages")
    return [t.word(address, t.read(address) + 1, "free_huge_pages")]


def _hstate_field(t: Targets, member: str) -> int:
    return t.hstate(t.any_folio().group.order, member)


def hstate_order(t: Targets) -> Changes:
    address = _hstate_field(t, "order")
    return [t.flip(address, 1 << 2, "order of a pool", 4)]


def hstate_mask(t: Targets) -> Changes:
    return [t.flip(_hstate_field(t, "mask"), 1 << 21, "mask of a pool")]


def hstate_name(t: Targets) -> Changes:
    address = _hstate_field(t, "name") + len("hugepages-")
    return [t.flip(address, 1 << 2, "name of a pool", 1)]


def hstate_demotion(t: Targets) -> Changes:
    address = _hstate_field(t, "demote_order")
    return [t.flip(address, 1 << 1, "demote_order of a pool", 4)]


def max_hstate(t: Targets) -> Changes:
    address = t.machine.kernel.physical("hugetlb_max_hstate")
    return [t.word(address, 0, "hugetlb_max_hstate", 4)]


def reserve(t: Targets) -> Changes:
    address = _hstate_field(t, "resv_huge_pages")
    return [t.word(address, -1, "resv_huge_pages of a pool")]

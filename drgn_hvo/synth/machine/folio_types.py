# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pages and folios
----------------

``struct page`` and ``struct folio`` (:linux:`include/linux/mm_types.h`) of each
generation.
"""

from __future__ import annotations

from typing import Optional

from drgn_hvo.synth.described.generations import Generation
from drgn_hvo.synth.machine.basic_types import (
    ATOMIC_T,
    CALLBACK_HEAD,
    LIST_HEAD,
    MEMDESC_FLAGS_T,
)
from drgn_hvo.synth.machine.ctype import (
    INT,
    UCHAR,
    UINT,
    ULONG,
    Compound,
    CType,
    array,
    pointer,
    struct,
    union,
)

__all__ = ("folio_struct", "page_struct")

_Members = tuple[tuple[Optional[str], CType], ...]


def _flags(generation: Generation) -> CType:
    # page->flags became a structure in v6.18.
    return MEMDESC_FLAGS_T if generation.fields == "7.2" else ULONG


def page_struct(generation: Generation) -> Compound:
    """``struct page``."""
    lru = struct(
        None,
        (None, union(None, ("lru", LIST_HEAD), ("buddy_list", LIST_HEAD))),
        ("mapping", pointer("struct address_space")),
        ("index", ULONG),
        ("private", ULONG),
    )
    tail: tuple[tuple[Optional[str], CType], ...] = ((generation.tail_word, ULONG),)
    if generation.fields in ("5.15", "6.1"):
        tail += (
            ("compound_dtor", UCHAR),
            ("compound_order", UCHAR),
            ("compound_mapcount", ATOMIC_T),
            ("compound_pincount", ATOMIC_T),
            ("compound_nr", UINT),
        )
    words = union(
        None,
        (None, lru),
        (None, struct(None, *tail)),
        ("callback_head", CALLBACK_HEAD),
    )
    members: list[tuple[Optional[str], CType]] = [
        ("flags", _flags(generation)),
        (None, words),
        (None, union(None, ("_mapcount", ATOMIC_T), ("page_type", UINT))),
        ("_refcount", ATOMIC_T),
        ("memcg_data", ULONG),
    ]
    if generation.struct_page_size > 64:
        # CONFIG_KMSAN adds kmsan_shadow and kmsan_origin.
        members += [
            ("kmsan_shadow", pointer("struct page")),
            ("kmsan_origin", pointer("struct page")),
        ]
    return struct("page", *members)


def _folio_first(page: Compound, flags: CType) -> Compound:
    head = struct(
        None,
        ("flags", flags),
        ("lru", LIST_HEAD),
        ("mapping", pointer("struct address_space")),
        ("index", ULONG),
        ("private", pointer()),
        ("_mapcount", ATOMIC_T),
        ("_refcount", ATOMIC_T),
    )
    return union(None, (None, head), ("page", page))


# What the first tail holds of a folio behind its flags and the word that leads to the
# head, since v6.3.
_FIRST_TAILS: dict[str, _Members] = {
    "6.4": (
        ("_folio_dtor", UCHAR),
        ("_folio_order", UCHAR),
        ("_entire_mapcount", ATOMIC_T),
        ("_nr_pages_mapped", ATOMIC_T),
        ("_pincount", ATOMIC_T),
        ("_folio_nr_pages", UINT),
    ),
    "6.6": (
        ("_folio_avail", ULONG),
        ("_entire_mapcount", ATOMIC_T),
        ("_nr_pages_mapped", ATOMIC_T),
        ("_pincount", ATOMIC_T),
        ("_folio_nr_pages", UINT),
    ),
    "6.11": (
        ("_large_mapcount", ATOMIC_T),
        ("_entire_mapcount", ATOMIC_T),
        ("_nr_pages_mapped", ATOMIC_T),
        ("_pincount", ATOMIC_T),
        ("_folio_nr_pages", UINT),
    ),
    "6.12": (
        ("_large_mapcount", ATOMIC_T),
        ("_entire_mapcount", ATOMIC_T),
        ("_nr_pages_mapped", ATOMIC_T),
        ("_pincount", ATOMIC_T),
        ("_folio_nr_pages", UINT),
    ),
    "7.2": (
        ("_large_mapcount", ATOMIC_T),
        ("_nr_pages_mapped", ATOMIC_T),
        ("_entire_mapcount", ATOMIC_T),
        ("_pincount", ATOMIC_T),
        ("_mm_id_mapcount", array(INT, 2)),
        ("_mm_ids", ULONG),
        ("_mapcount_1", ATOMIC_T),
        ("_refcount_1", ATOMIC_T),
        ("_nr_pages", UINT),
    ),
}

# Those in which hugetlb shares the second tail with THP; later ones have a third.
_THREE_PAGES = ("6.4", "6.6", "6.11")


def _tail(suffix: str, *members: tuple[Optional[str], CType]) -> Compound:
    """A part of a folio that lies in one of its tails."""
    words = (f"_flags_{suffix}", ULONG), (f"_head_{suffix}", ULONG)
    return struct(None, *words, *members)


def _hugetlb_tail(suffix: str) -> Compound:
    return _tail(
        suffix,
        ("_hugetlb_subpool", pointer()),
        ("_hugetlb_cgroup", pointer()),
        ("_hugetlb_cgroup_rsvd", pointer()),
        ("_hugetlb_hwpoison", pointer()),
    )


def folio_struct(generation: Generation, page: Compound) -> Compound:
    """
    What the first struct pages hold of a folio.

    :param page: ``struct page``.
    """
    first = _folio_first(page, _flags(generation))
    if generation.fields in ("5.15", "6.1"):
        tail = struct(
            None,
            ("_flags_1", ULONG),
            ("__head", ULONG),
            ("_folio_dtor", UCHAR),
            ("_folio_order", UCHAR),
            ("_total_mapcount", ATOMIC_T),
            ("_pincount", ATOMIC_T),
            ("_folio_nr_pages", UINT),
        )
        return struct("folio", (None, first), (None, tail))
    second = _tail("1", *_FIRST_TAILS[generation.fields])
    deferred = ("_deferred_list", LIST_HEAD)
    tails: tuple[tuple[Compound, ...], ...]
    if generation.fields in _THREE_PAGES:
        tails = (second,), (_hugetlb_tail("2"), _tail("2a", deferred))
    else:
        tails = (second,), (_tail("2", deferred),), (_hugetlb_tail("3"),)
    parts = [
        union(None, *((None, part) for part in parts), (f"__page_{i}", page))
        for i, parts in enumerate(tails, 1)
    ]
    return struct("folio", (None, first), *((None, part) for part in parts))

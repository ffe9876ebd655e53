# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Whose page it is
----------------

A damaged page table or slot can make the commands read any page as if it held struct
pages. So every page is asked by its own struct page whether it is somebody's data
before a byte of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import enum
from typing import Optional

from drgn import offsetof
import numpy as np

from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.arrays import BoolArray, ByteArray, Int64Array, column
from drgn_hvo.kernel.shapes import WORD, fault_of, has_member
from drgn_hvo.memmap.folio_fields import HEAD_PAGES
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("Owner", "are_free_to_keep", "owners")


class Owner(enum.IntEnum):
    """What the struct page of a frame says of it."""

    KERNEL = 0
    OBJECTS = 1
    DATA = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class _OwnedRows:
    """Struct pages of heads, or of pages that are their own."""

    hvo: Hvo
    data: ByteArray
    flags: Int64Array

    def word(self, offset: Optional[int], size: int = 8) -> Int64Array:
        """A word of each, zeros if nothing says where it is."""
        if offset is None:
            return np.zeros(len(self.data), dtype=np.int64)
        reader = self.hvo.kernel.reader
        dtype = reader.u64 if size == 8 else reader.u32
        words = column(self.data, offset, dtype).astype(np.uint64)
        return words.astype(np.int64)

    def flag(self, name: str) -> BoolArray:
        """Which have a page flag; none if there is no such flag."""
        bit = self.hvo.kernel.constant(name)
        if bit is None or not 0 <= bit < 64:
            return np.zeros(len(self.data), dtype=np.bool_)
        return (self.flags >> bit & 1) != 0

    def page_type(self, name: str) -> BoolArray:
        """Which are of a page type, since v6.12 a number in the top byte."""
        kind = self.hvo.kernel.constant(name)
        at = self.hvo.kernel.struct_page.mapcount
        if kind is None or at is None:
            return np.zeros(len(self.data), dtype=np.bool_)
        return self.word(at, 4) >> 24 == kind

    def memcg_data(self) -> Int64Array:
        page = self.hvo.kernel.type("struct page")
        if page is None or not has_member(page, "memcg_data"):
            return self.word(None)
        fault = fault_of(page, "memcg_data", WORD)
        if fault is not None:
            raise DetectionError(fault)
        return self.word(offsetof(page, "memcg_data"))


def _is_slab(rows: _OwnedRows) -> BoolArray:
    bit = rows.hvo.kernel.constant("PG_slab")
    if bit is not None and bit >= 64 and rows.hvo.kernel.struct_page.mapcount:
        # Since Linux kernel commit 46df8e73a4a3 ("mm: free up PG_slab") (in v6.10)
        # a page type, active low like all of them until v6.12.
        kinds = rows.word(rows.hvo.kernel.struct_page.mapcount, 4)
        return (kinds >> 28 == 0xF) & (kinds & bit == 0)
    return rows.flag("PG_slab") | rows.page_type("PGTY_slab")


def _is_hugetlb(rows: _OwnedRows) -> BoolArray:
    folios = rows.hvo.fields.are_hugetlb(rows.data)
    return rows.flag("PG_head") & (False if folios is None else folios)


@dataclass(frozen=True)
class _Sign:
    """Something in a struct page that tells whose page it is."""

    holds: Callable[[_OwnedRows], BoolArray]
    owner: Owner
    reason: str


# The first that holds decides.
_SIGNS = (
    _Sign(
        lambda rows: rows.flag("PG_reserved"),
        Owner.KERNEL,
        "the kernel image, and what memblock gave away at boot",
    ),
    _Sign(_is_hugetlb, Owner.DATA, "a huge page"),
    _Sign(_is_slab, Owner.OBJECTS, "objects of the kernel, of whatever kind"),
    _Sign(
        lambda rows: rows.word(rows.hvo.kernel.struct_page.mapping) != 0,
        Owner.DATA,
        "anonymous memory and page cache have a mapping, no page of the kernel has",
    ),
    _Sign(lambda rows: rows.flag("PG_lru"), Owner.DATA, "memory that can be reclaimed"),
    _Sign(
        lambda rows: rows.memcg_data() != 0,
        Owner.DATA,
        "charged to a control group: memory of a process, kernel stacks among it",
    ),
    _Sign(
        lambda rows: rows.word(rows.hvo.kernel.struct_page.refcount, 4) == 0,
        Owner.DATA,
        "free: what its last user left",
    ),
    _Sign(
        lambda rows: rows.flag("PG_head"),
        Owner.OBJECTS,
        "struct pages and page tables come as pages of order 0; this is kmalloc(), or "
        "a driver's buffer",
    ),
)


def owners(hvo: Hvo, pfns: Int64Array) -> Int64Array:
    """
    Ask the struct pages of frames.

    :return: An :class:`Owner` for each; ``UNKNOWN`` where the struct page is not
        there.
    """
    vmemmap = hvo.vmemmap
    pages = vmemmap.read_pages(pfns)
    infos = vmemmap.tail_words(pages)
    offset = hvo.heads.of_tails(pfns, infos) - np.uint64(vmemmap.base)
    sane = (offset % np.uint64(vmemmap.size) == 0) & (
        offset < np.uint64(vmemmap.kernel.max_pfn_limit * vmemmap.size)
    )
    head_pfns = np.where(sane, (offset // np.uint64(vmemmap.size)).astype(np.int64), -1)
    first = vmemmap.read_pages(head_pfns)
    known = pages.present & pages.data.any(axis=1) & sane & first.present
    found = np.full(len(pfns), Owner.UNKNOWN, dtype=np.int64)
    found[known] = Owner.KERNEL
    # What tells hugetlb is behind the head, where memory may end.
    data = vmemmap.read_pages(head_pfns, HEAD_PAGES).data
    data[:, : vmemmap.size] = first.data
    rows = _OwnedRows(hvo, data, vmemmap.flags(first).astype(np.int64))
    undecided = known.copy()
    for sign in _SIGNS:
        holds = undecided & sign.holds(rows)
        found[holds] = sign.owner
        undecided &= ~holds
    found[_inside_folios(hvo, pfns)] = Owner.DATA
    return found


def are_free_to_keep(hvo: Hvo, found: Int64Array) -> BoolArray:
    """
    Which frames hold nobody's data.

    :param found: What :func:`owners()` says of them.
    """
    allowed = found == Owner.KERNEL
    if hvo.kernel.sources.extract_kind is not None:
        # An extract lacks most struct pages that tell owners; what it has was allowed
        # when it was made.
        allowed |= found == Owner.UNKNOWN
    return allowed


def _inside_folios(hvo: Hvo, pfns: Int64Array) -> BoolArray:
    """Frames inside huge pages, whatever their struct pages say."""
    if not hvo.has_hugetlb:
        return np.zeros(len(pfns), dtype=np.bool_)
    folios = hvo.hugetlb.folios
    if not len(folios):
        return np.zeros(len(pfns), dtype=np.bool_)
    index = np.maximum(np.searchsorted(folios.head_pfn, pfns, side="right") - 1, 0)
    start = folios.head_pfn[index]
    return (start <= pfns) & (pfns < start + (1 << folios.order[index]))

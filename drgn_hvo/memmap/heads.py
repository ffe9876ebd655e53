# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Heads of compound pages
-----------------------

:class:`HeadResolver` finds the head of a page. It alone decides when a struct page
that looks like a head may be a copy of one, and whether tail words are masks or
pointers. :func:`head_fields()` alone says of which order and type a folio is, by the
struct pages of its head; :func:`read_head()` reads them, and where the head lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    compound_head,
    compound_heads,
    fixed_fake_infos,
    page_fixed_fake_head,
)
from drgn_hvo.kernel.arrays import BoolArray, ByteArray, Int64Array, U64Array, column
from drgn_hvo.kernel.frames import Frames
from drgn_hvo.memmap.folio_fields import HEAD_PAGES, FolioFields
from drgn_hvo.memmap.layout import Layout
from drgn_hvo.memmap.vmemmap import Vmemmap

if TYPE_CHECKING:
    from drgn_hvo.memmap.hvo import Hvo

__all__ = ("NO_HEAD", "Head", "HeadFields", "HeadResolver", "head_fields", "read_head")

# 2 MiB of struct pages a chunk: about as much as stays in a processor's cache.
_SLICES_PER_CHUNK = 4096


class HeadResolver:
    """
    Finds the heads of pages, as ``compound_head()`` of the kernel does.

    ``page_fixed_fake_head()`` (:linux:`include/linux/page-flags.h`, v5.18 to v7.0) is
    a part of that: there, HVO maps the page of vmemmap that holds the head over the
    pages behind it, so that the first struct page of each of them is a copy of the
    head, a *fake* one.

    :param layout: How tails name their heads, and what HVO maps behind the first page
        of struct pages.
    """

    def __init__(self, vmemmap: Vmemmap, layout: Layout) -> None:
        self._vmemmap = vmemmap
        self._kernel = vmemmap.kernel
        self._has_mask = layout.encoding.has_mask
        # HVO needs a sizeof(struct page) that is a power of two.
        power_of_2 = self._kernel.geometry.power_of_2
        self._has_fake_heads = layout.tails.has_fake_heads and power_of_2

    def _may_be_fake(self, pfns: Int64Array) -> BoolArray:
        """Whether the struct pages of PFNs are where HVO can have put copies."""
        if not self._has_fake_heads:
            return np.zeros(len(pfns), dtype=np.bool_)
        return pfns % self._kernel.geometry.pages_per_slice == 0

    def one(self, pfn: int, info: int, flags: int, behind: Callable[[], int]) -> int:
        """
        Find the head of one page whose struct page has been read.

        :param info: Its tail word.
        :param flags: Its ``flags``.
        :param behind: Reads the tail word of the next struct page; called only if the
            answer depends on it. What it raises comes through.
        :return: Address of the head's struct page: that of *pfn* for a page that is no
            tail, :data:`~drgn_hvo.formats.tail_words.ALL_ONES` if the struct page was
            never initialised. Of a damaged tail, whatever its word says.
        """
        page = self._vmemmap.page_address(pfn)
        has_PG_head = bool(flags & self._kernel.PG_head_mask)
        if has_PG_head and self._may_be_fake(np.array([pfn], dtype=np.int64))[0]:
            return page_fixed_fake_head(page, info, True, behind(), self._has_mask)
        return compound_head(page, info, self._has_mask)

    def of_tails(self, pfns: Int64Array, infos: U64Array) -> U64Array:
        """
        Find the heads of pages that cannot be fake ones, from their tail words.

        :param infos: A tail word for each of *pfns*.
        :return: Addresses as :meth:`one()` gives them, ``uint64``.
        """
        addresses = self._vmemmap.page_addresses(pfns)
        return compound_heads(addresses, infos, self._has_mask)

    def many(self, pfns: Int64Array) -> U64Array:
        """
        Find the heads of pages in any order.

        :param pfns: PFNs below ``max_pfn_limit``. All their struct pages are in memory
            at once.
        :return: Head PFNs, as :meth:`range()` gives them.
        """
        vmemmap = self._vmemmap
        pages = vmemmap.read_pages(pfns)
        infos = vmemmap.initialised_words(pages)
        PG_heads = vmemmap.flags(pages) & np.uint64(self._kernel.PG_head_mask)
        fake = np.flatnonzero(pages.present & self._may_be_fake(pfns) & (PG_heads != 0))
        if len(fake):
            behind = vmemmap.tail_words(vmemmap.read_pages(pfns[fake] + 1))
            infos[fake] = fixed_fake_infos(infos[fake], behind, PG_heads[fake])
        return vmemmap.head_pfns(self.of_tails(pfns, infos))

    def range(self, start: int, end: int) -> Iterator[U64Array]:
        """
        Find the heads of all PFNs from *start* up to *end* (exclusive), one chunk after
        the other.

        :return: Head PFNs, ``uint64``; ``ALL_ONES`` where vmemmap has no struct page,
            the dump lacks it, it was never initialised (all ones or all zeros), or the
            word leads out of vmemmap.
        """
        size, page_size = self._vmemmap.size, self._vmemmap.page_size
        # The number of slices that hold a whole number of struct pages.
        period = size // gcd(size, page_size)
        chunk = _SLICES_PER_CHUNK // period * period
        slice_ = start * size // page_size // chunk * chunk
        pfn = slice_ * page_size // size
        while pfn < end:
            last = min(slice_ + chunk, -(-end * size // page_size))
            last = slice_ + -(-(last - slice_) // period) * period
            heads = self._of_slices(slice_, last)
            yield heads[max(0, start - pfn) : end - pfn]
            pfn += len(heads)
            slice_ = last

    def _of_slices(self, first: int, end: int) -> U64Array:
        """Head PFNs of the struct pages in a range of slices."""
        size, page_size = self._vmemmap.size, self._vmemmap.page_size
        infos = self._slice_words(first, end)
        # Struct pages that straddle pages begin where the first whole one does.
        start = self._vmemmap.page_address(-(-first * page_size // size))
        addresses = np.arange(0, infos.size * size, size, dtype=np.uint64)
        addresses += np.uint64(start % (1 << 64))
        heads = compound_heads(addresses, infos.reshape(-1), self._has_mask)
        return self._vmemmap.head_pfns(heads)

    def _slice_words(self, first: int, end: int) -> U64Array:
        """
        The words that name the heads of the struct pages in a range of slices, one row
        a slice; with a sizeof(struct page) that is no power of two, one row.
        """
        vmemmap = self._vmemmap
        if not self._kernel.geometry.power_of_2:
            return vmemmap.initialised_words(vmemmap.read_slices(first, end))[None, :]
        slices = np.arange(first, end, dtype=np.int64)
        pieces, count, index = vmemmap.stream_slices(slices)
        infos = self.frame_words(pieces, count)
        return infos if index is None else infos.take(index, axis=0)

    def frame_words(
        self, pieces: Iterable[tuple[slice, Frames]], count: int
    ) -> U64Array:
        """
        The words that name the heads of the struct pages in frames of vmemmap, one row
        a frame: a copy of a head gets the word of the tail behind it.

        :param pieces: *count* frames in all, and the rows that they are for.
        :return: As :meth:`Vmemmap.initialised_words()`.
        """
        vmemmap = self._vmemmap
        infos = np.empty((count, self._kernel.geometry.pages_per_slice), np.uint64)
        for place, frames in pieces:
            words = infos[place]
            rows = frames.data.reshape(-1, vmemmap.size)
            vmemmap.take_initialised_words(rows, words.reshape(-1))
            if self._has_fake_heads:
                PG_heads = self._PG_heads(frames.data)
                words[:, 0] = fixed_fake_infos(words[:, 0], words[:, 1], PG_heads)
            if not frames.present.all():
                words[~frames.present] = np.uint64(ALL_ONES)
        return infos

    def _PG_heads(self, data: ByteArray) -> U64Array:
        """``PG_head`` of the first struct page of each row."""
        kernel = self._kernel
        flags = column(data, kernel.struct_page.flags, kernel.reader.u64)
        return flags & np.uint64(kernel.PG_head_mask)


@dataclass(frozen=True)
class HeadFields:
    """
    What a page says of the folio that it is the head of; ``None`` is not known.

    :param order: As ``compound_order()``.
    :param hugetlb: As ``folio_test_hugetlb()``.
    """

    order: Optional[int]
    hugetlb: Optional[bool]


#: Of a page that is no head.
NO_HEAD = HeadFields(0, False)


def head_fields(fields: FolioFields, row: ByteArray) -> HeadFields:
    """
    What a head says of its folio.

    :param fields: Where folios of this kernel keep their fields.
    :param row: The bytes of its first ``HEAD_PAGES`` struct pages, of shape
        ``(1, bytes)``. Only of a head do those behind the first one say anything.
    """
    orders, hugetlb = fields.orders(row), fields.are_hugetlb(row)
    return HeadFields(
        None if orders is None else int(orders[0]),
        None if hugetlb is None else bool(hugetlb[0]),
    )


@dataclass(frozen=True)
class Head:
    """What the struct pages of a head say; ``None`` is not known."""

    pfn: int
    PG_head: bool
    order: Optional[int]
    hugetlb: Optional[bool]
    nid: Optional[int]
    zone: Optional[str]
    zone_index: Optional[int] = None


def read_head(hvo: Hvo, pfn: int) -> Optional[Head]:
    """
    Read a head, or a page that is its own head.

    :return: ``None`` if the dump does not have it, or it reads as zeros.
    """
    vmemmap = hvo.vmemmap
    first = vmemmap.read_pages(np.array([pfn], dtype=np.int64))
    if not first.present[0] or not first.data.any():
        return None  # What an ELF core does not hold reads as zeros.
    flags = vmemmap.flags(first)
    said = NO_HEAD
    PG_head = bool(int(flags[0]) & hvo.kernel.PG_head_mask)
    if PG_head:
        rows = vmemmap.read_pages(np.array([pfn], dtype=np.int64), HEAD_PAGES)
        said = HeadFields(None, None)
        if rows.present[0]:
            said = head_fields(hvo.fields, rows.data)
    nid = zone = index = None
    layout = hvo.mmzone.flags_layout if hvo.has_hugetlb else None
    if layout is not None:
        nid, index = int(layout.nids(flags)[0]), int(layout.zonenums(flags)[0])
        zone = hvo.mmzone.zone_name(nid, index)
    return Head(pfn, PG_head, said.order, said.hugetlb, nid, zone, index)

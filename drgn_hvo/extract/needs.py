# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is kept, and why
---------------------

Turns a record of reads into bytes of page frames to keep. A frame is kept whole, or
some columns of the struct pages in it, or single words; everything else in it becomes
zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from drgn_hvo.extract.owners import Owner, are_free_to_keep, owners
from drgn_hvo.extract.recorder import Recording
from drgn_hvo.extract.tables import Translator, pages_of
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array, column, ranges
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("REASONS", "Needs", "find_needs")

#: What is kept, in the order of the report.
REASONS = {
    "kallsyms": "the symbol table",
    "btf": "the types",
    "page-tables": "page tables that lead to vmemmap and to the rest of this list",
    "huge-pages": "struct pages of huge pages",
    "shared-tails": "shared tail pages",
    "all-struct-pages": "all other struct pages (--all-struct-pages)",
    "struct-pages": "other struct pages that are looked at: of each, flags, tail word, "
    "type and reference count",
    "words": "variables, nodes, zones, pools: the words that are read",
}

# How far to follow the links of folios that lists have lost: a page's own report asks
# 32 of its neighbours in each direction.
_MAX_LOST = 1024

# Address and size, by reason.
_Reads = dict[str, list[tuple[int, int]]]

# A range of bytes in a frame: first, end, reason.
_Words = dict[int, list[tuple[int, int, str]]]


@dataclass
class Needs:
    """
    Bytes of frames.

    :param whole: Frames kept whole, by reason.
    :param columns: Frames of struct pages of which :attr:`columns_mask` is kept.
    :param words: Ranges of bytes by frame.
    :param root: The top page table, of which only the kernel's half is kept.
    :param user_half: How many bytes of it are not.
    """

    whole: dict[str, Int64Array]
    columns: Int64Array
    columns_mask: BoolArray
    words: _Words
    root: int
    user_half: int
    #: What was not kept although commands read it, and how many frames of it.
    left_out: dict[str, int] = field(default_factory=dict)

    def frames(self) -> Int64Array:
        """All frames, ascending."""
        words = np.array(sorted(self.words), dtype=np.int64)
        return np.unique(np.concatenate([*self.whole.values(), self.columns, words]))

    def masks(self, pfns: Int64Array) -> Iterator[tuple[str, BoolArray]]:
        """Which bytes of some frames are kept, by reason."""
        size = len(self.columns_mask)
        for reason, frames in self.whole.items():
            mask = np.zeros((len(pfns), size), dtype=np.bool_)
            mask[np.isin(pfns, frames)] = True
            mask[pfns == self.root, : self.user_half] = False
            yield reason, mask
        mask = np.zeros((len(pfns), size), dtype=np.bool_)
        mask[np.isin(pfns, self.columns)] = self.columns_mask
        yield "struct-pages", mask
        by_reason: dict[str, BoolArray] = {}
        for i, pfn in enumerate(pfns.tolist()):
            for first, end, reason in self.words.get(pfn, ()):
                if reason not in by_reason:
                    by_reason[reason] = np.zeros((len(pfns), size), dtype=np.bool_)
                by_reason[reason][i, first:end] = True
        yield from by_reason.items()


_NOT_KEPT = {
    Owner.DATA: "pages that are memory of processes, page cache or free by their own "
    "struct page",
    Owner.OBJECTS: "pages of slab caches or of compound pages by their own struct page",
    Owner.UNKNOWN: "pages of which nothing says whose they are",
}


class _Finder:
    def __init__(self, recording: Recording, replaced: _Reads) -> None:
        self._recording = recording
        self._replaced = replaced
        self._hvo = recording.hvo
        kernel = self._hvo.kernel
        page_table = kernel.page_table_format
        assert page_table is not None, "record() has checked that"
        self._reader = FrameReader(recording.base, kernel.geometry.page_size)
        self._translator = Translator(
            self._reader, page_table, kernel.translation.linear_ranges
        )
        self._page_size = kernel.geometry.page_size
        self._left_out: dict[str, int] = {}

    def find(self, *, all_struct_pages: bool) -> Needs:
        page_table = self._hvo.kernel.page_table_format
        assert page_table is not None, "record() has checked that"
        tables = self._translator.tables(*self._wanted())
        whole: dict[str, Int64Array] = {"page-tables": tables}
        whole["huge-pages"] = self._of_folios()
        whole["shared-tails"] = self._shared_tails()
        if all_struct_pages:
            whole["all-struct-pages"] = self._all_struct_pages()
        taken = np.unique(np.concatenate(list(whole.values())))
        columns = np.setdiff1d(self._recording.frames, taken)
        columns = columns[self._hvo.vmemmap.users_of(columns) > 0]
        whole = {reason: self._only(pfns) for reason, pfns in whole.items()}
        columns = self._only(columns)
        return Needs(
            whole,
            columns,
            _columns_mask(self._hvo),
            self._words(),
            self._translator.root,
            self._translator.user_half,
            self._left_out,
        )

    def _reads(self) -> U64Array:
        """First and last address of all that will be read virtually."""
        by_reason = {**self._recording.virtual, **self._replaced}
        reads = [read for reads in by_reason.values() for read in reads]
        return np.array(
            [(address, address + size - 1) for address, size in reads], dtype=np.uint64
        ).reshape(-1, 2)

    def _wanted(self) -> tuple[U64Array, U64Array]:
        """Addresses that must stay mapped: first and last of ranges."""
        start, end = self._hvo.kernel.vmemmap_limits
        ours = np.array([(start, end - 1)], dtype=np.uint64)
        wanted = np.concatenate((ours, self._reads(), self._direct_map()))
        return wanted[:, 0], wanted[:, 1]

    def _direct_map(self) -> U64Array:
        """Where huge pages themselves are mapped: people name them that way."""
        base = self._hvo.kernel.direct_map(0)
        if base is None or not self._hvo.has_hugetlb:
            return np.zeros((0, 2), dtype=np.uint64)
        folios = self._hvo.hugetlb.folios
        size = np.uint64(self._page_size)
        start = np.uint64(base % (1 << 64)) + folios.head_pfn.astype(np.uint64) * size
        pages = np.uint64(1) << folios.order.astype(np.uint64)
        return np.stack((start, start + pages * size - np.uint64(1)), axis=1)

    def _of_folios(self) -> Int64Array:
        if not self._hvo.has_hugetlb:
            return np.zeros(0, dtype=np.int64)
        folios = self._hvo.hugetlb.folios
        first = folios.head_pfn * self._hvo.vmemmap.size // self._page_size
        lost = self._lost_from_lists() * self._hvo.vmemmap.size // self._page_size
        slices = np.concatenate((ranges(first, folios.slices), lost))
        pfns, mapped = self._hvo.vmemmap.frames(slices)
        return np.unique(pfns[mapped])

    def _lost_from_lists(self) -> Int64Array:
        """
        Folios on the far side of broken list links, as far as they can be reached from
        known folios and from each other. ``page`` reads such neighbours, too.
        """
        vmemmap = self._hvo.vmemmap
        known = found = self._hvo.hugetlb.folios.head_pfn
        if all(a_list.is_whole for a_list in self._hvo.hugetlb.lists):
            return found[:0]
        lru = vmemmap.kernel.struct_page.require("lru")
        for _ in range(_MAX_LOST):
            rows = vmemmap.read_pages(found)
            pfns = []
            for offset in (lru, lru + 8):  # next and prev of struct list_head
                links = column(
                    rows.data[rows.present], offset, vmemmap.kernel.reader.u64
                )
                pfns += [vmemmap.page_pfn(link - lru) for link in links.tolist()]
            led_to = {pfn for pfn in pfns if pfn is not None}
            found = np.setdiff1d(np.array(sorted(led_to), dtype=np.int64), known)
            if not len(found):
                break
            known = np.union1d(known, found)
        return np.setdiff1d(known, self._hvo.hugetlb.folios.head_pfn)

    def _shared_tails(self) -> Int64Array:
        tails = self._hvo.shared_tails if self._hvo.has_hugetlb else []
        named = [tail.pfn for tail in tails if tail.pfn is not None]
        return np.unique(np.array(named, dtype=np.int64))

    def _all_struct_pages(self) -> Int64Array:
        firsts, ends = self._hvo.vmemmap.run_slices
        size, page_size = self._hvo.vmemmap.size, self._page_size
        end_slice = -(-self._hvo.believable_end_pfn * size // page_size)
        ends = np.minimum(ends, np.maximum(firsts, end_slice))
        pfns, _ = self._hvo.vmemmap.frames(ranges(firsts, ends - firsts))
        return np.unique(pfns)

    def _only(self, pfns: Int64Array) -> Int64Array:
        """Frames that are not somebody's data."""
        if not len(pfns):
            return pfns
        found = owners(self._hvo, pfns)
        allowed = are_free_to_keep(self._hvo, found)
        for owner, what in _NOT_KEPT.items():
            count = int((~allowed & (found == owner)).sum())
            if count:
                self._left_out[what] = self._left_out.get(what, 0) + count
        return pfns[allowed]

    def _words(self) -> _Words:
        """Virtual reads as bytes of frames."""
        page_shift = self._hvo.kernel.geometry.page_shift
        frames = self._translator.pages(pages_of(self._reads(), page_shift))
        words: _Words = {}
        for reason, reads in self._recording.virtual.items():
            if reason in self._replaced:
                continue
            for address, size in reads:
                for page, first, end in _pieces(address, size, self._page_size):
                    if page in frames:
                        piece = (first, end, reason)
                        words.setdefault(frames[page], []).append(piece)
        kept = self._only(np.array(sorted(words), dtype=np.int64))
        return {pfn: words[pfn] for pfn in kept.tolist()}


def _pieces(address: int, size: int, page_size: int) -> Iterator[tuple[int, int, int]]:
    """A range as page number, first and end in that page."""
    while size > 0:
        page, first = divmod(address, page_size)
        end = min(first + size, page_size)
        yield page, first, end
        address += end - first
        size -= end - first


def _columns_mask(hvo: Hvo) -> BoolArray:
    """
    The words of struct pages that are nobody's business but that of the pages
    themselves: what the audit looks at, and no other pointer.
    """
    page, size = hvo.kernel.struct_page, hvo.kernel.geometry.struct_page_size
    mask = np.zeros(size, dtype=np.bool_)
    offsets = {page.flags, page.offset}
    offsets.update(at & ~7 for at in (page.mapcount, page.refcount) if at is not None)
    for place in (hvo.fields.order_place, hvo.fields.hugetlb_place):
        if place is not None:
            offsets.add(place[0] % size & ~7)
    for offset in offsets:
        mask[offset : offset + 8] = True
    page_size = hvo.kernel.geometry.page_size
    if not hvo.kernel.geometry.power_of_2:
        # Struct pages begin anywhere in a page.
        return np.ones(page_size, dtype=np.bool_)
    return np.tile(mask, page_size // size)


def find_needs(
    recording: Recording,
    *,
    all_struct_pages: bool = False,
    replaced: Optional[_Reads] = None,
) -> Needs:
    """
    What to keep.

    :param all_struct_pages: Keep all of vmemmap.
    :param replaced: Reasons whose reads are left out, and what will be read in their
        place: address and size.
    """
    finder = _Finder(recording, replaced or {})
    return finder.find(all_struct_pages=all_struct_pages)

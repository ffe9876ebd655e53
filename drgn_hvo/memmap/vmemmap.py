# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The struct page array
---------------------

:class:`Vmemmap` reads struct pages in bulk: by frame, so that a frame that thousands
of slices share is read once.

On an architecture whose page tables we do not walk, struct pages are read
through drgn's own translation instead, and permissions are not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Optional

from drgn import FaultError
import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.tail_words import ALL_ONES, compound_heads, fixed_fake_infos
from drgn_hvo.kernel.arrays import (
    BoolArray,
    ByteArray,
    Int64Array,
    U64Array,
    column,
    distinct_index,
)
from drgn_hvo.kernel.frames import Frames
from drgn_hvo.memmap.mapping import VmemmapMapping

__all__ = ("StructPages", "Vmemmap")

# 2 MiB of struct pages a chunk: about as much as stays in a processor's cache.
_SLICES_PER_CHUNK = 4096


@dataclass(frozen=True)
class StructPages:
    """
    Raw struct pages.

    :param data: One row of ``sizeof(struct page)`` bytes each.
    :param present: Whether vmemmap has the page and the dump its frame.
    """

    data: ByteArray
    present: BoolArray


class Vmemmap(VmemmapMapping):
    """The vmemmap of a kernel, and the struct pages in it."""

    def _distinct(self, slices: Int64Array) -> tuple[Int64Array, Optional[Int64Array]]:
        """
        The frames behind slices, ascending, and which of them is behind each slice;
        ``None`` if that is what they are already.
        """
        pfns, mapped = self.frames(slices)
        if (pfns[1:] > pfns[:-1]).all() and mapped.all():
            return pfns, None
        # What is not mapped is PFN -1, which no dump has.
        return distinct_index(pfns)

    def _read_slices(self, slices: Int64Array) -> Frames:
        """The content of slices, shared frames read once."""
        if not self.has_mappings:
            return self._read_virtual(slices)
        pfns, index = self._distinct(slices)
        frames = self.kernel.reader.read(pfns)
        if index is None:
            return frames
        return Frames(frames.data[index], frames.present[index])

    def _read_virtual(self, slices: Int64Array) -> Frames:
        data = np.zeros((len(slices), self.page_size), dtype=np.uint8)
        present = np.zeros(len(slices), dtype=np.bool_)
        for i, slice_ in enumerate(slices.tolist()):
            address = self.base + slice_ * self.page_size
            try:
                chunk = self.kernel.prog.read(address, self.page_size)
            except FaultError:
                continue
            data[i] = np.frombuffer(chunk, dtype=np.uint8)
            present[i] = True
        return Frames(data, present)

    def read_slices(self, first: int, end: int) -> StructPages:
        """
        The struct pages that begin in a range of slices, in order; with a
        sizeof(struct page) that is no power of two, the last ones may be cut off
        and are not given.
        """
        frames = self._read_slices(np.arange(first, end, dtype=np.int64))
        if self.kernel.geometry.power_of_2:
            rows = frames.data.reshape(-1, self.size)
            per_slice = self.kernel.geometry.pages_per_slice
            return StructPages(rows, np.repeat(frames.present, per_slice))
        flat = frames.data.reshape(-1)
        skip = -(first * self.page_size) % self.size
        count = (len(flat) - skip) // self.size
        starts = skip + np.arange(count, dtype=np.int64) * self.size
        rows = flat[skip : skip + count * self.size].reshape(-1, self.size)
        ends = (starts + self.size - 1) // self.page_size
        present = frames.present[starts // self.page_size] & frames.present[ends]
        return StructPages(rows, present)

    def read_pages(self, pfns: Int64Array, count: int = 1) -> StructPages:
        """
        *count* struct pages from each PFN on, a row of bytes for each PFN; at
        most as many as fit in a page.
        """
        length = self.size * count
        starts = pfns * self.size
        first = starts // self.page_size
        last = (starts + length - 1) // self.page_size
        if length == self.page_size and (first == last).all():
            whole = self._read_slices(first)
            return StructPages(whole.data, whole.present)
        slices, index = distinct_index(np.concatenate((first, last)))
        frames = self._read_slices(slices)
        first_row, last_row = index[: len(pfns)], index[len(pfns) :]
        present = frames.present[first_row] & frames.present[last_row]
        # Slices that follow each other are neighbours in the rows too.
        unit = gcd(self.size, self.page_size)
        begins = (first_row * self.page_size + starts % self.page_size) // unit
        within = np.arange(length // unit, dtype=np.int64)
        units = frames.data.reshape(-1).view(f"V{unit}")
        rows = units[begins[:, None] + within[None, :]].view(np.uint8)
        return StructPages(rows.reshape(len(pfns), length), present)

    def tail_words(self, pages: StructPages) -> U64Array:
        """The tail word of each struct page."""
        words = column(
            pages.data, self.kernel.struct_page.offset, self.kernel.reader.u64
        )
        return words.astype(np.uint64, copy=False)

    def flags(self, pages: StructPages) -> U64Array:
        """``flags`` of each struct page."""
        words = column(
            pages.data, self.kernel.struct_page.flags, self.kernel.reader.u64
        )
        return words.astype(np.uint64, copy=False)

    def compound_heads(
        self, start: int, end: int, *, has_mask: bool, has_fake_heads: bool
    ) -> Iterator[npt.NDArray[np.uint64]]:
        """
        Resolve the heads of all PFNs from *start* up to *end*, chunk by chunk.

        :param has_mask: The tail word is a mask, not a pointer.
        :param has_fake_heads: Struct pages that look like heads may be copies of
            one, see :func:`~drgn_hvo.formats.tail_words.page_fixed_fake_head()`.
        :return: Head PFNs; ``ALL_ONES`` where vmemmap has no struct page, the dump
            lacks it, it was never initialised (all ones or all zeros), or the word
            leads out of vmemmap.
        """
        # Whole slices that are whole struct pages, too.
        period = self.size // gcd(self.size, self.page_size)
        chunk = _SLICES_PER_CHUNK // period * period
        slice_ = start * self.size // self.page_size // chunk * chunk
        pfn = slice_ * self.page_size // self.size
        while pfn < end:
            last = min(slice_ + chunk, -(-end * self.size // self.page_size))
            last = slice_ + -(-(last - slice_) // period) * period
            heads = self._chunk_heads(slice_, last, has_mask, has_fake_heads)
            yield heads[max(0, start - pfn) : end - pfn]
            pfn += len(heads)
            slice_ = last

    def _chunk_heads(
        self, first: int, end: int, has_mask: bool, has_fake_heads: bool
    ) -> npt.NDArray[np.uint64]:
        infos = self._chunk_words(first, end, has_fake_heads)
        # Struct pages that straddle pages begin where the first whole one does.
        start = self.page_address(-(-first * self.page_size // self.size))
        addresses = np.arange(0, infos.size * self.size, self.size, dtype=np.uint64)
        addresses += np.uint64(start % (1 << 64))
        heads = compound_heads(addresses, infos.reshape(-1), has_mask)
        return self.head_pfns(heads)

    def _chunk_words(self, first: int, end: int, has_fake_heads: bool) -> U64Array:
        """
        As :meth:`initialised_words()`, of the struct pages in a range of slices, one
        row a slice; with a sizeof(struct page) that is no power of two, one row.
        """
        if not self.kernel.geometry.power_of_2:
            return self.initialised_words(self.read_slices(first, end))[None, :]
        slices = np.arange(first, end, dtype=np.int64)
        if not self.has_mappings:
            virtual = [(slice(None), self._read_virtual(slices))]
            return self._frame_words(virtual, len(slices), has_fake_heads)
        pfns, index = self._distinct(slices)
        frames = self.kernel.reader.stream(pfns)
        infos = self._frame_words(frames, len(pfns), has_fake_heads)
        return infos if index is None else infos.take(index, axis=0)

    def _frame_words(
        self, pieces: Iterable[tuple[slice, Frames]], count: int, has_fake_heads: bool
    ) -> U64Array:
        """
        As :meth:`_chunk_words()`, of frames that come in pieces.

        :param has_fake_heads: Give a copy of a head the word that names the head.
        """
        infos = np.empty((count, self.kernel.geometry.pages_per_slice), dtype=np.uint64)
        for place, frames in pieces:
            words = infos[place]
            rows = frames.data.reshape(-1, self.size)
            self._initialised_words(rows, words.reshape(-1))
            if has_fake_heads:
                PG_heads = self._PG_heads(frames.data)
                words[:, 0] = fixed_fake_infos(words[:, 0], words[:, 1], PG_heads)
            if not frames.present.all():
                words[~frames.present] = np.uint64(ALL_ONES)
        return infos

    def _PG_heads(self, data: ByteArray) -> U64Array:
        """``PG_head`` of the first struct page of each row."""
        flags = column(data, self.kernel.struct_page.flags, self.kernel.reader.u64)
        return flags & np.uint64(self.kernel.PG_head_mask)

    def initialised_words(self, pages: StructPages) -> U64Array:
        """
        The tail word of each struct page; all ones, as where nothing was ever
        initialised, for what the dump lacks and for what is all zeros.
        """
        infos = np.empty(len(pages.data), dtype=np.uint64)
        self._initialised_words(pages.data, infos)
        infos[~pages.present] = np.uint64(ALL_ONES)
        return infos

    def _initialised_words(self, rows: ByteArray, infos: U64Array) -> None:
        """Likewise, of rows that are all there, to where they belong."""
        u64 = self.kernel.reader.u64
        infos[:] = column(rows, self.kernel.struct_page.offset, u64)
        # Only what has no tail word, and no flags either, can be all zeros.
        if len(infos) and not infos.min():
            empty = np.flatnonzero(infos == 0)
            flags = column(rows, self.kernel.struct_page.flags, u64)
            empty = empty[flags[empty] == 0]
            infos[empty[~rows[empty].any(axis=1)]] = np.uint64(ALL_ONES)

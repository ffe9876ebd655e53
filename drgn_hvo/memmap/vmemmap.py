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

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import Optional

from drgn import FaultError
import numpy as np

from drgn_hvo.formats.tail_words import ALL_ONES
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

    def stream_slices(
        self, slices: Int64Array
    ) -> tuple[Iterable[tuple[slice, Frames]], int, Optional[Int64Array]]:
        """
        Read the frames behind slices, each once, a piece at a time.

        :return: Frames and which of all they are; how many there are in all; which of
            them is behind each slice, ``None`` if they are in the order of *slices*.
        """
        if not self.has_mappings:
            return [(slice(None), self._read_virtual(slices))], len(slices), None
        pfns, index = self._distinct(slices)
        return self.kernel.reader.stream(pfns), len(pfns), index

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

    def unread(self, slices: Int64Array) -> tuple[BoolArray, BoolArray]:
        """
        Tell the slices that have no struct pages from those that were not read.

        :return: Which of *slices* the dump lacks, or the page table that maps them;
            and which are all zeros, which is what nobody initialised, and what some
            dumps have in the place of what they left out.
        """
        frames = self._read_slices(slices)
        absent = ~frames.present
        if self.has_mappings:
            _, mapped = self.frames(slices)
            absent &= mapped
            for i in np.flatnonzero(~mapped).tolist():
                absent[i] = self.unread_table(int(slices[i])) is not None
        return absent, frames.present & ~frames.data.any(axis=1)

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

    def initialised_words(self, pages: StructPages) -> U64Array:
        """
        The tail word of each struct page; all ones, as where nothing was ever
        initialised, for what the dump lacks and for what is all zeros.
        """
        infos = np.empty(len(pages.data), dtype=np.uint64)
        self.take_initialised_words(pages.data, infos)
        infos[~pages.present] = np.uint64(ALL_ONES)
        return infos

    def take_initialised_words(self, rows: ByteArray, infos: U64Array) -> None:
        """
        Fill *infos* with the tail words of *rows*, struct pages that are all present;
        all ones for one that is all zeros.
        """
        u64 = self.kernel.reader.u64
        infos[:] = column(rows, self.kernel.struct_page.offset, u64)
        # Only what has no tail word, and no flags either, can be all zeros.
        if len(infos) and not infos.min():
            empty = np.flatnonzero(infos == 0)
            flags = column(rows, self.kernel.struct_page.flags, u64)
            empty = empty[flags[empty] == 0]
            infos[empty[~rows[empty].any(axis=1)]] = np.uint64(ALL_ONES)

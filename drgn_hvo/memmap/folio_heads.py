# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Heads of folios, in bulk
------------------------

A machine of a terabyte has half a million huge pages, each with a frame of vmemmap to
itself. That frame is read once: what lists, folios and rules want to know of it is
taken out on the way, one record a folio, and the frame is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.kernel.arrays import (
    BoolArray,
    ByteArray,
    Int64Array,
    U64Array,
    column,
    distinct,
    distinct_index,
    is_in,
)
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.struct_page import StructPageLayout
from drgn_hvo.memmap.folio_fields import HEAD_PAGES, FolioFields
from drgn_hvo.memmap.private_tails import PrivateTailFrames, PrivateTails
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.progress import Bar, progress

__all__ = ("FolioHeads", "HeadRecords")

#: What is kept of a head, one element each:
#:
#: - ``present``: whether the dump has it; if not, all else is zero.
#: - ``zeros``: whether its first struct pages are all zeros.
#: - ``flags``, ``refcount``, ``private``, ``order``, ``hugetlb``: of the folio.
#: - ``next``, ``prev``: its ``lru``.
#: - ``next_info``, ``tail_info``: the tail words of the second and third struct page.
#: - ``uniform``: all tails behind the third in its frame have the same word as that.
#: - ``quiet``: no other struct page in its frame has ``PG_head`` and is no tail.
#:
#: - ``regular``: the other struct pages in its frame have all fields of
#:   :class:`~drgn_hvo.memmap.private_tails.PrivateTails` as a folio in use has them.
#: - ``idle``: they have them as a folio on a free list has them.
#:
#: The last four are false where a folio does not fill the page of vmemmap that its head
#: begins.
HeadRecords = npt.NDArray[np.void]

_RECORD = np.dtype(
    [
        ("flags", np.uint64),
        ("private", np.uint64),
        ("next", np.uint64),
        ("prev", np.uint64),
        ("next_info", np.uint64),
        ("tail_info", np.uint64),
        ("refcount", np.int32),
        ("order", np.uint8),
        ("hugetlb", np.bool_),
        ("present", np.bool_),
        ("zeros", np.bool_),
        ("uniform", np.bool_),
        ("quiet", np.bool_),
        ("regular", np.bool_),
        ("idle", np.bool_),
    ]
)


# Behind this many struct pages each is compared with the one in front of it.
_COMPARED = 6

# Fewer frames than that are read sooner than other processes have begun: 64 GiB of huge
# pages of 2 MiB.
_FEW_FRAMES = 1 << 15

# How many frames are handed to a process at once, at most and at least: they take 40 ms
# and 5 ms to unpack.
_FRAMES_PER_SHARE = 1 << 12
_LEAST_PER_SHARE = 1 << 9


class FolioHeads:
    """Reads heads of folios and remembers them."""

    def __init__(
        self, vmemmap: Vmemmap, fields: FolioFields, tails: PrivateTails
    ) -> None:
        self._vmemmap = vmemmap
        self._fields = fields
        self._tails = tails
        self._pfns = np.zeros(0, dtype=np.int64)
        self._records: HeadRecords = np.zeros(0, dtype=_RECORD)
        # Read, but not yet in order among the others.
        self._new: list[tuple[Int64Array, HeadRecords]] = []

    def of(self, pfns: Int64Array) -> HeadRecords:
        """The record of each of these heads; not to be written to."""
        self._sort_in()
        if not np.array_equal(pfns, self._pfns):
            self.read(distinct(pfns[~is_in(pfns, self._pfns)]))
            self._sort_in()
        if np.array_equal(pfns, self._pfns):
            return self._records
        return self._records.take(np.searchsorted(self._pfns, pfns))

    def read(self, pfns: Int64Array) -> HeadRecords:
        """
        Read heads, and remember them.

        :param pfns: Ascending, each once; of heads that were not read before.
        """
        geometry = self._vmemmap.kernel.geometry
        whole = (pfns % geometry.pages_per_slice == 0) & geometry.power_of_2
        if whole.all():
            records = self._read_whole(pfns)
        else:
            records = np.empty(len(pfns), dtype=_RECORD)
            records[whole] = self._read_whole(pfns[whole])
            pages = self._vmemmap.read_pages(pfns[~whole], HEAD_PAGES)
            others = np.zeros(len(pages.data), dtype=_RECORD)
            self._frames.record(pages.data, pages.present, others)
            records[~whole] = others
        if len(pfns):
            self._new.append((pfns, records))
        return records

    def _sort_in(self) -> None:
        if not self._new:
            return
        # Copies of half a million records are worth avoiding.
        if len(self._pfns) or len(self._new) > 1:
            parts = [(self._pfns, self._records), *self._new]
            pfns = np.concatenate([pfns for pfns, _ in parts])
            order = np.argsort(pfns, kind="stable")
            records = np.concatenate([records for _, records in parts])
            self._new = [(pfns[order], records.take(order))]
        ((self._pfns, self._records),) = self._new
        self._new = []

    @cached_property
    def _frames(self) -> _HeadFrames:
        kernel = self._vmemmap.kernel
        return _HeadFrames(
            self._fields,
            self._tails.frames,
            kernel.struct_page,
            self._vmemmap.base,
            kernel.PG_head_mask,
            kernel.reader.u64,
        )

    def _read_whole(self, pfns: Int64Array) -> HeadRecords:
        """Read heads with all of their page of vmemmap, in the order of frames."""
        vmemmap = self._vmemmap
        if not vmemmap.has_mappings:
            pages = vmemmap.read_pages(pfns, vmemmap.kernel.geometry.pages_per_slice)
            found: HeadRecords = np.zeros(len(pfns), dtype=_RECORD)
            if len(pfns):
                self._frames.take(pages.data, pages.present, pfns, found)
            return found
        behind, _ = vmemmap.frames(pfns * vmemmap.size // vmemmap.page_size)
        frames, index = distinct_index(behind)
        records: HeadRecords = np.zeros(len(frames), dtype=_RECORD)
        # Copies of a head have the frame of the first one.
        heads = np.empty(len(frames), dtype=np.int64)
        heads[index[::-1]] = pfns[::-1]
        with progress(len(frames), "huge page") as bar:
            self._read_frames(frames, heads, records, bar)
        return records if np.array_equal(frames, behind) else records.take(index)

    def _read_frames(
        self, frames: Int64Array, heads: Int64Array, records: HeadRecords, bar: Bar
    ) -> None:
        """
        Fill records of the heads that frames begin with, in other processes, too, if
        there are some and it is worth it.
        """
        reader = self._vmemmap.kernel.reader
        if reader.shards is None or len(frames) < _FEW_FRAMES:
            self._frames.read(reader, frames, heads, records, bar)
            return
        places = list(_shares(len(frames)))
        shares = [_Share(self._frames, frames[at], heads[at]) for at in places]
        for number, part in reader.shards.map(_read_share, shares, reader):
            records[places[number]] = part
            bar.update(len(part))


def _shares(count: int) -> Iterator[slice]:
    """
    Cut work into pieces: the fewer are left, the smaller, so that at the end nobody
    waits long for the last ones of another process.
    """
    first = 0
    while first < count:
        size = min(_FRAMES_PER_SHARE, max((count - first) // 16, _LEAST_PER_SHARE))
        yield slice(first, min(first + size, count))
        first += size


@dataclass(frozen=True)
class _HeadFrames:
    """
    Makes records of frames that begin with heads. It can be handed to another process.

    :param base: Address of the struct page of PFN 0.
    """

    fields: FolioFields
    tails: PrivateTailFrames
    page: StructPageLayout
    base: int
    PG_head_mask: int
    u64: np.dtype[np.generic]

    def read(
        self,
        reader: FrameReader,
        frames: Int64Array,
        heads: Int64Array,
        records: HeadRecords,
        bar: Optional[Bar] = None,
    ) -> None:
        """
        Read frames.

        :param heads: The PFN of the head that each begins with.
        :param records: To fill; zeros.
        """
        for place, read in reader.stream(frames):
            self.take(read.data, read.present, heads[place], records[place])
            if bar is not None:
                bar.update(len(read.data))

    def take(
        self,
        rows: ByteArray,
        present: BoolArray,
        pfns: Int64Array,
        records: HeadRecords,
    ) -> None:
        """Take all that is wanted out of frames."""
        self.record(rows, present, records)
        self._look_behind(rows, pfns, records)

    def record(self, rows: ByteArray, present: BoolArray, records: HeadRecords) -> None:
        """Take what is wanted of each head out of its row of bytes."""
        page, fields = self.page, self.fields
        size, lru = page.size, page.require("lru")
        for name, offset in (
            ("flags", page.flags),
            ("private", page.require("private")),
            ("next", lru),
            ("prev", lru + 8),
            ("next_info", size + page.offset),
        ):
            records[name] = fields.words(rows, offset, 8)
        refcount = fields.words(rows, page.require("refcount"), 4)
        records["refcount"] = refcount.astype(np.uint32).view(np.int32)
        orders, hugetlb = fields.orders(rows), fields.are_hugetlb(rows)
        if orders is not None:
            records["order"] = orders
        if hugetlb is not None:
            records["hugetlb"] = hugetlb
        records["present"] = present
        # Few heads have no flags: only those need a closer look.
        blank = np.flatnonzero(records["flags"] == 0)
        records["zeros"][blank] = ~rows[blank, : HEAD_PAGES * size].any(axis=1)

    def _look_behind(
        self, rows: ByteArray, pfns: Int64Array, records: HeadRecords
    ) -> None:
        """Note what the other struct pages in the frames of heads are."""
        has_order = self.fields.order_place is not None
        size = np.uint64(self.page.size)
        alike, regular, idle = self.tails.look(
            rows,
            np.uint64(self.base) + pfns.astype(np.uint64) * size,
            records["order"] if has_order else None,
        )
        tails = self._words(rows, self.page.offset)
        third = tails[:, 2]
        uniform = alike
        uniform &= (tails[:, 3:_COMPARED] == third[:, None]).all(axis=1)
        some = np.flatnonzero(~uniform)
        uniform[some] = (tails[some, 3:] == third[some, None]).all(axis=1)
        # Nothing is a head in a frame of tails, but perhaps the second struct page.
        mask = np.uint64(self.PG_head_mask)
        flags = self._words(rows, self.page.flags)
        suspect = ~(uniform & ((third & np.uint64(1)) != 0))
        suspect |= ((flags[:, 1] & mask) != 0) & ((tails[:, 1] & np.uint64(1)) == 0)
        quiet = ~suspect
        some = np.flatnonzero(suspect)
        heads = ((flags[some, 1:] & mask) != 0) & (
            (tails[some, 1:] & np.uint64(1)) == 0
        )
        quiet[some] = ~heads.any(axis=1)
        records["tail_info"] = third
        records["uniform"] = uniform
        records["quiet"] = quiet & records["present"]
        fills = np.left_shift(1, records["order"].astype(np.int64)) >= tails.shape[1]
        records["regular"] = regular & fills
        records["idle"] = idle & fills

    def _words(self, rows: ByteArray, offset: int) -> U64Array:
        """A word of all struct pages of frames, a row a frame."""
        words = column(rows.reshape(-1, self.page.size), offset, self.u64)
        return words.astype(np.uint64, copy=False).reshape(len(rows), -1)


@dataclass(frozen=True)
class _Share:
    """Frames for one process to read; arguments of :meth:`_HeadFrames.read()`."""

    look: _HeadFrames
    frames: Int64Array
    heads: Int64Array


def _read_share(reader: FrameReader, share: _Share) -> HeadRecords:
    records: HeadRecords = np.zeros(len(share.frames), dtype=_RECORD)
    share.look.read(reader, share.frames, share.heads, records)
    return records

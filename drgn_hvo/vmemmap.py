# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The struct page array
---------------------

:class:`Vmemmap` knows which frame lies behind each page (*slice*) of vmemmap and
with which permissions, and reads struct pages in bulk: by frame, so that a frame
that thousands of slices share is read once.

On an architecture whose page tables we do not walk, struct pages are read
through drgn's own translation instead, and permissions are not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Optional

from drgn import FaultError
import numpy as np
import numpy.typing as npt

from drgn_hvo.encoding import ALL_ONES, compound_heads, fixed_fake_infos
from drgn_hvo.errors import NotInDumpError, TargetError
from drgn_hvo.kernel import TRANSLATED_BY_DRGN, Kernel
from drgn_hvo.memory import (
    BoolArray,
    ByteArray,
    Frames,
    Int64Array,
    column,
    distinct,
    distinct_index,
    ranges,
)
from drgn_hvo.pagetable import Runs, U64Array, Walk, walk

__all__ = ("Mapping", "StructPages", "Vmemmap")

# 2 MiB of struct pages a chunk: about as much as stays in a processor's cache.
_SLICES_PER_CHUNK = 4096


@dataclass(frozen=True)
class Mapping:
    """What the page tables say of one slice."""

    pfn: int
    writable: bool
    level: int


@dataclass(frozen=True)
class StructPages:
    """
    Raw struct pages.

    :param data: One row of ``sizeof(struct page)`` bytes each.
    :param present: Whether vmemmap has the page and the dump its frame.
    """

    data: ByteArray
    present: BoolArray


class Vmemmap:
    """The vmemmap of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.base = kernel.vmemmap
        self.size = kernel.geometry.struct_page_size
        self.page_size = kernel.geometry.page_size
        if kernel.page_table_format is None and (
            kernel.architecture not in TRANSLATED_BY_DRGN
        ):
            raise TargetError(
                f"{kernel.arch} is not supported: neither drgn-hvo nor drgn can "
                "translate its kernel addresses"
            )

    @cached_property
    def _walk(self) -> Walk:
        kernel = self.kernel
        if kernel.page_table_format is None:
            raise TargetError(
                f"the page tables of {kernel.arch} are not supported yet; page and "
                "heads work, what needs mappings does not"
            )
        # vmemmap may begin inside the page that holds the struct page of PFN 0.
        end = self.base + kernel.max_pfn_limit * self.size
        found = walk(
            kernel.reader,
            kernel.page_table_format,
            kernel.vmcoreinfo,
            self.base,
            min(end, 1 << 64),
        )
        if not len(found.runs) and found.missing:
            raise NotInDumpError("the page tables of vmemmap are not in this dump")
        return found

    @property
    def has_mappings(self) -> bool:
        """Whether the page tables of this architecture can be walked."""
        return self.kernel.page_table_format is not None

    @property
    def walk(self) -> Walk:
        """
        All mappings of vmemmap.

        :raises TargetError: if this architecture's tables cannot be walked.
        :raises NotInDumpError: if the dump has none of them.
        """
        return self._walk

    @property
    def runs(self) -> Runs:
        """As :attr:`walk`, just the mappings."""
        return self._walk.runs

    @cached_property
    def run_slices(self) -> tuple[Int64Array, Int64Array]:
        """First slice and end of each run, counted from :attr:`base`."""
        runs = self.runs
        first = ((runs.va - np.uint64(self.base)) // np.uint64(self.page_size)).astype(
            np.int64
        )
        return first, first + runs.count

    @cached_property
    def end_pfn(self) -> int:
        """One more than the highest PFN that has a struct page."""
        if not self.has_mappings:
            return self._end_pfn_of_nodes()
        _, ends = self.run_slices
        return int(ends[-1]) * self.page_size // self.size if len(ends) else 0

    def _end_pfn_of_nodes(self) -> int:
        end = self.kernel.variable("max_pfn")
        if end is None:
            raise TargetError("nothing says how many pages there are; name a range")
        return int(end)

    @cached_property
    def repeated_frames(self) -> Int64Array:
        """Frames that more than one slice maps, ascending."""
        return _repeated_frames(self.runs)

    def mapped_by(self, pfn: int) -> int:
        """How many slices map a frame."""
        runs = self.runs
        repeated = (runs.step == 0) & (runs.pfn == pfn)
        within = (runs.step == 1) & (runs.pfn <= pfn) & (pfn < runs.pfn + runs.count)
        return int(runs.count[repeated].sum() + within.sum())

    def users_of(self, pfns: Int64Array) -> Int64Array:
        """As :meth:`mapped_by()`, over an array."""
        # Searching for what is in order finds it in the processor's cache.
        order = np.argsort(pfns, kind="stable")
        counts = np.empty(len(pfns), dtype=np.int64)
        counts[order] = self._users_of_sorted(pfns[order])
        return counts

    def _users_of_sorted(self, pfns: Int64Array) -> Int64Array:
        runs = self.runs
        single = np.sort(runs.pfn[runs.step == 1])
        ends = np.sort((runs.pfn + runs.count)[runs.step == 1])
        counts = np.searchsorted(single, pfns, side="right").astype(np.int64)
        counts -= np.searchsorted(ends, pfns, side="right")
        order = np.argsort(runs.pfn[runs.step == 0], kind="stable")
        repeated = runs.pfn[runs.step == 0][order]
        running = np.concatenate(([0], np.cumsum(runs.count[runs.step == 0][order])))
        counts += running[np.searchsorted(repeated, pfns, side="right")]
        counts -= running[np.searchsorted(repeated, pfns, side="left")]
        return counts

    def slices_on(self, pfn: int) -> Int64Array:
        """All slices that map a frame, ascending."""
        firsts, ends = self.run_slices
        runs = self.runs
        repeated = (runs.step == 0) & (runs.pfn == pfn)
        within = (runs.step == 1) & (runs.pfn <= pfn) & (pfn < runs.pfn + runs.count)
        parts = [
            np.arange(first, end, dtype=np.int64)
            for first, end in zip(firsts[repeated].tolist(), ends[repeated].tolist())
        ]
        parts.append(firsts[within] + pfn - runs.pfn[within])
        return np.sort(np.concatenate(parts))

    def page_address(self, pfn: int) -> int:
        """Mirror of ``pfn_to_page()``."""
        return self.base + pfn * self.size

    def page_addresses(self, pfns: Int64Array) -> U64Array:
        """As :meth:`page_address()`, over an array."""
        return np.uint64(self.base) + pfns.astype(np.uint64) * np.uint64(self.size)

    def head_pfns(self, heads: U64Array) -> U64Array:
        """
        The PFNs of heads at some addresses.

        :param heads: What the answer is written to.
        :return: :data:`~drgn_hvo.encoding.ALL_ONES` for what lies outside of vmemmap,
            and where the address is that.
        """
        heads -= np.uint64(self.base)
        if self.kernel.geometry.power_of_2:
            heads >>= np.uint64(self.size.bit_length() - 1)
        else:
            heads //= np.uint64(self.size)
        # So that "no head here" is outside, too.
        limit = min(self.kernel.max_pfn_limit, (ALL_ONES - self.base) // self.size)
        if len(heads) and heads.max() >= limit:
            heads[heads >= np.uint64(limit)] = np.uint64(ALL_ONES)
        return heads

    def page_pfn(self, address: int) -> Optional[int]:
        """Mirror of ``page_to_pfn()``; ``None`` for what is no struct page."""
        pfn, rest = divmod(address - self.base, self.size)
        if rest or not 0 <= pfn < self.kernel.max_pfn_limit:
            return None
        return pfn

    def slices_to_runs(self, slices: Int64Array) -> tuple[Int64Array, BoolArray]:
        """
        The run that maps each slice.

        :return: Indices of runs (any where there is none), and whether there is.
        """
        firsts, ends = self.run_slices
        if not len(firsts):
            none = np.zeros(len(slices), dtype=np.int64)
            return none, none.astype(np.bool_)
        index = np.searchsorted(firsts, slices, side="right") - 1
        clipped = np.maximum(index, 0)
        return clipped, (index >= 0) & (slices < ends[clipped])

    def frames(self, slices: Int64Array) -> tuple[Int64Array, BoolArray]:
        """
        The frame behind each slice.

        :param slices: Counted from the slice of PFN 0.
        :return: PFNs, and whether the slice is mapped at all.
        """
        index, mapped = self.slices_to_runs(slices)
        if not len(self.runs):
            return np.full(len(slices), -1, dtype=np.int64), mapped
        firsts, _ = self.run_slices
        runs = self.runs
        offset = slices - firsts[index]
        pfns = runs.pfn[index] + runs.step[index] * offset
        return np.where(mapped, pfns, -1), mapped

    def mapping(self, slice_: int) -> Optional[Mapping]:
        """How one slice is mapped, ``None`` if it is not."""
        slices = np.array([slice_], dtype=np.int64)
        index, mapped = self.slices_to_runs(slices)
        if not mapped[0]:
            return None
        pfns, _ = self.frames(slices)
        i = int(index[0])
        return Mapping(
            int(pfns[0]), bool(self.runs.writable[i]), int(self.runs.level[i])
        )

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
            one, see :func:`~drgn_hvo.encoding.page_fixed_fake_head()`.
        :return: Head PFNs; :data:`~drgn_hvo.encoding.ALL_ONES` where vmemmap has
            no struct page, the dump lacks it, it was never initialised (all ones
            or all zeros), or the word leads out of vmemmap.
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


def _repeated_frames(runs: Runs) -> Int64Array:
    """Frames that occur more than once in runs, ascending."""
    repeated = (runs.step == 0) & (runs.count > 1)
    # Elsewhere a frame can occur twice only where two runs overlap: a run that
    # begins below the highest end so far. Such overlaps are small and rare.
    first, count = runs.pfn[~repeated], runs.count[~repeated]
    order = np.argsort(first, kind="stable")
    first = first[order]
    end = first + count[order]
    reached = np.maximum.accumulate(end)[:-1]
    overlap = np.flatnonzero(first[1:] < reached)
    starts = first[1:][overlap]
    doubles = ranges(starts, np.minimum(end[1:], reached)[overlap] - starts)
    return distinct(np.concatenate((runs.pfn[repeated], doubles)))

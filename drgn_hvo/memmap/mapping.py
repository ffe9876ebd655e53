# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What the page tables say of vmemmap
-----------------------------------

:class:`VmemmapMapping` knows which frame lies behind each page (*slice*) of vmemmap
and with which permissions, which slices map a frame, and how addresses, PFNs and
slices go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Union

import numpy as np

from drgn_hvo.errors import FormatError, TargetError
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.kernel.arrays import (
    BoolArray,
    Int64Array,
    U64Array,
    distinct,
    is_in,
    order_of,
    ranges,
)
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.entry_bits import EntryBitsWatch, OddEntries
from drgn_hvo.kernel.pagetables import MissingTable, Runs, Walk, walk
from drgn_hvo.kernel.unread import READS_AS_ZEROS

__all__ = ("SliceMapping", "VmemmapMapping")


# The users of at most this many frames are counted one by one.
_FEW_FRAMES = 4


@dataclass(frozen=True)
class SliceMapping:
    """What the page tables say of one slice."""

    pfn: int
    writable: bool
    level: int


class VmemmapMapping:
    """How the vmemmap of a kernel is mapped."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.base = kernel.vmemmap
        self.size = kernel.geometry.struct_page_size
        self.page_size = kernel.geometry.page_size
        self._odd_entries: list[OddEntries] = []
        # How many slices map a frame, of those that were asked for one by one.
        self._users: dict[int, int] = {}

    @property
    def odd_entries(self) -> list[OddEntries]:
        """Page table entries of vmemmap whose bits are not those of their siblings."""
        return self._odd_entries if self.has_mappings else []

    @cached_property
    def _walk(self) -> Union[Walk, str]:
        """All mappings, or why they are not known."""
        kernel = self.kernel
        if kernel.page_table_format is None:
            return kernel.no_page_tables_reason
        entry_bits = EntryBitsWatch(kernel.page_table_format)
        found = walk(
            kernel.reader, kernel.page_table_format, *kernel.vmemmap_limits, entry_bits
        )
        self._odd_entries = entry_bits.odd()
        found = self._without_reserves(found)
        if not len(found.runs) and found.missing:
            return "the page tables of vmemmap are not in this dump"
        return found

    def _without_reserves(self, found: Walk) -> Walk:
        """
        Without tables that are empty because no memory was added there: riscv's
        preallocate_pgd_pages_range() makes some for all of vmemmap.
        """
        if not any(table.reason == READS_AS_ZEROS for table in found.missing):
            return found
        end = self.base + (self.kernel.variable("max_pfn") or 0) * self.size
        if len(found.runs):
            last = int(found.runs.va[-1]) + int(found.runs.count[-1]) * self.page_size
            end = max(end, last)
        missing = [
            table
            for table in found.missing
            if table.reason != READS_AS_ZEROS or table.start < end
        ]
        return Walk(found.runs, tuple(missing))

    @property
    def has_mappings(self) -> bool:
        """
        Whether the page tables of vmemmap are known. If not, struct pages are read as
        drgn translates their addresses.
        """
        return not isinstance(self._walk, str)

    @property
    def no_mappings_reason(self) -> Optional[str]:
        """Why not, if they are not known."""
        return self._walk if isinstance(self._walk, str) else None

    @property
    def walk(self) -> Walk:
        """
        All mappings of vmemmap; if none are known, one table of all of it is missing.
        """
        if isinstance(self._walk, str):
            table = MissingTable(0, *self.kernel.vmemmap_limits, self._walk)
            return Walk(Runs.merge([]), (table,))
        return self._walk

    @property
    def runs(self) -> Runs:
        """As :attr:`walk`, just the mappings; none if they are not known."""
        return self.walk.runs

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
        end = int(ends[-1]) * self.page_size // self.size if len(ends) else 0
        # Where page tables are missing, what they map does not end with the last that
        # is there.
        last = self.base + end * self.size
        beyond = max((table.end for table in self.walk.missing), default=last)
        if beyond > last:
            known = self.kernel.variable("max_pfn") or 0
            end = max(end, min(int(known), (beyond - self.base) // self.size))
        return end

    def _end_pfn_of_nodes(self) -> int:
        end = self.kernel.variable("max_pfn")
        if end is None:
            raise TargetError("nothing says how many pages there are; name a range")
        return int(end)

    @cached_property
    def repeated_frames(self) -> Int64Array:
        """Frames that more than one slice maps, ascending."""
        return _repeated_frames(self.runs)

    def unread_table(self, first: int, count: int = 1) -> Optional[str]:
        """
        Why it is not known how slices are mapped, ``None`` if it is.

        :param first: The first of *count* slices.
        """
        if isinstance(self._walk, str):
            return self._walk
        start = self.base + first * self.page_size
        end = start + count * self.page_size
        for table in self._walk.missing:
            if table.start < end and start < table.end:
                return f"a page table of vmemmap {table.reason}"
        return None

    @property
    def has_all_mappings(self) -> bool:
        """Whether all page tables of vmemmap could be read."""
        return not isinstance(self._walk, str) and not self._walk.missing

    def may_go_on_at(self, slice_: int) -> bool:
        """Whether a slice behind the last that is mapped may be mapped, too."""
        is_inside = self.base + slice_ * self.page_size < self.kernel.vmemmap_limits[1]
        return is_inside and self.has_mappings and self.unread_table(slice_) is not None

    @cached_property
    def _frame_ends(self) -> Int64Array:
        """One more than the last frame of each run."""
        return self.runs.pfn + np.where(self.runs.step == 0, 1, self.runs.count)

    def _stretches_on(self, pfn: int) -> tuple[Int64Array, Int64Array]:
        """First slices and lengths of the stretches of slices that map a frame."""
        runs, (firsts, _) = self.runs, self.run_slices
        which = np.flatnonzero((runs.pfn <= pfn) & (pfn < self._frame_ends))
        repeated, first = runs.step[which] == 0, firsts[which]
        start = np.where(repeated, first, first + pfn - runs.pfn[which])
        return start, np.where(repeated, runs.count[which], 1)

    def mapped_by(self, pfn: int) -> int:
        """How many slices map a frame."""
        if pfn not in self._users:
            self._users[pfn] = int(self._stretches_on(pfn)[1].sum())
        return self._users[pfn]

    def are_shared(self, pfns: Int64Array) -> BoolArray:
        """Which frames more than one slice maps."""
        if len(pfns) > _FEW_FRAMES:
            return is_in(pfns, self.repeated_frames)
        return np.array([self.mapped_by(p) > 1 for p in pfns.tolist()], np.bool_)

    def shared_among(self, pfns: Int64Array) -> Int64Array:
        """Those of some frames that more than one slice maps, ascending."""
        pfns = distinct(pfns)
        return pfns[self.are_shared(pfns)]

    def users_of(self, pfns: Int64Array) -> Int64Array:
        """As :meth:`mapped_by()`, over an array."""
        if len(pfns) <= _FEW_FRAMES:
            return np.array([self.mapped_by(p) for p in pfns.tolist()], dtype=np.int64)
        # Sorted, so that the search goes through the processor's cache once.
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
        return np.sort(ranges(*self._stretches_on(pfn)))

    def pages_on(self, pfn: int, order: int) -> Int64Array:
        """
        The pages of an order whose struct pages are mapped to a frame, by the first
        slice of each stretch of these: PFNs, ascending.
        """
        starts, _ = self._stretches_on(pfn)
        first = -(-starts * self.page_size // self.size)
        return distinct(first >> order << order)

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
        :return: ``ALL_ONES`` for what lies outside of vmemmap, and where the address
            is that.
        """
        heads -= np.uint64(self.base)
        if self.kernel.geometry.power_of_2:
            heads >>= np.uint64(self.size.bit_length() - 1)
        else:
            heads //= np.uint64(self.size)
        # ALL_ONES, which says that there is no head, is above the limit, too.
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

    def mapping(self, slice_: int) -> Optional[SliceMapping]:
        """How one slice is mapped, ``None`` if it is not."""
        slices = np.array([slice_], dtype=np.int64)
        index, mapped = self.slices_to_runs(slices)
        if not mapped[0]:
            return None
        pfns, _ = self.frames(slices)
        i = int(index[0])
        return SliceMapping(
            int(pfns[0]), bool(self.runs.writable[i]), int(self.runs.level[i])
        )


# Every huge page has one frame that others map, too: 32 TiB of them have fewer.
_MAX_REPEATED = 1 << 25


def _repeated_frames(runs: Runs) -> Int64Array:
    """Frames that occur more than once in runs, ascending."""
    repeated = (runs.step == 0) & (runs.count > 1)
    # Elsewhere a frame can occur twice only where two runs overlap: a run that
    # begins below the highest end so far. Such overlaps are small and rare.
    first, count = runs.pfn[~repeated], runs.count[~repeated]
    order = order_of(first)
    first = first[order]
    end = first + count[order]
    reached = np.maximum.accumulate(end)[:-1]
    overlap = np.flatnonzero(first[1:] < reached)
    starts = first[1:][overlap]
    counts = np.minimum(end[1:], reached)[overlap] - starts
    total = sum(counts.tolist())
    if total > _MAX_REPEATED:
        raise FormatError(
            f"page tables of vmemmap map {total} frames more than once: some of them "
            "are those of other memory"
        )
    doubles = ranges(starts, counts)
    return distinct(np.concatenate((runs.pfn[repeated], doubles)))

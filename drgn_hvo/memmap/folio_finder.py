# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where folios are
----------------

The page tables of vmemmap lead to every folio that shares frames, and tell how the
struct pages of any folio are mapped. All of it is done on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.kernel.arrays import (
    BoolArray,
    Int64Array,
    ascend,
    distinct,
    is_in,
    ranges,
)
from drgn_hvo.memmap.folio_fields import FolioFields
from drgn_hvo.memmap.folio_heads import FolioHeads, HeadRecords
from drgn_hvo.memmap.pools import NO_LIST
from drgn_hvo.memmap.private_tails import PrivateTails
from drgn_hvo.memmap.shared_tails import SharedTail
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("FolioFinder", "FolioSlices", "FoundFolios", "Slices", "are_hugetlb")


@dataclass(frozen=True)
class Slices:
    """
    The parts of folios' vmemmap behind the private slices that one run maps, by
    folio; one element each in every array.

    :param folio: Index of the folio.
    :param pfn: Frame of the first of these slices.
    :param count: Number of slices.
    :param step: As in :class:`~drgn_hvo.kernel.pagetables.Runs`.
    :param shared: How many of them map a frame that other slices use, too.
    """

    folio: Int64Array
    first: Int64Array
    pfn: Int64Array
    count: Int64Array
    step: npt.NDArray[np.int8]
    writable: BoolArray
    level: npt.NDArray[np.uint8]
    shared: Int64Array

    def are_on(self, frame: int) -> BoolArray:
        """Which parts have a slice that maps a frame."""
        on: BoolArray = self.pfn <= frame
        return on & (frame <= self.pfn + self.step * (self.count - 1))


def are_hugetlb(heads: HeadRecords, fields: FolioFields) -> BoolArray:
    """Which heads are of hugetlb folios, or of frozen ones that are to become some."""
    are: BoolArray = heads["hugetlb"].copy()
    if fields.is_typed_last:
        are |= heads["refcount"] == 0
    return are


def _shared_frames(repeated: Int64Array, tails: Sequence[SharedTail]) -> Int64Array:
    """Frames that slices share, or could share, ascending."""
    named = [tail.pfn for tail in tails if tail.pfn is not None]
    return distinct(np.concatenate((repeated, np.array(named, dtype=np.int64))))


def _expand(firsts: Int64Array, lasts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """All numbers of ranges (ends included), and the range of each."""
    counts = np.maximum(lasts - firsts + 1, 0)
    owner = np.repeat(np.arange(len(firsts), dtype=np.int64), counts)
    return ranges(firsts, counts), owner


@dataclass(frozen=True)
class FoundFolios:
    """
    Heads of folios, by whatever led to them.

    :param order: Of what led to the folio.
    :param kind: Of the list that it is on.
    """

    pfn: Int64Array
    order: Int64Array
    kind: Int64Array

    @classmethod
    def alike(cls, pfns: Int64Array, order: int, kind: int = NO_LIST) -> FoundFolios:
        """Folios of one order."""
        return cls(pfns, np.full_like(pfns, order), np.full_like(pfns, kind))

    @classmethod
    def merge(cls, parts: list[FoundFolios]) -> FoundFolios:
        """All of them by ascending PFN; of those with one head, the last."""
        parts = [part for part in parts if len(part.pfn)]
        if len(parts) == 1 and ascend(parts[0].pfn):
            return parts[0]
        none = cls.alike(np.zeros(0, dtype=np.int64), 0)
        columns = zip(*((p.pfn, p.order, p.kind) for p in [none, *parts]))
        pfn, order, kind = (np.concatenate(column)[::-1] for column in columns)
        pfn, last = np.unique(pfn, return_index=True)
        return cls(pfn, order[last], kind[last])

    def take(self, which: BoolArray) -> FoundFolios:
        """Some of them."""
        return FoundFolios(self.pfn[which], self.order[which], self.kind[which])


class FolioFinder:
    """Finds folios by the page tables of vmemmap."""

    def __init__(
        self,
        vmemmap: Vmemmap,
        tails: Sequence[SharedTail],
        fields: FolioFields,
        private_tails: PrivateTails,
        private_slices: int,
    ) -> None:
        self._vmemmap = vmemmap
        self._tails = tails
        self._private_slices = private_slices
        self._fields = fields
        self.heads = FolioHeads(vmemmap, fields, private_tails)

    @cached_property
    def shared_frames(self) -> Int64Array:
        """Frames that slices share, or could share, ascending."""
        return _shared_frames(self._vmemmap.repeated_frames, self._tails)

    def shared_frames_of(self, pfns: Int64Array, orders: Int64Array) -> Int64Array:
        """As :attr:`shared_frames`, with those of some folios alone."""
        size, page_size = self._vmemmap.size, self._vmemmap.page_size
        counts = np.maximum((size << orders) // page_size, 1)
        frames, _ = self._vmemmap.frames(ranges(pfns * size // page_size, counts))
        # What is named need not be counted.
        frames = frames[~is_in(frames, _shared_frames(frames[:0], self._tails))]
        return _shared_frames(self._vmemmap.shared_among(frames), self._tails)

    @cached_property
    def of_devices(self) -> frozenset[Optional[int]]:
        """
        The shared tail pages of ZONE_DEVICE, which no huge page has: whatever maps
        them is a compound page of a device, also if its head was not read.
        """
        device = self._vmemmap.kernel.constant("ZONE_DEVICE")
        if device is None:
            return frozenset()
        return frozenset(t.pfn for t in self._tails if t.zone_index == device)

    def mapped(self) -> FoundFolios:
        """Every folio that maps a shared frame."""
        named: dict[int, set[int]] = {}
        for tail in self._tails:
            if tail.pfn is not None:
                named.setdefault(tail.pfn, set()).add(tail.order)
        # Where slots of two orders name a frame, ask the folios themselves.
        sure = {pfn: min(orders) for pfn, orders in named.items() if len(orders) == 1}
        parts = [
            FoundFolios.alike(self._of_tail(pfn, order), order)
            for pfn, order in sure.items()
            if pfn not in self.of_devices
        ]
        parts.append(self._of_unnamed(np.array(sorted(sure), dtype=np.int64)))
        return FoundFolios.merge(parts)

    def _of_tail(self, pfn: int, order: int) -> Int64Array:
        """Heads of the folios that map a page of tails of this order."""
        geometry = self._vmemmap.kernel.geometry
        slices = geometry.slices(order)
        firsts, ends = self._vmemmap.run_slices
        runs = self._vmemmap.runs
        # A folio of two slices has a single one that is shared.
        which = ((runs.step == 0) | (runs.count == 1)) & (runs.pfn == pfn)
        folios, _ = _expand(firsts[which] // slices, (ends[which] - 1) // slices)
        return distinct(folios) << order

    def _of_unnamed(self, named: Int64Array) -> FoundFolios:
        """
        Folios whose slices share a frame that no slot names: the folio's own, where
        there are fake heads, or one that a damaged slot should name. Their head is
        in the slice in front of the shared ones, and says its order itself.
        """
        runs = self._vmemmap.runs
        firsts, _ = self._vmemmap.run_slices
        shared = (
            ((runs.step == 0) | (runs.count == 1))
            & is_in(runs.pfn, self.shared_frames)
            & ~is_in(runs.pfn, named)
        )
        geometry = self._vmemmap.kernel.geometry
        slices = firsts[shared] - 1
        if self._vmemmap.kernel.tails_are_writable:
            # Then a run may begin with the slice of the head, which looks the same.
            slices = np.concatenate((slices, firsts[shared]))
        else:
            slices = slices[~runs.writable[shared]]
        slices = np.concatenate((slices, self._heads_elsewhere(shared)))
        # So far that is the slice whose frame is repeated, the last private one.
        slices = distinct(slices - (self._private_slices - 1))
        pfns = slices[slices >= 0] * geometry.pages_per_slice
        if self._fields.order_place is None or self._fields.hugetlb_place is None:
            return FoundFolios.merge([])
        heads = self.heads.of(pfns)
        orders = heads["order"].astype(np.int64)
        mask = np.uint64(self._vmemmap.kernel.PG_head_mask)
        good = heads["present"] & are_hugetlb(heads, self._fields)
        good &= (heads["flags"] & mask) != 0
        good &= orders >= geometry.vmemmap_tail_min_order
        good &= orders <= geometry.largest_order
        good[good] &= pfns[good] % (1 << orders[good]) == 0
        return FoundFolios(pfns[good], orders[good], np.full_like(pfns[good], NO_LIST))

    def _heads_elsewhere(self, shared: BoolArray) -> Int64Array:
        """
        Where the heads of folios may be that are not in front of the shared slices:

        - vmemmap_restore_pte() begins behind the first slice. With fake heads, the
          shared frame is the head's own, which only its slice maps writable.
        - If that is read-only, too, the shared slices begin with it.

        :param shared: Which runs are shared slices.
        """
        runs, (firsts, _) = self._vmemmap.runs, self._vmemmap.run_slices
        in_front, mapped = self._vmemmap.frames(firsts[shared] - 1)
        elsewhere = mapped & (in_front != runs.pfn[shared])
        begins = firsts[shared][elsewhere]
        frames = distinct(runs.pfn[shared][elsewhere])
        owners = np.flatnonzero(runs.writable)
        if not len(frames) or not len(owners):
            return begins
        owners = owners[np.argsort(runs.pfn[owners], kind="stable")]
        starts = runs.pfn[owners]
        place = np.searchsorted(starts, frames, side="right") - 1
        # If several slices map a frame writable, the first is that of the head.
        place = np.searchsorted(starts, starts[np.maximum(place, 0)], side="left")
        owner = owners[place]
        offset = frames - runs.pfn[owner]
        length = np.where(runs.step[owner] == 0, 1, runs.count[owner])
        good = (offset >= 0) & (offset < length)
        return np.concatenate(((firsts[owner] + offset)[good], begins))

    def slices_of(
        self, head_pfns: Int64Array, orders: Int64Array, shared_frames: Int64Array
    ) -> FolioSlices:
        """How the vmemmap of each folio is mapped."""
        return FolioSlices(
            self._vmemmap, shared_frames, head_pfns, orders, self._private_slices
        )


class FolioSlices:
    """How the slices of folios are mapped; arrays by folio."""

    def __init__(
        self,
        vmemmap: Vmemmap,
        shared_frames: Int64Array,
        head_pfns: Int64Array,
        orders: Int64Array,
        private_slices: int,
    ) -> None:
        size, page_size = vmemmap.size, vmemmap.page_size
        self.count = np.maximum((size << orders) // page_size, 1)
        start = head_pfns * size // page_size
        end = start + self.count
        self.head_frame, there = vmemmap.frames(start)
        self.tail_frame = self.head_frame
        mapped = there.astype(np.int64)
        for i in range(1, private_slices):
            frames, there = vmemmap.frames(start + i)
            inside = start + i < end
            self.tail_frame = np.where(inside, frames, self.tail_frame)
            mapped += there & inside
        behind = np.minimum(start + private_slices, end)
        firsts, ends = vmemmap.run_slices
        # All pairs of a folio and a run that overlap behind the private slices.
        run, folio = _expand(
            np.searchsorted(ends, behind, side="right"),
            np.searchsorted(firsts, end, side="left") - 1,
        )
        first = np.maximum(firsts[run], behind[folio])
        last = np.minimum(ends[run], end[folio])
        # A folio that has none behind them ends in the middle of a run, perhaps.
        some = first < last
        if not some.all():
            run, folio, first, last = run[some], folio[some], first[some], last[some]
        self.mapped = mapped + self._sum(folio, last - first)
        runs = vmemmap.runs
        count = last - first
        step = runs.step[run]
        pfn = runs.pfn[run] + step * (first - firsts[run])
        shared = np.searchsorted(shared_frames, pfn + count * step, side="left")
        shared -= np.searchsorted(shared_frames, pfn, side="left")
        repeats = np.where(is_in(pfn, shared_frames), count, 0)
        shared = np.where(step == 0, repeats, shared)
        self.tails = Slices(
            folio=folio,
            first=first - start[folio],
            pfn=pfn,
            count=count,
            step=step,
            writable=runs.writable[run],
            level=runs.level[run],
            shared=shared,
        )
        self.shared_ptes = self._sum(folio, shared)
        self.writable_shared_ptes = self._sum(
            folio, np.where(runs.writable[run], shared, 0)
        )

    def _sum(self, folio: Int64Array, values: Int64Array) -> Int64Array:
        # As floats, which have all whole numbers up to 2**53.
        totals = np.bincount(folio, weights=values, minlength=len(self.count))
        return totals.astype(np.int64)

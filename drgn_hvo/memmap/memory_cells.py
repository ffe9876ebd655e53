# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Memory in cells
---------------

Each zone cut into a few thousand equal parts at most, and what is in each: what a
picture of a machine is drawn from, however large that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.memmap.huge_page_states import (
    HOLE,
    KINDS,
    NO_HUGE_PAGE,
    UNKNOWN,
    huge_page_kinds,
)
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.zones import Zone

__all__ = ("MemoryCells", "ZoneCells", "memory_cells", "tail_users")

# As many cells as a page can show that is still read and loaded in no time.
_MAX_CELLS = 3072

# At most this many zones are drawn. Machines have up to six a node.
_MAX_ZONES = 512


@dataclass(frozen=True)
class ZoneCells:
    """
    A zone in cells.

    :param edges: PFNs where cells begin, and the end of the last.
    :param pages: How many pages of each kind of
        :data:`~drgn_hvo.memmap.huge_page_states.KINDS` (columns) a cell (row) has.
    :param behind: Pages that the zone has behind the end of all struct pages.
    """

    zone: Zone
    edges: Int64Array
    pages: Int64Array
    behind: int

    def cell(self, pfn: int) -> Optional[int]:
        """The cell that a page is in."""
        if not len(self.pages) or not self.edges[0] <= pfn < self.edges[-1]:
            return None
        return int(np.searchsorted(self.edges, pfn, side="right")) - 1


@dataclass(frozen=True)
class MemoryCells:
    """
    The memory of a machine in cells.

    :param order: Of the memory of a cell.
    :param left_out: Zones that are not among *zones*, for there are too many.
    :param unknown: Why not all is known.
    """

    order: int
    zones: tuple[ZoneCells, ...]
    left_out: int
    unknown: tuple[str, ...]


class _Spans:
    """Ranges of PFNs by ascending start."""

    def __init__(self, starts: Int64Array, counts: Int64Array) -> None:
        order = np.argsort(starts, kind="stable")
        self._starts, self._counts = starts[order], counts[order]
        self._before = np.concatenate(([0], np.cumsum(self._counts)))

    def pages(self, edges: Int64Array) -> Int64Array:
        """How many pages of them lie between each two edges."""
        place = np.searchsorted(self._starts, edges, side="right") - 1
        if not len(self._starts):
            return np.zeros(len(edges) - 1, dtype=np.int64)
        inside = edges - self._starts[np.maximum(place, 0)]
        inside = np.minimum(inside, self._counts[np.maximum(place, 0)])
        below = np.where(place < 0, 0, self._before[np.maximum(place, 0)] + inside)
        # Ranges that damage lets overlap are more than there is memory.
        return np.clip(np.diff(below), 0, np.diff(edges))


class _Memory:
    """What is known of all memory, in ranges of PFNs."""

    def __init__(self, hvo: Hvo) -> None:
        folios = hvo.hugetlb.folios
        largest = hvo.kernel.geometry.largest_order
        self._head_pfns = folios.head_pfn
        self._counts = np.int64(1) << np.minimum(folios.order, largest)
        self._kinds = huge_page_kinds(hvo)
        self._nids, self._zones = hvo.folio_nids, hvo.folio_zones
        self._mapped = self._of_slices(hvo)
        missing = hvo.vmemmap.walk.missing
        base, size = hvo.vmemmap.base, hvo.vmemmap.size
        last = hvo.believable_end_pfn
        starts = [min(max((t.start - base) // size, 0), last) for t in missing]
        ends = [min(max((t.end - base) // size, 0), last) for t in missing]
        first = np.array(starts, dtype=np.int64)
        self._unread = _Spans(first, np.array(ends, dtype=np.int64) - first)
        # Memory may be in a huge page that was not found.
        self._knows_all = hvo.mmzone.knows_all_zones and not hvo.unread_lists
        self._all_zones = hvo.mmzone.zones

    @staticmethod
    def _of_slices(hvo: Hvo) -> _Spans:
        """Pages whose struct pages are mapped."""
        vmemmap = hvo.vmemmap
        starts, ends = (
            slices * vmemmap.page_size // vmemmap.size for slices in vmemmap.run_slices
        )
        return _Spans(starts, ends - starts)

    def _shared_with(self, zone: Zone, edges: Int64Array) -> Int64Array:
        """How many pages lie in the range of another zone, too."""
        pages = np.zeros(len(edges) - 1, dtype=np.int64)
        for other in self._all_zones:
            if other is not zone and other.spanned:
                low, high = (
                    np.int64(min(pfn, int(edges[-1])))
                    for pfn in (other.start_pfn, other.start_pfn + other.spanned)
                )
                inside = np.diff(np.clip(edges, low, high))
                pages = np.maximum(pages, inside)
        return pages

    def pages(self, zone: Zone, edges: Int64Array) -> Int64Array:
        """Pages of each kind between each two edges."""
        left = np.diff(edges)
        pages = np.zeros((len(left), len(KINDS)), dtype=np.int64)
        is_here = (self._nids < 0) | (self._nids == zone.nid)
        is_here &= (self._zones < 0) | (self._zones == zone.index)
        for kind in np.unique(self._kinds[is_here]).tolist():
            which = is_here & (self._kinds == kind)
            spans = _Spans(self._head_pfns[which], self._counts[which])
            left = left - self._take(pages, kind, spans.pages(edges), left)
        unread = self._unread.pages(edges)
        holes = np.diff(edges) - self._mapped.pages(edges) - unread
        left = left - self._take(pages, UNKNOWN, unread, left)
        left = left - self._take(pages, HOLE, np.maximum(holes, 0), left)
        doubtful = self._shared_with(zone, edges) if self._knows_all else left
        left = left - self._take(pages, UNKNOWN, doubtful, left)
        self._take(pages, NO_HUGE_PAGE, left, left)
        return pages

    @staticmethod
    def _take(
        pages: Int64Array, kind: int, wanted: Int64Array, left: Int64Array
    ) -> Int64Array:
        """Give a kind what it wants of what is left."""
        taken = np.minimum(wanted, left)
        pages[:, kind] += taken
        return taken


def _ends(hvo: Hvo, zones: list[Zone]) -> list[int]:
    """Where zones end, if struct pages do not end before."""
    last = hvo.believable_end_pfn
    return [max(zone.start_pfn, min(zone.start_pfn + zone.spanned, last))
            for zone in zones]  # fmt: skip


def _order(zones: list[Zone], ends: list[int], least: int) -> int:
    """The order of a cell, such that there are few enough."""
    order = least
    while sum(
        (end - zone.start_pfn >> order) + 1 for zone, end in zip(zones, ends)
    ) > _MAX_CELLS + len(zones):
        order += 1
    return order


def _unknown(hvo: Hvo) -> Iterator[str]:
    yield from (str(one) for one in hvo.mmzone.unread)
    yield from hvo.unread_lists
    if not hvo.vmemmap.has_mappings:
        yield hvo.vmemmap.no_mappings_reason or ""
    elif not hvo.vmemmap.has_all_mappings:
        yield "page tables of parts of vmemmap were not read"


def memory_cells(hvo: Hvo) -> MemoryCells:
    """The memory of a kernel with types, in cells."""
    populated = [zone for zone in hvo.mmzone.zones if zone.spanned]
    zones = populated[:_MAX_ZONES]
    ends = _ends(hvo, zones)
    orders = hvo.hugetlb.folios.order
    least = (
        int(orders.min()) if len(orders) else hvo.kernel.geometry.vmemmap_tail_min_order
    )
    order = _order(zones, ends, least)
    memory = _Memory(hvo)
    cells = []
    for zone, end in zip(zones, ends):
        start = zone.start_pfn
        edges = [start, *range((start >> order) + 1 << order, end, 1 << order), end]
        array = np.array(edges if end > start else [0], dtype=np.int64)
        behind = start + zone.spanned - end
        cells.append(ZoneCells(zone, array, memory.pages(zone, array), behind))
    unknown = tuple(dict.fromkeys(_unknown(hvo)))
    return MemoryCells(order, tuple(cells), len(populated) - len(zones), unknown)


def tail_users(hvo: Hvo, pfn: int) -> tuple[Int64Array, Int64Array, int]:
    """
    Where the folios are whose struct pages map a frame, as far as that was read.

    :return: Ascending ranges of PFNs, starts and ends, and how many folios those are.
    """
    folios = hvo.hugetlb.folios
    slices = folios.tail_slices
    which = np.unique(slices.folio[slices.are_on(pfn)])
    starts = folios.head_pfn[which]
    orders = np.minimum(folios.order[which], hvo.kernel.geometry.largest_order)
    ends = starts + (np.int64(1) << orders)
    begins = np.flatnonzero(np.concatenate(([True], starts[1:] != ends[:-1])))
    if not len(starts):
        return starts, ends, 0
    last_of = np.concatenate((begins[1:], [len(starts)])) - 1
    return starts[begins], ends[last_of], len(which)

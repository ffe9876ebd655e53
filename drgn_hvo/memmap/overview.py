# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pools at a glance
-----------------

How many huge pages there are, how many of them are optimized and what that saves. A
machine of a terabyte has two GiB of heads of huge pages: there the page tables of
vmemmap and the counters of the pools tell, as long as they account for each other;
where they do not, and on machines with few huge pages, each huge page is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import FaultError
import numpy as np

from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, is_in
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.hvo import Hvo, saved_by_node_order
from drgn_hvo.memmap.hwpoison import (
    HwpoisonedFolio,
    PG_hwpoison_mask,
    hwpoisoned_folios,
)
from drgn_hvo.memmap.not_optimized import (
    NotOptimized,
    reason_of_all,
    why_not_optimized,
)
from drgn_hvo.memmap.pools import HState

__all__ = (
    "NodeCounts",
    "Overview",
    "counted_overview",
    "overview_of",
    "unread_sharers",
)

# As many huge pages are read in no time: 64 MiB of heads.
_FEW_FOLIOS = 1 << 14


@dataclass(frozen=True)
class NodeCounts:
    """
    Huge pages of one pool on one node; what is ``None`` is not known.

    :param folios: How many were found.
    :param optimized: How many of them share frames of vmemmap.
    """

    folios: Optional[int]
    optimized: Optional[int]


@dataclass(frozen=True)
class Overview:
    """
    All pools of a kernel with types; what is ``None`` is not known.

    :param nodes: By order and node.
    :param saved: Pages of vmemmap that HVO saved, by node and order.
    :param not_optimized: Why huge pages are not optimized.
    :param hwpoisoned: Huge pages in which memory failed.
    :param tails_are_writable: As
        :attr:`Hugetlb.tails_are_writable
        <drgn_hvo.memmap.folios.Hugetlb.tails_are_writable>`.
    :param left_out: What was not looked at, and reading each huge page would tell: a
        sentence each.
    """

    hstates: tuple[HState, ...]
    nodes: dict[tuple[int, int], NodeCounts]
    saved: Optional[dict[tuple[Optional[int], int], int]]
    not_optimized: Optional[tuple[NotOptimized, ...]]
    hwpoisoned: Optional[tuple[HwpoisonedFolio, ...]]
    tails_are_writable: bool
    left_out: tuple[str, ...] = ()


def overview_of(hvo: Hvo, *, whole: bool) -> Overview:
    """
    The overview of a kernel with types.

    :param whole: Whether to read each huge page, however many there are.
    """
    if not whole and not hvo.has_read_folios and not _are_few(hvo):
        found = counted_overview(hvo)
        if found is not None:
            return found
    return _read_overview(hvo)


def _are_few(hvo: Hvo) -> bool:
    """Whether there are few huge pages, or it is not known how many."""
    total = 0
    for hstate in hvo.pools.hstates:
        if hstate.total is None:
            return True
        # A damaged counter does not make more than fit in memory.
        total += min(hstate.total, hvo.vmemmap.end_pfn >> hstate.order)
    return total <= _FEW_FOLIOS


# By reading each huge page.


# What has to be read to know of all huge pages.
_ALL_LISTS = (Need.NODES, Need.POOLS, Need.LISTS)
_ALL_FOLIOS = (*_ALL_LISTS, Need.FOLIO_HEADS)


def _read_overview(hvo: Hvo) -> Overview:
    hugetlb = hvo.hugetlb
    are_known = hvo.unread_of(*_ALL_FOLIOS) is None
    are_found = hvo.unread_of(*_ALL_LISTS) is None
    knows_shared = not hvo.vmemmap.walk.missing and unread_sharers(hvo) is None
    return Overview(
        hugetlb.hstates,
        {
            (hstate.order, nid): _read_counts(hvo, hstate, nid, knows_shared)
            for hstate in hugetlb.hstates
            for nid in hvo.mmzone.nids
        },
        saved_by_node_order(hvo) if knows_shared else None,
        tuple(why_not_optimized(hvo)) if are_found else None,
        tuple(hwpoisoned_folios(hvo)) if are_known else None,
        hugetlb.tails_are_writable,
    )


def unread_sharers(hvo: Hvo) -> Optional[str]:
    """
    Why there may be more folios that share frames than were found, ``None`` if there
    are none: all lists were read, or those that were found have all slices that share.
    """
    unread = hvo.unread_of(*_ALL_LISTS)
    if unread is None or _are_shared_frames_accounted_for(hvo):
        return None
    return str(unread)


def _are_shared_frames_accounted_for(hvo: Hvo) -> bool:
    """Whether the folios that were found have all slices that share frames."""
    named = {tail.pfn for tail in hvo.shared_tails if tail.pfn is not None}
    frames = np.array(sorted(named), dtype=np.int64)
    folios = hvo.hugetlb.folios
    shared = int(folios.shared_ptes.sum())
    if hvo.layout.tails.kind != "shared":
        shared += int((folios.shared_ptes > 0).sum())  # the frame of each head
    return hvo.tail_slots.unread == () and shared == _occurrences(hvo, frames)


def _read_counts(hvo: Hvo, hstate: HState, nid: int, knows_shared: bool) -> NodeCounts:
    hugetlb = hvo.hugetlb
    of_order = hugetlb.folios.order == hstate.order
    # A folio of which nothing tells the node may be on any.
    if bool((of_order & (hvo.folio_nids < 0)).any()):
        return NodeCounts(None, None)
    here = of_order & (hvo.folio_nids == nid)
    unread = {a.nid for a in hugetlb.lists_of(hstate.order) if not a.is_whole}
    optimized = int((here & hugetlb.optimized_mapping).sum())
    return NodeCounts(
        None if unread & {nid, None} else int(here.sum()),
        optimized if knows_shared else None,
    )


# By counters and page tables.


@dataclass(frozen=True)
class _Stretches:
    """
    Stretches of vmemmap that share one frame, each of which is all of one folio behind
    its private slices; one element each in every array.

    :param slices: How many of them share the frame with others of the folio.
    """

    head_pfn: Int64Array
    order: Int64Array
    slices: Int64Array
    writable: BoolArray


def counted_overview(hvo: Hvo) -> Optional[Overview]:
    """
    The overview by page tables and counters alone, ``None`` if these do not account
    for each other: for each shared frame there has to be a folio, and for each folio
    room in the pool of its order on its node.
    """
    stretches = _stretches(hvo)
    if stretches is None or hvo.pools.unread or hvo.mmzone.unread:
        return None
    nids, _ = hvo.mmzone.places(stretches.head_pfn)
    if (nids < 0).any():
        return None
    nodes: dict[tuple[int, int], NodeCounts] = {}
    saved: dict[tuple[Optional[int], int], int] = {}
    rests: dict[tuple[int, int], int] = {}
    for nid in hvo.mmzone.nids:
        for hstate in hvo.pools.hstates:
            here = (stretches.order == hstate.order) & (nids == nid)
            optimized, total = int(here.sum()), hstate.total_node[nid]
            if total is None or optimized > total:
                return None
            if optimized < total:
                rests[hstate.order, nid] = total - optimized
            found = total if optimized == total else None
            nodes[hstate.order, nid] = NodeCounts(found, optimized)
            if optimized:
                saved[nid, hstate.order] = int(stretches.slices[here].sum())
    not_optimized = _not_optimized(hvo, rests)
    failed_pages = _failed_pages(hvo)
    shared = int(stretches.slices.sum())
    writable = int(stretches.slices[stretches.writable].sum())
    return Overview(
        hvo.pools.hstates,
        nodes,
        dict(sorted(saved.items())),
        not_optimized,
        () if failed_pages == 0 else None,
        hvo.kernel.tails_are_writable and 2 * writable > shared,
        _left_out(rests, not_optimized, failed_pages),
    )


def _stretches(hvo: Hvo) -> Optional[_Stretches]:
    """The stretches of a kernel, ``None`` if there are shared frames elsewhere, too."""
    vmemmap, kind = hvo.vmemmap, hvo.layout.tails.kind
    if not vmemmap.has_all_mappings or kind is None or hvo.tail_slots.unread:
        return None
    if hvo.fields.faults or hvo.private_tails.fault is not None:
        return None
    named = {tail.pfn: tail.order for tail in hvo.shared_tails if tail.pfn is not None}
    if len(named) < len(hvo.shared_tails):
        return None
    frames = np.array(sorted(named), dtype=np.int64)
    runs, (firsts, _) = vmemmap.runs, vmemmap.run_slices
    single = (runs.count == 1) & is_in(runs.pfn, frames)
    if kind != "shared":
        single = (runs.count == 1) & ~runs.writable
        single &= is_in(runs.pfn, vmemmap.repeated_frames)
    which = np.flatnonzero((runs.step == 0) | single)
    first, count, pfn = firsts[which], runs.count[which], runs.pfn[which]
    private = hvo.layout.tails.private_slices
    writable = runs.writable[which]
    in_front, mapped = vmemmap.frames(first - 1)
    # Where tails are writable by design, the slice whose frame they repeat may be one
    # of the same run.
    is_led = writable & (kind != "shared") & (in_front != pfn)
    start = first - private + is_led
    slices = count + private - is_led
    orders = _orders(hvo, slices)
    good = (orders >= 0) & (start % slices == 0) & (mapped | is_led)
    good &= ~writable | hvo.kernel.tails_are_writable
    if kind == "shared":
        good &= in_front != pfn
        good &= _named_orders(named, pfn) == orders
    else:
        good &= is_led | (in_front == pfn)
    private_ones = 0 if kind == "shared" else len(which)
    shared = count - is_led
    if not good.all() or int(shared.sum()) + private_ones != _occurrences(hvo, frames):
        return None
    head_pfns = start * hvo.kernel.geometry.pages_per_slice
    return _Stretches(head_pfns, orders, shared, writable)


def _orders(hvo: Hvo, slices: Int64Array) -> Int64Array:
    """The orders of pools whose struct pages fill each number of slices, else -1."""
    orders = np.full(len(slices), -1, dtype=np.int64)
    if hvo.kernel.geometry.power_of_2:
        for hstate in hvo.pools.hstates:
            orders[slices == hvo.kernel.geometry.slices(hstate.order)] = hstate.order
    return orders


def _named_orders(named: dict[int, int], pfns: Int64Array) -> Int64Array:
    """For which order a slot names each frame, -1 if none does."""
    orders = np.full(len(pfns), -1, dtype=np.int64)
    for pfn, order in named.items():
        orders[pfns == pfn] = order
    return orders


def _occurrences(hvo: Hvo, named: Int64Array) -> int:
    """How many slices map frames that slices share, or could share."""
    runs, repeated = hvo.vmemmap.runs, hvo.vmemmap.repeated_frames
    frames = np.union1d(repeated, named)
    many = runs.step == 0
    pfn, count = runs.pfn[~many], runs.count[~many]
    within = np.searchsorted(frames, pfn + count, side="left")
    within -= np.searchsorted(frames, pfn, side="left")
    return int(runs.count[many].sum()) + int(within.sum())


def _not_optimized(
    hvo: Hvo, rests: dict[tuple[int, int], int]
) -> Optional[tuple[NotOptimized, ...]]:
    """
    Why huge pages are not optimized, if that is the same for all of a pool.

    :param rests: How many are not, by order and node.
    """
    found = []
    for (order, nid), count in sorted(rests.items()):
        reason = reason_of_all(hvo, order)
        if reason is None:
            return None
        found.append(NotOptimized(nid, order, reason, count))
    return tuple(found)


def _failed_pages(hvo: Hvo) -> Optional[int]:
    """In how many pages memory failed, by the kernel's counter."""
    kernel = hvo.kernel
    if PG_hwpoison_mask(hvo) is None and kernel.type("enum pageflags") is not None:
        return 0  # built without CONFIG_MEMORY_FAILURE
    try:
        counter = kernel.prog["num_poisoned_pages"].counter
        return int(kernel.known_words.value(counter))
    except (AttributeError, FaultError, LookupError, UnavailableError):
        return None


def _left_out(
    rests: dict[tuple[int, int], int],
    not_optimized: Optional[tuple[NotOptimized, ...]],
    failed_pages: Optional[int],
) -> tuple[str, ...]:
    """
    What only reading each huge page tells.

    :param rests: How many share no frames, by order and node.
    """
    said = [
        "there are many huge pages: these numbers are those of the counters and of the "
        "page tables, which account for each other. --folios reads each huge page, "
        "and follows the lists of the pools"
    ]
    if rests:
        count = sum(rests.values())
        why = "" if not_optimized is not None else ", and why they are not optimized"
        said.append(
            f"{count} huge pages share no frames, by the counters: --folios says "
            f"whether they can be found{why}"
        )
    if failed_pages != 0:
        number = "an unknown number of" if failed_pages is None else failed_pages
        said.append(
            f"memory failed in {number} pages: --folios says whether huge pages are "
            "among them"
        )
    return tuple(said)

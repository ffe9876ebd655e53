# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Hugetlb folios
--------------

Folios are found on the lists of the pools *and* in the page tables of vmemmap: a
folio that is being moved, freed or demoted is on no list, but still optimized.
Whether one is optimized is told by the kernel's flag and, independently, by the
page tables. All of it is done on arrays, one element a folio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.kernel.arrays import BoolArray, Int64Array, distinct, is_in, ranges
from drgn_hvo.kernel.unread import NOT_IN_DUMP, READS_AS_ZEROS, Need, Unread
from drgn_hvo.memmap.folio_fields import FolioFields, folio_fields
from drgn_hvo.memmap.folio_heads import FolioHeads, HeadRecords
from drgn_hvo.memmap.hstate_identity import WrongWord
from drgn_hvo.memmap.list_links import Links
from drgn_hvo.memmap.pools import (
    NO_LIST,
    HState,
    HugePageList,
    Pools,
    hpg_flags,
    read_lists,
)
from drgn_hvo.memmap.private_tails import PrivateTails
from drgn_hvo.memmap.shared_tails import SharedTail
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.memmap.zones import Mmzone

__all__ = ("Folios", "Hugetlb", "Slices", "SomeFolios", "read_hugetlb")


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
    step: Int64Array
    writable: BoolArray
    level: npt.NDArray[np.uint8]
    shared: Int64Array


@dataclass(frozen=True)
class Folios:
    """
    Folios by ascending head PFN, one element each in every array.

    :param order: Of the list or shared tail page that led to the folio.
    :param on_list: Kind of the list that it is on.
    :param present: Whether the dump has its first struct pages; where it has not,
        what they say is zero.
    :param PG_head: Whether its first struct page has ``PG_head``.
    :param flags: ``page->flags`` of the head.
    :param next_info: The tail word of the struct page behind the head.
    :param tail_info: That of the next one, in the head's own page of vmemmap.
    :param uniform: Whether it is that of all further tails in that page; false where
        the head does not begin the page.
    :param quiet: Whether no other struct page in that page has ``PG_head``, unless it
        is a tail; false where the head does not begin the page.
    :param regular: Whether its private tails have all fields as those of a folio in use
        have them; false where it does not fill the page that its head begins.
    :param idle: As *regular*, of a folio on a free list.
    :param refcount: ``_refcount``.
    :param private: ``folio->private``: the ``HPG_`` flags.
    :param is_hugetlb: Whether it is of type hugetlb; ``None`` if nothing tells.
    :param own_order: The order that the folio itself says; ``None`` if nothing tells.
    :param slices: How many pages of vmemmap its struct pages fill.
    :param mapped: How many of them are mapped at all.
    :param head_frame: The frame of its first slice, -1 if that is not mapped.
    :param tail_frame: The frame of its last private slice, as *head_frame*.
    :param shared_ptes: Slices behind the private ones whose frame others use, too.
    :param writable_shared_ptes: How many of those are writable.
    """

    head_pfn: Int64Array
    order: Int64Array
    on_list: Int64Array
    present: BoolArray
    PG_head: BoolArray
    flags: npt.NDArray[np.uint64]
    next_info: npt.NDArray[np.uint64]
    tail_info: npt.NDArray[np.uint64]
    uniform: BoolArray
    quiet: BoolArray
    regular: BoolArray
    idle: BoolArray
    refcount: Int64Array
    private: npt.NDArray[np.uint64]
    is_hugetlb: Optional[BoolArray]
    own_order: Optional[Int64Array]
    slices: Int64Array
    mapped: Int64Array
    head_frame: Int64Array
    tail_frame: Int64Array
    shared_ptes: Int64Array
    writable_shared_ptes: Int64Array
    tail_slices: Slices

    def __len__(self) -> int:
        return len(self.head_pfn)


@dataclass(frozen=True)
class Hugetlb:
    """
    All pools, lists and folios of a kernel.

    :param unread: Pools, counters and lists that could not be read.
    :param wrong_pool_words: Words that say something else of pools than the others do.
    :param may_be_writable: As :attr:`Kernel.tails_are_writable
        <drgn_hvo.kernel.bound.Kernel.tails_are_writable>`.
    """

    hstates: tuple[HState, ...]
    lists: tuple[HugePageList, ...]
    folios: Folios
    hpg_flags: dict[str, int]
    may_be_writable: bool = False
    unread: tuple[Unread, ...] = ()
    wrong_pool_words: tuple[WrongWord, ...] = ()

    @property
    def unread_pools(self) -> bool:
        """Whether there may be pools, or nodes of pools, that nothing tells of."""
        return any(unread.need is Need.POOLS for unread in self.unread)

    def lists_of(self, order: int) -> list[HugePageList]:
        """The lists of the pool of an order."""
        return [a_list for a_list in self.lists if a_list.order == order]

    def has_hpg_flag(self, name: str) -> Optional[BoolArray]:
        """Which folios have an ``HPG_`` flag; ``None`` if nothing tells its bit."""
        bit = self.hpg_flags.get(name)
        if bit is None:
            return None
        return (self.folios.private >> np.uint64(bit) & np.uint64(1)) != 0

    @cached_property
    def optimized_mapping(self) -> BoolArray:
        """Which folios share frames of vmemmap, by the page tables."""
        return self.folios.shared_ptes > 0

    @cached_property
    def tails_are_writable(self) -> bool:
        """
        Whether tails are writable by design: most slices that share a frame are, on an
        architecture that has no PAGE_KERNEL_RO.
        """
        shared = int(self.folios.shared_ptes.sum())
        writable = int(self.folios.writable_shared_ptes.sum())
        return self.may_be_writable and 2 * writable > shared

    @cached_property
    def in_transition(self) -> BoolArray:
        """
        Which folios are on their way between states: frozen and on no list, as
        while HVO remaps them.
        """
        folios = self.folios
        return folios.present & (folios.on_list == NO_LIST) & (folios.refcount == 0)


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
class _Found:
    """
    Heads of folios, by whatever led to them.

    :param order: Of what led to the folio.
    :param kind: Of the list that it is on.
    """

    pfn: Int64Array
    order: Int64Array
    kind: Int64Array

    @classmethod
    def alike(cls, pfns: Int64Array, order: int, kind: int = NO_LIST) -> _Found:
        """Folios of one order."""
        return cls(pfns, np.full_like(pfns, order), np.full_like(pfns, kind))

    @classmethod
    def merge(cls, parts: list[_Found]) -> _Found:
        """All of them by ascending PFN; of those with one head, the last."""
        none = cls.alike(np.zeros(0, dtype=np.int64), 0)
        columns = zip(*((p.pfn, p.order, p.kind) for p in [none, *parts]))
        pfn, order, kind = (np.concatenate(column)[::-1] for column in columns)
        pfn, last = np.unique(pfn, return_index=True)
        return cls(pfn, order[last], kind[last])

    def take(self, which: BoolArray) -> _Found:
        """Some of them."""
        return _Found(self.pfn[which], self.order[which], self.kind[which])


class _Finder:
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

    def mapped(self) -> _Found:
        """Every folio that maps a shared frame."""
        named: dict[int, set[int]] = {}
        for tail in self._tails:
            if tail.pfn is not None:
                named.setdefault(tail.pfn, set()).add(tail.order)
        # Where slots of two orders name a frame, ask the folios themselves.
        sure = {pfn: min(orders) for pfn, orders in named.items() if len(orders) == 1}
        parts = [
            _Found.alike(self._of_tail(pfn, order), order)
            for pfn, order in sure.items()
        ]
        parts.append(self._of_unnamed(np.array(sorted(sure), dtype=np.int64)))
        return _Found.merge(parts)

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

    def _of_unnamed(self, named: Int64Array) -> _Found:
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
            return _Found.merge([])
        heads = self.heads.of(pfns)
        orders = heads["order"].astype(np.int64)
        mask = np.uint64(self._vmemmap.kernel.PG_head_mask)
        good = heads["present"] & _are_hugetlb(heads, self._fields)
        good &= (heads["flags"] & mask) != 0
        good &= orders >= geometry.vmemmap_tail_min_order
        good &= orders <= geometry.largest_order
        good[good] &= pfns[good] % (1 << orders[good]) == 0
        return _Found(pfns[good], orders[good], np.full_like(pfns[good], NO_LIST))

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
    ) -> _FolioSlices:
        """How the vmemmap of each folio is mapped."""
        return _FolioSlices(
            self._vmemmap, shared_frames, head_pfns, orders, self._private_slices
        )


class _FolioSlices:
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
        self.head_frame, _ = vmemmap.frames(start)
        firsts, ends = vmemmap.run_slices
        # All pairs of a folio and a run that overlap.
        run, folio = _expand(
            np.searchsorted(ends, start, side="right"),
            np.searchsorted(firsts, end, side="left") - 1,
        )
        first = np.maximum(firsts[run], start[folio])
        last = np.minimum(ends[run], end[folio])
        self.mapped = self._sum(folio, last - first)
        self.tail_frame = self.head_frame
        if private_slices > 1:
            last_private = np.minimum(start + private_slices, end) - 1
            self.tail_frame, _ = vmemmap.frames(last_private)
        # Behind the private slices.
        first = np.maximum(first, start[folio] + private_slices)
        keep = first < last
        run, folio, first, last = run[keep], folio[keep], first[keep], last[keep]
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


def read_hugetlb(
    vmemmap: Vmemmap,
    mmzone: Mmzone,
    pools: Pools,
    tails: Sequence[SharedTail],
    private_tails: PrivateTails,
    private_slices: int = 1,
) -> Hugetlb:
    """
    Read all lists and folios of a kernel with types.

    :param private_slices: How many pages of struct pages optimized folios keep.
    """
    kernel = vmemmap.kernel
    fields = folio_fields(kernel)
    finder = _Finder(vmemmap, tails, fields, private_tails, private_slices)
    mapped = finder.mapped()
    links = Links(vmemmap, finder.heads, mapped.pfn)
    lists: list[HugePageList] = []
    for hstate in pools.hstates:
        lists += read_lists(vmemmap, hstate, mmzone.nids, links)
    listed = _Found.merge(
        [_Found.alike(np.asarray(a.heads), a.order, a.kind) for a in lists]
    )
    unlisted = mapped.take(~is_in(mapped.pfn, listed.pfn))
    unlisted = unlisted.take(~_are_strays(finder, vmemmap, fields, unlisted.pfn))
    found = _Found.merge([unlisted, listed])
    folios = _folios(finder, vmemmap, fields, found, finder.shared_frames)
    return Hugetlb(
        pools.hstates,
        tuple(lists),
        folios,
        hpg_flags(kernel),
        kernel.tails_are_writable,
        (
            *pools.unread,
            *_unread_links(lists),
            *_unread_heads(finder, folios.head_pfn),
            *_unread_fields(fields, private_tails),
        ),
        pools.wrong,
    )


class SomeFolios:
    """Reads single folios, whose heads are known, of a kernel with types."""

    def __init__(
        self,
        vmemmap: Vmemmap,
        tails: Sequence[SharedTail],
        private_tails: PrivateTails,
        private_slices: int = 1,
    ) -> None:
        self._vmemmap = vmemmap
        self._fields = folio_fields(vmemmap.kernel)
        self._finder = _Finder(
            vmemmap, tails, self._fields, private_tails, private_slices
        )

    @property
    def heads(self) -> FolioHeads:
        """Reads heads, each once."""
        return self._finder.heads

    def shared_frames(self, pfn: int, order: int) -> Int64Array:
        """Frames that slices of a folio share, or could share, ascending."""
        return self._finder.shared_frames_of(np.array([pfn]), np.array([order]))

    def are_typed(self, heads: HeadRecords) -> BoolArray:
        """Which heads are of hugetlb folios, or of frozen ones to become some."""
        return _are_hugetlb(heads, self._fields)

    def read(self, pfns: Int64Array, orders: Int64Array, kinds: Int64Array) -> Folios:
        """
        Read folios.

        :param pfns: Of their heads, ascending.
        :param kinds: Of the lists that they are on.
        """
        found = _Found(pfns, orders, kinds)
        shared = self._finder.shared_frames_of(pfns, orders)
        return _folios(self._finder, self._vmemmap, self._fields, found, shared)

    def unread(self, pfns: Int64Array) -> Iterator[Unread]:
        """What could not be read of the heads of folios."""
        return _unread_heads(self._finder, pfns)


def _are_hugetlb(heads: HeadRecords, fields: FolioFields) -> BoolArray:
    """Which heads are of hugetlb folios, or of frozen ones that are to become some."""
    are: BoolArray = heads["hugetlb"].copy()
    if fields.is_typed_last:
        are |= heads["refcount"] == 0
    return are


def _unread_fields(
    fields: FolioFields, private_tails: PrivateTails
) -> Iterator[Unread]:
    """What is not known of all folios, for no type says where it is."""
    for fault in fields.faults:
        yield Unread(Need.FOLIO_HEADS, "fields of folios", fault)
    if private_tails.fault is not None:
        yield Unread(Need.FOLIO_TAILS, "fields of folios", private_tails.fault)


def _unread_heads(finder: _Finder, pfns: Int64Array) -> Iterator[Unread]:
    heads = finder.heads.of(pfns)
    missing, zeros = ~heads["present"], heads["present"] & heads["zeros"]
    for which, reason in ((missing, NOT_IN_DUMP), (zeros, READS_AS_ZEROS)):
        if which.any():
            what = "first struct pages of folios"
            yield Unread(Need.FOLIO_HEADS, what, reason, int(which.sum()))


def _unread_links(lists: list[HugePageList]) -> Iterator[Unread]:
    for a_list in lists:
        link = a_list.broken
        if link is not None and a_list.is_unread:
            what = f"the {a_list} behind {len(a_list.heads)} folios"
            is_blank = link.reason == READS_AS_ZEROS
            reason = READS_AS_ZEROS if is_blank else NOT_IN_DUMP
            yield Unread(Need.LISTS, what, reason)


def _are_strays(
    finder: _Finder, vmemmap: Vmemmap, fields: FolioFields, pfns: Int64Array
) -> BoolArray:
    """
    What only its mapping made look like a folio: something maps a shared tail page,
    but where the head would be there is none.
    """
    heads = finder.heads.of(pfns)
    no_head = heads["flags"] & np.uint64(vmemmap.kernel.PG_head_mask) == 0
    if fields.hugetlb_place is not None:
        no_head |= ~_are_hugetlb(heads, fields)
    return heads["present"] & ~heads["zeros"] & no_head


def _folios(
    finder: _Finder,
    vmemmap: Vmemmap,
    fields: FolioFields,
    found: _Found,
    shared_frames: Int64Array,
) -> Folios:
    heads = finder.heads.of(found.pfn)
    slices = finder.slices_of(found.pfn, found.order, shared_frames)
    flags = heads["flags"].copy()
    return Folios(
        head_pfn=found.pfn,
        order=found.order,
        on_list=found.kind,
        # What an ELF dump leaves out reads as zeros; no head is all zeros.
        present=heads["present"] & ~heads["zeros"],
        PG_head=(flags & np.uint64(vmemmap.kernel.PG_head_mask)) != 0,
        flags=flags,
        next_info=heads["next_info"].copy(),
        tail_info=heads["tail_info"].copy(),
        uniform=heads["uniform"].copy(),
        quiet=heads["quiet"].copy(),
        regular=heads["regular"].copy(),
        idle=heads["idle"].copy(),
        refcount=heads["refcount"].astype(np.int64),
        private=heads["private"].copy(),
        is_hugetlb=heads["hugetlb"].copy() if fields.hugetlb_place else None,
        own_order=heads["order"].astype(np.int64) if fields.order_place else None,
        slices=slices.count,
        mapped=slices.mapped,
        head_frame=slices.head_frame,
        tail_frame=slices.tail_frame,
        shared_ptes=slices.shared_ptes,
        writable_shared_ptes=slices.writable_shared_ptes,
        tail_slices=slices.tails,
    )

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

from drgn_hvo.kernel.arrays import BoolArray, Int64Array, is_in
from drgn_hvo.kernel.unread import NOT_IN_DUMP, READS_AS_ZEROS, Need, Unread
from drgn_hvo.memmap.folio_fields import FolioFields, folio_fields
from drgn_hvo.memmap.folio_finder import (
    FolioFinder,
    FoundFolios,
    Slices,
    are_hugetlb,
)
from drgn_hvo.memmap.folio_heads import FolioHeads, HeadRecords
from drgn_hvo.memmap.hstate_identity import WrongWord
from drgn_hvo.memmap.list_links import ListLinks
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

__all__ = ("Folios", "Hugetlb", "SomeFolios", "read_hugetlb")


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
    finder = FolioFinder(vmemmap, tails, fields, private_tails, private_slices)
    mapped = finder.mapped()
    links = ListLinks(vmemmap, finder.heads, mapped.pfn)
    lists: list[HugePageList] = []
    for hstate in pools.hstates:
        lists += read_lists(vmemmap, hstate, mmzone.nids, links)
    listed = FoundFolios.merge(
        [FoundFolios.alike(np.asarray(a.heads), a.order, a.kind) for a in lists]
    )
    unlisted = mapped.take(~is_in(mapped.pfn, listed.pfn))
    unlisted = unlisted.take(~_are_strays(finder, vmemmap, fields, unlisted.pfn))
    found = FoundFolios.merge([unlisted, listed])
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
        self._finder = FolioFinder(
            vmemmap, tails, self._fields, private_tails, private_slices
        )

    @property
    def heads(self) -> FolioHeads:
        """Reads heads, each once."""
        return self._finder.heads

    @property
    def frames_of_devices(self) -> frozenset[Optional[int]]:
        """The shared tail pages of ZONE_DEVICE, which no huge page has."""
        return self._finder.of_devices

    def shared_frames(self, pfn: int, order: int) -> Int64Array:
        """Frames that slices of a folio share, or could share, ascending."""
        return self._finder.shared_frames_of(np.array([pfn]), np.array([order]))

    def are_typed(self, heads: HeadRecords) -> BoolArray:
        """Which heads are of hugetlb folios, or of frozen ones to become some."""
        return are_hugetlb(heads, self._fields)

    def read(self, pfns: Int64Array, orders: Int64Array, kinds: Int64Array) -> Folios:
        """
        Read folios.

        :param pfns: Of their heads, ascending.
        :param kinds: Of the lists that they are on.
        """
        found = FoundFolios(pfns, orders, kinds)
        shared = self._finder.shared_frames_of(pfns, orders)
        return _folios(self._finder, self._vmemmap, self._fields, found, shared)


def _unread_fields(
    fields: FolioFields, private_tails: PrivateTails
) -> Iterator[Unread]:
    """What is not known of all folios, for no type says where it is."""
    for fault in fields.faults:
        yield Unread(Need.FOLIO_HEADS, "fields of folios", fault)
    if private_tails.fault is not None:
        yield Unread(Need.FOLIO_TAILS, "fields of folios", private_tails.fault)


def _unread_heads(finder: FolioFinder, pfns: Int64Array) -> Iterator[Unread]:
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
    finder: FolioFinder, vmemmap: Vmemmap, fields: FolioFields, pfns: Int64Array
) -> BoolArray:
    """
    What only its mapping made look like a folio: something maps a shared tail page,
    but where the head would be there is none.
    """
    heads = finder.heads.of(pfns)
    no_head = heads["flags"] & np.uint64(vmemmap.kernel.PG_head_mask) == 0
    if fields.hugetlb_place is not None:
        no_head |= ~are_hugetlb(heads, fields)
    return heads["present"] & ~heads["zeros"] & no_head


def _folios(
    finder: FolioFinder,
    vmemmap: Vmemmap,
    fields: FolioFields,
    found: FoundFolios,
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

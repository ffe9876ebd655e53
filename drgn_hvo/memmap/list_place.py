# SPDX-License-Identifier: LGPL-2.1-or-later

"""
On which list one folio is
--------------------------

A pool of half a million folios is not followed to find one of them. What is asked is
whether its neighbours lead to it: ``list_add()`` makes four links, and a folio is on a
list if both that lead to it agree with its own. Which list that is, an end of it tells
if one is near, else what the neighbours say of themselves.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object, sizeof
import numpy as np

from drgn_hvo.kernel.unread import why
from drgn_hvo.memmap.list_links import ListLinks
from drgn_hvo.memmap.pools import (
    ACTIVE_LIST,
    FREE_LIST,
    NO_LIST,
    BrokenLink,
    HState,
    HugePageList,
    hpg_flags,
    read_lists,
)
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.memmap.zones import Mmzone

__all__ = ("ListPlace", "ListPlaces")

# Lists are followed of pools with at most this many huge pages.
_FEW = 1024

# How many neighbours are asked, in each direction.
_NEIGHBOURS = 32

_NOT_FOLLOWED = "was not followed"


@dataclass(frozen=True)
class ListPlace:
    """
    Where a folio is among the lists of its pool.

    :param kind: :data:`~drgn_hvo.memmap.pools.NO_LIST` or the kind of the list;
        ``None`` if it is not known.
    :param nid: The node of a free list, ``None`` if it is another one, or not known.
    :param by_links: Whether that was concluded from links of the folio and its
        neighbours; else the lists were followed.
    :param is_sure: Whether that is a list of this pool, not just of some pool.
    :param broken: A link to or from the folio that is wrong.
    :param unread: Why nothing is known.
    """

    kind: Optional[int]
    nid: Optional[int] = None
    by_links: bool = True
    is_sure: bool = True
    broken: Optional[BrokenLink] = None
    unread: Optional[str] = None

    @property
    def is_on_list(self) -> bool:
        """Whether it is on a list."""
        return self.kind in (FREE_LIST, ACTIVE_LIST)

    def as_list(self, order: int, pfn: int) -> Optional[HugePageList]:
        """The list that it is on, of which nothing else is known."""
        if self.kind not in (FREE_LIST, ACTIVE_LIST):
            return None
        broken = self.broken or BrokenLink(0, None, _NOT_FOLLOWED)
        return HugePageList(order, self.kind, self.nid, array("q", [pfn]), broken)


class ListPlaces:
    """Finds out on which list of a pool single folios are."""

    def __init__(self, vmemmap: Vmemmap, mmzone: Mmzone, links: ListLinks) -> None:
        self._vmemmap = vmemmap
        self._mmzone = mmzone
        self._links = links
        self._lru = vmemmap.kernel.struct_page.require("lru")
        self._followed: dict[int, Sequence[HugePageList]] = {}

    def lists(self, hstate: HState) -> Sequence[HugePageList]:
        """All lists of a small pool; none of a large one, which is not followed."""
        # What damage made of the total is no reason to follow half a million links.
        known = [hstate.total, *hstate.total_node.values()]
        if any(count is None or not 0 <= count <= _FEW for count in known):
            return ()
        if hstate.order not in self._followed:
            self._followed[hstate.order] = read_lists(
                self._vmemmap, hstate, self._mmzone.nids, self._links
            )
        return self._followed[hstate.order]

    def of(self, hstate: HState, pfn: int) -> ListPlace:
        """
        On which list of a pool a folio is, if on any.

        :param pfn: Of the head of a folio, or of what may be one.
        """
        lists = self.lists(hstate)
        for a_list in lists:
            if pfn in a_list.heads:
                return ListPlace(a_list.kind, a_list.nid, by_links=False)
        # A node that is not known of has a list, too.
        are_all = bool(lists) and self._mmzone.knows_all_nids
        if are_all and all(a_list.is_whole for a_list in lists):
            return ListPlace(NO_LIST, by_links=False)
        return self._by_links(hstate, pfn)

    def _by_links(self, hstate: HState, pfn: int) -> ListPlace:
        own = self._links.address(pfn)
        try:
            following, previous = self._links.find(own, hstate.order)
        except FaultError as e:
            return ListPlace(None, unread=f"the links of PFN {pfn} are {why(e)}")
        onward = self._find(following, hstate.order)
        backward = self._find(previous, hstate.order)
        for link, address in ((onward, following), (backward, previous)):
            if link is None and self._may_be_entry(hstate, address):
                return ListPlace(
                    None, unread=f"the list entry at {address:#x} could not be read"
                )
        leads_back = onward is not None and onward[1] == own
        leads_here = backward is not None and backward[0] == own
        if own in (following, previous) or not (leads_back or leads_here):
            return ListPlace(NO_LIST)
        broken = None
        if not leads_back:
            broken = BrokenLink(own, following, "does not lead to its neighbour")
        elif not leads_here:
            broken = BrokenLink(own + 8, previous, "leads back elsewhere")
        kind, nid, is_sure = self._which(hstate, own)
        return ListPlace(kind, nid, is_sure=is_sure, broken=broken)

    def _find(self, address: int, order: int) -> Optional[tuple[int, int]]:
        """``next`` and ``prev`` of an entry, ``None`` if it cannot be one."""
        try:
            return self._links.find(address, order)
        except (FaultError, OverflowError):
            return None

    def _may_be_entry(self, hstate: HState, address: int) -> bool:
        """Whether there is a struct page, or the head of a list, at an address."""
        pfn = self._vmemmap.page_pfn(address - self._lru)
        if pfn is None:
            return address in self._list_heads(hstate)
        slice_ = pfn * self._vmemmap.size // self._vmemmap.page_size
        if not self._vmemmap.has_mappings:
            return pfn < self._vmemmap.end_pfn
        is_mapped = self._vmemmap.mapping(slice_) is not None
        return is_mapped or self._vmemmap.unread_table(slice_) is not None

    def _which(self, hstate: HState, own: int) -> tuple[int, Optional[int], bool]:
        """
        Kind and node of the list that an entry is on, and whether that was seen to be
        one of this pool.
        """
        heads = self._list_heads(hstate)
        flags: list[bool] = []
        pfns = []
        for direction in (0, 1):
            entry = own
            for _ in range(_NEIGHBOURS):
                links = self._find(entry, hstate.order)
                if links is None:
                    break
                entry = links[direction]
                if entry in heads:
                    return (*heads[entry], True)
                pfn = self._vmemmap.page_pfn(entry - self._lru)
                if pfn is None and entry in self._pools:
                    return NO_LIST, None, True  # it is on a list of another one
                if pfn is None:
                    break
                pfns.append(pfn)
                flags.append(self._is_freed(pfn))
        if not flags or 2 * sum(flags) <= len(flags):
            return ACTIVE_LIST, None, False
        nids, _ = self._mmzone.places(np.array(pfns, dtype=np.int64))
        nid, _ = Counter(nids.tolist()).most_common(1)[0]
        return FREE_LIST, None if nid < 0 else nid, False

    @property
    def _pools(self) -> range:
        """The addresses of all pools."""
        prog = self._vmemmap.kernel.prog
        try:
            pools = prog["hstates"]
        except LookupError:
            return range(0)
        start: int = pools.address_of_().value_()
        return range(start, start + sizeof(pools))

    def _is_freed(self, pfn: int) -> bool:
        kernel = self._vmemmap.kernel
        bit = hpg_flags(kernel).get("freed")
        if bit is None:
            return False
        offset = kernel.struct_page.require("private")
        try:
            private = kernel.prog.read_u64(self._vmemmap.page_address(pfn) + offset)
        except FaultError:
            return False
        return bool(private >> bit & 1)

    def _list_heads(self, hstate: HState) -> dict[int, tuple[int, Optional[int]]]:
        """Kind and node of the lists of a pool by the addresses of their heads."""
        pool = Object(self._vmemmap.kernel.prog, "struct hstate *", hstate.address)
        # There is one for each node that there could be.
        first = pool.hugepage_freelists.address_of_().value_()
        free = pool.hugepage_freelists.type_
        heads: dict[int, tuple[int, Optional[int]]] = {
            first + nid * sizeof(free.type): (FREE_LIST, nid)
            for nid in range(free.length or 0)
        }
        active = pool.hugepage_activelist.address_of_().value_()
        heads[active] = (ACTIVE_LIST, None)
        return heads

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The huge page that covers a page
--------------------------------

A word of a struct page may be wrong, so the huge page that a page belongs to is asked
of all that knows it without that word: the page tables of vmemmap, the lists of the
pools, and the head that would be there. Only what belongs to that huge page is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.kernel.arrays import Int64Array, is_in
from drgn_hvo.memmap.folios import Folios, SomeFolios
from drgn_hvo.memmap.list_links import ListLinks
from drgn_hvo.memmap.list_place import ListPlace, ListPlaces
from drgn_hvo.memmap.pools import ACTIVE_LIST, NO_LIST, HState, Pools

if TYPE_CHECKING:
    from drgn_hvo.memmap.hvo import Hvo

__all__ = ("Covering", "CoveringFolios")


@dataclass(frozen=True)
class Covering:
    """
    A hugetlb folio that covers a page, and what says so.

    :param sharing: How many of its slices behind the private ones map a shared frame;
        ``None`` if page tables are not known.
    :param could_share: How many there are.
    :param place: The list that it is on.
    :param head_says: Whether its first struct pages are those of the head of a hugetlb
        folio of this order; ``None`` if they were not read.
    """

    head_pfn: int
    order: int
    sharing: Optional[int]
    could_share: int
    place: ListPlace
    head_says: Optional[bool]

    @property
    def end_pfn(self) -> int:
        """One more than its last PFN."""
        return self.head_pfn + (1 << self.order)

    @property
    def by_page_tables(self) -> bool:
        """Whether the page tables of vmemmap show it."""
        return bool(self.sharing)

    @property
    def kind(self) -> int:
        """Of the list; if it is not known, the one that promises least."""
        return ACTIVE_LIST if self.place.kind is None else self.place.kind

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """How much shows it: of several that overlap, the highest is taken."""
        return self.place.is_on_list, self.sharing or 0, bool(self.head_says)


class CoveringFolios:
    """Finds hugetlb folios by single pages of theirs, in a kernel with types."""

    def __init__(self, hvo: Hvo) -> None:
        self._hvo = hvo
        self._vmemmap = hvo.vmemmap
        self._geometry = hvo.kernel.geometry
        self._private = hvo.layout.tails.private_slices
        self._found: dict[int, Optional[Covering]] = {}

    @property
    def pools(self) -> Pools:
        """All pools and their counters."""
        return self._hvo.pools

    @cached_property
    def _some(self) -> SomeFolios:
        hvo = self._hvo
        return SomeFolios(
            self._vmemmap, hvo.shared_tails, hvo.private_tails, self._private
        )

    @cached_property
    def places(self) -> ListPlaces:
        """Tells on which list a folio is."""
        none = np.zeros(0, dtype=np.int64)
        links = ListLinks(self._vmemmap, self._some.heads, none)
        return ListPlaces(self._vmemmap, self._hvo.mmzone, links)

    @cached_property
    def _orders(self) -> dict[int, Optional[HState]]:
        """Pools by the orders that hugetlb folios may have, from the largest on."""
        orders: dict[int, Optional[HState]] = dict.fromkeys(
            tail.order for tail in self._hvo.shared_tails
        )
        orders.update((hstate.order, hstate) for hstate in self.pools.hstates)
        largest = self._geometry.largest_order
        return {o: orders[o] for o in sorted(orders, reverse=True) if o <= largest}

    def of(self, pfn: int) -> Optional[Covering]:
        """The hugetlb folio that covers a page, ``None`` if nothing shows one."""
        if pfn not in self._found:
            found = [
                one
                for order, hstate in self._orders.items()
                for one in [self._candidate(pfn >> order << order, order, hstate)]
                if one is not None
            ]
            self._found[pfn] = max(found, key=lambda one: one.rank, default=None)
        return self._found[pfn]

    def unread(self, pfn: int) -> list[str]:
        """Why a folio may cover a page although none was found."""
        reasons = [str(one) for one in self.pools.unread]
        for order, hstate in self._orders.items():
            head = pfn >> order << order
            first, count = self._slices(head, order)
            table = self._vmemmap.unread_table(first, count)
            if table is not None and table not in reasons:
                reasons.append(table)
            place = None if hstate is None else self.places.of(hstate, head)
            if place is not None and place.unread is not None:
                reasons.append(place.unread)
        return reasons

    def folios(self, which: Sequence[Covering]) -> Folios:
        """All that is to be known of some folios, by ascending head."""
        return self._some.read(*self._columns(which))

    def _columns(
        self, which: Sequence[Covering]
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        rows = [(one.head_pfn, one.order, one.kind) for one in which]
        table = np.array(sorted(rows), dtype=np.int64).reshape(-1, 3)
        return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()

    def _slices(self, head: int, order: int) -> tuple[int, int]:
        """The first slice of a folio, and how many it has."""
        first = head * self._vmemmap.size // self._vmemmap.page_size
        return first, max(self._geometry.slices(order), 1)

    def _candidate(
        self, head: int, order: int, hstate: Optional[HState]
    ) -> Optional[Covering]:
        """The folio of an order that begins with a page, if anything shows one."""
        place = ListPlace(NO_LIST) if hstate is None else self.places.of(hstate, head)
        says, is_typed = self._head(head, order)
        # Without a head there, something maps a shared frame that has no business to.
        if not place.is_on_list and is_typed is False:
            return None
        named = {tail.pfn for tail in self._hvo.shared_tails if tail.order == order}
        others = {tail.pfn for tail in self._hvo.shared_tails if tail.order != order}
        named -= self._some.frames_of_devices
        others |= self._some.frames_of_devices
        if not place.is_on_list and says is False and not named - others:
            return None  # of several orders that name a frame, the head has to tell
        first, slices = self._slices(head, order)
        sharing = self._sharing(head, order, others - named)
        count = None if sharing is None else len(sharing)
        if not count and self._vmemmap.unread_table(first, slices) is not None:
            count = None
        # Links lead on in the same way on the list of another order: the head names it.
        could_share = max(slices - self._private, 0)
        if not place.is_sure and says is False and count != could_share:
            if is_typed is False:
                return None
            place = ListPlace(NO_LIST)
        found = Covering(head, order, count, could_share, place, says)
        if place.is_on_list or says or (named - others).intersection(sharing or ()):
            return found
        # Whatever the head is, one that was not read: if nothing names a frame, too.
        is_unnamed = not named and self._hvo.layout.tails.kind == "shared"
        return found if count and says is None and is_unnamed else None

    def _sharing(
        self, head: int, order: int, others: set[Optional[int]]
    ) -> Optional[list[int]]:
        """
        The frames behind the slices behind the private ones, those that are shared in
        that order, as often as they are mapped.

        :param others: Frames that are shared in other orders.
        """
        vmemmap = self._vmemmap
        if not vmemmap.has_mappings:
            return None
        first, count = self._slices(head, order)
        slices = np.arange(first + self._private, first + count, dtype=np.int64)
        frames, _ = vmemmap.frames(slices)
        sharing = is_in(frames, self._some.shared_frames(head, order))
        if others:
            named = np.array([p for p in others if p is not None], dtype=np.int64)
            sharing &= ~is_in(frames, np.sort(named))
        shared: list[int] = frames[sharing].tolist()
        return shared

    def is_head(self, pfn: int, order: int) -> bool:
        """Whether a struct page is that of the head of a hugetlb folio of an order."""
        return bool(self._head(pfn, order)[0])

    def _head(self, head: int, order: int) -> tuple[Optional[bool], Optional[bool]]:
        """
        Whether a struct page is that of the head of a hugetlb folio of an order, and
        whether it is that of any; ``None`` if it was not read.
        """
        pfns = np.array([head], dtype=np.int64)
        heads = self._some.heads.of(pfns)
        if not heads["present"][0] or heads["zeros"][0]:
            return None, None
        mask = np.uint64(self._hvo.kernel.PG_head_mask)
        typed = bool(self._some.are_typed(heads)[0] and heads["flags"][0] & mask)
        fields = self._hvo.fields
        if fields.order_place is None or fields.hugetlb_place is None:
            return None, None
        return typed and int(heads["order"][0]) == order, typed

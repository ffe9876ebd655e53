# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What HVO did to a kernel
------------------------

:class:`Hvo` brings the layers together for one program: each part is read when it
is first asked for, and only once. What only questions about single pages need is
imported when one is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Optional

from drgn import Program, ProgramFlags
import numpy as np

from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.kernel.bound import Kernel, kernel
from drgn_hvo.kernel.unread import Need, Unread
from drgn_hvo.memmap.folio_fields import FolioFields, folio_fields
from drgn_hvo.memmap.folios import Folios, Hugetlb, read_hugetlb
from drgn_hvo.memmap.heads import HeadResolver
from drgn_hvo.memmap.layout import Layout, detect_layout
from drgn_hvo.memmap.pools import Pools, hpg_flags, read_pools
from drgn_hvo.memmap.private_tails import PrivateTails
from drgn_hvo.memmap.shared_tails import SharedTail, TailSlots, read_tail_slots
from drgn_hvo.memmap.tail_lengths import with_believed_length
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.memmap.zones import Mmzone

if TYPE_CHECKING:
    from drgn_hvo.memmap.covering import CoveringFolios
    from drgn_hvo.memmap.page_words import PageWordsReader

__all__ = ("Hvo", "hvo_of", "saved_by_node_order")

_CACHE_KEY = "drgn_hvo.memmap.hvo"

# Memory that was hot-added and is not in a zone yet lies behind all zones. More than
# this is not memory.
_MOST_BEHIND_ZONES = 4
_FEW_PAGES = 1 << 22  # 16 GiB in pages of 4 KiB: looked at in no time


class Hvo:
    """
    All that is known about HVO in one kernel, as it was when it was first asked.

    :param like: Another one of the same kernel. What a running kernel does not change
        is taken over: the layout, and where folios and ``page->flags`` have their
        fields.
    :raises HvoError: from here or from any attribute, if it cannot be found out.
    """

    def __init__(self, kernel: Kernel, like: Optional[Hvo] = None) -> None:
        self.kernel = kernel
        # The first reading of all; those in between need not stay in memory.
        self.like: Optional[Hvo] = (like.like or like) if like else None
        self.vmemmap = Vmemmap(kernel)

    @cached_property
    def layout(self) -> Layout:
        """The detected layout."""
        if self.like is not None:
            return self.like.layout
        found = detect_layout(self.kernel, self.vmemmap)
        if found.tails.array is None or not found.tails.array.is_allocated:
            return found
        return with_believed_length(found, self.vmemmap, self.mmzone, self.pools)

    @cached_property
    def fields(self) -> FolioFields:
        """Where folios keep their fields."""
        if self.like is not None:
            return self.like.fields
        return folio_fields(self.kernel)

    @cached_property
    def heads(self) -> HeadResolver:
        """Finds the head of any page."""
        return HeadResolver(self.vmemmap, self.layout)

    @property
    def is_built(self) -> Optional[bool]:
        """Whether the kernel was built with HVO, ``None`` if that is not known."""
        kind = self.layout.tails.kind
        if kind == "plain" and self.kernel.has_types:
            return self.kernel.has_variable("vmemmap_optimize_enabled")
        return None if kind in ("plain", None) else True

    @property
    def is_enabled(self) -> Optional[bool]:
        """The run-time switch, ``None`` if there is none or it was not read."""
        enabled = self.kernel.variable("vmemmap_optimize_enabled")
        return None if enabled is None else bool(enabled)

    @property
    def has_hugetlb(self) -> bool:
        """Whether pools and folios can be read at all."""
        return self.kernel.has_types

    @cached_property
    def mmzone(self) -> Mmzone:
        """Nodes and zones."""
        like = None if self.like is None else self.like.mmzone
        return Mmzone(self.kernel, self.vmemmap, like)

    @cached_property
    def believable_end_pfn(self) -> int:
        """
        Where struct pages end, exclusive. A damaged page table can claim terabytes of
        them; code that looks at every struct page stops here instead.
        """
        end = self.vmemmap.end_pfn
        if end <= _FEW_PAGES or not self.has_hugetlb:
            return end
        zones = self.mmzone.zones
        last = max((zone.start_pfn + zone.spanned for zone in zones), default=0)
        return min(end, max(_FEW_PAGES, last * _MOST_BEHIND_ZONES)) if last else end

    @cached_property
    def tail_slots(self) -> TailSlots:
        """Slots of ``vmemmap_tails[]``, used or empty."""
        return read_tail_slots(self.vmemmap, self.layout, self.mmzone)

    @cached_property
    def shared_tails(self) -> list[SharedTail]:
        """Used slots of ``vmemmap_tails[]``, as far as they can be read."""
        return list(self.tail_slots.used)

    @cached_property
    def pools(self) -> Pools:
        """All pools and their counters."""
        return read_pools(self.kernel, self.mmzone)

    @property
    def has_read_folios(self) -> bool:
        """Whether each huge page was read already."""
        return "hugetlb" in vars(self)

    @cached_property
    def hugetlb(self) -> Hugetlb:
        """Pools, lists and folios."""
        return read_hugetlb(
            self.vmemmap,
            self.mmzone,
            self.pools,
            self.shared_tails,
            self.private_tails,
            self.layout.tails.private_slices,
        )

    @cached_property
    def covering(self) -> CoveringFolios:
        """Finds the hugetlb folio of a single page, and reads that alone."""
        from drgn_hvo.memmap.covering import CoveringFolios

        return CoveringFolios(self)

    @cached_property
    def private_tails(self) -> PrivateTails:
        """What folios have in struct pages behind their heads."""
        return PrivateTails(
            self.kernel, self.mmzone.flags_layout, hpg_flags(self.kernel)
        )

    @cached_property
    def page_words(self) -> PageWordsReader:
        """Reads flags, type and use of single pages."""
        from drgn_hvo.memmap.page_words import PageWordsReader

        return PageWordsReader(self.kernel, self.vmemmap)

    @property
    def unread(self) -> tuple[Unread, ...]:
        """What could not be read of nodes, slots and pools, as far as these were."""
        found: list[Unread] = []
        # What was not read of pools is a part of what was not read of folios.
        pools = "hugetlb" if self.has_read_folios else "pools"
        for part in ("mmzone", "tail_slots", pools):
            if part in vars(self):
                found += getattr(self, part).unread
        return tuple(found)

    def unread_of(self, *needs: Need) -> Optional[Unread]:
        """The first thing that could not be read of what was needed, if any."""
        return next((one for one in self.unread if one.need in needs), None)

    @property
    def unread_lists(self) -> tuple[str, ...]:
        """
        Why a folio may be on a list although none was found on which it is: empty if
        all lists were followed to their ends.
        """
        if not self.kernel.has_types:
            return (f"lists of pools need types: {self.kernel.no_types_reason}",)
        lists = self.hugetlb.lists
        broken = [f"the {one} is broken" for one in lists if one.is_damaged]
        needs = (Need.NODES, Need.POOLS, Need.LISTS)
        return (*broken, *(str(one) for one in self.unread if one.need in needs))

    @property
    def folio_nids(self) -> Int64Array:
        """
        The node of each folio whose head is there, by the zone that holds it; by its
        head's flags where several zones hold it; -1 if not known.
        """
        return self._folio_places[0]

    @property
    def folio_zones(self) -> Int64Array:
        """As :attr:`folio_nids`, the index of its zone."""
        return self._folio_places[1]

    @cached_property
    def _folio_places(self) -> tuple[Int64Array, Int64Array]:
        return self.places_of(self.hugetlb.folios)

    def places_of(self, folios: Folios) -> tuple[Int64Array, Int64Array]:
        """As :attr:`folio_nids` and :attr:`folio_zones`, of some folios."""
        layout = self.mmzone.flags_layout
        if layout is None:
            unknown = np.full(len(folios), -1, dtype=np.int64)
            return unknown, unknown
        nids, zones = self.mmzone.places(folios.head_pfn)
        named = nids < 0
        nids = np.where(named, layout.nids(folios.flags), nids)
        zones = np.where(named, layout.zonenums(folios.flags), zones)
        return np.where(folios.present, nids, -1), np.where(folios.present, zones, -1)


def hvo_of(prog: Program, assume: Optional[Mapping[str, str]] = None) -> Hvo:
    """
    The :class:`Hvo` of a program: of a core always the same one, of a running kernel
    a new one each time.

    :param assume: Properties to override, see
        :data:`~drgn_hvo.kernel.bound.ASSUMPTIONS`; nobody else sees what comes of that.
    """
    if assume:
        return Hvo(Kernel(prog, assume))
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = Hvo(kernel(prog))
    found: Hvo = prog.cache[_CACHE_KEY]
    return Hvo(found.kernel, found) if prog.flags & ProgramFlags.IS_LIVE else found


def saved_by_node_order(hvo: Hvo) -> dict[tuple[Optional[int], int], int]:
    """Pages of vmemmap that HVO saved, by node and order, in ascending order."""
    folios = hvo.hugetlb.folios
    keys = np.stack((hvo.folio_nids, folios.order), axis=1)
    pairs, index = np.unique(keys, axis=0, return_inverse=True)
    pages = np.bincount(
        index.reshape(-1), weights=folios.shared_ptes, minlength=len(pairs)
    )
    return {
        (None if nid < 0 else nid, order): int(count)
        for (nid, order), count in zip(pairs.tolist(), pages.tolist())
        if count
    }

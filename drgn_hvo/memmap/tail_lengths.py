# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How long an allocated array of shared tails is
----------------------------------------------

No type has the length of a ``vmemmap_tails[]`` that was allocated with the first tail:
it follows from MAX_FOLIO_ORDER, which depends on how the kernel was configured. Behind
the array lie objects of others, so that what slots hold can tell that it is shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Optional

from drgn import FaultError

from drgn_hvo.kernel.unread import KnownWords
from drgn_hvo.memmap.layout import Layout
from drgn_hvo.memmap.pools import Pools
from drgn_hvo.memmap.tail_arrays import OwnedArray, TailArray
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.memmap.zones import Mmzone

__all__ = ("with_believed_length",)


def with_believed_length(
    layout: Layout, vmemmap: Vmemmap, mmzone: Mmzone, pools: Pools
) -> Layout:
    """
    A layout with the length of the array held against what its slots say: behind the
    slots of all pools, one that names no struct page is not a part of it.

    :param pools: The array has slots for their orders.
    """
    array = layout.tails.array
    if array is None or not array.is_allocated:
        return layout
    indices = [array.index(hstate.order) for hstate in pools.hstates]
    least = 1 + max((index for index in indices if index is not None), default=-1)
    end, where = array.slots, None
    if not pools.unread:
        for owned in array.arrays(mmzone.pgdats):
            foreign = _first_foreign(owned, array, vmemmap, least)
            if foreign is not None and foreign < end:
                end, where = foreign, owned
    text = f"data: {array.slots} elements by MAX_FOLIO_ORDER; no slot speaks against it"
    if where is not None:
        zone = "" if where.zone_index is None else f" zone {where.zone_index}"
        text = (
            f"data: {end} elements, not {array.slots} as MAX_FOLIO_ORDER has it: what "
            f"follows them in the array of node {where.nid}{zone} names no struct page"
        )
    tails = replace(
        layout.tails,
        array=replace(array, slots=end),
        evidence=(*layout.tails.evidence, text),
    )
    return replace(layout, tails=tails)


def _first_foreign(
    owned: OwnedArray, array: TailArray, vmemmap: Vmemmap, least: int
) -> Optional[int]:
    """
    The first element of an array, of those that no pool needs, that names no struct
    page; none that does may lie behind it.
    """
    first = None
    for index, value in _elements(owned, vmemmap.kernel.known_words, least):
        if array.pfn(vmemmap, value) is None:
            first = index if first is None else first
        elif first is not None:
            return None  # one wrong slot, among others in use
    return first


def _elements(
    owned: OwnedArray, known_words: KnownWords, least: int
) -> Iterator[tuple[int, int]]:
    """Elements in use from *least* on, as far as they can be read."""
    try:
        array = owned.array(known_words)
        if array is None:
            return
        for index in range(least, len(array)):
            value = array[index].value_()
            if value:
                yield index, value
    except FaultError:
        return

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Shared tail pages
-----------------

The pages of tail struct pages that optimized folios of one order share, per zone
or per node, as ``vmemmap_tails[]`` names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import FaultError
import numpy as np

from drgn_hvo.kernel.arrays import Int64Array, column
from drgn_hvo.memmap.layout import Layout
from drgn_hvo.memmap.vmemmap import StructPages, Vmemmap
from drgn_hvo.memmap.zones import Mmzone

__all__ = ("SharedTail", "shared_tails")


@dataclass(frozen=True)
class SharedTail:
    """
    A used slot of ``vmemmap_tails[]``.

    :param zone_index: ``None`` where the array is per node.
    :param slot: Address of the array element.
    :param value: What it holds.
    :param pfn: The frame that it names, ``None`` if it names none.
    :param frame_nid: The node that the frame lies on, ``None`` if not known.
    :param frame_refcount: ``_refcount`` of the frame's own struct page.
    :param boot: Whether the frame is ``PG_reserved``: allocated at boot.
    :param mapped_by: How many entries of vmemmap's page tables map the frame.
    """

    nid: int
    zone_index: Optional[int]
    index: int
    order: int
    slot: int
    value: int
    pfn: Optional[int]
    frame_nid: Optional[int]
    frame_refcount: Optional[int]
    boot: Optional[bool]
    mapped_by: int


def shared_tails(
    vmemmap: Vmemmap, layout: Layout, mmzone: Mmzone, notes: list[str]
) -> list[SharedTail]:
    """
    All used slots, by node, zone and order.

    :param notes: Gets a line for each array that cannot be read.
    """
    array = layout.tails.array
    if array is None:
        return []
    used = []
    for owner in array.arrays(mmzone.pgdats):
        try:
            values = owner.array.value_()
        except FaultError:
            notes.append(
                f"vmemmap_tails of node {owner.nid} zone {owner.zone_index} is not in "
                "this dump"
            )
            continue
        used += [(owner, i, value) for i, value in enumerate(values) if value]
    pfns = [array.pfn(vmemmap, value) for _, _, value in used]
    frames = _FramePages(vmemmap, mmzone, pfns)
    return [
        SharedTail(
            nid=owner.nid,
            zone_index=owner.zone_index,
            index=index,
            order=array.order(index),
            slot=owner.array[index].address_of_().value_(),
            value=value,
            pfn=pfns[i],
            frame_nid=frames.nid(i),
            frame_refcount=frames.refcount(i),
            boot=frames.reserved(i),
            mapped_by=0 if pfn is None else vmemmap.mapped_by(pfn),
        )
        for i, ((owner, index, value), pfn) in enumerate(zip(used, pfns))
    ]


class _FramePages:
    """The struct pages of the frames that slots name."""

    def __init__(
        self, vmemmap: Vmemmap, mmzone: Mmzone, pfns: list[Optional[int]]
    ) -> None:
        self._vmemmap = vmemmap
        self._layout = mmzone.flags_layout
        self._pages = vmemmap.read_pages(_known(pfns))
        usable = self._pages.present & self._pages.data.any(axis=1)
        self._usable = [
            pfn is not None and bool(usable[i]) for i, pfn in enumerate(pfns)
        ]

    def _flags(self, i: int) -> int:
        row = StructPages(self._pages.data[i : i + 1], self._pages.present[i : i + 1])
        return int(self._vmemmap.flags(row)[0])

    def nid(self, i: int) -> Optional[int]:
        if not self._usable[i] or self._layout is None:
            return None
        return int(self._layout.nids(np.array([self._flags(i)], dtype=np.uint64))[0])

    def refcount(self, i: int) -> Optional[int]:
        kernel = self._vmemmap.kernel
        offset = kernel.struct_page.refcount
        if not self._usable[i] or offset is None:
            return None
        return int(column(self._pages.data[i : i + 1], offset, kernel.reader.i32)[0])

    def reserved(self, i: int) -> Optional[bool]:
        bit = self._vmemmap.kernel.constant("PG_reserved")
        if not self._usable[i] or bit is None:
            return None
        return bool(self._flags(i) >> bit & 1)


def _known(pfns: list[Optional[int]]) -> Int64Array:
    """PFNs as an array; a page that surely is not there stands for none."""
    return np.array([-1 if pfn is None else pfn for pfn in pfns], dtype=np.int64)

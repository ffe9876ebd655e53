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

from drgn import FaultError, Object
import numpy as np

from drgn_hvo.kernel.arrays import Int64Array, column
from drgn_hvo.kernel.unread import KnownWords, Need, Unread, why
from drgn_hvo.memmap.layout import Layout
from drgn_hvo.memmap.tail_arrays import OwnedArray, TailArray
from drgn_hvo.memmap.vmemmap import StructPages, Vmemmap
from drgn_hvo.memmap.zones import Mmzone

__all__ = ("SharedTail", "Slot", "TailSlots", "read_tail_slots")


@dataclass(frozen=True)
class Slot:
    """
    Which slot of ``vmemmap_tails[]``: whose, and for folios of which order.

    :param zone_index: ``None`` where the array is per node.
    """

    nid: int
    zone_index: Optional[int]
    order: int


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
    :param mapped_by: How many entries of vmemmap's page tables map the frame; ``None``
        if not all of these were read.
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
    mapped_by: Optional[int]

    @property
    def key(self) -> Slot:
        """Which slot it is."""
        return Slot(self.nid, self.zone_index, self.order)


@dataclass(frozen=True)
class TailSlots:
    """
    The slots of ``vmemmap_tails[]`` of all nodes or zones.

    :param used: Those that name something, by node, zone and order.
    :param empty: Those that surely name nothing; what is in neither is not known.
    :param unread: What could not be read.
    """

    used: tuple[SharedTail, ...]
    empty: frozenset[Slot]
    unread: tuple[Unread, ...]


def _read_array(
    owner: OwnedArray, known_words: KnownWords, slots: int
) -> tuple[list[Optional[int]], Optional[str]]:
    """The elements of an array, ``None`` for what cannot be read, and why it cannot."""
    try:
        array = owner.array(known_words)
    except FaultError as e:
        return [None] * slots, why(e)
    if array is None:
        return [0] * slots, None
    # Where there are no pages, zeros are what they should be.
    read = known_words.value if owner.may_be_used(known_words) else Object.value_
    values: list[Optional[int]] = []
    reason = None
    for index in range(slots):
        try:
            values.append(read(array[index]))
        except FaultError as e:
            values.append(None)
            reason = why(e)
    return values, reason


def _slot_address(owner: OwnedArray, known_words: KnownWords, index: int) -> int:
    array = owner.array(known_words)
    assert array is not None, "one of its elements was read"
    address: int = array[index].address_of_().value_()
    return address


def read_tail_slots(vmemmap: Vmemmap, layout: Layout, mmzone: Mmzone) -> TailSlots:
    """Read all slots, and the struct pages of the frames that they name."""
    array = layout.tails.array
    if array is None:
        fault = layout.tails.array_fault
        what = "vmemmap_tails[]"
        unknown = () if fault is None else (Unread(Need.SLOTS, what, fault),)
        return TailSlots((), frozenset(), unknown)
    used: list[tuple[OwnedArray, int, int]] = []
    empty = []
    unread = []
    known_words = vmemmap.kernel.known_words
    for owner in array.arrays(mmzone.pgdats):
        values, reason = _read_array(owner, known_words, array.slots)
        if reason is not None:
            where = "" if owner.zone_index is None else f" zone {owner.zone_index}"
            what = f"slots of vmemmap_tails[] of node {owner.nid}{where}"
            unread.append(Unread(Need.SLOTS, what, reason, values.count(None)))
        for index, value in enumerate(values):
            if value:
                used.append((owner, index, value))
            elif value is not None:
                empty.append(Slot(owner.nid, owner.zone_index, array.order(index)))
    # Shared tail pages are never freed, not even with their node.
    for owner in array.arrays(mmzone.offline_pgdats):
        values, _ = _read_array(owner, known_words, array.slots)
        used += ((owner, index, value) for index, value in enumerate(values) if value)
    pfns = [array.pfn(vmemmap, value) for _, _, value in used]
    if used and all(_is_other_kind(vmemmap, array, value) for _, _, value in used):
        fault = f"elements of type {array.element} hold something else, in all slots"
        unread.append(Unread(Need.SLOTS, "vmemmap_tails[]", fault, len(used)))
        return TailSlots((), frozenset(), tuple(unread))
    frames = _FramePages(vmemmap, mmzone, pfns)
    tails = [
        SharedTail(
            nid=owner.nid,
            zone_index=owner.zone_index,
            index=index,
            order=array.order(index),
            slot=_slot_address(owner, known_words, index),
            value=value,
            pfn=pfns[i],
            frame_nid=frames.nid(i),
            frame_refcount=frames.refcount(i),
            boot=frames.reserved(i),
            mapped_by=_users(vmemmap, pfn),
        )
        for i, ((owner, index, value), pfn) in enumerate(zip(used, pfns))
    ]
    return TailSlots(tuple(tails), frozenset(empty), tuple(unread))


def _users(vmemmap: Vmemmap, pfn: Optional[int]) -> Optional[int]:
    """How many slices map a frame."""
    if pfn is None:
        return 0
    return vmemmap.mapped_by(pfn) if vmemmap.has_all_mappings else None


def _is_other_kind(vmemmap: Vmemmap, array: TailArray, value: int) -> bool:
    """Whether a slot holds what another type of elements would."""
    if array.pfn(vmemmap, value) is not None:
        return False
    limit = vmemmap.kernel.max_pfn_limit
    return vmemmap.page_pfn(value) is not None or 0 < value < limit


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

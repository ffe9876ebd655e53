# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Frames of heads
---------------

The private pages of vmemmap of every folio: they are mapped, writable, and nothing else
maps their frames.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.folio_mappings import FolioMappings
from drgn_hvo.kernel.arrays import BoolArray, Int64Array
from drgn_hvo.memmap.pools import NO_LIST

__all__ = ("check_head_frames",)

# How many slices that map a frame wrongly are looked at one by one.
_MAX_STRAYS = 64


def check_head_frames(mappings: FolioMappings) -> BoolArray:
    """
    Decide ``vmemmap-head-frame``.

    :return: The folios whose own first struct pages can be read: those that the dump
        has, and whose first slice does not map a frame of somebody else.
    """
    check = _HeadFrameCheck(mappings)
    check.check_heads()
    if mappings.context.layout.tails.private_slices > 1:
        check.check_second_slices()
    return mappings.context.hugetlb.folios.present & ~check.foreign


class _HeadFrameCheck:
    def __init__(self, mappings: FolioMappings) -> None:
        self._mappings = mappings
        self._context = context = mappings.context
        self._audit = context.audit
        self._folios = context.hugetlb.folios
        #: Folios whose first slice maps a frame of somebody else.
        self.foreign = np.zeros(len(self._folios), dtype=np.bool_)

    def check_heads(self) -> None:
        """Check the first slice of every folio."""
        folios = self._folios
        index, mapped = self._context.vmemmap.slices_to_runs(self._mappings.first_slice)
        writable = np.zeros(len(folios), dtype=np.bool_)
        if len(self._context.vmemmap.runs):
            writable = mapped & self._context.vmemmap.runs.writable[index]
        others = np.where(mapped, self._head_users(), 0)
        for i in np.flatnonzero(~mapped | ~writable | (others > 0)).tolist():
            first = int(self._mappings.first_slice[i])
            if not mapped[i] and self._context.is_missing(first):
                continue
            if self._mappings.is_told_above(first):
                continue
            place = first
            if others[i] and writable[i] and self._is_owner(i):
                same = self._folios.head_frame == self._folios.head_frame[i]
                if same.sum() > 1:
                    continue  # the finding is about the folio that maps it wrongly
                stray = self._stray_slice(i)
                if stray is None:
                    continue  # one of its own slices does: vmemmap-tail-frame
                place = stray
            self._add_head(i, place, bool(mapped[i]), int(others[i]))

    def _head_users(self) -> Int64Array:
        """How many slices map each folio's head frame, if any does, besides its own."""
        vmemmap, frames = self._context.vmemmap, self._folios.head_frame
        users = np.ones(len(frames), dtype=np.int64)
        several = vmemmap.are_shared(frames)
        users[several] = vmemmap.users_of(frames[several])
        slices = self._folios.tail_slices
        own = np.ones(len(self._folios), dtype=np.int64)
        if self._context.layout.tails.has_fake_heads:
            same = (slices.pfn == frames[slices.folio]) & (
                (slices.step == 0) | (slices.count == 1)
            )
            np.add.at(own, slices.folio[same], slices.count[same])
        return users - own

    def check_second_slices(self) -> None:
        """
        Check the second slice of every folio, whose frame all later slices repeat: it
        is mapped writable, to the frame that they agree on, which nothing else maps.
        """
        folios, vmemmap = self._folios, self._context.vmemmap
        second = self._mappings.first_slice + 1
        index, mapped = vmemmap.slices_to_runs(second)
        mapped &= folios.slices > 1
        writable = np.zeros(len(folios), dtype=np.bool_)
        if len(vmemmap.runs):
            writable = mapped & vmemmap.runs.writable[index]
        right = self._mappings.expected
        moved = self._mappings.optimized & (folios.tail_frame != right)
        for i in np.flatnonzero(mapped & (moved | ~writable)).tolist():
            if self._mappings.is_told_above(int(second[i])):
                continue
            self._add_second(i, int(second[i]), moved=bool(moved[i]))
        mine = np.flatnonzero(mapped & ~moved & self._mappings.optimized)
        users = vmemmap.users_of(folios.tail_frame[mine])
        for i in mine[users > folios.shared_ptes[mine] + 1].tolist():
            slices = vmemmap.slices_on(int(folios.tail_frame[i]))
            for slice_ in slices[:_MAX_STRAYS].tolist():
                if not self._owner_of(slice_):
                    self._add_second(i, slice_, moved=False)

    def _add_second(self, i: int, slice_: int, *, moved: bool) -> None:
        """
        Add a finding about the second slice of a folio.

        :param slice_: The slice whose entry is wrong: the second, or one of no huge
            page that maps its frame.
        :param moved: Whether the second slice maps another frame than those behind it.
        """
        page_table = self._context.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        head_pfn, frame = int(self._folios.head_pfn[i]), int(self._folios.tail_frame[i])
        spot, expected = self._context.entry_spot(slice_), None
        what = f"slice 1 of the folio of PFN {head_pfn}"
        if slice_ != self._mappings.first_slice[i] + 1:
            text = f"a slice of no huge page maps PFN {frame}, the frame of {what}"
        elif moved:
            right = int(self._mappings.expected[i])
            text = f"{what} maps PFN {frame}, not PFN {right}"
            expected = self._mappings.with_frame(spot.value, right)
        else:
            text = f"{what} is read-only"
            if spot.value is not None:
                expected = page_table.with_write(spot.value, 0, allowed=True)
        self._audit.add(
            Finding(
                "vmemmap-head-frame",
                text,
                subjects.HeadFrame(head_pfn),
                place=self._context.place(i).at(spot, pfn=frame),
                expected=expected,
                actual=spot.value,
            )
        )

    def _stray_slice(self, i: int) -> Optional[int]:
        """A slice outside a folio that maps the folio's head frame."""
        slices = self._context.vmemmap.slices_on(int(self._folios.head_frame[i]))
        first = int(self._mappings.first_slice[i])
        inside = (slices >= first) & (slices < first + int(self._folios.slices[i]))
        return next(iter(slices[~inside].tolist()), None)

    def _owner_of(self, slice_: int) -> tuple[subjects.Subject, ...]:
        """The folio that a slice belongs to, as what its mapping is about."""
        last = self._mappings.first_slice + self._folios.slices
        inside = (self._mappings.first_slice <= slice_) & (slice_ < last)
        return tuple(
            subjects.TailFrames(head) for head in self._folios.head_pfn[inside].tolist()
        )

    def _is_owner(self, i: int) -> bool:
        """
        Whether a head frame that something else maps, too, is rightly this folio's:
        the list entry in front of its head leads back to it.
        """
        context = self._context
        lru = context.kernel.struct_page.require("lru")
        address = context.vmemmap.page_address(int(self._folios.head_pfn[i])) + lru
        if self._folios.on_list[i] == NO_LIST:
            return False
        previous = context.read_u64(address + 8)
        return previous is not None and context.read_u64(previous) == address

    def _add_head(self, i: int, slice_: int, mapped: bool, others: int) -> None:
        """
        Add a finding about the first slice of a folio.

        :param slice_: The slice whose entry is wrong: the first, or one outside of the
            folio that maps its frame.
        :param mapped: Whether the first slice is mapped at all.
        :param others: How many slices of others map its frame.
        """
        page_table = self._context.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        head_pfn, frame = int(self._folios.head_pfn[i]), int(self._folios.head_frame[i])
        own = slice_ == self._mappings.first_slice[i]
        spot = self._context.entry_spot(slice_)
        expected = None
        if not mapped:
            what = "is not mapped"
        elif others:
            # What is read through this slice is somebody else's.
            self.foreign[i] = own
            what = f"maps PFN {frame}, which {others} slices of others map, too"
        else:
            what = "is read-only"
            if spot.value is not None:
                expected = page_table.with_write(spot.value, 0, allowed=True)
        self._audit.add(
            Finding(
                "vmemmap-head-frame",
                f"slice 0 of the folio of PFN {head_pfn} {what}",
                subjects.HeadFrame(head_pfn),
                because=() if own else self._owner_of(slice_),
                place=self._context.place(i).at(spot, pfn=frame if mapped else None),
                expected=expected,
                actual=spot.value,
            )
        )

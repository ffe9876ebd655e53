# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Frames of tails
---------------

The pages of vmemmap of optimized folios behind the private ones: which frames they map,
and how.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.booting import BOOTING
from drgn_hvo.audit.findings import Finding, Spot
from drgn_hvo.audit.folio_mappings import FolioMappings
from drgn_hvo.audit.rules import RuleId
from drgn_hvo.kernel.unread import NOT_IN_DUMP, Need
from drgn_hvo.memmap.shared_tails import Slot

__all__ = ("check_tail_frames",)


def check_tail_frames(mappings: FolioMappings, wrong_slots: AbstractSet[Slot]) -> None:
    """
    Decide ``vmemmap-tail-frame`` and ``vmemmap-tail-writable``, and of folios that are
    not optimized which pages of vmemmap are not mapped.

    :param wrong_slots: Slots that are known to be wrong: what is wrong with all the
        folios of one is one finding.
    """
    check = _TailFrames(mappings, wrong_slots)
    check.check_empty_slots()
    check.check_tails()
    check.check_holes()


class _TailFrames:
    def __init__(self, mappings: FolioMappings, wrong_slots: AbstractSet[Slot]) -> None:
        self._mappings = mappings
        self._wrong_slots = wrong_slots
        self._context = context = mappings.context
        self._audit = context.audit
        self._folios = context.hugetlb.folios

    def check_empty_slots(self) -> None:
        """Slots that hold nothing although folios use them: one finding each."""
        if self._context.layout.tails.kind != "shared":
            return
        without = self._mappings.optimized & (self._mappings.expected < 0)
        unknown = int((without & (self._context.nids < 0)).sum())
        self._audit.missing(Need.FOLIO_ZONES, "nodes and zones of folios", unknown)
        empty = without & (self._context.nids >= 0)
        users: dict[Slot, list[int]] = {}
        for i in np.flatnonzero(empty).tolist():
            users.setdefault(self._mappings.slot_of(i), []).append(i)
        for slot, folios in users.items():
            if slot in self._wrong_slots:
                continue
            if slot in self._context.hvo.tail_slots.empty:
                self._add_empty_slot(slot, folios)
            else:
                self._audit.missing(Need.SLOTS, "slots of folios", len(folios))

    def _add_empty_slot(self, key: Slot, folios: list[int]) -> None:
        context, order = self._context, key.order
        pgdat = context.hvo.mmzone.pgdats.get(key.nid)
        array = context.layout.tails.array
        index = array.index(order) if array else None
        if pgdat is None or array is None or index is None:
            return
        slot = array.slot_address(pgdat, key.zone_index, index)
        pfn = int(self._folios.tail_slices.pfn[self._pairs_of(folios[0])[0]])
        place = replace(context.place(folios[0]), head_pfn=None)
        self._audit.add(
            Finding(
                "vmemmap-tail-frame",
                f"vmemmap_tails[{index}] is empty, but {len(folios)} "
                f"folios of order {order} share PFN {pfn}",
                subjects.TailSlot(key),
                affected=len(folios),
                place=place.at(Spot(slot, context.translate(slot)), pfn=pfn),
                actual=0,
            )
        )

    def _pairs_of(self, i: int) -> list[int]:
        return np.flatnonzero(self._folios.tail_slices.folio == i).tolist()

    def check_tails(self) -> None:
        """Slices behind the first: the right frame, by read-only base-page entries."""
        slices = self._folios.tail_slices
        expected = self._mappings.expected[slices.folio]
        mine = self._mappings.optimized[slices.folio] & (expected >= 0)
        right = (slices.pfn == expected) & ((slices.step == 0) | (slices.count == 1))
        for pair in np.flatnonzero(mine & ~right).tolist():
            if not self._is_left_restored(pair):
                self._add_wrong_frame(pair)
        loose = slices.level > 0
        if not self._context.hugetlb.tails_are_writable:
            loose |= slices.writable
        # Where no slot tells which frame is the right one, any shared one will do.
        unsure = self._mappings.optimized & (self._mappings.expected < 0)
        right = (mine & right) | (unsure[slices.folio] & (slices.shared > 0))
        for pair in np.flatnonzero(right & loose).tolist():
            self._add_writable(pair)

    def _is_left_restored(self, pair: int) -> bool:
        """
        Whether slices of an optimized folio have frames of their own, with the folio's
        tails in them: where the array is allocated, vmemmap_remap_range() that failed
        and could not be rolled back leaves that for good.
        """
        array, slices = self._context.layout.tails.array, self._folios.tail_slices
        if array is None or not array.is_allocated or slices.shared[pair]:
            return False
        flag = self._context.hugetlb.has_hpg_flag("vmemmap_optimized")
        i = int(slices.folio[pair])
        if flag is None or not flag[i] or not slices.writable[pair]:
            return False
        first = int(self._mappings.first_slice[i] + slices.first[pair])
        pages = self._context.vmemmap.read_slices(
            first, first + int(slices.count[pair])
        )
        count = int(slices.count[pair])
        some = pages.data.reshape(count, -1).any(axis=1)
        zeros = pages.present & ~np.repeat(some, len(pages.data) // count)
        name = "private tails of folios"
        self._audit.missing(Need.FOLIO_TAILS, name, int((~pages.present).sum()))
        self._audit.blank(Need.FOLIO_TAILS, name, int(zeros.sum()))
        if not pages.present.all() or zeros.any():
            self._audit.undecide("vmemmap-tail-frame", f"{name} {NOT_IN_DUMP}")
        words = self._context.vmemmap.tail_words(pages)[pages.present & ~zeros]
        return bool((words == self._context.tail_words[i]).all())

    def _add_wrong_frame(self, pair: int) -> None:
        slices = self._folios.tail_slices
        i = int(slices.folio[pair])
        # A folio in transition may have slices with frames of their own; no other wrong
        # frame is excused.
        if self._mappings.are_own[pair] and self._mappings.is_excused(i):
            return
        head_pfn = int(self._folios.head_pfn[i])
        slot = self._mappings.slot_of(i)
        # A wrong slot makes all its folios look wrong: they are one finding.
        is_one_of_many = slot in self._wrong_slots
        about: subjects.Subject = subjects.TailFrames(head_pfn)
        if is_one_of_many:
            about = subjects.TailSlotUsers(slot)
        count = int(slices.count[pair])
        if self._audit.again("vmemmap-tail-frame", about, count):
            return
        first = int(slices.first[pair])
        spot = self._context.entry_spot(int(self._mappings.first_slice[i]) + first)
        expected = int(self._mappings.expected[i])
        self._audit.add(
            Finding(
                "vmemmap-tail-frame",
                f"slice {first} of the folio of PFN {head_pfn} maps PFN "
                f"{int(slices.pfn[pair])}, not PFN {expected}",
                about,
                because=(subjects.TailSlot(slot), subjects.HeadFrame(head_pfn)),
                affected=self._context.slot_users(slot) if is_one_of_many else 1,
                folded=count - 1,
                place=self._context.place(i).at(spot, pfn=int(slices.pfn[pair])),
                expected=self._mappings.with_frame(spot.value, expected),
                actual=spot.value,
            )
        )

    def _add_writable(self, pair: int) -> None:
        slices = self._folios.tail_slices
        i = int(slices.folio[pair])
        if self._is_not_yet_protected(i):
            return
        page_table = self._context.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        head_pfn, first = int(self._folios.head_pfn[i]), int(slices.first[pair])
        count = int(slices.count[pair])
        spot = self._context.entry_spot(int(self._mappings.first_slice[i]) + first)
        actual = spot.value
        which = (
            f"slice {first}" if count == 1 else f"slices {first} to {first + count - 1}"
        )
        by_design = self._context.hugetlb.tails_are_writable
        is_writable = bool(slices.writable[pair]) and not by_design
        how = "writable" if is_writable else "mapped by a large page"
        # The defect: the length of the range to protect was pages_per_huge_page()
        # bytes, so that only its first slices became read-only.
        to_the_end = first > 1 and first + count == int(self._folios.slices[i])
        gigantic = self._folios.order[i] > 10
        self._audit.add(
            Finding(
                "vmemmap-tail-writable",
                f"{which} of the folio of PFN {head_pfn} share a frame, but are {how}",
                subjects.TailProtection(head_pfn),
                because=(subjects.HeadFrame(head_pfn),),
                defect="boot-tail-writable" if gigantic and to_the_end else None,
                folded=count - 1,
                place=self._context.place(i).at(spot, pfn=int(slices.pfn[pair])),
                expected=None
                if actual is None
                else page_table.with_write(actual, 0, allowed=False),
                actual=actual,
            )
        )

    def _is_not_yet_protected(self, i: int) -> bool:
        """
        Whether slices of a folio may still be writable: those of memblock memory share
        before it is made, and vmemmap_wrprotect_hvo() comes behind that.
        """
        if not self._context.held_by_nobody[i] or self._context.is_booting is False:
            return False
        if self._context.is_booting is None:
            self._audit.undecide("vmemmap-tail-writable", BOOTING)
        else:
            self._mappings.excuse(i)
        return True

    def check_holes(self) -> None:
        """Slices behind the first that are not mapped at all."""
        holes = (
            self._folios.mapped + (self._folios.head_frame < 0) < self._folios.slices
        )
        for i in np.flatnonzero(holes).tolist():
            first = int(self._mappings.first_slice[i])
            slices = np.arange(first, first + int(self._folios.slices[i]))
            _, mapped = self._context.vmemmap.frames(slices)
            hole = next(s for s in slices[~mapped].tolist() if s != first)
            if self._context.is_missing(hole) or self._mappings.is_told_above(hole):
                continue
            head_pfn = int(self._folios.head_pfn[i])
            rule: RuleId = "folio-unoptimized"
            about: subjects.Subject = subjects.PlainFrames(head_pfn)
            if self._mappings.optimized[i]:
                rule = "vmemmap-tail-writable"
                about = subjects.TailProtection(head_pfn)
            spot = self._context.entry_spot(hole)
            self._audit.add(
                Finding(
                    rule,
                    f"slice {hole - first} of the folio of PFN {head_pfn} is not "
                    "mapped",
                    about,
                    folded=int((~mapped[1:]).sum()) - 1,
                    place=self._context.place(i).at(spot),
                    actual=spot.value,
                )
            )

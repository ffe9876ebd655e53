# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mappings of vmemmap
-------------------

What the page tables of vmemmap say of every folio, against what its generation of
HVO makes of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np

from drgn_hvo.audit.booting import BOOTING
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import NOWHERE, Finding, Place, Spot, Subject
from drgn_hvo.audit.folio_transitions import have_own_frames
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, is_in, ranges
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.pools import NO_LIST
from drgn_hvo.memmap.shared_tails import SharedTail

__all__ = ("check_mapping",)


def check_mapping(context: Context) -> None:
    """Decide the ``vmemmap-`` rules on slices, and those on optimized folios."""
    folios = context.hugetlb.folios
    context.audit.checked.update(
        folios=len(folios),
        optimized_folios=int(context.hugetlb.optimized_mapping.sum()),
        vmemmap_ptes=int(folios.mapped.sum()),
    )
    _Mapping(context).check()


# Node, zone (None: the slot is the node's) and order of a slot of vmemmap_tails[].
_Slot = tuple[int, Optional[int], int]

# How many strays of one shared tail page are looked at one by one.
_MAX_STRAYS = 64


class _Mapping:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._audit = context.audit
        self._folios = context.hugetlb.folios
        self._first_slice = self._folios.head_pfn * context.size // context.page_size
        self._expected = context.expected_frames
        self._irregular = np.zeros(len(self._folios), dtype=np.bool_)
        self._are_own = have_own_frames(context)

    def check(self) -> None:
        self._check_heads()
        if self._context.layout.tails.private_slices > 1:
            self._check_second_slices()
        self._check_flag()
        self._check_empty_slots()
        self._check_tails()
        self._check_holes()
        self._check_unoptimized()
        for tail in self._context.hvo.shared_tails:
            self._check_strays(tail)
        self._audit.transitional |= set(self._folios.head_pfn[self._irregular].tolist())

    def _slot_owner(self, i: int) -> tuple[int, Optional[int]]:
        """Node and zone whose slots a folio uses; without slots, that it lies in."""
        array = self._context.layout.tails.array
        nid, zone = int(self._context.nids[i]), int(self._context.zones[i])
        return (nid, zone) if array is None else array.owner_of(nid, zone)

    def _slot_key(self, i: int) -> _Slot:
        return (*self._slot_owner(i), int(self._folios.order[i]))

    def _slot_of(self, i: int) -> Subject:
        return self._context.slot_subject(*self._slot_key(i))

    def _is_excused(self, i: int) -> bool:
        """Whether what is irregular about a folio is that it is in transition."""
        if self._context.in_transition[i]:
            self._irregular[i] = True
            return True
        return False

    def _check_flag(self) -> None:
        flag = self._context.hugetlb.has_hpg_flag("vmemmap_optimized")
        if flag is None:
            self._audit.undecide("folio-optimized-flag", "bit of the flag not known")
            return
        mapping = self._context.hugetlb.optimized_mapping
        wrong = (flag != mapping) & self._context.readable
        for i in np.flatnonzero(wrong).tolist():
            if self._is_excused(i):
                continue
            private = int(self._folios.private[i])
            bit = 1 << self._context.hugetlb.hpg_flags["vmemmap_optimized"]
            has = "has" if flag[i] else "lacks"
            but = "maps" if mapping[i] else "does not map"
            offset = self._context.kernel.struct_page.require("private")
            head_pfn = int(self._folios.head_pfn[i])
            self._audit.add(
                Finding(
                    "folio-optimized-flag",
                    f"the folio of PFN {head_pfn} {has} HPG_vmemmap_optimized, but "
                    f"{but} shared frames",
                    ("flag", head_pfn),
                    because=(("head-frame", head_pfn),),
                    defect="restored-fake-heads" if self._is_copy(i) else None,
                    expected=private ^ bit,
                    actual=private,
                    place=self._context.place(i).at(
                        self._context.word_spot(head_pfn, offset), pfn=head_pfn
                    ),
                )
            )

    def _is_copy(self, i: int) -> bool:
        """
        Whether struct pages of a folio that shares none are copies of another's head,
        whose flags it then has: a tail at the start of the second slice has PG_head.
        """
        context = self._context
        if not context.layout.tails.has_fake_heads or self._folios.slices[i] < 2:
            return False
        tail = int(self._folios.head_pfn[i]) + context.geometry.pages_per_slice
        page = context.vmemmap.read_pages(np.array([tail], dtype=np.int64))
        flags = int(context.vmemmap.flags(page)[0])
        return not self._optimized()[i] and bool(flags & context.kernel.PG_head_mask)

    def _optimized(self) -> BoolArray:
        return self._context.hugetlb.optimized_mapping

    def _check_empty_slots(self) -> None:
        """Slots that hold nothing although folios use them: one finding each."""
        if self._context.layout.tails.kind != "shared":
            return
        empty = self._optimized() & (self._expected < 0) & (self._context.nids >= 0)
        unknown = self._optimized() & (self._expected < 0) & (self._context.nids < 0)
        self._audit.missing(
            Need.FOLIO_ZONES, "nodes and zones of folios", int(unknown.sum())
        )
        users: dict[_Slot, list[int]] = {}
        for i in np.flatnonzero(empty).tolist():
            users.setdefault(self._slot_key(i), []).append(i)
        for slot, folios in users.items():
            if self._audit.about(self._context.slot_subject(*slot)):
                continue
            if slot in self._context.hvo.tail_slots.empty:
                self._add_empty_slot(slot, folios)
            else:
                self._audit.missing(Need.SLOTS, "slots of folios", len(folios))

    def _add_empty_slot(self, key: _Slot, folios: list[int]) -> None:
        context = self._context
        nid, zone, order = key
        pgdat = context.hvo.mmzone.pgdats.get(nid)
        array = context.layout.tails.array
        index = array.index(order) if array else None
        if pgdat is None or array is None or index is None:
            return
        slot = array.slot_address(pgdat, zone, index)
        pfn = int(self._folios.tail_slices.pfn[self._pairs_of(folios[0])[0]])
        place = replace(context.place(folios[0]), head_pfn=None)
        self._audit.add(
            Finding(
                "vmemmap-tail-frame",
                f"vmemmap_tails[{index}] is empty, but {len(folios)} "
                f"folios of order {order} share PFN {pfn}",
                context.slot_subject(*key),
                affected=len(folios),
                place=place.at(Spot(slot, context.translate(slot)), pfn=pfn),
                actual=0,
            )
        )

    def _pairs_of(self, i: int) -> list[int]:
        return np.flatnonzero(self._folios.tail_slices.folio == i).tolist()

    def _check_tails(self) -> None:
        """Slices behind the first: the right frame, by read-only base-page entries."""
        slices = self._folios.tail_slices
        mine = self._optimized()[slices.folio] & (self._expected[slices.folio] >= 0)
        right = (slices.pfn == self._expected[slices.folio]) & (
            (slices.step == 0) | (slices.count == 1)
        )
        for pair in np.flatnonzero(mine & ~right).tolist():
            if not self._is_left_restored(pair):
                self._add_wrong_frame(pair)
        loose = slices.level > 0
        if not self._context.hugetlb.tails_are_writable:
            loose |= slices.writable
        # Where no slot tells which frame is the right one, any shared one will do.
        unsure = self._optimized() & (self._expected < 0)
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
        first = int(self._first_slice[i] + slices.first[pair])
        pages = self._context.vmemmap.read_slices(
            first, first + int(slices.count[pair])
        )
        words = self._context.vmemmap.tail_words(pages)[pages.present]
        return bool((words == self._context.tail_words[i]).all())

    def _add_wrong_frame(self, pair: int) -> None:
        slices = self._folios.tail_slices
        i = int(slices.folio[pair])
        # Of a folio in transition, slices may have a frame of their own, and no other.
        if self._are_own[pair] and self._is_excused(i):
            return
        head_pfn = int(self._folios.head_pfn[i])
        slot = self._slot_of(i)
        # A wrong slot makes all its folios look wrong: they are one finding.
        users = self._audit.about(slot) and self._context.layout.tails.kind == "shared"
        about: Subject = ("users", *slot) if users else ("tail-frame", head_pfn)
        count = int(slices.count[pair])
        if self._audit.again("vmemmap-tail-frame", about, count):
            return
        first = int(slices.first[pair])
        spot = self._context.entry_spot(int(self._first_slice[i]) + first)
        expected = int(self._expected[i])
        self._audit.add(
            Finding(
                "vmemmap-tail-frame",
                f"slice {first} of the folio of PFN {head_pfn} maps PFN "
                f"{int(slices.pfn[pair])}, not PFN {expected}",
                about,
                because=(slot, ("head-frame", head_pfn)),
                affected=self._users_of(i) if users else 1,
                folded=count - 1,
                place=self._context.place(i).at(spot, pfn=int(slices.pfn[pair])),
                expected=self._with_frame(spot.value, expected),
                actual=spot.value,
            )
        )

    def _users_of(self, i: int) -> int:
        return self._context.slot_users(*self._slot_key(i))

    def _with_frame(self, entry: Optional[int], pfn: int) -> Optional[int]:
        page_table = self._context.kernel.page_table_format
        if entry is None or page_table is None:
            return None
        return page_table.with_frame(entry, 0, pfn)

    def _add_writable(self, pair: int) -> None:
        slices = self._folios.tail_slices
        i = int(slices.folio[pair])
        if self._is_not_yet_protected(i):
            return
        page_table = self._context.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        head_pfn, first = int(self._folios.head_pfn[i]), int(slices.first[pair])
        count = int(slices.count[pair])
        spot = self._context.entry_spot(int(self._first_slice[i]) + first)
        actual = spot.value
        which = (
            f"slice {first}" if count == 1 else f"slices {first} to {first + count - 1}"
        )
        by_design = self._context.hugetlb.tails_are_writable
        is_writable = bool(slices.writable[pair]) and not by_design
        how = "writable" if is_writable else "mapped by a large page"
        # The range that is protected was computed in bytes of struct pages.
        to_the_end = first > 1 and first + count == int(self._folios.slices[i])
        gigantic = self._folios.order[i] > 10
        self._audit.add(
            Finding(
                "vmemmap-tail-writable",
                f"{which} of the folio of PFN {head_pfn} share a frame, but are {how}",
                ("tail-writable", head_pfn),
                because=(("head-frame", head_pfn),),
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
            self._irregular[i] = True
        return True

    def _check_holes(self) -> None:
        """Slices behind the first that are not mapped at all."""
        holes = (
            self._folios.mapped + (self._folios.head_frame < 0) < self._folios.slices
        )
        for i in np.flatnonzero(holes).tolist():
            first = int(self._first_slice[i])
            slices = np.arange(first, first + int(self._folios.slices[i]))
            _, mapped = self._context.vmemmap.frames(slices)
            hole = next(s for s in slices[~mapped].tolist() if s != first)
            if self._context.is_missing(hole) or self._is_told_above(hole):
                continue
            optimized = bool(self._optimized()[i])
            head_pfn = int(self._folios.head_pfn[i])
            spot = self._context.entry_spot(hole)
            self._audit.add(
                Finding(
                    "vmemmap-tail-writable" if optimized else "folio-unoptimized",
                    f"slice {hole - first} of the folio of PFN {head_pfn} is not "
                    "mapped",
                    ("tail-writable" if optimized else "unoptimized", head_pfn),
                    folded=int((~mapped[1:]).sum()) - 1,
                    place=self._context.place(i).at(spot),
                    actual=spot.value,
                )
            )

    def _head_users(self) -> Int64Array:
        """How many slices map each folio's head frame, if any does, besides its own."""
        vmemmap, frames = self._context.vmemmap, self._folios.head_frame
        users = np.ones(len(frames), dtype=np.int64)
        several = is_in(frames, vmemmap.repeated_frames)
        users[several] = vmemmap.users_of(frames[several])
        slices = self._folios.tail_slices
        own = np.ones(len(self._folios), dtype=np.int64)
        if self._context.layout.tails.has_fake_heads:
            same = (slices.pfn == frames[slices.folio]) & (
                (slices.step == 0) | (slices.count == 1)
            )
            np.add.at(own, slices.folio[same], slices.count[same])
        return users - own

    def _check_heads(self) -> None:
        folios = self._folios
        index, mapped = self._context.vmemmap.slices_to_runs(self._first_slice)
        writable = np.zeros(len(folios), dtype=np.bool_)
        if len(self._context.vmemmap.runs):
            writable = mapped & self._context.vmemmap.runs.writable[index]
        others = np.where(mapped, self._head_users(), 0)
        for i in np.flatnonzero(~mapped | ~writable | (others > 0)).tolist():
            first = int(self._first_slice[i])
            if not mapped[i] and self._context.is_missing(first):
                continue
            if self._is_told_above(first):
                continue
            place = first
            if others[i] and writable[i] and self._is_owner(i):
                same = self._folios.head_frame == self._folios.head_frame[i]
                if same.sum() > 1:
                    continue  # another folio has it wrongly
                stray = self._stray_slice(i)
                if stray is None:
                    continue  # a slice of its own: vmemmap-tail-frame
                place = stray
            self._add_head(i, place, bool(mapped[i]), int(others[i]))

    def _check_second_slices(self) -> None:
        """
        The slices whose frames those behind repeat: writable, with the frame that these
        agree on, which no slice of anything else maps.
        """
        folios, vmemmap = self._folios, self._context.vmemmap
        second = self._first_slice + 1
        index, mapped = vmemmap.slices_to_runs(second)
        mapped &= folios.slices > 1
        writable = np.zeros(len(folios), dtype=np.bool_)
        if len(vmemmap.runs):
            writable = mapped & vmemmap.runs.writable[index]
        moved = self._optimized() & (folios.tail_frame != self._expected)
        for i in np.flatnonzero(mapped & (moved | ~writable)).tolist():
            if self._is_told_above(int(second[i])):
                continue
            self._add_second(i, int(second[i]), moved=bool(moved[i]))
        mine = np.flatnonzero(mapped & ~moved & self._optimized())
        users = vmemmap.users_of(folios.tail_frame[mine])
        for i in mine[users > folios.shared_ptes[mine] + 1].tolist():
            slices = vmemmap.slices_on(int(folios.tail_frame[i]))
            for slice_ in slices[:_MAX_STRAYS].tolist():
                if not self._owner_of(slice_):
                    self._add_second(i, slice_, moved=False)

    def _add_second(self, i: int, slice_: int, *, moved: bool) -> None:
        """
        :param slice_: The slice whose entry is wrong, the second or somebody else's.
        """
        page_table = self._context.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        head_pfn, frame = int(self._folios.head_pfn[i]), int(self._folios.tail_frame[i])
        spot, expected = self._context.entry_spot(slice_), None
        what = f"slice 1 of the folio of PFN {head_pfn}"
        if slice_ != self._first_slice[i] + 1:
            text = f"a slice of no huge page maps PFN {frame}, the frame of {what}"
        elif moved:
            text = f"{what} maps PFN {frame}, not PFN {self._expected[i]}"
            expected = self._with_frame(spot.value, int(self._expected[i]))
        else:
            text = f"{what} is read-only"
            if spot.value is not None:
                expected = page_table.with_write(spot.value, 0, allowed=True)
        self._audit.add(
            Finding(
                "vmemmap-head-frame",
                text,
                ("head-frame", head_pfn),
                place=self._context.place(i).at(spot, pfn=frame),
                expected=expected,
                actual=spot.value,
            )
        )

    def _is_told_above(self, slice_: int) -> bool:
        """
        Whether what is wrong with how a slice is mapped is an entry of a higher table,
        which is one finding for all that it maps.
        """
        context, entry = self._context, self._context.barrier(slice_)
        page_table = context.kernel.page_table_format
        if entry is None or page_table is None:
            return False
        about: Subject = ("table-entry", entry.address)
        if self._audit.about(about):
            return True
        pages = page_table.pages(entry.level)
        start = slice_ - (context.slice_address(slice_) // context.page_size) % pages
        inside = (self._first_slice >= start) & (self._first_slice < start + pages)
        present = page_table.decode(entry.value, entry.level).present
        how = "allows no writes" if present else "maps nothing"
        self._audit.add(
            Finding(
                "vmemmap-head-frame",
                f"the entry of level {entry.level + 1} of the page tables that maps "
                f"{pages} pages of vmemmap from {context.slice_address(start):#x} on "
                f"{how}",
                about,
                affected=int(inside.sum()),
                place=NOWHERE.at(Spot(context.slice_address(start), entry.address)),
                expected=(
                    page_table.with_table_write(entry.value, entry.level)
                    if present
                    else None
                ),
                actual=entry.value,
            )
        )
        return True

    def _stray_slice(self, i: int) -> Optional[int]:
        """A slice outside a folio that maps the folio's head frame."""
        slices = self._context.vmemmap.slices_on(int(self._folios.head_frame[i]))
        first = int(self._first_slice[i])
        inside = (slices >= first) & (slices < first + int(self._folios.slices[i]))
        return next(iter(slices[~inside].tolist()), None)

    def _owner_of(self, slice_: int) -> tuple[Subject, ...]:
        """The folio that a slice belongs to, as what its mapping is about."""
        last = self._first_slice + self._folios.slices
        inside = (self._first_slice <= slice_) & (slice_ < last)
        return tuple(
            ("tail-frame", head) for head in self._folios.head_pfn[inside].tolist()
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
        :param slice_: The slice whose entry is wrong, the first or somebody else's.
        """
        page_table = self._context.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        head_pfn, frame = int(self._folios.head_pfn[i]), int(self._folios.head_frame[i])
        own = slice_ == self._first_slice[i]
        spot = self._context.entry_spot(slice_)
        expected = None
        if not mapped:
            what = "is not mapped"
        elif others:
            # What is read through this slice is somebody else's.
            self._context.foreign[i] = own
            what = f"maps PFN {frame}, which {others} slices of others map, too"
        else:
            what = "is read-only"
            if spot.value is not None:
                expected = page_table.with_write(spot.value, 0, allowed=True)
        self._audit.add(
            Finding(
                "vmemmap-head-frame",
                f"slice 0 of the folio of PFN {head_pfn} {what}",
                ("head-frame", head_pfn),
                because=() if own else self._owner_of(slice_),
                place=self._context.place(i).at(spot, pfn=frame if mapped else None),
                expected=expected,
                actual=spot.value,
            )
        )

    def _check_unoptimized(self) -> None:
        flag = self._context.hugetlb.has_hpg_flag("vmemmap_optimized")
        plain = ~self._optimized() & self._context.readable
        if flag is not None:
            plain &= ~flag
        slices = self._folios.tail_slices
        for pair in np.flatnonzero(plain[slices.folio] & ~slices.writable).tolist():
            i, first = int(slices.folio[pair]), int(slices.first[pair])
            head_pfn = int(self._folios.head_pfn[i])
            spot = self._context.entry_spot(int(self._first_slice[i]) + first)
            self._audit.add(
                Finding(
                    "folio-unoptimized",
                    f"slice {first} of the folio of PFN {head_pfn}, which is not "
                    "optimized, is read-only",
                    ("unoptimized", head_pfn),
                    folded=int(slices.count[pair]) - 1,
                    place=self._context.place(i).at(spot, pfn=int(slices.pfn[pair])),
                    actual=spot.value,
                )
            )

    def _check_strays(self, tail: SharedTail) -> None:
        """Slices that map a shared tail page and have no business to."""
        if tail.pfn is None or self._audit.about(
            self._context.slot_subject(tail.nid, tail.zone_index, tail.order)
        ):
            return
        slices = self._folios.tail_slices
        owner = (self._expected == tail.pfn) | ~self._context.readable
        owner |= self._context.nids < 0
        rightful = owner[slices.folio] & (slices.pfn == tail.pfn)
        rightful &= (self._folios.order[slices.folio] == tail.order) & (
            (slices.step == 0) | (slices.count == 1)
        )
        if int(slices.count[rightful].sum()) == tail.mapped_by:
            return
        known = ranges(
            self._first_slice[slices.folio[rightful]] + slices.first[rightful],
            slices.count[rightful],
        )
        strays = np.setdiff1d(self._context.vmemmap.slices_on(tail.pfn), known)
        if tail.boot is not False and self._context.is_booting is not False:
            # Huge pages of memblock memory share before they have a head.
            self._audit.undecide("stray-shared-tail", BOOTING, len(strays))
            return
        strays = strays[~self._are_of_devices(tail, strays)]
        for slice_ in strays[:_MAX_STRAYS].tolist():
            self._add_stray(tail, slice_)
        self._add_strays(tail, strays[_MAX_STRAYS:])

    def _are_of_devices(self, tail: SharedTail, slices: Int64Array) -> BoolArray:
        """
        Which slices behind the first of a compound page of a device share a tail of
        ZONE_DEVICE, as those of device DAX do where the array is allocated.
        """
        context, array = self._context, self._context.layout.tails.array
        if array is None or not array.is_allocated:
            return np.zeros(len(slices), dtype=np.bool_)
        if tail.zone_index != context.kernel.constant("ZONE_DEVICE"):
            return np.zeros(len(slices), dtype=np.bool_)
        pfns = slices * context.page_size // context.size
        behind = pfns % (1 << tail.order) != 0
        held = np.zeros(len(slices), dtype=np.bool_)
        for zone in context.hvo.mmzone.zones:
            if (zone.nid, zone.index) == (tail.nid, tail.zone_index):
                held |= zone.holds(pfns)
        return behind & held

    def _add_strays(self, tail: SharedTail, strays: Int64Array) -> None:
        """Add many as one, which is counted like the others before it."""
        if not len(strays):
            return
        folios = self._folios
        pfns = strays * self._context.page_size // self._context.size
        owner = np.searchsorted(folios.head_pfn, pfns, side="right") - 1
        owned = owner >= 0
        owned[owned] = (
            pfns[owned] < (folios.head_pfn + (1 << folios.order))[owner[owned]]
        )
        self._add_stray(
            tail,
            int(strays[0]),
            folded=len(strays) - 1,
            affected=len(np.unique(owner[owned])),
        )

    def _add_stray(
        self,
        tail: SharedTail,
        slice_: int,
        *,
        folded: int = 0,
        affected: Optional[int] = None,
    ) -> None:
        pfn = slice_ * self._context.page_size // self._context.size
        head_pfn = pfn >> tail.order << tail.order
        owner = self._context.folio_of(pfn)
        if owner is not None:
            head_pfn = int(self._folios.head_pfn[owner])
        zone = self._context.zone_name(tail.nid, tail.zone_index)
        spot = self._context.entry_spot(slice_)
        place = Place(
            nid=tail.nid,
            zone=zone,
            order=tail.order,
            head_pfn=None if owner is None else head_pfn,
        )
        self._audit.add(
            Finding(
                "stray-shared-tail",
                f"the slice of PFN {pfn} maps the shared tail page of order "
                f"{tail.order}, but belongs to no optimized folio of it",
                ("stray-tail", slice_),
                because=(
                    ("head-frame", head_pfn),
                    ("tail-frame", head_pfn),
                    ("folio", head_pfn),
                    ("list-of", head_pfn),
                ),
                affected=int(owner is not None) if affected is None else affected,
                folded=folded,
                place=place.at(spot, pfn=tail.pfn),
                actual=spot.value,
            )
        )

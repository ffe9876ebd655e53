# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What all checks need
--------------------

One audit of one kernel: what it looks at, and addresses in the form that findings
give.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Optional

from drgn import FaultError
import numpy as np

from drgn_hvo.audit.booting import is_booting
from drgn_hvo.audit.findings import Audit, Place, Spot
from drgn_hvo.audit.folio_transitions import held_by_nobody, huge_pages_in_transition
from drgn_hvo.audit.in_transition import Transitions
from drgn_hvo.audit.lock import Lock, hugetlb_lock
from drgn_hvo.audit.rules import RULE_BY_ID, RuleId
from drgn_hvo.audit.scope import Scope
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array
from drgn_hvo.kernel.pagetables import Entry, find_entry, walk
from drgn_hvo.kernel.translation import entries_to
from drgn_hvo.memmap.folios import Hugetlb
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.shared_tails import SharedTail, Slot

__all__ = ("Context",)


class Context:
    """
    Shared by the checks of one audit.

    :param audit: Collects what they find.
    :param scope: The pools, folios and shared tail pages that they look at; all of the
        kernel by default.
    :param within: The slices, ascending, that rules on single slices look at; all if
        ``None``.
    """

    def __init__(
        self,
        hvo: Hvo,
        audit: Audit,
        *,
        scope: Optional[Scope] = None,
        within: Optional[Int64Array] = None,
    ) -> None:
        self.hvo = hvo
        self.audit = audit
        self._scope: Scope = hvo if scope is None else scope
        self.within = within
        self.kernel = hvo.kernel
        self.vmemmap = hvo.vmemmap
        self.layout = hvo.layout
        self.geometry = hvo.kernel.geometry
        self.page_size = self.geometry.page_size
        self.size = self.geometry.struct_page_size

    # Read when a check first asks: not all rules look at folios.

    @property
    def hugetlb(self) -> Hugetlb:
        """Pools, lists and folios."""
        return self._scope.hugetlb

    @property
    def nids(self) -> Int64Array:
        """The node of each folio, -1 if it is not known."""
        return self._scope.folio_nids

    @property
    def zones(self) -> Int64Array:
        """The zone index of each folio, -1 if it is not known."""
        return self._scope.folio_zones

    @property
    def shared_tails(self) -> Sequence[SharedTail]:
        """Shared tail pages, as the slots of ``vmemmap_tails[]`` name them."""
        return self._scope.shared_tails

    @cached_property
    def in_transition(self) -> BoolArray:
        """Folios that are caught between two states."""
        return huge_pages_in_transition(self)

    @cached_property
    def held_by_nobody(self) -> BoolArray:
        """Folios that only the code which makes or undoes them can reach."""
        return held_by_nobody(self)

    @cached_property
    def is_booting(self) -> Optional[bool]:
        """Whether the kernel was still booting; ``None`` if that was not read."""
        return is_booting(self.kernel)

    @cached_property
    def expected_frames(self) -> Int64Array:
        """The frame that the tail slices of each folio should map, -1 if none."""
        folios = self.hugetlb.folios
        if self.layout.tails.kind != "shared":
            return self._repeated_frames
        frames = np.full(len(folios), -1, dtype=np.int64)
        for tail in self.shared_tails:
            if tail.pfn is not None:
                frames[self.of_slot(tail.key)] = tail.pfn
        return frames

    @cached_property
    def _repeated_frames(self) -> Int64Array:
        """
        The frame of each folio that its tail slices repeat: that of its last private
        slice, or another one if they all agree on that.
        """
        folios = self.hugetlb.folios
        frames = folios.tail_frame.copy()
        private = self.layout.tails.private_slices
        if private == 1:
            return frames
        slices = folios.tail_slices
        whole = (slices.step == 0) & (slices.count > 1)
        whole &= slices.count == (folios.slices - private)[slices.folio]
        frames[slices.folio[whole]] = slices.pfn[whole]
        return frames

    @cached_property
    def transitions(self) -> Transitions:
        """Tells compound pages in transition from damaged ones."""
        return Transitions(self)

    @cached_property
    def lock(self) -> Lock:
        """Whether hugetlb_lock was held."""
        return hugetlb_lock(self.kernel)

    def is_excused_by_lock(self, rule: RuleId) -> bool:
        """
        Whether something that breaks a rule is what the holder of hugetlb_lock leaves
        half done, or may be; then it is counted, or the rule is not decided.
        """
        excuse = RULE_BY_ID[rule].locked
        if excuse is None or self.lock.state == "free":
            return False
        if self.lock.state == "unknown":
            self.audit.undecide(rule, self.lock.why)
            return True
        if excuse.most and self.audit.excused.get(rule, 0) >= excuse.most:
            return False
        self.audit.excuse(rule)
        return True

    @cached_property
    def tail_words(self) -> U64Array:
        """The word that all tails of each folio hold."""
        folios = self.hugetlb.folios
        if self.layout.encoding.has_mask:
            shift = folios.order + (self.size.bit_length() - 1)
            masks = np.uint64((1 << 64) - 1) << shift.astype(np.uint64)
            return masks | np.uint64(1)
        return self.vmemmap.page_addresses(folios.head_pfn) | np.uint64(1)

    def is_missing(self, slice_: int) -> bool:
        """Whether the page table of a page of vmemmap is not in the dump."""
        address = self.slice_address(slice_)
        return any(t.start <= address < t.end for t in self.vmemmap.walk.missing)

    def zone_name(self, nid: int, zone: Optional[int]) -> Optional[str]:
        """The name of a zone, ``None`` where there is none or it is not known."""
        return None if zone is None else self.hvo.mmzone.zone_name(nid, zone)

    def place(self, i: int) -> Place:
        """Where a folio lies, as findings give it."""
        nid, zone = int(self.nids[i]), int(self.zones[i])
        return Place(
            nid=None if nid < 0 else nid,
            zone=None if nid < 0 else self.zone_name(nid, zone),
            order=int(self.hugetlb.folios.order[i]),
            head_pfn=int(self.hugetlb.folios.head_pfn[i]),
        )

    def of_slot(self, slot: Slot) -> BoolArray:
        """Folios whose tails a slot is for."""
        mine = (self.hugetlb.folios.order == slot.order) & (self.nids == slot.nid)
        zone = slot.zone_index
        return mine if zone is None else mine & (self.zones == zone)

    def slot_users(self, slot: Slot) -> int:
        """How many optimized folios a slot is for."""
        mine = self.of_slot(slot) & self.hugetlb.optimized_mapping
        return int(mine.sum())

    def folio_of(self, pfn: int) -> Optional[int]:
        """The index of the folio that a page belongs to."""
        folios = self.hugetlb.folios
        end = folios.head_pfn + (1 << folios.order)
        inside = np.flatnonzero((folios.head_pfn <= pfn) & (pfn < end))
        return int(inside[0]) if len(inside) else None

    def slice_address(self, slice_: int) -> int:
        """Virtual address of a page of vmemmap."""
        return self.vmemmap.base + slice_ * self.page_size

    def entry(self, slice_: int) -> Optional[Entry]:
        """The page table entry of a page of vmemmap."""
        page_table = self.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        return find_entry(self.kernel.reader, page_table, self.slice_address(slice_))

    def barrier(self, slice_: int) -> Optional[Entry]:
        """
        The page table entry above the lowest level that keeps a page of vmemmap from
        being mapped, or from being written to.
        """
        page_table = self.kernel.page_table_format
        assert page_table is not None, "run_audit() has checked that"
        reader, va = self.kernel.reader, self.slice_address(slice_)
        for entry in entries_to(reader.read_bytes, page_table, reader.byteorder, va):
            if entry is None or entry.level == 0:
                return None
            decoded = page_table.decode(entry.value, entry.level)
            if not decoded.present or not decoded.writable:
                return entry
        return None

    def entry_spot(self, slice_: int) -> Spot:
        """Virtual address of a page of vmemmap, and its page table entry."""
        entry = self.entry(slice_)
        return Spot(
            self.slice_address(slice_),
            None if entry is None else entry.address,
            None if entry is None else entry.value,
        )

    def word_spot(self, pfn: int, offset: int) -> Spot:
        """Where a word of a struct page is."""
        address = self.vmemmap.page_address(pfn) + offset
        slice_, rest = divmod(address - self.vmemmap.base, self.page_size)
        mapping = self.vmemmap.mapping(slice_)
        physical = None if mapping is None else mapping.pfn * self.page_size + rest
        return Spot(address, physical)

    def direct_map(self, physical: int) -> Optional[int]:
        """Virtual address of physical memory in the direct map, if that is known."""
        return self.kernel.direct_map(physical)

    def translate(self, address: int) -> Optional[int]:
        """Physical address of kernel virtual memory; ``None`` if not mapped."""
        page_table = self.kernel.page_table_format
        physical = self.kernel.translation.outside_page_tables(address)
        if physical is not None:
            return physical
        if page_table is None:
            found = self.kernel.translation.physical(address)
            return None if found is None else found[0]
        start = address & -self.page_size
        end = start + self.page_size
        runs = walk(self.kernel.reader, page_table, start, end).runs
        if not len(runs):
            return None
        return int(runs.pfn[0]) * self.page_size + address - int(runs.va[0])

    def read_u64(self, address: int) -> Optional[int]:
        """A word of kernel memory, ``None`` if it cannot be read."""
        try:
            return self.kernel.prog.read_u64(address)
        except (FaultError, OverflowError):
            return None

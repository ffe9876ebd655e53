# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What faults hit
---------------

Finds in a machine the struct pages, page table entries and counters that a fault
changes, as physical addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.byteorder import ByteOrder
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.synth.described.description import HugePages, Pages
from drgn_hvo.synth.machine.machine import Machine
from drgn_hvo.synth.machine.plan import AnyPlaced, Placed
from drgn_hvo.synth.machine.sections import section_order
from drgn_hvo.synth.machine.vmemmap_writer import HeadFrames, TailPage

__all__ = ("Change", "Targets")


@dataclass(frozen=True)
class Change:
    """Bytes to be written, and what they mean."""

    address: int
    new: bytes
    what: str


class Targets:
    """
    What can be hit in a machine.

    Every method that finds something raises :exc:`UsageError` where the machine has
    nothing of that kind.
    """

    #: The struct page, of those in one page, that a fault hits: one that holds no
    #: field of a folio.
    INDEX = 5

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.plan = machine.plan
        self.page = machine.plan.structures.page
        self._byteorder = machine.plan.description.model.byteorder
        self.size = machine.plan.generation.struct_page_size

    def _missing(self, what: str) -> UsageError:
        name = self.plan.generation.name
        return UsageError(f"this machine ({name}) has no {what} to damage")

    # Shared tails.

    def tail(self) -> TailPage:
        """A shared page of tails."""
        if not self.machine.vmemmap.tails:
            raise self._missing("shared tail page")
        return self.machine.vmemmap.tails[0]

    def tail_field(self, member: str, index: int = INDEX) -> int:
        """A field of a struct page in the shared page of tails."""
        return (
            self.tail().pfn * self.plan.page_size
            + index * self.size
            + self._offset(member)
        )

    def _offset(self, member: str) -> int:
        return self.page.offset(
            self.plan.generation.tail_word if member == "tail_word" else member
        )

    def slot(self, order: Optional[int] = None) -> int:
        """The element of ``vmemmap_tails[]`` for the shared page, or its order."""
        tail = self.tail()
        index = (order or tail.order) - self.plan.generation.min_order
        return self.machine.tail_arrays[tail.nid, tail.zone] + 8 * index

    def slot_value(self, pfn: int) -> int:
        """What a slot holds that names a frame."""
        if self.plan.generation.element_is_pfn:
            return pfn
        return self.plan.space.page_address(pfn)

    # Folios.

    def optimized(self) -> HeadFrames:
        """Optimized folios, preferably free ones."""
        heads = self.machine.vmemmap.heads
        free = [h for h in heads if h.placed.group.list == "free"]
        for candidate in (*free, *heads):
            return candidate
        raise self._missing("optimized folio")

    def optimized_head(self, index: int = 0) -> int:
        """The head of an optimized folio."""
        placed = self.optimized().placed
        if index >= placed.group.count:
            raise self._missing("second optimized folio of a group")
        return placed.heads()[index]

    def unoptimized(self) -> Placed[HugePages]:
        """Folios that are not optimized, of an order that could be."""
        for placed in self.plan.huge:
            large = placed.group.order >= self.plan.generation.min_order
            if not placed.optimized and large:
                return placed
        raise self._missing("folio that is not optimized")

    def split(self) -> Placed[HugePages]:
        """Folios that are not optimized, on page table entries of their own."""
        for placed in self.plan.huge:
            large = placed.group.order >= self.plan.generation.min_order
            if not placed.optimized and large and self._is_split(placed.first_pfn):
                return placed
        raise self._missing("folio that was optimized once")

    def _is_split(self, pfn: int) -> bool:
        try:
            self.machine.slice_entry(pfn)
        except KeyError:
            return False
        return True

    def slab(self) -> Placed[Pages]:
        """Slabs of several pages."""
        for placed in self.plan.pages:
            if placed.group.kind == "slab" and placed.group.order > 1:
                return placed
        raise self._missing("slab")

    def any_folio(self) -> Placed[HugePages]:
        """Some folios."""
        if not self.plan.huge:
            raise self._missing("folio")
        return self.plan.huge[0]

    def page_field(self, pfn: int, member: str) -> int:
        """A field of a struct page."""
        return self.machine.page_physical(pfn) + self._offset(member)

    def restored(self) -> Placed[HugePages]:
        """Folios whose vmemmap was restored."""
        for placed in self.plan.huge:
            if placed.group.origin == "restored":
                return placed
        raise self._missing("restored folio")

    def free_list(self) -> tuple[Placed[HugePages], int]:
        """Folios that are all on one free list, and the head of that list."""
        for placed in self.plan.huge:
            group = placed.group
            if group.list == "free" and group.count > 1:
                path = f"hugepage_freelists[{group.node}]"
                return placed, self.hstate(group.order, path)
        raise self._missing("free list with two folios")

    def hstate(self, order: int, path: str) -> int:
        """A member of the pool of an order."""
        c_type = self.plan.structures.hstate
        index = self.plan.description.hstates.index(order)
        base = self.machine.kernel.physical("hstates") + index * c_type.size
        return base + c_type.offset(path)

    def lru(self, pfn: int) -> int:
        """Virtual address of ``lru`` of a page."""
        return self.plan.space.page_address(pfn) + self.page.offset("lru")

    # Sections.

    def section(self) -> int:
        """The number of a section, if possible of one with an order of its own."""
        numbers = list(self.machine.sections)
        return next((n for n in numbers if section_order(self.plan, n)), numbers[0])

    # Frames.

    def free_frame(self) -> int:
        """A frame that the buddy allocator has."""
        for placed in self.plan.pages:
            if placed.group.kind == "buddy":
                return placed.first_pfn
        raise self._missing("free page")

    def kernel_frame(self) -> int:
        """A frame of the kernel that has nothing to do with vmemmap."""
        return self.plan.kernel_pfn

    def order_0_slice(self) -> int:
        """
        The first PFN of a slice that belongs to no folio and has an entry of its
        own in the page tables.
        """
        per_slice = self.plan.generation.geometry.pages_per_slice
        taken: list[AnyPlaced] = [*self.plan.huge, *self.plan.pages]
        for placed in self.plan.huge:
            for pfn in (placed.end_pfn, placed.first_pfn - per_slice):
                if any(
                    other.first_pfn < pfn + per_slice and pfn < other.end_pfn
                    for other in taken
                ):
                    continue
                if self._is_split(pfn):
                    return pfn
        raise self._missing("neighbour of a folio with page table entries")

    # Reading.

    def read(self, address: int, size: int = 8) -> int:
        """A number in memory."""
        return int.from_bytes(self.machine.image.read(address, size), self._byteorder)

    def packed(self, value: int, size: int) -> bytes:
        """A number as it is in memory."""
        return value.to_bytes(size, self._byteorder)

    @property
    def page_table(self) -> PageTableFormat:
        """How page tables are laid out."""
        return self.machine.tables.format

    @property
    def _entry_byteorder(self) -> ByteOrder:
        return self.page_table.entry_byteorder or self._byteorder

    def read_entry(self, address: int) -> int:
        """A page table entry."""
        data = self.machine.image.read(address, 8)
        return int.from_bytes(data, self._entry_byteorder)

    def entry(self, address: int, value: int, what: str) -> Change:
        """A change of a page table entry."""
        return Change(address, value.to_bytes(8, self._entry_byteorder), what)

    def word(self, address: int, value: int, what: str, size: int = 8) -> Change:
        """A change of a number."""
        mask = (1 << (8 * size)) - 1
        return Change(address, (value & mask).to_bytes(size, self._byteorder), what)

    def flip(self, address: int, bits: int, what: str, size: int = 8) -> Change:
        """A change of bits."""
        return self.word(address, self.read(address, size) ^ bits, what, size)

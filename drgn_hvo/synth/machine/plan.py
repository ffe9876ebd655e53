# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Plan of a machine
-----------------

Where everything that a description asks for lies: the address space of the kernel,
the huge pages, and what each page of memory is used for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Optional, TypeVar, Union

from drgn_hvo.errors import UsageError
from drgn_hvo.synth.described.description import (
    SECTION_PAGES,
    Description,
    HugePages,
    Pages,
)
from drgn_hvo.synth.described.generations import PAGE_SIZE, Generation
from drgn_hvo.synth.machine.frames import FrameAllocator, Range
from drgn_hvo.synth.machine.structures import ZONE_NAMES, Structures, structures

__all__ = (
    "KERNEL_PAGES",
    "START_KERNEL_MAP",
    "AddressSpace",
    "AnyPlaced",
    "Placed",
    "Plan",
    "Region",
    "ZoneSpan",
    "make_plan",
)

#: __START_KERNEL_map, and where the kernel is linked (CONFIG_PHYSICAL_START).
START_KERNEL_MAP = 0xFFFFFFFF80000000
_LINKED_AT = 16 << 20

#: 2 MiB each for text, read-only data and data.
KERNEL_PAGES = 3 * 512

# arch/x86/include/asm/page_64_types.h and pgtable_64_types.h, by paging levels.
_PAGE_OFFSET = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}
_VMALLOC = {4: 0xFFFFC90000000000, 5: 0xFFA0000000000000}
_VMEMMAP = {4: 0xFFFFEA0000000000, 5: 0xFFD4000000000000}


@dataclass(frozen=True)
class AddressSpace:
    """Where the kernel has what, with KASLR."""

    levels: int
    text: int
    phys_base: int
    page_offset: int
    vmalloc: int
    vmemmap: int
    struct_page_size: int

    def page_address(self, pfn: int) -> int:
        """``pfn_to_page()``."""
        return self.vmemmap + pfn * self.struct_page_size

    def virtual(self, pfn: int) -> int:
        """Where the direct map has a frame."""
        return self.page_offset + pfn * PAGE_SIZE

    def image_physical(self, address: int) -> int:
        """Physical address of something in the kernel image."""
        return address - START_KERNEL_MAP + self.phys_base


G = TypeVar("G", bound=Union[HugePages, Pages], covariant=True)


@dataclass(frozen=True)
class Placed(Generic[G]):
    """A group that has its place."""

    group: G
    first_pfn: int
    optimized: bool = False

    @property
    def end_pfn(self) -> int:
        """One more than the last page."""
        return self.first_pfn + (self.group.count << self.group.order)

    def heads(self) -> range:
        """The PFNs of the heads."""
        return range(self.first_pfn, self.end_pfn, 1 << self.group.order)


#: A group of either kind.
AnyPlaced = Union[Placed[HugePages], Placed[Pages]]


@dataclass(frozen=True)
class ZoneSpan:
    """A populated zone."""

    start: int
    end: int
    nid: int
    index: int


@dataclass(frozen=True)
class Region:
    """
    Pages behind each other that are used alike.

    :param use: ``"used"`` (order 0, by the kernel), ``"reserved"``, or
        ``"group"``.
    """

    start: int
    end: int
    use: str
    nid: int
    zone: int
    placed: Optional[AnyPlaced]


@dataclass(frozen=True)
class Plan:
    """
    What lies where.

    :param sections: Numbers of the present sections, ascending.
    """

    description: Description
    generation: Generation
    structures: Structures
    space: AddressSpace
    allocator: FrameAllocator
    huge: tuple[Placed[HugePages], ...]
    pages: tuple[Placed[Pages], ...]
    zones: tuple[ZoneSpan, ...]
    sections: tuple[int, ...]
    kernel_pfn: int

    @property
    def memory(self) -> list[Range]:
        """Ranges of all nodes, ascending."""
        return sorted(r for node in self.description.nodes for r in node.ranges)

    @property
    def max_pfn(self) -> int:
        """One more than the highest page of memory."""
        return max(end for _, end in self.memory)

    def nid_of(self, pfn: int) -> int:
        """The node of a page, or of the memory below it."""
        return self.zone_of(pfn).nid

    def zone_of(self, pfn: int) -> ZoneSpan:
        """The zone of a page, or the last one below it."""
        starts = [zone.start for zone in self.zones]
        return self.zones[max(0, bisect_right(starts, pfn) - 1)]

    def regions(self, reserved: Iterable[Range]) -> list[Region]:
        """
        What all pages of all present sections are used for.

        :param reserved: Pages that memblock handed out.
        """
        uses: list[tuple[Range, str]] = [(r, "reserved") for r in reserved]
        groups: dict[int, AnyPlaced] = {}
        everything: list[AnyPlaced] = [*self.huge, *self.pages]
        for placed in everything:
            groups[placed.first_pfn] = placed
            uses.append(((placed.first_pfn, placed.end_pfn), "group"))
        cuts = {cut for (start, end), _ in uses for cut in (start, end)}
        cuts |= {cut for r in self.memory for cut in r}
        cuts |= {cut for zone in self.zones for cut in (zone.start, zone.end)}
        for section in self.sections:
            cuts |= {section * SECTION_PAGES, (section + 1) * SECTION_PAGES}
        present = set(self.sections)
        ordered = sorted(cuts)
        starts = {r[0]: (r[1], use) for r, use in sorted(uses)}
        regions = []
        current, until = "", 0
        for start, end in zip(ordered, ordered[1:]):
            if start in starts:
                until, current = starts[start]
            if start // SECTION_PAGES not in present:
                continue
            use = current if start < until else "used"
            if not any(first <= start < last for first, last in self.memory):
                use = "reserved"  # init_unavailable_range()
            zone = self.zone_of(start)
            regions.append(
                Region(
                    start,
                    end,
                    use,
                    zone.nid,
                    zone.index,
                    self._group_at(groups, start) if use == "group" else None,
                )
            )
        return regions

    @staticmethod
    def _group_at(groups: dict[int, AnyPlaced], pfn: int) -> AnyPlaced:
        if pfn in groups:
            return groups[pfn]
        return groups[max(first for first in groups if first <= pfn)]


def _address_space(d: Description) -> AddressSpace:
    text = START_KERNEL_MAP + _LINKED_AT + d.kernel_offset
    return AddressSpace(
        levels=d.paging_levels,
        text=text,
        phys_base=d.physical_start - _LINKED_AT - d.kernel_offset,
        page_offset=_PAGE_OFFSET[d.paging_levels] + d.page_offset_shift,
        vmalloc=_VMALLOC[d.paging_levels],
        vmemmap=_VMEMMAP[d.paging_levels] + d.vmemmap_shift,
        struct_page_size=d.kernel_generation.struct_page_size,
    )


def _place(
    allocator: FrameAllocator, d: Description, group: Union[HugePages, Pages]
) -> int:
    span = 1 << group.order
    what = f"{group.count} pages of order {group.order} on node {group.node}"
    if group.first_pfn is not None:
        end = group.first_pfn + group.count * span
        allocator.reserve(group.first_pfn, end, what)
        return group.first_pfn
    node = next(node for node in d.nodes if node.id == group.node)
    zone = node.zones[group.zone]
    first = allocator.place(group.node, zone, group.count * span, span)
    if first < 0:
        raise UsageError(f"there is no room for {what} in zone {group.zone}")
    return first


def _zones(d: Description) -> tuple[ZoneSpan, ...]:
    spans = [
        ZoneSpan(start, end, node.id, ZONE_NAMES.index(name))
        for node in d.nodes
        for name, (start, end) in node.zones.items()
    ]
    return tuple(sorted(spans, key=lambda zone: zone.start))


def make_plan(d: Description, vmemmap_offset: int = 0) -> Plan:
    """
    Give everything its place.

    :param vmemmap_offset: How much too high vmemmap is to be: a fault.
    :raises UsageError: if there is no room.
    """
    allocator = FrameAllocator({node.id: list(node.ranges) for node in d.nodes})
    kernel_pfn = d.physical_start // PAGE_SIZE
    allocator.reserve(kernel_pfn, kernel_pfn + KERNEL_PAGES, "the kernel")
    memory = [r for node in d.nodes for r in node.ranges]
    if any(start == 0 for start, _ in memory):
        allocator.reserve(0, 1, "the firmware")
    # Those that say where they are first.
    first_pfns: dict[int, int] = {}
    groups: list[Union[HugePages, Pages]] = [*d.huge_pages, *d.pages]
    for automatic in (False, True):
        for i, group in enumerate(groups):
            if (group.first_pfn is None) == automatic:
                first_pfns[i] = _place(allocator, d, group)
    huge = len(d.huge_pages)
    space = _address_space(d)
    if vmemmap_offset:
        space = AddressSpace(
            **{**vars(space), "vmemmap": space.vmemmap + vmemmap_offset}
        )
    sections = {
        section
        for start, end in memory
        for section in range(start // SECTION_PAGES, -(-end // SECTION_PAGES))
    }
    return Plan(
        description=d,
        generation=d.kernel_generation,
        structures=structures(d.kernel_generation),
        space=space,
        allocator=allocator,
        huge=tuple(
            Placed(group, first_pfns[i], d.is_optimized(group))
            for i, group in enumerate(d.huge_pages)
        ),
        pages=tuple(
            Placed(group, first_pfns[huge + i]) for i, group in enumerate(d.pages)
        ),
        zones=_zones(d),
        sections=tuple(sorted(sections)),
        kernel_pfn=kernel_pfn,
    )

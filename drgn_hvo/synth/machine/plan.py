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
from drgn_hvo.formats.byteorder import type_prefix
from drgn_hvo.synth.described.description import Description, HugePages, Node, Pages
from drgn_hvo.synth.described.generations import Generation
from drgn_hvo.synth.machine.frames import FrameAllocator, Range
from drgn_hvo.synth.machine.structures import ZONE_NAMES, Structures, structures

__all__ = (
    "DEVICE_ZONE",
    "IMAGE_SECTION",
    "AddressSpace",
    "AnyPlaced",
    "Placed",
    "Plan",
    "Region",
    "ZoneSpan",
    "make_plan",
    "zone_span",
)

#: Bytes for each of text, read-only data and data.
IMAGE_SECTION = 2 << 20
_IMAGE_SECTIONS = 3

#: ``ZONE_DEVICE``.
DEVICE_ZONE = ZONE_NAMES.index("Device")

#: Frames behind each other, end excluded, with references to each of them.
Counted = tuple[int, int, int]


@dataclass(frozen=True)
class AddressSpace:
    """Where the kernel has what, with KASLR."""

    page_size: int
    levels: int
    text: int
    text_physical: int
    page_offset: int
    ram_base: int
    vmalloc: int
    vmemmap: int
    vmemmap_start: int
    struct_page_size: int

    def page_address(self, pfn: int) -> int:
        """``pfn_to_page()``."""
        return self.vmemmap + pfn * self.struct_page_size

    def direct(self, physical: int) -> int:
        """Where the direct map has a physical address."""
        return self.page_offset + physical - self.ram_base

    def virtual(self, pfn: int) -> int:
        """Where the direct map has a frame."""
        return self.direct(pfn * self.page_size)

    def image_physical(self, address: int) -> int:
        """Physical address of something in the kernel image."""
        return address - self.text + self.text_physical


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
    :param refcount: References to each page that is no part of a group.
    """

    start: int
    end: int
    use: str
    nid: int
    zone: int
    placed: Optional[AnyPlaced]
    refcount: int = 1


@dataclass(frozen=True)
class Plan:
    """
    What lies where.

    :param sections: Numbers of the sections with memory, ascending.
    :param device_sections: Those of the sections of devices.
    :param failed: A slab for ``struct raw_hwp_page`` of all pages that have failed;
        ``None`` if there are none.
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
    device_sections: tuple[int, ...]
    kernel_pfn: int
    failed: Optional[Placed[Pages]]

    @property
    def page_size(self) -> int:
        """``PAGE_SIZE``."""
        return self.description.page_size

    @property
    def kernel_pages(self) -> int:
        """How many pages the kernel image has."""
        return _IMAGE_SECTIONS * IMAGE_SECTION // self.page_size

    @property
    def order(self) -> str:
        """What formats of :mod:`struct` and types of NumPy begin with."""
        return type_prefix(self.description.model.byteorder)

    @property
    def memory(self) -> list[Range]:
        """Ranges of all nodes, ascending."""
        return sorted(r for node in self.description.nodes for r in node.ranges)

    @property
    def max_pfn(self) -> int:
        """One more than the highest page of memory."""
        return max(end for _, end in self.memory)

    @property
    def end_pfn(self) -> int:
        """One more than the highest page, of memory or of a device."""
        devices = (device.end_pfn for device in self.description.devices)
        return max(self.max_pfn, *devices, 0)

    def nid_of(self, pfn: int) -> int:
        """The node of a page, or of the memory below it."""
        return self.zone_of(pfn).nid

    def zone_of(self, pfn: int) -> ZoneSpan:
        """
        The zone of a page, that of a device if it lies within another one, or the last
        one below it.
        """
        inside = [zone for zone in self.zones if zone.start <= pfn < zone.end]
        if inside:
            return inside[-1]
        starts = [zone.start for zone in self.zones]
        return self.zones[max(0, bisect_right(starts, pfn) - 1)]

    def regions(
        self, reserved: Iterable[Range], counted: Iterable[Counted] = ()
    ) -> list[Region]:
        """
        What all pages of all sections of memory are used for.

        :param reserved: Pages that memblock handed out.
        :param counted: Pages of the kernel with more than one reference.
        """
        uses: list[tuple[Range, str]] = [(r, "reserved") for r in reserved]
        references = {start: count for start, _, count in counted}
        uses += (((start, end), "used") for start, end, _ in counted)
        groups: dict[int, AnyPlaced] = {}
        failed = () if self.failed is None else (self.failed,)
        everything: list[AnyPlaced] = [*self.huge, *self.pages, *failed]
        for placed in everything:
            groups[placed.first_pfn] = placed
            uses.append(((placed.first_pfn, placed.end_pfn), "group"))
        cuts = {cut for (start, end), _ in uses for cut in (start, end)}
        cuts |= {cut for r in self.memory for cut in r}
        cuts |= {cut for zone in self.zones for cut in (zone.start, zone.end)}
        section_pages = self.description.section_pages
        for section in self.sections:
            cuts |= {section * section_pages, (section + 1) * section_pages}
        present = set(self.sections)
        ordered = sorted(cuts)
        starts = {r[0]: (r[1], use) for r, use in sorted(uses)}
        regions = []
        current, until = "", 0
        for start, end in zip(ordered, ordered[1:]):
            if start in starts:
                until, current = starts[start]
            if start // section_pages not in present:
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
                    references.get(start, 1),
                )
            )
        return regions

    @staticmethod
    def _group_at(groups: dict[int, AnyPlaced], pfn: int) -> AnyPlaced:
        if pfn in groups:
            return groups[pfn]
        return groups[max(first for first in groups if first <= pfn)]


def _address_space(d: Description, kernel_pfn: int) -> AddressSpace:
    layout, entry = d.layout, d.kernel_generation
    begin = min(r[0] for node in d.nodes for r in node.ranges)
    ram_base = begin * d.page_size
    vmemmap = vmemmap_start = layout.vmemmap + d.vmemmap_shift
    if d.model.vmemmap_begins_with_memory and not entry.has_mask:
        vmemmap -= begin * entry.struct_page_size // d.page_size * d.page_size
    page_offset = layout.page_offset + d.page_offset_shift
    physical = kernel_pfn * d.page_size
    text = page_offset + physical if layout.text is None else layout.text
    return AddressSpace(
        page_size=d.page_size,
        levels=d.paging_levels,
        text=text + d.kernel_offset,
        text_physical=physical,
        page_offset=page_offset,
        ram_base=ram_base if d.model.ram_base_is_mapped else 0,
        vmalloc=layout.vmalloc,
        vmemmap=vmemmap,
        vmemmap_start=vmemmap_start,
        struct_page_size=entry.struct_page_size,
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
    spans += (
        ZoneSpan(device.first_pfn, device.end_pfn, device.node, DEVICE_ZONE)
        for device in d.devices
    )
    return tuple(sorted(spans, key=lambda zone: zone.start))


def zone_span(d: Description, node: Node, name: str) -> Optional[Range]:
    """The range of a zone of a node, ``None`` if it has no pages."""
    devices = [device for device in d.devices if device.node == node.id]
    if name == ZONE_NAMES[DEVICE_ZONE] and devices:
        first = min(device.first_pfn for device in devices)
        return first, max(device.end_pfn for device in devices)
    return node.zones.get(name)


def _slab_of_failed(
    allocator: FrameAllocator, d: Description
) -> Optional[Placed[Pages]]:
    """Room for what ``raw_hwp_list_head()`` leads to."""
    most = max((len(group.failed) for group in d.huge_pages), default=0)
    if not most:
        return None
    group = next(group for group in d.huge_pages if group.failed)
    slab = Pages(group.node, group.zone, "slab", order=1)
    return Placed(slab, _place(allocator, d, slab))


def make_plan(d: Description, vmemmap_offset: int = 0) -> Plan:
    """
    Give everything its place.

    :param vmemmap_offset: How much too high vmemmap is to be: a fault.
    :raises UsageError: if there is no room.
    """
    allocator = FrameAllocator({node.id: list(node.ranges) for node in d.nodes})
    kernel_pfn = d.physical_start // d.page_size
    image = _IMAGE_SECTIONS * IMAGE_SECTION // d.page_size
    allocator.reserve(kernel_pfn, kernel_pfn + image, "the kernel")
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
    failed = _slab_of_failed(allocator, d)
    space = _address_space(d, kernel_pfn)
    if vmemmap_offset:
        space = AddressSpace(
            **{**vars(space), "vmemmap": space.vmemmap + vmemmap_offset}
        )
    sections = {
        section
        for start, end in memory
        for section in range(start // d.section_pages, -(-end // d.section_pages))
    }
    device_sections = {
        section
        for device in d.devices
        for section in range(
            device.first_pfn // d.section_pages, device.end_pfn // d.section_pages
        )
    }
    return Plan(
        description=d,
        generation=d.kernel_generation,
        structures=structures(d.kernel_generation, d.locks),
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
        device_sections=tuple(sorted(device_sections)),
        kernel_pfn=kernel_pfn,
        failed=failed,
    )

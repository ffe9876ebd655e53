# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Descriptions
------------

What a synthetic machine is to be like, as dataclasses. A description that no machine
can have is refused with one line that says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Union

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.machine_models import KernelLayout, MachineModel
from drgn_hvo.formats.tail_words import max_folio_order
from drgn_hvo.synth.described.generations import Generation, generation
from drgn_hvo.synth.machine.page_uses import PAGE_USES
from drgn_hvo.synth.machine.structures import HUGE_MAX_HSTATE, ZONE_NAMES

__all__ = (
    "Description",
    "DeviceMemory",
    "HugePages",
    "Node",
    "Pages",
)

_GIB = 1 << 30
_PMD_SIZE = 2 << 20

#: Where huge pages can be, and how they came to be as they are.
LISTS = ("free", "active", "none")
ORIGINS = ("runtime", "boot", "restored", "demoted")
KINDS = (*PAGE_USES, "buddy", "poisoned", "reserved")
#: What spinlock_t is.
LOCKS = ("queued", "rt-mutex", "unknown")

Range = tuple[int, int]


@dataclass(frozen=True)
class Node:
    """
    A NUMA node.

    :param ranges: PFN ranges (ends excluded) with memory; what lies between is a
        hole.
    :param zones: PFN range of each zone, by name.
    """

    id: int
    ranges: tuple[Range, ...]
    zones: dict[str, Range]


@dataclass(frozen=True)
class HugePages:
    """
    Hugetlb folios that lie behind each other and are in the same state.

    :param first_pfn: Of the first; ``None`` for wherever there is room.
    :param list: ``"free"``, ``"active"``, or ``"none"`` for those that are being
        moved, freed or demoted.
    :param optimized: ``None`` for whatever the kernel would do.
    :param origin: ``"runtime"`` or ``"boot"``: when they were allocated;
        ``"restored"``: HVO was undone; ``"demoted"``: pieces of a larger one.
    :param surplus: They count as surplus.
    :param restored_slices: How many slices behind the private ones have got frames of
        their own again although the rest could not be restored, which left the folio
        partly optimized for good (VMEMMAP_REMAP_INCOMPLETE).
    :param failed: Which pages of the first one have failed, by their place in it:
        ``PG_hwpoison``, and what ``_hugetlb_hwpoison`` lists.
    """

    node: int
    zone: str
    order: int
    count: int = 1
    first_pfn: Optional[int] = None
    list: str = "free"
    optimized: Optional[bool] = None
    origin: str = "runtime"
    surplus: bool = False
    restored_slices: int = 0
    failed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pages:
    """
    Other pages that lie behind each other.

    :param kind: A key of :data:`~drgn_hvo.synth.machine.page_uses.PAGE_USES`, or
        ``"buddy"`` (free), ``"reserved"`` (of the firmware), or ``"poisoned"``
        (struct pages that were never initialised).
    """

    node: int
    zone: str
    kind: str
    order: int = 0
    count: int = 1
    first_pfn: Optional[int] = None


@dataclass(frozen=True)
class DeviceMemory:
    """
    Memory of a device that device DAX has mapped with compound pages: a range of
    ``ZONE_DEVICE``, whole sections of it.

    :param order: ``pgmap->vmemmap_shift``.
    :param count: How many compound pages there are.
    """

    node: int
    first_pfn: int
    order: int
    count: int = 1

    @property
    def end_pfn(self) -> int:
        """One more than the last page."""
        return self.first_pfn + (self.count << self.order)

    def heads(self) -> range:
        """The PFNs of the heads."""
        return range(self.first_pfn, self.end_pfn, 1 << self.order)


@dataclass(frozen=True)
class Description:
    """
    A machine, its kernel, and what it does with its memory.

    :param generation: Name of an entry of
        :data:`~drgn_hvo.synth.described.generations.GENERATIONS`.
    :param architecture: A key of
        :data:`~drgn_hvo.formats.architectures.ARCHITECTURES`.
    :param page_size: 0 for the architecture's usual one.
    :param paging_levels: 0 for the architecture's usual number.
    :param kernel_offset: KASLR: how far the kernel is from where it was linked.
    :param physical_start: KASLR: where the kernel lies in memory; 0 for 16 MiB behind
        its beginning.
    :param page_offset_shift: KASLR: how far the direct map has moved.
    :param vmemmap_shift: KASLR: how far vmemmap has moved.
    :param max_folio_order: ``MAX_FOLIO_ORDER``; ``None`` for the usual one.
    :param hstates: Orders of the pools, as the kernel lists them; empty for those that
        the architecture has.
    :param reserved: Reserved huge pages, by order.
    :param hvo: The run-time switch; ``None`` for on where HVO is built.
    :param locks: What ``spinlock_t`` is: ``"queued"``, ``"rt-mutex"`` (PREEMPT_RT), or
        ``"unknown"``, if the kernel's types lack it.
    :param is_lock_held: A processor holds ``hugetlb_lock``.
    :param marked: Pages that are somebody's hold the text that
        :data:`~drgn_hvo.synth.machine.page_uses.PAGE_USES` has for them, not zeros.
    :param seed: Decides the order in which frames were handed out.
    """

    generation: str
    nodes: tuple[Node, ...]
    huge_pages: tuple[HugePages, ...] = ()
    pages: tuple[Pages, ...] = ()
    devices: tuple[DeviceMemory, ...] = ()
    architecture: str = "x86_64"
    page_size: int = 0
    struct_page_size: Optional[int] = None
    release: Optional[str] = None
    paging_levels: int = 0
    kernel_offset: int = 0
    physical_start: int = 0
    page_offset_shift: int = 0
    vmemmap_shift: int = 0
    max_folio_order: Optional[int] = None
    hstates: tuple[int, ...] = ()
    reserved: dict[int, int] = field(default_factory=dict)
    hvo: Optional[bool] = None
    locks: str = "queued"
    is_lock_held: bool = False
    marked: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_architecture(self)
        for name, value in _defaults(self).items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        _check(self)

    @property
    def model(self) -> MachineModel:
        """Machines of the architecture."""
        return ARCHITECTURES[self.architecture].model

    @property
    def page_shift(self) -> int:
        """``PAGE_SHIFT``."""
        return self.page_size.bit_length() - 1

    @property
    def section_pages(self) -> int:
        """``PAGES_PER_SECTION``."""
        return 1 << (self.model.section_size_bits[self.page_shift] - self.page_shift)

    @property
    def layout(self) -> KernelLayout:
        """Where the kernel has what, before KASLR moves it."""
        return self.model.layouts[self.page_shift, self.paging_levels]

    @property
    def kernel_generation(self) -> Generation:
        """The entry that :attr:`generation` names, on this architecture."""
        entry = generation(self.generation)
        kallsyms = entry.kallsyms
        if kallsyms == "percpu" and not self.model.percpu_symbols:
            kallsyms = "base"
        largest = self.max_folio_order
        if largest is None:
            largest = self.model.max_folio_order.get(self.page_shift)
        return replace(
            entry,
            kallsyms=kallsyms,
            page_size=self.page_size,
            largest_order=largest,
        )

    @property
    def hvo_enabled(self) -> bool:
        """``vmemmap_optimize_enabled``."""
        if self.hvo is None:
            return self.kernel_generation.hvo_built and (
                self.kernel_generation.hvo_enabled
            )
        return self.hvo

    @property
    def release_string(self) -> str:
        """What ``uname -r`` says."""
        return self.release or self.kernel_generation.release

    def is_optimized(self, group: HugePages) -> bool:
        """Whether a group's vmemmap is optimized."""
        if group.optimized is not None:
            return group.optimized
        return (
            self.kernel_generation.can_optimize
            and self.hvo_enabled
            and group.order >= self.kernel_generation.min_order
            and group.origin != "restored"
        )


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise UsageError(message)


def _check_architecture(d: Description) -> None:
    known = ", ".join(ARCHITECTURES)
    _refuse(
        d.architecture not in ARCHITECTURES,
        f"architecture {d.architecture!r} cannot be made up; there are: {known}",
    )
    sizes = [1 << shift for shift in d.model.page_shifts]
    _refuse(
        d.page_size not in (0, *sizes),
        f"{d.architecture} has no pages of {d.page_size} bytes",
    )


def _defaults(d: Description) -> dict[str, Any]:
    """What stands for values that are not given."""
    shift = (d.page_size or 1 << d.model.page_shifts[0]).bit_length() - 1
    begin = min((r[0] for node in d.nodes for r in node.ranges), default=0) << shift
    below = -(-begin // _PMD_SIZE) * _PMD_SIZE if begin >= 16 << 20 else 0
    return {
        "page_size": 1 << shift,
        "paging_levels": d.model.levels(shift)[0],
        "physical_start": below + (16 << 20),
        "hstates": d.model.huge_orders[shift],
    }


def _check(description: Description) -> None:
    _check_machine(description)
    _check_nodes(description)
    for group in description.huge_pages:
        _check_huge_pages(description, group)
        _check_failed(description, group)
    for other in description.pages:
        _check_pages(description, other)
    for device in description.devices:
        _check_device(description, device)
    _check_reserved(description)


def _check_machine(d: Description) -> None:
    entry = d.kernel_generation
    _refuse(
        d.struct_page_size not in (None, entry.struct_page_size),
        f"struct page has {entry.struct_page_size} bytes in {entry.name}, "
        f"not {d.struct_page_size}",
    )
    levels = d.model.levels(d.page_shift)
    _refuse(
        d.paging_levels not in levels,
        f"{d.architecture} has {' or '.join(map(str, levels))} levels of page tables, "
        f"not {d.paging_levels}",
    )
    for name, unit, limit in (
        ("kernel_offset", _PMD_SIZE, _GIB - (32 << 20)),
        ("physical_start", _PMD_SIZE, 1 << 40),
        ("page_offset_shift", _GIB, 1 << 44),
        ("vmemmap_shift", _GIB, 1 << 38),
    ):
        value = getattr(d, name)
        _refuse(
            bool(value) and name not in (*d.model.kaslr, "physical_start"),
            f"{d.architecture} has no {name}",
        )
        _refuse(
            value % unit != 0 or not 0 <= value <= limit,
            f"{name} {value:#x} is not a multiple of {unit:#x} up to {limit:#x}",
        )
    _refuse(
        not 0 < len((d.release_string).encode()) <= 64,
        "a release has 1 to 64 characters",
    )
    _refuse(not 0 <= d.seed < 1 << 64, "a seed has 64 bits")
    _refuse(d.locks not in LOCKS, f"locks is one of {', '.join(LOCKS)}")
    _check_pools(d)
    _refuse(
        bool(d.hvo) and not entry.hvo_built,
        f"HVO cannot be on: {entry.name} is built without it",
    )


def _check_pools(d: Description) -> None:
    orders = d.hstates
    largest = max(d.model.huge_orders[d.page_shift])
    _refuse(
        not 0 < len(set(orders)) == len(orders) <= HUGE_MAX_HSTATE
        or not all(0 < order <= largest for order in orders),
        f"there are one or two pools, of different orders from 1 to {largest}, "
        f"not {list(orders)}",
    )
    most = d.max_folio_order
    _refuse(
        most is not None and not max(orders) <= most <= max_folio_order(d.page_shift),
        f"max_folio_order {most} is not from the order of the largest pool on",
    )


def _check_reserved(d: Description) -> None:
    for order, count in d.reserved.items():
        _refuse(order not in d.hstates, f"there is no pool of order {order}")
        total = sum(g.count for g in d.huge_pages if g.order == order)
        _refuse(not 0 <= count <= total, f"{count} huge pages cannot be reserved")


def _check_nodes(d: Description) -> None:
    _refuse(not d.nodes, "a machine has at least one node")
    # The direct map and its KASLR offset must end below vmalloc.
    limit = 1 << (d.layout.memory_bits - d.page_shift)
    ids = [node.id for node in d.nodes]
    _refuse(len(set(ids)) != len(ids), "two nodes have the same id")
    memory: list[tuple[Range, str]] = []
    spans: list[tuple[Range, str]] = []
    for node in d.nodes:
        max_nodes = d.kernel_generation.max_numnodes
        _refuse(
            not 0 <= node.id < max_nodes, f"node {node.id} is not below {max_nodes}"
        )
        _refuse(not node.ranges, f"node {node.id} has no memory")
        for start, end in node.ranges:
            name = f"memory {start:#x} to {end:#x} of node {node.id}"
            _refuse(not 0 <= start < end, f"{name} is no range")
            _refuse(
                end > limit,
                f"{name} is beyond what {d.paging_levels} levels of tables can map",
            )
            memory.append(((start, end), name))
        for zone_name, (start, end) in node.zones.items():
            name = f"zone {zone_name} of node {node.id}"
            zones = ZONE_NAMES[:4]
            _refuse(zone_name not in zones, f"{name}: zones are {', '.join(zones)}")
            _refuse(not 0 <= start < end, f"{name} is no range")
            spans.append(((start, end), name))
        _check_zone_cover(node)
    for device in d.devices:
        span = (device.first_pfn, device.end_pfn)
        _refuse(span[1] > limit, f"device memory at {span[0]:#x} cannot be mapped")
        memory.append((span, f"device memory at {span[0]:#x}"))
    _check_overlaps(memory)
    _check_overlaps(spans)


def _check_zone_cover(node: Node) -> None:
    """Each page of memory but PFN 0 belongs to a zone."""
    for start, end in node.ranges:
        at = max(start, 1)
        for zone_start, zone_end in sorted(node.zones.values()):
            if zone_start <= at < zone_end:
                at = zone_end
        _refuse(at < end, f"page {at:#x} of node {node.id} is in no zone")


def _check_overlaps(ranges: Iterable[tuple[Range, str]]) -> None:
    ordered = sorted(ranges)
    for ((_, end), one), ((start, _), two) in zip(ordered, ordered[1:]):
        _refuse(start < end, f"{one} and {two} overlap")


def _zone_of(d: Description, nid: int, zone: str, what: str) -> Range:
    for node in d.nodes:
        if node.id == nid:
            _refuse(zone not in node.zones, f"{what}: node {nid} has no zone {zone}")
            return node.zones[zone]
    raise UsageError(f"{what}: there is no node {nid}")


def _check_place(
    d: Description, group: Union[HugePages, Pages], what: str, span: int
) -> None:
    zone = _zone_of(d, group.node, group.zone, what)
    _refuse(not 0 < group.count <= 1 << 32, f"{what}: {group.count} of them")
    if group.first_pfn is None:
        _refuse(
            group.count * span > zone[1] - zone[0],
            f"{what}: {group.count * span} pages do not fit in zone {group.zone}",
        )
        return
    first, end = group.first_pfn, group.first_pfn + group.count * span
    _refuse(first % span != 0, f"{what}: head {first:#x} is not aligned to its order")
    _refuse(
        not (zone[0] <= first and end <= zone[1]),
        f"{what}: pages {first:#x} to {end:#x} are outside zone {group.zone}",
    )
    node = next(node for node in d.nodes if node.id == group.node)
    _refuse(
        not any(start <= first and end <= stop for start, stop in node.ranges),
        f"{what}: there is no memory at pages {first:#x} to {end:#x}",
    )


def _check_huge_pages(d: Description, group: HugePages) -> None:
    what = f"huge pages of order {group.order} on node {group.node}"
    entry = d.kernel_generation
    _refuse(group.order not in d.hstates, f"{what}: there is no pool of that order")
    _refuse(group.list not in LISTS, f"{what}: list is one of {', '.join(LISTS)}")
    _refuse(
        group.origin not in ORIGINS, f"{what}: origin is one of {', '.join(ORIGINS)}"
    )
    _check_place(d, group, what, 1 << group.order)
    _refuse(
        group.origin == "demoted" and group.order == max(d.hstates),
        f"{what}: nothing larger can have been demoted",
    )
    _refuse(
        group.origin == "restored" and bool(group.optimized),
        f"{what}: restored ones are not optimized",
    )
    if not d.is_optimized(group):
        _refuse(bool(group.restored_slices), f"{what}: none of them is optimized")
        return
    _refuse(not entry.hvo_built, f"{what}: {entry.name} is built without HVO")
    _refuse(
        not entry.geometry.power_of_2,
        f"{what}: a struct page of {entry.struct_page_size} bytes cannot be optimized",
    )
    _refuse(not entry.can_optimize, f"{what}: {entry.name} never switches HVO on")
    _refuse(
        group.order < entry.min_order,
        f"{what}: HVO needs order {entry.min_order} at least",
    )
    slices = entry.geometry.slices(group.order)
    _refuse(
        not 0 <= group.restored_slices < slices - entry.private_slices,
        f"{what}: {group.restored_slices} of {slices} slices cannot be restored",
    )
    _refuse(
        bool(group.restored_slices) and not entry.array_is_allocated,
        f"{what}: {entry.name} leaves none of them partly optimized",
    )


def _check_failed(d: Description, group: HugePages) -> None:
    what = f"huge pages of order {group.order} on node {group.node}"
    _refuse(
        not all(0 <= index < 1 << group.order for index in group.failed),
        f"{what}: pages that have failed are 0 to {(1 << group.order) - 1}",
    )
    _refuse(
        bool(group.failed) and not d.kernel_generation.lists_failed,
        f"{what}: {d.kernel_generation.name} lists no pages that have failed",
    )


def _check_pages(d: Description, group: Pages) -> None:
    what = f"{group.kind} pages of order {group.order} on node {group.node}"
    _refuse(group.kind not in KINDS, f"{what}: kind is one of {', '.join(KINDS)}")
    single = group.kind in ("poisoned", "reserved")
    thp = d.model.huge_orders[d.page_shift][0]
    most = {"buddy": 10, "thp": thp}.get(group.kind, 0 if single else 10)
    least = int(group.kind in ("slab", "thp", "compound"))
    _refuse(
        not least <= group.order <= most,
        f"{what}: order is {least} to {most}",
    )
    _check_place(d, group, what, 1 << group.order)


def _check_device(d: Description, device: DeviceMemory) -> None:
    what = f"device memory of order {device.order} at {device.first_pfn:#x}"
    entry, section = d.kernel_generation, d.section_pages
    _refuse(
        entry.dax is None or not d.model.dedups_devices,
        f"{what}: {entry.name} on {d.architecture} has no compound pages of devices",
    )
    _refuse(
        not any(node.id == device.node for node in d.nodes),
        f"{what}: there is no node {device.node}",
    )
    _refuse(
        device.order not in d.model.huge_orders[d.page_shift],
        f"{what}: devices have pages of the sizes of huge pages only",
    )
    _refuse(not 0 < device.count <= 1 << 20, f"{what}: {device.count} of them")
    _refuse(
        device.first_pfn % (1 << device.order) != 0
        or device.first_pfn % section != 0
        or device.end_pfn % section != 0,
        f"{what}: it has whole sections of {section:#x} pages, aligned to its order",
    )

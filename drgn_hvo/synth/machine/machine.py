# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Synthetic machines
------------------

:func:`build_machine()` turns a description into the memory and the VMCOREINFO of a
machine that has crashed. Every container holds the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import struct
from typing import Optional

import numpy as np

from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.synth.described.description import Description, HugePages, Node
from drgn_hvo.synth.machine.contents import FailedPages, hugetlb_lock, marks
from drgn_hvo.synth.machine.ctype import Compound
from drgn_hvo.synth.machine.frames import Extent, Image, Range, subtract
from drgn_hvo.synth.machine.kernel_image import KernelImage, StructBytes
from drgn_hvo.synth.machine.pagetables import BuiltTables, PageTables, TakeTables
from drgn_hvo.synth.machine.plan import (
    DEVICE_ZONE,
    IMAGE_SECTION,
    Placed,
    Plan,
    make_plan,
    zone_span,
)
from drgn_hvo.synth.machine.sections import Sections
from drgn_hvo.synth.machine.struct_pages import Links, PageWriter
from drgn_hvo.synth.machine.structures import (
    FREE_AREA_ORDERS,
    HUGE_MAX_HSTATE,
    ZONE_NAMES,
)
from drgn_hvo.synth.machine.vmcoreinfo_writer import (
    made_kernel,
    mem_section_roots,
    write_vmcoreinfo,
)
from drgn_hvo.synth.machine.vmemmap_writer import TailPage, VmemmapWriter

__all__ = ("Machine", "build_machine")

# What fills memory of others that lies beside ours.
SOMEBODY = b"SOMEBODY'S DATA!"


@dataclass(frozen=True)
class Machine:
    """
    A machine that has crashed.

    :param nodes: Physical address of ``struct pglist_data`` by node ID.
    :param tail_arrays: Physical address of each ``vmemmap_tails[]`` that is in use, by
        node and index of the zone, ``None`` where it is the node's.
    :param sections: Physical address of each ``struct mem_section``, by its number.
    :param truncated: Its core is to break off in the middle: a fault.
    """

    plan: Plan
    image: Image
    vmcoreinfo: bytes
    kernel: KernelImage
    tables: BuiltTables
    vmemmap: VmemmapWriter
    nodes: dict[int, int]
    tail_arrays: dict[tuple[int, Optional[int]], int]
    sections: dict[int, int]
    truncated: bool = False

    def page_physical(self, pfn: int) -> int:
        """
        Where the struct page of a PFN lies in memory.

        :raises KeyError: if it has none of its own.
        """
        offset = pfn * self.plan.generation.struct_page_size
        slice_, rest = divmod(offset, self.plan.page_size)
        frame = self.vmemmap.frame_of(slice_)
        if frame is None:
            frame = self._head_frame(pfn)
        return frame * self.plan.page_size + rest

    def _head_frame(self, pfn: int) -> int:
        per_slice = self.plan.generation.geometry.pages_per_slice
        for heads in self.vmemmap.heads:
            placed = heads.placed
            if placed.first_pfn <= pfn < placed.end_pfn:
                folio, index = divmod(pfn - placed.first_pfn, 1 << placed.group.order)
                slice_ = index // per_slice
                if slice_ < heads.slices:
                    return heads.frame(folio, slice_)
        raise KeyError(f"page {pfn:#x} has no struct page of its own")

    def slice_entry(self, pfn: int, slice_: int = 0) -> int:
        """Physical address of the page table entry of a slice of a folio."""
        size = self.plan.page_size
        address = self.plan.space.page_address(pfn) + slice_ * size
        return self.tables.entry(address & -size, 0)


class _Builder:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._order = plan.order
        self._byteorder = plan.description.model.byteorder
        self.reserved: list[Range] = [
            (plan.kernel_pfn, plan.kernel_pfn + plan.kernel_pages)
        ]
        if any(start == 0 for start, _ in plan.memory):
            self.reserved.append((0, 1))
        # The firmware's page is there, and zero.
        self.extents: list[Extent] = [
            self._stored(start, bytes(plan.page_size)) for start, _ in self.reserved[1:]
        ]
        self.kernel = KernelImage(plan)
        self.links: dict[int, Links] = {}
        self.nodes: dict[int, int] = {}
        self._pglist_pfns: dict[int, int] = {}
        self._array_pfns: dict[int, int] = {}
        self.tail_arrays: dict[tuple[int, Optional[int]], int] = {}
        self.sections: dict[int, int] = {}
        self._lru = plan.structures.page.offset("lru")

    def take(
        self, nid: int, count: int, what: str, align: int = 1, boot: bool = True
    ) -> int:
        """Take frames; *boot* if memblock hands them out."""
        pfn = self.plan.allocator.take(nid, count, what, align)
        if boot:
            self.reserved.append((pfn, pfn + count))
        return pfn

    def _stored(self, pfn: int, data: bytes) -> Extent:
        return Extent.stored(pfn, data, self.plan.page_size)

    def _struct(self, c_type: Compound) -> StructBytes:
        return StructBytes(c_type, self._byteorder)

    def _pack(self, form: str, *values: int) -> bytes:
        """As :func:`struct.pack()`, in the kernel's byte order."""
        return struct.pack(self._order + form, *values)

    def store(self, nid: int, data: bytes, what: str) -> int:
        """Put data into frames of their own; its physical address."""
        size = self.plan.page_size
        pfn = self.take(nid, -(-len(data) // size), what)
        self.extents.append(self._stored(pfn, data))
        return pfn * size

    def _noted(self) -> Vmcoreinfo:
        """What VMCOREINFO says so far, which is enough for an architecture."""
        return Vmcoreinfo(write_vmcoreinfo(self.plan, self.kernel, mem_section=0))

    def page_table_format(self) -> PageTableFormat:
        """That of this kernel."""
        entry = ARCHITECTURES[self.plan.description.architecture]
        levels = self.plan.space.levels
        return next(
            form
            for form in entry.page_tables(self._noted())
            if len(form.levels) == levels
        )

    def first_nid(self) -> int:
        """The node that the kernel lies on."""
        return self.plan.nid_of(self.plan.kernel_pfn)

    # The kernel's variables.

    def variables(self) -> None:
        """Those whose values are known at once."""
        plan, kernel = self.plan, self.kernel
        nodes = plan.description.nodes

        def number(name: str, value: int, form: str = "Q") -> None:
            kernel.variable(name, self._pack(form, value))

        d = plan.description
        size = max(plan.page_size, d.model.root_size)
        kernel.reserve("swapper_pg_dir", size, size)
        for name, value, form in d.model.variables(made_kernel(plan, kernel)):
            number(name, value, form)
        number("nr_node_ids", max(node.id for node in nodes) + 1, "I")
        number("nr_online_nodes", len(nodes), "I")
        last = max(*plan.sections, *plan.device_sections, 0)
        number("__highest_present_section_nr", last)
        number("hugetlb_max_hstate", len(plan.description.hstates), "I")
        number("default_hstate_idx", 0, "I")
        kernel.variable("hugetlb_lock", hugetlb_lock(plan))
        if plan.generation.hvo_built:
            enabled = plan.description.hvo_enabled
            number("vmemmap_optimize_enabled", int(enabled), "B")
        self._uts()
        self._node_states()
        init_mm = self._struct(plan.structures.mm_struct)
        init_mm.set("pgd", kernel.address("swapper_pg_dir"))
        kernel.variable("init_mm", bytes(init_mm.data))
        kernel.variable("saved_command_line", bytes(8))

    def _uts(self) -> None:
        uts = self._struct(self.plan.structures.uts_namespace)
        for name, text in (
            ("sysname", "Linux"),
            ("nodename", "synthetic"),
            ("release", self.plan.description.release_string),
            ("version", "#1 SMP"),
            ("machine", self.plan.description.model.uname),
            ("domainname", "(none)"),
        ):
            uts.set(f"name.{name}", text.encode())
        self.kernel.variable("init_uts_ns", bytes(uts.data))

    def _node_states(self) -> None:
        size = self.plan.structures.nodemask_t.size
        mask = sum(1 << node.id for node in self.plan.description.nodes)
        words = [mask >> 64 * i & (1 << 64) - 1 for i in range(size // 8)]
        online = self._pack(f"{size // 8}Q", *words)
        # N_POSSIBLE, N_ONLINE, N_NORMAL_MEMORY, N_MEMORY; the others do not matter.
        address = self.kernel.variable(
            "node_states", online * 4 + bytes(2 * size), align=64
        )
        # VMCOREINFO calls node_states[N_ONLINE] by its old name.
        self.kernel.mark("node_online_map", address + size, "D")

    def static_key(self) -> None:
        """
        ``hugetlb_optimize_vmemmap_key`` counts optimized folios, up to v7.0; before
        v5.18 there is a plain switch.
        """
        if self.plan.generation.private_slices == 2:
            self.kernel.variable("hugetlb_free_vmemmap_enabled", b"\1")
        if self.plan.generation.fake_heads:
            count = sum(p.group.count for p in self.plan.huge if p.optimized)
            self.kernel.variable(
                "hugetlb_optimize_vmemmap_key", self._pack("QQ", count, 0)
            )

    # Lists.

    def _link(self, chain: list[Placed[HugePages]], head: int) -> tuple[int, int]:
        """Link groups into one list; what its head points to."""
        return self._chain(
            [(p.first_pfn, p.end_pfn, p.group.order) for p in chain], head
        )

    def _chain(self, chain: list[tuple[int, int, int]], head: int) -> tuple[int, int]:
        address = self.plan.space.page_address
        ends = [
            (address(first) + self._lru, address(end - (1 << order)) + self._lru)
            for first, end, order in chain
        ]
        for i, (first, _, _) in enumerate(chain):
            before = ends[i - 1][1] if i else head
            after = ends[i + 1][0] if i + 1 < len(ends) else head
            self.links[first] = Links(before, after)
        return (ends[0][0], ends[-1][1]) if ends else (head, head)

    def hstates(self) -> None:
        """The pools of huge pages, with their lists."""
        d = self.plan.description
        c_type = self.plan.structures.hstate
        base = self.kernel.reserve("hstates", c_type.size * HUGE_MAX_HSTATE, 64)
        data = b"".join(
            self._hstate(order, base + i * c_type.size)
            for i, order in enumerate(d.hstates)
        )
        self.kernel.fill("hstates", data)

    def _hstate(self, order: int, address: int) -> bytes:
        c_type = self.plan.structures.hstate
        state = self._struct(c_type)
        groups = [p for p in self.plan.huge if p.group.order == order]
        self._counters(state, order, groups)
        active = [p for p in groups if p.group.list == "active"]
        self._put_list(state, "hugepage_activelist", address, active)
        for nid in range(self.plan.generation.max_numnodes):
            free = [p for p in groups if p.group.list == "free" and p.group.node == nid]
            self._put_list(state, f"hugepage_freelists[{nid}]", address, free)
        return bytes(state.data)

    def _put_list(
        self, state: StructBytes, path: str, base: int, chain: list[Placed[HugePages]]
    ) -> None:
        offset = self.plan.structures.hstate.offset(path)
        following, before = self._link(chain, base + offset)
        state.data[offset : offset + 16] = self._pack("QQ", following, before)

    def _counters(
        self, state: StructBytes, order: int, groups: list[Placed[HugePages]]
    ) -> None:
        d = self.plan.description
        span = self.plan.page_size << order
        state.set("order", order)
        state.set("mask", -span)
        smallest = d.model.huge_orders[d.page_shift][0]
        if self.plan.structures.hstate.has("demote_order"):
            state.set("demote_order", smallest if order > smallest else 0)
        state.set("name", f"hugepages-{span // 1024}kB".encode())
        state.set("resv_huge_pages", d.reserved.get(order, 0))
        # Those on no list are not counted: add_hugetlb_folio() has not run yet, or
        # remove_hugetlb_folio() has.
        listed = [p.group for p in groups if p.group.list != "none"]

        def total(nid: int, free: bool = False, surplus: bool = False) -> int:
            return sum(
                g.count
                for g in listed
                if (nid < 0 or g.node == nid)
                and (not free or g.list == "free")
                and (not surplus or g.surplus)
            )

        for nid, suffix in ((-1, ""), *((n.id, f"_node[{n.id}]") for n in d.nodes)):
            surplus = total(nid, surplus=True)
            state.set(f"nr_huge_pages{suffix}", total(nid))
            state.set(f"free_huge_pages{suffix}", total(nid, free=True))
            state.set(f"surplus_huge_pages{suffix}", surplus)
            state.set(f"max_huge_pages{suffix}", total(nid) - surplus)

    # Nodes and zones.

    def zone_names(self) -> None:
        """The strings that ``zone->name`` points to."""
        for name in ZONE_NAMES:
            self.kernel.rodata(f"zone_name_{name}", name.encode() + b"\0")

    def pglists(self) -> None:
        """``struct pglist_data`` of each node, and ``node_data[]``."""
        size = self.plan.structures.pglist_data.size
        pointers = bytearray(8 * self.plan.generation.max_numnodes)
        for node in self.plan.description.nodes:
            page_size = self.plan.page_size
            pfn = self.take(node.id, -(-size // page_size), "struct pglist_data")
            self._pglist_pfns[node.id] = pfn
            if self.plan.generation.array_is_allocated:
                taken = self.take(node.id, 1, "vmemmap_tails", boot=False)
                self._array_pfns[node.id] = taken
            self.nodes[node.id] = pfn * page_size
            address = self.plan.space.virtual(pfn)
            struct.pack_into(f"{self._order}Q", pointers, 8 * node.id, address)
        self.kernel.variable("node_data", bytes(pointers))

    def fill_pglists(self, vmemmap: VmemmapWriter) -> None:
        """Their contents, once everything has its place."""
        for node in self.plan.description.nodes:
            pfn = self._pglist_pfns[node.id]
            data = self._pglist(node, self.plan.space.virtual(pfn), vmemmap)
            self.extents.append(self._stored(pfn, data))

    def _pglist(self, node: Node, address: int, vmemmap: VmemmapWriter) -> bytes:
        plan = self.plan
        pgdat = self._struct(plan.structures.pglist_data)
        devices = [d for d in plan.description.devices if d.node == node.id]
        start = min([node.ranges[0][0], *(d.first_pfn for d in devices)])
        end = max([node.ranges[-1][1], *(d.end_pfn for d in devices)])
        pgdat.set("node_id", node.id)
        pgdat.set("node_start_pfn", start)
        pgdat.set("node_spanned_pages", end - start)
        pgdat.set("node_present_pages", sum(e - s for s, e in node.ranges))
        nr_zones = len(ZONE_NAMES) - (not plan.generation.zone_device)
        populated = [ZONE_NAMES.index(name) for name in node.zones]
        populated += [DEVICE_ZONE] if devices else []
        pgdat.set("nr_zones", max(populated) + 1)
        for index in range(nr_zones):
            self._zone(pgdat, node, index, address)
        has_array = plan.generation.array is not None
        tails = [t for t in vmemmap.tails if t.nid == node.id and has_array]
        if plan.generation.array_is_allocated:
            self._allocate_arrays(pgdat, node.id, tails)
            return bytes(pgdat.data)
        for tail in tails:
            owner = "" if tail.zone is None else f"node_zones[{tail.zone}]."
            slot = tail.order - plan.generation.min_order
            value = plan.space.page_address(tail.pfn)
            if plan.generation.element_is_pfn:
                value = tail.pfn
            pgdat.set(f"{owner}vmemmap_tails[{slot}]", value)
            offset = plan.structures.pglist_data.offset(f"{owner}vmemmap_tails")
            self.tail_arrays[tail.nid, tail.zone] = self.nodes[node.id] + offset
        return bytes(pgdat.data)

    def _allocate_arrays(
        self, pgdat: StructBytes, nid: int, tails: list[TailPage]
    ) -> None:
        """
        Put the arrays of a node's zones among objects of others, as kzalloc() does, and
        their addresses into the zones.
        """
        plan, pfn = self.plan, self._array_pfns[nid]
        page = bytearray(SOMEBODY * (plan.page_size // len(SOMEBODY)))
        size = 8 * plan.generation.slots
        for tail in tails:
            at = ((tail.zone or 0) + 1) * 2 * size
            physical = pfn * plan.page_size + at
            if (nid, tail.zone) not in self.tail_arrays:
                page[at : at + size] = bytes(size)
            self.tail_arrays[nid, tail.zone] = physical
            owner = "" if tail.zone is None else f"node_zones[{tail.zone}]."
            path = f"{owner}vmemmap_tails"
            pgdat.set(path, plan.space.virtual(pfn) + at)
            at += 8 * (tail.order - plan.generation.min_order)
            page[at : at + 8] = self._pack("Q", plan.space.page_address(tail.pfn))
        self.extents.append(self._stored(pfn, bytes(page)))

    def _zone(self, pgdat: StructBytes, node: Node, index: int, address: int) -> None:
        name = ZONE_NAMES[index]
        at = f"node_zones[{index}]"
        pgdat.set(f"{at}.node", node.id)
        pgdat.set(f"{at}.zone_pgdat", address)
        pgdat.set(f"{at}.name", self.kernel.address(f"zone_name_{name}"))
        self._free_areas(pgdat, node, name, at, address)
        span = zone_span(self.plan.description, node, name)
        if span is None:
            return
        start, end = span
        present = sum(max(0, min(e, end) - max(s, start)) for s, e in node.ranges)
        pgdat.set(f"{at}.zone_start_pfn", start)
        pgdat.set(f"{at}.spanned_pages", end - start)
        pgdat.set(f"{at}.present_pages", present)
        pgdat.set(f"{at}.managed_pages.counter", present)
        pgdat.set(f"{at}.initialized", 1)

    def _free_areas(
        self, pgdat: StructBytes, node: Node, name: str, at: str, address: int
    ) -> None:
        pgdat_type = self.plan.structures.pglist_data
        for order in range(FREE_AREA_ORDERS):
            free = [
                (p.first_pfn, p.end_pfn, order)
                for p in self.plan.pages
                if p.group.kind == "buddy"
                and (p.group.node, p.group.zone, p.group.order)
                == (node.id, name, order)
            ]
            area = f"{at}.free_area[{order}]"
            lists = pgdat_type.offset(f"{area}.free_list")
            count = self.plan.structures.free_area.offset("nr_free") // 16
            for i in range(count):
                head = address + lists + 16 * i
                ends = self._chain(free if i == 0 else [], head)
                struct.pack_into(f"{self._order}QQ", pgdat.data, lists + 16 * i, *ends)
            blocks = sum((end - first) >> order for first, end, _ in free)
            pgdat.set(f"{area}.nr_free", blocks)

    # The memory map.

    def mem_section(self) -> int:
        """The roots of ``mem_section``; their virtual address."""
        plan, nid, sections = self.plan, self.first_nid(), Sections.of(self.plan)
        dtype = f"{self._order}u8"
        words = len(sections.numbers) * plan.structures.mem_section_usage.size // 8
        usages = np.full(words, ~np.uint64(0), dtype=dtype)
        usage = self.store(nid, usages.tobytes(), "mem_section_usage")
        data = sections.data(plan.space.direct(usage))
        stored = self.store(nid, data, "mem_section")
        self.sections = {n: stored + at for n, at in sections.offsets().items()}
        rows = sections.roots
        roots = np.zeros(mem_section_roots(plan), dtype=dtype)
        roots[rows] = np.uint64(plan.space.direct(stored)) + np.arange(
            len(rows), dtype=np.uint64
        ) * np.uint64(plan.page_size)
        address = plan.space.direct(
            self.store(nid, roots.tobytes(), "the roots of mem_section")
        )
        self.kernel.variable("mem_section", self._pack("Q", address))
        return address

    def map_kernel(self, tables: PageTables) -> None:
        """The kernel image, and the direct map of all memory."""
        plan, flags = self.plan, tables.format.protections
        if not self.is_mapped(plan.space.text):
            return
        large = int(IMAGE_SECTION % (tables.format.pages(1) * plan.page_size) == 0)
        step = tables.format.pages(large)
        count = IMAGE_SECTION // plan.page_size
        for i, part in enumerate((flags.text, flags.rodata, flags.kernel)):
            first = plan.kernel_pfn + i * count
            pfns = np.arange(first, first + count, step, dtype=np.int64)
            address = plan.space.text + i * IMAGE_SECTION
            tables.map(address, pfns, part, level=large)
        begin = plan.space.ram_base // plan.page_size
        image = (plan.kernel_pfn, plan.kernel_pfn + plan.kernel_pages)
        in_map = plan.space.text == plan.space.virtual(plan.kernel_pfn)
        for start, end, level in _large_pages(tables.format, plan.memory, begin):
            # What is mapped already is not mapped again.
            parts = subtract([(start, end)], [image] if in_map else [])
            for first, last in parts:
                step = tables.format.pages(level)
                pfns = np.arange(first, last, step, dtype=np.int64)
                tables.map(plan.space.virtual(first), pfns, flags.kernel, level)

    def is_mapped(self, address: int) -> bool:
        """Whether page tables map an address of the direct map or the image."""
        architecture = ARCHITECTURES[self.plan.description.architecture]
        ranges = architecture.linear_ranges(self._noted())
        inside = [one for one in ranges if one.start <= address < one.end]
        return all(one.by_page_tables for one in inside)


def _large_pages(
    page_table: PageTableFormat, memory: list[Range], begin: int
) -> Iterator[tuple[int, int, int]]:
    """
    Memory in the largest pages that it fills, in those of the second size elsewhere.

    :param begin: The page that the direct map begins with, which is aligned.
    """
    pmd, pud = page_table.pages(1), page_table.pages(2)
    gigantic = (
        page_table.levels[2].has_mappings if len(page_table.levels) > 2 else False
    )
    blocks: list[Range] = []
    for start, end in memory:
        first = begin + (start - begin) // pmd * pmd
        last = begin + -(-(end - begin) // pmd) * pmd
        if blocks and first <= blocks[-1][1]:
            blocks[-1] = (blocks[-1][0], last)
        else:
            blocks.append((first, last))
    for start, end in blocks:
        first = -(-start // pud) * pud
        last = end // pud * pud
        if gigantic and not begin % pud and first < last:
            yield from ((start, first, 1), (first, last, 2), (last, end, 1))
        else:
            yield start, end, 1


def build_machine(description: Description, vmemmap_offset: int = 0) -> Machine:
    """
    Build a machine.

    :param vmemmap_offset: How much too high vmemmap is to be: a fault.
    :raises UsageError: if there is no room for everything.
    """
    plan = make_plan(description, vmemmap_offset)
    builder = _Builder(plan)
    builder.variables()
    builder.static_key()
    builder.zone_names()
    builder.pglists()
    builder.hstates()
    tables = PageTables(builder.page_table_format())
    builder.map_kernel(tables)
    vmemmap = VmemmapWriter(plan, tables, builder.take)
    vmemmap.map()
    mem_section = builder.mem_section()
    builder.fill_pglists(vmemmap)
    kernel = builder.kernel
    root = kernel.physical("swapper_pg_dir")
    built = tables.build(root, _table_taker(builder), plan.order)
    top = next(e for e in built.extents if e.pfn == root // plan.page_size)
    built.extents.remove(top)
    kernel.fill("swapper_pg_dir", top.make(0, top.count).tobytes())
    kernel.mark("_end", kernel.end(), "B")
    kernel.kallsyms()
    failed = FailedPages.of(plan)
    regions = plan.regions(builder.reserved, vmemmap.counted)
    writer = PageWriter(plan, regions, builder.links, failed.firsts)
    extents = [
        *marks(plan),
        *failed.extents,
        *kernel.extents(),
        *builder.extents,
        *built.extents,
        *vmemmap.extents(writer),
    ]
    return Machine(
        plan=plan,
        image=Image(plan.memory, extents, plan.page_size),
        vmcoreinfo=write_vmcoreinfo(plan, kernel, mem_section),
        kernel=kernel,
        tables=built,
        vmemmap=vmemmap,
        nodes=builder.nodes,
        tail_arrays=builder.tail_arrays,
        sections=builder.sections,
    )


def _table_taker(builder: _Builder) -> TakeTables:
    nid = builder.first_nid()
    return lambda count, align: builder.take(nid, count, "page tables", align)

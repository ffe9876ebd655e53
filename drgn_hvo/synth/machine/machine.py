# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Synthetic machines
------------------

:func:`build_machine()` turns a description into the memory and the VMCOREINFO of a
machine that has crashed. Every container holds the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import struct

import numpy as np

from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.synth.described.description import Description, HugePages, Node
from drgn_hvo.synth.described.generations import PAGE_SIZE
from drgn_hvo.synth.machine.frames import Extent, Image, Range
from drgn_hvo.synth.machine.kernel_image import KernelImage, StructBytes
from drgn_hvo.synth.machine.pagetables import (
    BuiltTables,
    PageTables,
)
from drgn_hvo.synth.machine.plan import KERNEL_PAGES, Placed, Plan, make_plan
from drgn_hvo.synth.machine.struct_pages import Links, PageWriter
from drgn_hvo.synth.machine.structures import FREE_AREA_ORDERS, ZONE_NAMES
from drgn_hvo.synth.machine.vmcoreinfo_writer import mem_section_roots, write_vmcoreinfo
from drgn_hvo.synth.machine.vmemmap_writer import VmemmapWriter

__all__ = ("Machine", "build_machine")

_PMD_PAGES = 512
_PUD_PAGES = 512 * 512

# SECTION_MARKED_PRESENT, _HAS_MEM_MAP, _IS_ONLINE, _IS_EARLY.
_SECTION_FLAGS = 0xF


@dataclass(frozen=True)
class Machine:
    """
    A machine that has crashed.

    :param nodes: Physical address of ``struct pglist_data`` by node ID.
    :param truncated: Its core is to break off in the middle: a fault.
    """

    plan: Plan
    image: Image
    vmcoreinfo: bytes
    kernel: KernelImage
    tables: BuiltTables
    vmemmap: VmemmapWriter
    nodes: dict[int, int]
    truncated: bool = False

    def page_physical(self, pfn: int) -> int:
        """
        Where the struct page of a PFN lies in memory.

        :raises KeyError: if it has none of its own.
        """
        offset = pfn * self.plan.generation.struct_page_size
        slice_, rest = divmod(offset, PAGE_SIZE)
        frame = self.vmemmap.frame_of(slice_)
        if frame is None:
            frame = self._head_frame(pfn)
        return frame * PAGE_SIZE + rest

    def _head_frame(self, pfn: int) -> int:
        per_slice = self.plan.generation.geometry.pages_per_slice
        for heads in self.vmemmap.heads:
            placed = heads.placed
            if placed.first_pfn <= pfn < placed.end_pfn:
                folio, index = divmod(pfn - placed.first_pfn, 1 << placed.group.order)
                if index < per_slice:
                    return heads.frame(folio)
        raise KeyError(f"page {pfn:#x} has no struct page of its own")

    def slice_entry(self, pfn: int, slice_: int = 0) -> int:
        """Physical address of the page table entry of a slice of a folio."""
        address = self.plan.space.page_address(pfn) + slice_ * PAGE_SIZE
        return self.tables.entry(address & -PAGE_SIZE, 0)


class _Builder:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.reserved: list[Range] = [(plan.kernel_pfn, plan.kernel_pfn + KERNEL_PAGES)]
        if any(start == 0 for start, _ in plan.memory):
            self.reserved.append((0, 1))
        # The firmware's page is there, and zero.
        self.extents: list[Extent] = [
            Extent.stored(start, bytes(PAGE_SIZE)) for start, _ in self.reserved[1:]
        ]
        self.kernel = KernelImage(plan)
        self.links: dict[int, Links] = {}
        self.nodes: dict[int, int] = {}
        self._pglist_pfns: dict[int, int] = {}
        self._lru = plan.structures.page.offset("lru")

    def take(
        self, nid: int, count: int, what: str, align: int = 1, boot: bool = True
    ) -> int:
        """Take frames; *boot* if memblock hands them out."""
        pfn = self.plan.allocator.take(nid, count, what, align)
        if boot:
            self.reserved.append((pfn, pfn + count))
        return pfn

    def store(self, nid: int, data: bytes, what: str) -> int:
        """Put data into frames of their own; its physical address."""
        pfn = self.take(nid, -(-len(data) // PAGE_SIZE), what)
        self.extents.append(Extent.stored(pfn, data))
        return pfn * PAGE_SIZE

    def page_table_format(self) -> PageTableFormat:
        """That of this kernel: what VMCOREINFO says so far is enough for it."""
        noted = Vmcoreinfo(write_vmcoreinfo(self.plan, self.kernel, mem_section=0))
        entry = ARCHITECTURES[self.plan.description.architecture]
        return entry.page_tables(noted)[0]

    def first_nid(self) -> int:
        """The node that the kernel lies on."""
        return self.plan.nid_of(self.plan.kernel_pfn)

    # The kernel's variables.

    def variables(self) -> None:
        """Those whose values are known at once."""
        plan, kernel = self.plan, self.kernel
        nodes = plan.description.nodes

        def number(name: str, value: int, form: str = "<Q") -> None:
            kernel.variable(name, struct.pack(form, value))

        kernel.reserve("swapper_pg_dir", PAGE_SIZE, PAGE_SIZE)
        number("vmemmap_base", plan.space.vmemmap)
        number("page_offset_base", plan.space.page_offset)
        number("vmalloc_base", plan.space.vmalloc)
        number("phys_base", plan.space.phys_base, "<q")
        number("sme_me_mask", 0)
        number("max_pfn", plan.max_pfn)
        number("__pgtable_l5_enabled", int(plan.space.levels == 5), "<I")
        number("pgdir_shift", 12 + 9 * (plan.space.levels - 1), "<I")
        number("ptrs_per_p4d", 512 if plan.space.levels == 5 else 1, "<I")
        number("nr_node_ids", max(node.id for node in nodes) + 1, "<I")
        number("nr_online_nodes", len(nodes), "<I")
        number("__highest_present_section_nr", plan.sections[-1])
        number("hugetlb_max_hstate", len(plan.description.hstates), "<I")
        number("default_hstate_idx", 0, "<I")
        number("hugetlb_lock", 0, "<I")
        if plan.generation.hvo_built:
            enabled = plan.description.hvo_enabled
            number("vmemmap_optimize_enabled", int(enabled), "<B")
        self._uts()
        self._node_states()
        init_mm = StructBytes(plan.structures.mm_struct)
        init_mm.set("pgd", kernel.address("swapper_pg_dir"))
        kernel.variable("init_mm", bytes(init_mm.data))
        kernel.variable("saved_command_line", bytes(8))

    def _uts(self) -> None:
        uts = StructBytes(self.plan.structures.uts_namespace)
        for name, text in (
            ("sysname", "Linux"),
            ("nodename", "synthetic"),
            ("release", self.plan.description.release_string),
            ("version", "#1 SMP"),
            ("machine", self.plan.description.architecture),
            ("domainname", "(none)"),
        ):
            uts.set(f"name.{name}", text.encode())
        self.kernel.variable("init_uts_ns", bytes(uts.data))

    def _node_states(self) -> None:
        size = self.plan.structures.nodemask_t.size
        mask = sum(1 << node.id for node in self.plan.description.nodes)
        online = mask.to_bytes(size, "little")
        # N_POSSIBLE, N_ONLINE, N_NORMAL_MEMORY, N_MEMORY; the others do not matter.
        address = self.kernel.variable(
            "node_states", online * 4 + bytes(2 * size), align=64
        )
        # VMCOREINFO calls node_states[N_ONLINE] by its old name.
        self.kernel.mark("node_online_map", address + size, "D")

    def static_key(self) -> None:
        """``hugetlb_optimize_vmemmap_key`` counts optimized folios, up to v7.0."""
        if self.plan.generation.fake_heads:
            count = sum(p.group.count for p in self.plan.huge if p.optimized)
            self.kernel.variable(
                "hugetlb_optimize_vmemmap_key", struct.pack("<QQ", count, 0)
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
        base = self.kernel.reserve("hstates", c_type.size * len(d.hstates), 64)
        data = b"".join(
            self._hstate(order, base + i * c_type.size)
            for i, order in enumerate(d.hstates)
        )
        self.kernel.fill("hstates", data)

    def _hstate(self, order: int, address: int) -> bytes:
        c_type = self.plan.structures.hstate
        state = StructBytes(c_type)
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
        state.data[offset : offset + 16] = struct.pack("<QQ", following, before)

    def _counters(
        self, state: StructBytes, order: int, groups: list[Placed[HugePages]]
    ) -> None:
        d = self.plan.description
        span = PAGE_SIZE << order
        state.set("order", order)
        state.set("mask", -span)
        state.set("demote_order", 9 if order > 9 else 0)
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
            pfn = self.take(node.id, -(-size // PAGE_SIZE), "struct pglist_data")
            self._pglist_pfns[node.id] = pfn
            self.nodes[node.id] = pfn * PAGE_SIZE
            address = self.plan.space.virtual(pfn)
            struct.pack_into("<Q", pointers, 8 * node.id, address)
        self.kernel.variable("node_data", bytes(pointers))

    def fill_pglists(self, vmemmap: VmemmapWriter) -> None:
        """Their contents, once everything has its place."""
        for node in self.plan.description.nodes:
            pfn = self._pglist_pfns[node.id]
            data = self._pglist(node, self.plan.space.virtual(pfn), vmemmap)
            self.extents.append(Extent.stored(pfn, data))

    def _pglist(self, node: Node, address: int, vmemmap: VmemmapWriter) -> bytes:
        plan = self.plan
        pgdat = StructBytes(plan.structures.pglist_data)
        start, end = node.ranges[0][0], node.ranges[-1][1]
        pgdat.set("node_id", node.id)
        pgdat.set("node_start_pfn", start)
        pgdat.set("node_spanned_pages", end - start)
        pgdat.set("node_present_pages", sum(e - s for s, e in node.ranges))
        nr_zones = len(ZONE_NAMES) - (not plan.generation.zone_device)
        populated = [ZONE_NAMES.index(name) for name in node.zones]
        pgdat.set("nr_zones", max(populated) + 1)
        for index in range(nr_zones):
            self._zone(pgdat, node, index, address)
        for tail in vmemmap.tails:
            if tail.nid != node.id:
                continue
            owner = "" if tail.zone is None else f"node_zones[{tail.zone}]."
            slot = tail.order - plan.generation.min_order
            value = plan.space.page_address(tail.pfn)
            if plan.generation.element_is_pfn:
                value = tail.pfn
            pgdat.set(f"{owner}vmemmap_tails[{slot}]", value)
        return bytes(pgdat.data)

    def _zone(self, pgdat: StructBytes, node: Node, index: int, address: int) -> None:
        name = ZONE_NAMES[index]
        at = f"node_zones[{index}]"
        pgdat.set(f"{at}.node", node.id)
        pgdat.set(f"{at}.zone_pgdat", address)
        pgdat.set(f"{at}.name", self.kernel.address(f"zone_name_{name}"))
        self._free_areas(pgdat, node, name, at, address)
        if name not in node.zones:
            return
        start, end = node.zones[name]
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
                struct.pack_into("<QQ", pgdat.data, lists + 16 * i, *ends)
            blocks = sum((end - first) >> order for first, end, _ in free)
            pgdat.set(f"{area}.nr_free", blocks)

    # The memory map.

    def mem_section(self) -> int:
        """The roots of ``mem_section``; their virtual address."""
        plan = self.plan
        nid = self.first_nid()
        per_root = PAGE_SIZE // plan.structures.mem_section.size
        usage_size = plan.structures.mem_section_usage.size
        numbers = np.array(plan.sections, dtype=np.int64)
        usages = np.full(len(numbers) * usage_size // 8, ~np.uint64(0), dtype="<u8")
        usage = self.store(nid, usages.tobytes(), "mem_section_usage")
        rows, inverse = np.unique(numbers // per_root, return_inverse=True)
        data = np.zeros((len(rows), per_root, 2), dtype="<u8")
        word = plan.space.vmemmap | _SECTION_FLAGS
        data[inverse, numbers % per_root, 0] = np.uint64(word)
        data[inverse, numbers % per_root, 1] = np.uint64(
            plan.space.page_offset + usage
        ) + np.arange(len(numbers), dtype=np.uint64) * np.uint64(usage_size)
        sections = self.store(nid, data.tobytes(), "mem_section")
        roots = np.zeros(mem_section_roots(plan.space.levels), dtype="<u8")
        roots[rows] = np.uint64(plan.space.page_offset + sections) + np.arange(
            len(rows), dtype=np.uint64
        ) * np.uint64(PAGE_SIZE)
        address = plan.space.page_offset + self.store(
            nid, roots.tobytes(), "the roots of mem_section"
        )
        self.kernel.variable("mem_section", struct.pack("<Q", address))
        return address

    def map_kernel(self, tables: PageTables) -> None:
        """The kernel image, and the direct map of all memory."""
        plan = self.plan
        flags = tables.format.protections
        for i, part in enumerate((flags.text, flags.rodata, flags.kernel)):
            pfn = np.array([plan.kernel_pfn + i * _PMD_PAGES], dtype=np.int64)
            tables.map(plan.space.text + i * (2 << 20), pfn, part, level=1)
        for start, end, level in _large_pages(plan.memory):
            step = _PUD_PAGES if level == 2 else _PMD_PAGES
            pfns = np.arange(start, end, step, dtype=np.int64)
            tables.map(plan.space.virtual(start), pfns, flags.kernel, level)


def _large_pages(memory: list[Range]) -> Iterator[tuple[int, int, int]]:
    """Memory in 1 GiB pages where it fills them, in 2 MiB pages elsewhere."""
    blocks: list[Range] = []
    for start, end in memory:
        first = start // _PMD_PAGES * _PMD_PAGES
        last = -(-end // _PMD_PAGES) * _PMD_PAGES
        if blocks and first <= blocks[-1][1]:
            blocks[-1] = (blocks[-1][0], last)
        else:
            blocks.append((first, last))
    for start, end in blocks:
        first = -(-start // _PUD_PAGES) * _PUD_PAGES
        last = end // _PUD_PAGES * _PUD_PAGES
        if first < last:
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
    root = kernel.physical("swapper_pg_dir") // PAGE_SIZE
    built = tables.build(root, _table_taker(builder))
    kernel.fill("swapper_pg_dir", built.extents.pop().make(0, 1).tobytes())
    kernel.mark("_end", kernel.end(), "B")
    kernel.kallsyms()
    regions = plan.regions(builder.reserved)
    writer = PageWriter(plan, regions, builder.links)
    extents = [
        *kernel.extents(),
        *builder.extents,
        *built.extents,
        *vmemmap.extents(writer),
    ]
    return Machine(
        plan=plan,
        image=Image(plan.memory, extents),
        vmcoreinfo=write_vmcoreinfo(plan, kernel, mem_section),
        kernel=kernel,
        tables=built,
        vmemmap=vmemmap,
        nodes=builder.nodes,
    )


def _table_taker(builder: _Builder) -> Callable[[int], int]:
    nid = builder.first_nid()
    return lambda count: builder.take(nid, count, "page tables")

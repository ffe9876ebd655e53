# SPDX-License-Identifier: LGPL-2.1-or-later

"""
VMCOREINFO, written
-------------------

The note as crash_save_vmcoreinfo_init() and arch_crash_save_vmcoreinfo() print it
(:linux:`kernel/vmcore_info.c` and those of architectures), in their order, as far as
it concerns memory management.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn_hvo.formats.machine_models import MadeKernel
from drgn_hvo.synth.machine.basic_types import ATOMIC_LONG_T, LIST_HEAD
from drgn_hvo.synth.machine.ctype import Array, Compound
from drgn_hvo.synth.machine.kernel_image import KernelImage
from drgn_hvo.synth.machine.plan import Plan
from drgn_hvo.synth.machine.structures import COMPOUND_DTORS, SECOND_FLAGS

__all__ = ("made_kernel", "mem_section_roots", "write_vmcoreinfo")


def mem_section_roots(plan: Plan) -> int:
    """``NR_SECTION_ROOTS``."""
    d = plan.description
    per_root = d.page_size // plan.structures.mem_section.size
    bits = d.model.physmem_bits(d.paging_levels)
    sections = 1 << (bits - d.model.section_size_bits[d.page_shift])
    return -(-sections // per_root)


def made_kernel(plan: Plan, image: KernelImage) -> MadeKernel:
    """What an architecture's own lines and variables are made of."""
    space = plan.space
    return MadeKernel(
        levels=space.levels,
        page_shift=plan.description.page_shift,
        text=space.text,
        text_physical=space.text_physical,
        page_offset=space.page_offset,
        ram_base=space.ram_base,
        vmalloc=space.vmalloc,
        vmemmap=space.vmemmap,
        vmemmap_start=space.vmemmap_start,
        kernel_offset=plan.description.kernel_offset,
        swapper_pg_dir=image.address("swapper_pg_dir"),
        node_data=image.address("node_data") if image.has("node_data") else 0,
        max_numnodes=plan.generation.max_numnodes,
        max_pfn=plan.end_pfn,
    )


def _offsets(name: str, owner: Compound, *members: str) -> Iterator[str]:
    for member in members:
        if owner.has(member):
            yield f"OFFSET({name}.{member})={owner.offset(member)}"


def _length(owner: Compound, member: str) -> int:
    _, member_type = owner.find(member)
    assert isinstance(member_type, Array)
    return member_type.length


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _pages(plan: Plan) -> Iterator[str]:
    s = plan.structures
    yield from _offsets(
        "page", s.page, "flags", "_refcount", "mapping", "lru", "_mapcount", "private"
    )
    yield from _offsets(
        "page",
        s.page,
        "compound_dtor",
        "compound_order",
        "compound_head",
        "compound_info",
    )
    if s.fields.hugetlb == "destructor" and not s.page.has("compound_dtor"):
        yield from _offsets("folio", s.folio, "_folio_dtor", "_folio_order")


def _nodes(plan: Plan) -> Iterator[str]:
    s = plan.structures
    yield from _offsets(
        "pglist_data",
        s.pglist_data,
        "node_zones",
        "nr_zones",
        "node_start_pfn",
        "node_spanned_pages",
        "node_id",
    )
    yield from _offsets("zone", s.zone, "free_area", "vm_stat", "spanned_pages")
    yield from _offsets("free_area", s.free_area, "free_list")
    yield from _offsets("list_head", LIST_HEAD, "next", "prev")
    yield f"LENGTH(zone.free_area)={_length(s.zone, 'free_area')}"
    yield f"LENGTH(free_area.free_list)={_length(s.free_area, 'free_list')}"


def _numbers(plan: Plan) -> Iterator[str]:
    s = plan.structures
    flags = s.fields.page_flags
    yield "NUMBER(NR_FREE_PAGES)=0"
    yield f"NUMBER(PG_lru)={flags.index('lru')}"
    yield f"NUMBER(PG_private)={flags.index('private')}"
    yield f"NUMBER(PG_swapcache)={flags.index('owner_priv_1')}"
    yield f"NUMBER(PG_swapbacked)={flags.index('swapbacked')}"
    types, mark = s.fields.page_types, s.fields.hugetlb
    for name in ("slab", "buddy", "hugetlb", "offline"):
        if name in types:
            value = _signed(types[name])
            yield f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)={value}"
        elif name == "slab":
            yield f"NUMBER(PG_slab)={flags.index('slab')}"
        elif mark == "destructor":
            yield f"NUMBER(HUGETLB_PAGE_DTOR)={COMPOUND_DTORS['HUGETLB_PAGE']}"
        elif mark == "flag":
            yield f"NUMBER(PG_hugetlb)={flags.index(SECOND_FLAGS['hugetlb'])}"
    yield f"NUMBER(PG_hwpoison)={flags.index('hwpoison')}"
    yield f"NUMBER(PG_head_mask)={1 << flags.index('head')}"


def _lines(plan: Plan, image: KernelImage, mem_section: int) -> Iterator[str]:
    s, d = plan.structures, plan.description
    yield f"OSRELEASE={plan.description.release_string}"
    yield f"BUILD-ID={plan.description.seed:040x}"
    yield f"PAGESIZE={plan.page_size}"
    yield f"SYMBOL(init_uts_ns)={image.address('init_uts_ns'):x}"
    yield f"OFFSET(uts_namespace.name)={s.uts_namespace.offset('name')}"
    for name in ("node_online_map", "swapper_pg_dir", "_stext"):
        yield f"SYMBOL({name})={image.address(name):x}"
    if plan.generation.exports_vmemmap:
        yield f"NUMBER(VMALLOC_START)={plan.space.vmalloc:#x}"
        yield f"SYMBOL(vmemmap)={plan.space.vmemmap:x}"
    yield f"SYMBOL(mem_section)={mem_section:x}"
    yield f"LENGTH(mem_section)={mem_section_roots(plan)}"
    yield f"SIZE(mem_section)={s.mem_section.size}"
    yield from _offsets("mem_section", s.mem_section, "section_mem_map")
    yield f"NUMBER(SECTION_SIZE_BITS)={d.model.section_size_bits[d.page_shift]}"
    yield f"NUMBER(MAX_PHYSMEM_BITS)={d.model.physmem_bits(d.paging_levels)}"
    for name, owner in (
        ("page", s.page),
        ("pglist_data", s.pglist_data),
        ("zone", s.zone),
        ("free_area", s.free_area),
        ("list_head", LIST_HEAD),
        ("nodemask_t", s.nodemask_t),
    ):
        yield f"SIZE({name})={owner.size}"
    yield from _pages(plan)
    yield from _nodes(plan)
    yield f"SIZE(atomic_long_t)={ATOMIC_LONG_T.size}"
    yield "OFFSET(atomic_long_t.counter)=0"
    yield from _numbers(plan)
    for name in (
        "kallsyms_names",
        "kallsyms_num_syms",
        "kallsyms_token_table",
        "kallsyms_token_index",
        "kallsyms_offsets",
        "kallsyms_relative_base",
        "kallsyms_addresses",
    ):
        if image.has(name):
            yield f"SYMBOL({name})={image.address(name):x}"
    yield from d.model.notes(made_kernel(plan, image))


def write_vmcoreinfo(plan: Plan, image: KernelImage, mem_section: int) -> bytes:
    """
    The text of the note.

    :param mem_section: The value of ``mem_section``: where the roots are.
    """
    return "".join(f"{line}\n" for line in _lines(plan, image, mem_section)).encode()

# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The core's own types and symbols against the kernel's DWARF.

Runs for every shared core whose vmlinux, with debuginfo, is in a directory of
``DRGN_HVO_VMLINUX`` or where distributions install it.
"""

from contextlib import suppress
import functools
import random
from typing import Any

import drgn
from drgn import FaultError, Object, TypeKind
from drgn.helpers.linux import hugetlb, mm, mmzone, nodemask
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import find_task
import pytest

from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.core_sources import CoreSources, has_debuginfo
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.variables import VARIABLES
from tests.cores import CORES, WITHOUT, open_core, truth, vmlinux_path


@pytest.fixture(
    scope="module",
    params=[
        *(name for name in CORES if name not in WITHOUT),
        *(["others"] if WITHOUT else []),
    ],
)
def name(request):
    if request.param == "others":
        pytest.skip(f"no vmlinux with debuginfo for {', '.join(WITHOUT)}")
    return request.param


@functools.lru_cache(maxsize=1)
def open_both(name):
    """The core with DWARF and without us, and with us and without DWARF."""
    with_dwarf = open_core(name)
    with_dwarf.load_debug_info([vmlinux_path(name)])
    without = open_core(name)
    install(without)
    return with_dwarf, without


@pytest.fixture(scope="module")
def both(name):
    return open_both(name)


def plain(answer):
    """An answer that can be compared across programs."""
    if isinstance(answer, Object):
        kind = answer.type_.unaliased_kind()
        if kind in (TypeKind.STRUCT, TypeKind.UNION, TypeKind.ARRAY):
            return answer.type_.type_name(), answer.address_
        return str(unaliased_name(answer.type_)), answer.value_()
    if isinstance(answer, (list, tuple)):
        return [plain(item) for item in answer]
    return answer


def outcome(function, *arguments):
    """What comes out, an exception included."""
    try:
        return plain(function(*arguments))
    except FaultError as e:
        return FaultError, e.address
    except Exception as e:
        return type(e)


def sample_pfns(name):
    """Folios, heads and the ends of vmemmap slices, and pages at random."""
    pfns = set()
    for folio in truth(name)["folios"]:
        first, count = folio["pfn"], 1 << folio["order"]
        for i in (0, 1, 2, 3, 4, 63, 64, 65, 128, count - 64, count - 1, count):
            pfns.add(first + i)
    chance = random.Random(name)
    for node in truth(name)["nodes"]:
        for _ in range(300):
            pfns.add(node["start_pfn"] + chance.randrange(node["spanned"]))
    return sorted(pfns)


PAGE_HELPERS = [
    mm.compound_head,
    mm.compound_nr,
    mm.compound_order,
    mm.decode_page_flags,
    mm.page_flags,
    mm.page_index,
    mm.page_size,
    mm.page_to_pfn,
    mm.page_to_phys,
    mm.page_to_virt,
    mm.PageCompound,
    mm.PageHead,
    mm.PageReserved,
    mm.PageSlab,
    mm.PageTail,
]


@pytest.mark.parametrize("helper", PAGE_HELPERS, ids=lambda helper: helper.__name__)
def test_page_helpers(name, both, helper):
    answers = set()
    for pfn in sample_pfns(name):
        theirs, ours = (outcome(helper, mm.pfn_to_page(prog, pfn)) for prog in both)
        assert ours == theirs, f"pfn {pfn}"
        answers.add(repr(theirs))
    # A helper that fails everywhere would agree with itself.
    assert len(answers) > 1 or helper is mm.page_index


def direct_map(prog, pfn):
    address = mm.pfn_to_virt(prog, pfn)
    return [
        address,
        mm.virt_to_page(prog, address),
        mm.virt_to_pfn(prog, address),
        mm.virt_to_phys(prog, address),
        mm.phys_to_page(prog, pfn << 12),
    ]


def follow(prog, pfn):
    return mm.follow_phys(prog["init_mm"].address_of_(), mm.pfn_to_page(prog, pfn))


@pytest.mark.parametrize("helper", [mm.pfn_to_page, direct_map, follow])
def test_address_helpers(name, both, helper):
    for pfn in sample_pfns(name):
        theirs, ours = (outcome(helper, prog, pfn) for prog in both)
        assert ours == theirs, f"pfn {pfn}"
        if helper is not follow:
            assert isinstance(theirs, (tuple, list))


def hstates(prog):
    counters = ("order", "nr_huge_pages", "free_huge_pages", "resv_huge_pages",
                "surplus_huge_pages", "max_huge_pages", "nr_huge_pages_node",
                "free_huge_pages_node", "surplus_huge_pages_node")  # fmt: skip
    return [
        [h, h.name.string_(), hugetlb.huge_page_size(h)]
        + [h.member_(counter).value_() for counter in counters]
        for h in hugetlb.for_each_hstate(prog)
    ]


def hugepage_lists(prog):
    found = []
    for h in hugetlb.for_each_hstate(prog):
        heads = [h.hugepage_freelists[nid] for nid in nodemask.for_each_node(prog)]
        for head in [*heads, h.hugepage_activelist]:
            pages = list_for_each_entry("struct page", head.address_of_(), "lru")
            found.append(list(pages))
    return found


def zones(prog):
    found = []
    for pgdat in mmzone.for_each_online_pgdat(prog):
        for zone in pgdat.node_zones[: pgdat.nr_zones]:
            found.append([zone.name.string_(), zone.zone_start_pfn, zone.spanned_pages])
            found.append([mmzone.low_wmark_pages(zone), mmzone.high_wmark_pages(zone)])
    return found


def sections(prog):
    found: list[Any] = []
    for nr, section in mmzone.for_each_present_section(prog):
        found.append([nr, section, mmzone.nr_to_section(prog, nr)])
        found.append(mmzone.pfn_to_section(prog, mmzone.section_nr_to_pfn(prog, nr)))
        found += [
            helper(section)
            for helper in (
                mmzone.decode_section_flags,
                mmzone.early_section,
                mmzone.online_section,
                mmzone.present_section,
                mmzone.section_mem_map_addr,
                mmzone.valid_section,
            )
        ]
        found.append(mmzone.section_decode_mem_map(section, nr))
    found.append(mmzone.nr_to_section(prog, 1 << 30))
    return found


PROGRAM_HELPERS = {
    "for_each_hstate": hstates,
    "hugepage lists": hugepage_lists,
    "hugetlb_total_usage": hugetlb.hugetlb_total_usage,
    "hugetlb_total_pages": hugetlb.hugetlb_total_pages,
    "for_each_online_pgdat": lambda prog: list(mmzone.for_each_online_pgdat(prog)),
    "zones": zones,
    "NODE_DATA": lambda prog: [
        mmzone.NODE_DATA(prog, nid) for nid in nodemask.for_each_node(prog)
    ],
    "for_each_node": lambda prog: list(nodemask.for_each_node(prog)),
    "for_each_online_node": lambda prog: list(nodemask.for_each_online_node(prog)),
    "node_state": lambda prog: [
        nodemask.node_state(nid, prog[state])
        for nid in range(4)
        for state in ("N_POSSIBLE", "N_ONLINE", "N_NORMAL_MEMORY", "N_MEMORY", "N_CPU")
    ],
    "nr_node_ids": nodemask.nr_node_ids,
    "for_each_present_section": sections,
    "for_each_valid_page_range": lambda prog: list(mm.for_each_valid_page_range(prog)),
    "totalram_pages": mm.totalram_pages,
    "in_direct_map": lambda prog: [
        mm.in_direct_map(prog, mm.pfn_to_virt(prog, pfn)) for pfn in (0, 1, 99, 1 << 30)
    ],
    "vmemmap": lambda prog: prog["vmemmap"].read_(),
}


@pytest.mark.parametrize("helper", PROGRAM_HELPERS)
def test_program_helpers(both, helper):
    theirs, ours = (plain(PROGRAM_HELPERS[helper](prog)) for prog in both)
    assert ours == theirs
    assert theirs


def test_find_task(both):
    def task(prog):
        return [find_task(prog, 1), find_task(prog, 1).comm.string_()]

    theirs, ours = (outcome(task, prog) for prog in both)
    assert ours == theirs


# What drgn's helpers try, to see how the kernel was built: a missing answer is
# as good as another one, so ours must be missing exactly where DWARF's is.
PROBED = [
    ("PG_active", "mm.Page*"),
    ("PG_checked", "mm.Page*"),
    ("PG_dirty", "mm.Page*"),
    ("PG_double_map", "mm.Page*"),
    ("PG_error", "mm.Page*"),
    ("PG_foreign", "mm.Page*"),
    ("PG_has_hwpoisoned", "mm.Page*"),
    ("PG_hwpoison", "mm.Page*"),
    ("PG_idle", "mm.Page*"),
    ("PG_isolated", "mm.Page*"),
    ("PG_locked", "mm.Page*"),
    ("PG_lru", "mm.Page*"),
    ("PG_mappedtodisk", "mm.Page*"),
    ("PG_mlocked", "mm.Page*"),
    ("PG_owner_priv_1", "mm.Page*"),
    ("PG_pinned", "mm.Page*"),
    ("PG_private", "mm.Page*"),
    ("PG_private_2", "mm.Page*"),
    ("PG_readahead", "mm.Page*"),
    ("PG_reclaim", "mm.Page*"),
    ("PG_referenced", "mm.Page*"),
    ("PG_reported", "mm.Page*"),
    ("PG_reserved", "mm.Page*"),
    ("PG_savepinned", "mm.Page*"),
    ("PG_skip_kasan_poison", "mm.Page*"),
    ("PG_slob_free", "mm.Page*"),
    ("PG_swapbacked", "mm.Page*"),
    ("PG_uncached", "mm.Page*"),
    ("PG_unevictable", "mm.Page*"),
    ("PG_uptodate", "mm.Page*"),
    ("PG_vmemmap_self_hosted", "mm.Page*"),
    ("PG_waiters", "mm.Page*"),
    ("PG_workingset", "mm.Page*"),
    ("PG_writeback", "mm.Page*"),
    ("PG_xen_remapped", "mm.Page*"),
    ("PG_young", "mm.Page*"),
    ("struct page.flags.f", "mm.page_flags"),
    ("struct page.__folio_index", "mm.page_index"),
    ("struct page.index", "mm.page_index"),
    ("PG_slab", "mm.PageSlab"),
    ("struct page._mapcount.counter", "mm.PageSlab"),
    ("struct page.compound_info", "mm.compound_head"),
    ("struct page.compound_head", "mm.compound_head"),
    ("struct page.first_page", "mm.compound_head"),
    ("struct zone.vmemmap_tails", "mm.compound_head"),
    ("PG_head", "mm.PageHead"),
    ("PG_tail", "mm.PageTail"),
    ("PG_compound", "mm.PageCompound"),
    ("struct folio", "mm.compound_order"),
    ("struct folio._folio_order", "mm.compound_order"),
    ("struct folio._flags_1", "mm.compound_order"),
    ("struct page.compound_order", "mm.compound_order"),
    ("__NR_PAGEFLAGS", "mm.decode_page_flags"),
    ("vmemmap", "mm.pfn_to_page"),
    ("mem_map", "mm.pfn_to_page"),
    ("ARCH_PFN_OFFSET", "mm.pfn_to_page"),
    ("PAGE_SHIFT", "mm.PFN_PHYS"),
    ("PAGE_SIZE", "mm.page_size"),
    ("phys_addr_t", "mm.PFN_PHYS"),
    ("init_mm", "mm.follow_phys"),
    ("struct mm_struct.pgd", "mm.follow_phys"),
    ("mem_section", "mm.for_each_valid_page_range"),
    ("memblock", "mm.for_each_valid_page_range"),
    ("max_mapnr", "mm.for_each_valid_page_range"),
    ("struct mem_section.usage", "mm.for_each_valid_page_range"),
    ("struct mem_section_usage.subsection_map", "mm.for_each_valid_page_range"),
    ("_totalram_pages", "mm.totalram_pages"),
    ("totalram_pages", "mm.totalram_pages"),
    ("min_low_pfn", "mm.in_direct_map"),
    ("max_low_pfn", "mm.in_direct_map"),
    ("node_data", "mmzone.NODE_DATA"),
    ("contig_page_data", "mmzone.NODE_DATA"),
    ("struct zone._watermark", "mmzone.wmark_pages"),
    ("struct zone.watermark", "mmzone.wmark_pages"),
    ("struct zone.watermark_boost", "mmzone.wmark_pages"),
    ("WMARK_MIN", "mmzone.min_wmark_pages"),
    ("WMARK_PROMO", "mmzone.wmark_pages"),
    ("SECTIONS_PER_ROOT", "mmzone.nr_to_section"),
    ("NR_SECTION_ROOTS", "mmzone.nr_to_section"),
    ("SECTION_SIZE_BITS", "mmzone.pfn_to_section_nr"),
    ("MAX_PHYSMEM_BITS", "mmzone.for_each_present_section"),
    ("SECTION_MARKED_PRESENT_BIT", "mmzone.present_section"),
    ("__highest_present_section_nr", "mmzone.for_each_present_section"),
    ("nr_node_ids", "nodemask.nr_node_ids"),
    ("node_states", "nodemask.for_each_node_state"),
    ("N_POSSIBLE", "nodemask.for_each_node"),
    ("N_ONLINE", "nodemask.for_each_online_node"),
    ("hstates", "hugetlb.for_each_hstate"),
    ("hugetlb_max_hstate", "hugetlb.for_each_hstate"),
    ("init_pid_ns", "pid.find_task"),
    ("pid_hash", "pid.find_task"),
    ("PIDTYPE_PID", "pid.find_task"),
    ("struct pid_namespace.idr", "pid.find_task"),
    ("struct xa_node", "pid.find_task"),
    ("struct radix_tree_root", "pid.find_task"),
    ("struct radix_tree_root.rnode", "pid.find_task"),
    ("struct idr.idr_base", "idr.idr_find"),
    ("struct task_struct.thread_pid", "pid.find_task"),
    ("struct task_struct.pid_links", "pid.find_task"),
    ("struct task_struct.pids", "pid.find_task"),
]


def is_present(prog, probe):
    """Whether drgn finds it; any other error than drgn's own escapes."""
    name, *members = probe.split(".")
    try:
        if not name.startswith("struct ") and not name.endswith("_t"):
            # DWARF has functions that were inlined everywhere, too.
            return not prog[name].absent_
        found = prog.type(name)
    except LookupError:
        return False
    for member in members:
        found = found.unaliased()
        if found.kind not in (TypeKind.STRUCT, TypeKind.UNION):
            return False
        if not found.has_member(member):
            return False
        found = found.member(member).type
    return True


def test_probes_of_helpers_are_answered_alike(both):
    theirs, ours = (
        {(probe, helper): is_present(prog, probe) for probe, helper in PROBED}
        for prog in both
    )
    assert ours == theirs
    assert {True, False} <= set(theirs.values())


def variable(prog, name):
    try:
        found = prog.variable(name)
    except LookupError:
        return None
    return unaliased_name(found.type_), found.address_


def unaliased_name(found):
    """The name of a type, typedefs of its parts stripped."""
    found = found.unaliased()
    if found.kind == TypeKind.ARRAY:
        return unaliased_name(found.type), found.length
    if found.kind == TypeKind.POINTER:
        return unaliased_name(found.type), "*"
    if found.kind == TypeKind.STRUCT and found.tag is None:
        return [m.name for m in found.members], found.size
    return found.type_name()


def test_table_of_variables_says_what_dwarf_says(both):
    theirs, ours = ({v: variable(prog, v) for v in VARIABLES} for prog in both)
    for name in VARIABLES:
        if theirs[name] is None and ours[name] is not None:
            # The compiler did not note the place; the symbol is there all the same.
            symbol = both[0].symbol(name)
            theirs[name] = ours[name][0], symbol.address
    assert ours == theirs


ROOTS = [
    "struct page",
    "struct folio",
    "struct zone",
    "struct pglist_data",
    "struct hstate",
    "struct mem_section",
    "struct list_head",
    "struct mm_struct",
    "struct task_struct",
]


class Comparison:
    """All types that are reached from a few, each one once."""

    def __init__(self):
        self.seen = set()
        self.todo = []
        self.differences = []

    def check(self, path, what, theirs, ours):
        if theirs != ours:
            self.differences.append(f"{path}: {what} {ours!r} instead of {theirs!r}")

    def run(self, theirs, ours, path):
        self.todo.append((theirs, ours, path))
        while self.todo:
            self.step(*self.todo.pop())

    def step(self, theirs, ours, path):
        self.check(path, "kind", theirs.kind, ours.kind)
        self.check(path, "qualifiers", theirs.qualifiers, ours.qualifiers)
        if theirs.kind != ours.kind:
            return
        for attribute in ("name", "tag", "size", "is_signed", "is_variadic"):
            values = []
            for side in (theirs, ours):
                with suppress(AttributeError):
                    values.append(getattr(side, attribute))
            self.check(path, attribute, values[:1], values[1:])
        label = None
        with suppress(AttributeError):
            label = theirs.tag
        if label is not None:
            path = theirs.type_name()
            if path in self.seen:
                return
            self.seen.add(path)
        if theirs.kind == TypeKind.ARRAY:
            theirs, ours = self.elements(theirs, ours, path)
            self.todo.append((theirs, ours, f"{path}[]"))
            return
        self.check(path, "completeness", theirs.is_complete(), ours.is_complete())
        self.step_into(theirs, ours, path)

    def elements(self, *arrays_and_path):
        """
        The innermost types. pahole writes one dimension for several, and no kind
        of BTF has an unknown length, only the length 0.
        """
        *arrays, path = arrays_and_path
        lengths, types = [], []
        for array in arrays:
            length = 1
            while array.kind == TypeKind.ARRAY:
                length *= array.length or 0
                array = array.type
            lengths.append(length)
            types.append(array)
        self.check(path, "length", *lengths)
        return types

    def step_into(self, theirs, ours, path):
        if theirs.kind in (TypeKind.STRUCT, TypeKind.UNION):
            self.members(theirs.members or (), ours.members or (), path)
        elif theirs.kind == TypeKind.FUNCTION:
            self.parameters(theirs.parameters, ours.parameters, path)
        elif theirs.kind == TypeKind.ENUM:
            self.check(path, "enumerators", theirs.enumerators, ours.enumerators)
        if theirs.kind in (TypeKind.ARRAY, TypeKind.TYPEDEF, TypeKind.POINTER,
                           TypeKind.FUNCTION):  # fmt: skip
            self.todo.append((theirs.type, ours.type, path + "*"))

    def members(self, theirs, ours, path):
        self.check(path, "members", [m.name for m in theirs], [m.name for m in ours])
        for one, other in zip(theirs, ours):
            inner = f"{path}.{one.name}"
            self.check(inner, "offset", one.bit_offset, other.bit_offset)
            self.check(inner, "bits", one.bit_field_size, other.bit_field_size)
            self.todo.append((one.type, other.type, inner))

    def parameters(self, theirs, ours, path):
        self.check(path, "parameters", len(theirs), len(ours))
        for one, other in zip(theirs, ours):
            self.todo.append((one.type, other.type, f"{path}({one.name})"))


def test_types_are_those_of_dwarf_down_to_the_last_member(both):
    comparison = Comparison()
    for root in ROOTS:
        with_dwarf, without = both
        comparison.run(with_dwarf.type(root), without.type(root), root)
    assert comparison.differences == []
    assert len(comparison.seen) > 500


def test_constants_are_those_of_dwarf(both):
    for prefix, enum in (("PG_head", "pageflags"), ("N_ONLINE", "node_states"),
                         ("NR_FREE_PAGES", "zone_stat_item"),
                         ("HPG_vmemmap_optimized", "hugetlb_page_flags"),
                         ("ZONE_MOVABLE", "zone_type")):  # fmt: skip
        theirs, ours = (prog.type(f"enum {enum}") for prog in both)
        assert ours.enumerators == theirs.enumerators
        for enumerator in theirs.enumerators:
            constants = [prog.constant(enumerator.name) for prog in both]
            assert plain(constants[0]) == plain(constants[1])
        assert prefix in {enumerator.name for enumerator in theirs.enumerators}


@pytest.fixture
def with_both(name, monkeypatch):
    """DWARF and our finders; reading anything of ours fails the test."""

    def fail(*args):
        pytest.fail("a source of ours was read, although DWARF is there")

    for method in ("_load_vmcoreinfo", "_load_kallsyms", "_load_types"):
        monkeypatch.setattr(CoreSources, method, fail)
    prog = open_core(name)
    install(prog)
    prog.load_debug_info([vmlinux_path(name)])
    assert has_debuginfo(prog)
    return prog


def test_dwarf_is_preferred_and_our_finders_are_silent(name, both, with_both):
    for helper in PROGRAM_HELPERS.values():
        assert plain(helper(with_both)) == plain(helper(both[0]))
    for pfn in sample_pfns(name)[::20]:
        for helper in PAGE_HELPERS:
            assert outcome(helper, mm.pfn_to_page(with_both, pfn)) == outcome(
                helper, mm.pfn_to_page(both[0], pfn)
            )
    for probe, _ in PROBED:
        assert is_present(with_both, probe) == is_present(both[0], probe)
    for name_of_variable in VARIABLES:
        assert variable(with_both, name_of_variable) == variable(
            both[0], name_of_variable
        )
    assert with_both.symbol("schedule").name == "schedule"
    with pytest.raises(LookupError):
        with_both["no_such_variable"]


def test_dwarf_that_is_loaded_later_takes_over(name):
    prog = open_core(name)
    install(prog)
    assert [h.order.value_() for h in hugetlb.for_each_hstate(prog)]
    with pytest.raises(UnavailableError):
        prog["linux_banner"]
    prog.load_debug_info([vmlinux_path(name)])
    assert prog["linux_banner"].string_().startswith(b"Linux version")
    assert drgn.sizeof(prog.type("struct page")) == 64

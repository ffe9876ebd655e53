# SPDX-License-Identifier: LGPL-2.1-or-later

"""
drgn's own helpers on synthetic cores
-------------------------------------

The helpers know nothing of the generator: what they say of a core is an independent
opinion about it.
"""

from drgn import FaultError, Object, cast
from drgn.helpers.linux.hugetlb import for_each_hstate, hugetlb_total_pages
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import (
    PageHead,
    PageTail,
    compound_head,
    compound_order,
    follow_phys,
    page_to_pfn,
    pfn_to_page,
)
from drgn.helpers.linux.mmzone import (
    for_each_online_pgdat,
    for_each_present_section,
)
import pytest

from drgn_hvo.synth.described.generations import generation
from drgn_hvo.synth.machine.structures import ZONE_NAMES
from tests.synth_support import (
    ALL,
    describe,
    expected_folios,
    expected_heads,
    machine_and_program,
)

#: drgn takes the masks of these for pointers, because it looks for vmemmap_tails in
#: struct zone (seed series) and for compound_info (6.18 stable).
DRGN_IS_WRONG = ["seed-v5", "seed-v6", "mask-6.18-stable"]
DRGN_IS_RIGHT = [name for name in ALL if name not in DRGN_IS_WRONG]


@pytest.fixture(scope="module", params=ALL)
def any_case(request):
    return machine_and_program(describe(request.param))


@pytest.fixture(scope="module", params=DRGN_IS_RIGHT)
def case(request):
    return machine_and_program(describe(request.param))


def some_pages(machine):
    """Pages of compound pages: first, last, and around the slices."""
    heads = expected_heads(machine)
    chosen = {}
    for pfn, (head, order) in heads.items():
        index = pfn - head
        last = (1 << order) - 1
        if index in (0, 1, 2, 5, 63, 64, 65, 128, 200, last):
            chosen[pfn] = (head, order)
    return chosen


def test_the_kernel_is_recognized(any_case):
    machine, prog = any_case
    assert prog["UTS_RELEASE"].string_().decode() == (
        machine.plan.description.release_string
    )
    assert prog["vmemmap"].value_() == machine.plan.space.vmemmap
    uts = prog["init_uts_ns"].name
    assert uts.nodename.string_() == b"synthetic"


def test_heads_and_orders(case):
    machine, prog = case
    pages = some_pages(machine)
    assert len(pages) > 100
    for pfn, (head, order) in pages.items():
        page = pfn_to_page(prog, pfn)
        assert page_to_pfn(compound_head(page)).value_() == head
        assert PageHead(page) == (pfn == head)
        assert PageTail(page) == (pfn != head)
        if pfn == head:
            assert compound_order(page).value_() == order


def test_pages_that_are_not_compound(any_case):
    machine, prog = any_case
    heads = expected_heads(machine)
    pfns = [pfn for pfn in range(0x1100, 0xF000, 0x111) if pfn not in heads]
    assert len(pfns) > 100
    for pfn in pfns:
        page = pfn_to_page(prog, pfn)
        assert not PageHead(page)
        assert not PageTail(page)
        assert compound_head(page).value_() == page.value_()


@pytest.mark.parametrize("name", DRGN_IS_WRONG)
def test_drgn_takes_masks_for_pointers(name):
    """It answers with the mask itself, which is no struct page."""
    machine, prog = machine_and_program(describe(name))
    head = machine.plan.huge[0].first_pfn
    wrong = compound_head(pfn_to_page(prog, head + 3)).value_()
    assert wrong == 0xFFFFFFFFFFFF8000
    entry = generation(name)
    zone = prog.type("struct zone")
    assert not zone.has_member("vmemmap_tails")
    assert entry.array == "pglist_data" or entry.tail_word == "compound_head"


def test_pools_and_lists(any_case):
    machine, prog = any_case
    folios = expected_folios(machine)
    states = {h.order.value_(): h for h in for_each_hstate(prog)}
    assert sorted(states) == [9, 18]
    state = states[9]
    listed = [pfn for pfn, f in folios.items() if f.list is not None]
    assert state.nr_huge_pages.value_() == len(listed)
    assert hugetlb_total_pages(prog) == len(listed) << 9
    assert state.surplus_huge_pages.value_() == 2
    assert state.resv_huge_pages.value_() == 2
    assert state.name.string_() == b"hugepages-2048kB"
    page = prog.type("struct page")

    def on(head: Object) -> list[int]:
        entries = list_for_each_entry(page, head.address_of_(), "lru")
        return [page_to_pfn(entry).value_() for entry in entries]

    for nid in (0, 1):
        free = [p for p, f in folios.items() if (f.list, f.nid) == ("free", nid)]
        assert sorted(on(state.hugepage_freelists[nid])) == sorted(free)
        assert state.free_huge_pages_node[nid].value_() == len(free)
    active = [p for p, f in folios.items() if f.list == "active"]
    assert sorted(on(state.hugepage_activelist)) == sorted(active)
    assert on(states[18].hugepage_activelist) == []


def test_lists_are_doubly_linked(any_case):
    _, prog = any_case
    for state in for_each_hstate(prog):
        for head in (state.hugepage_activelist, state.hugepage_freelists[1]):
            entry = head.address_of_()
            for _ in range(100):
                assert entry.next.prev.value_() == entry.value_()
                entry = entry.next.read_()
                if entry.value_() == head.address_of_().value_():
                    break
            else:
                pytest.fail("the list has no end")


def test_free_areas(any_case):
    _, prog = any_case
    pgdat = prog["node_data"][1]
    area = pgdat.node_zones[1].free_area[4]
    page = prog.type("struct page")
    blocks = list(list_for_each_entry(page, area.free_list[0].address_of_(), "lru"))
    assert len(blocks) == area.nr_free.value_() == 3
    assert {block.private.value_() for block in blocks} == {4}
    assert {block._refcount.counter.value_() for block in blocks} == {0}


def test_nodes_and_zones(any_case):
    machine, prog = any_case
    found = {}
    for pgdat in for_each_online_pgdat(prog):
        nid = pgdat.node_id.value_()
        for index, zone in enumerate(pgdat.node_zones):
            assert zone.name.string_().decode() == ZONE_NAMES[index]
            assert zone.zone_pgdat.value_() == pgdat.value_()
            start, spanned = zone.zone_start_pfn.value_(), zone.spanned_pages.value_()
            if spanned:
                found[nid, ZONE_NAMES[index]] = (start, start + spanned)
    described = {
        (node.id, name): span
        for node in machine.plan.description.nodes
        for name, span in node.zones.items()
    }
    assert found == described
    assert prog["node_data"][1].node_present_pages.value_() == 0x20000 - 0x11000


def test_sections(any_case):
    machine, prog = any_case
    present = list(for_each_present_section(prog))
    assert len(present) == len(machine.plan.sections) == 0x20000 // (1 << 27 - 12)


def test_translation(any_case):
    """Every slice of every folio is where the page tables were meant to put it."""
    machine, prog = any_case
    mm = prog["init_mm"].address_of_()
    space = machine.plan.space
    for placed in machine.plan.huge:
        head = placed.first_pfn
        address = space.page_address(head)
        physical = follow_phys(mm, address).value_()
        assert physical == machine.page_physical(head)
        # Eight slices of 64 struct pages in a 2 MiB folio.
        second = follow_phys(mm, address + 4096).value_() >> 12
        if not placed.optimized:
            per_slice = machine.plan.generation.geometry.pages_per_slice
            assert second == machine.page_physical(head + per_slice) >> 12 or (
                not machine.plan.generation.geometry.power_of_2
            )
        elif machine.plan.generation.fake_heads:
            assert second == physical >> 12
        elif machine.plan.generation.private_slices == 2:
            third = follow_phys(mm, address + 2 * 4096).value_() >> 12
            assert third == second == machine.page_physical(head + 64) >> 12
            assert second != physical >> 12
        else:
            assert second in {tail.pfn for tail in machine.vmemmap.tails}
    for pfn in (0, 0x1234, 0x1FFFF):
        assert follow_phys(mm, space.virtual(pfn)).value_() == pfn << 12
    name = machine.kernel.address("init_uts_ns")
    assert follow_phys(mm, name).value_() == machine.kernel.physical("init_uts_ns")
    with pytest.raises(FaultError):
        follow_phys(mm, space.vmemmap + (1 << 36))


def test_memory_through_the_direct_map(any_case):
    machine, prog = any_case
    physical = machine.kernel.physical("init_uts_ns")
    at = machine.plan.space.page_offset + physical
    symbol = machine.kernel.address("init_uts_ns")
    assert prog.read(at, 64) == prog.read(symbol, 64) == prog.read(physical, 64, True)


@pytest.mark.parametrize("levels", [4, 5])
def test_kaslr(levels):
    description = describe(
        "shared-7.3",
        paging_levels=levels,
        kernel_offset=0x1AE00000,
        physical_start=0x4000000,
        page_offset_shift=0x123 << 30,
        vmemmap_shift=0x77 << 30,
    )
    machine, prog = machine_and_program(description)
    assert prog["vmemmap"].value_() == machine.plan.space.vmemmap
    head = machine.plan.huge[0].first_pfn
    page = pfn_to_page(prog, head + 100)
    assert page_to_pfn(compound_head(page)).value_() == head
    assert cast("unsigned long", page).value_() >> 56 == (0xFF)
    mm = prog["init_mm"].address_of_()
    virtual = machine.plan.space.virtual(head)
    assert follow_phys(mm, virtual).value_() == head << 12

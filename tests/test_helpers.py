# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Helpers on synthetic cores of every generation
----------------------------------------------

What was described is the truth; where drgn has a helper of the same name, it has to
agree, except on kernels that it is known to misread.
"""

import inspect

import drgn
from drgn.helpers import ValidationError
from drgn.helpers.linux import mm
from drgn.helpers.linux.hugetlb import for_each_hstate
import numpy as np
import pytest

import drgn_hvo
from drgn_hvo import (
    PageHead,
    PageHuge,
    PageTail,
    compound_head,
    compound_heads,
    compound_info_has_mask,
    compound_order,
    folio_vmemmap_frames,
    for_each_hugetlb_folio,
    for_each_vmemmap_tail,
    hugetlb_vmemmap_optimized,
    page_folio,
    page_slab,
    page_to_nid,
    page_zone,
    page_zonenum,
    snapshot_page,
    validate_hugetlb_folio,
    validate_shared_tail,
    vmemmap_saved,
    vmemmap_tails,
)
from drgn_hvo.errors import HvoError
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.machine.struct_pages import flags_shifts
from drgn_hvo.synth.machine.structures import ZONE_NAMES
from tests.helpers_support import (
    DRGN_IS_WRONG,
    Case,
    changed,
    folio_at,
    folios_of,
    has_folios,
)
from tests.synth_support import (
    ALL,
    describe,
    machine_and_program,
)


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return Case(request.param)


def test_the_kernels_that_drgn_misreads():
    assert DRGN_IS_WRONG == ["mask-6.18-stable", "seed-v5", "seed-v6"]


def test_compound_info_has_mask(case):
    assert compound_info_has_mask(case.prog) == case.generation.has_mask


def test_compound_head(case):
    for pfn in case.sample():
        page = case.page(pfn)
        head = compound_head(page)
        assert case.pfn(head) == case.heads.get(pfn, (pfn, 0))[0]
        assert head.type_.type_name() == "struct page *"
        if case.drgn_is_right:
            assert head == mm.compound_head(page)


def test_head_and_tail(case):
    kinds = set()
    for pfn in case.sample():
        page = case.page(pfn)
        head, order = case.heads.get(pfn, (None, 0))
        answer = PageHead(page), PageTail(page), compound_order(page).value_()
        is_head = pfn == head
        assert answer == (is_head, head is not None and not is_head, order * is_head)
        kinds.add(answer)
        if case.drgn_is_right:
            theirs = mm.PageHead(page), mm.PageTail(page), mm.compound_order(page)
            assert answer == theirs
    assert len(kinds) > 4


def test_page_folio(case):
    if not has_folios(case.prog):
        with pytest.raises(HvoError, match="no struct folio"):
            page_folio(case.page(case.sample()[0]))
        return
    for pfn in case.sample():
        folio = page_folio(case.page(pfn))
        assert folio.type_.type_name() == "struct folio *"
        assert case.pfn(folio) == case.heads.get(pfn, (pfn, 0))[0]


def test_compound_heads_of_a_range(case):
    end = case.plan.max_pfn
    heads = compound_heads(case.prog, range(end))
    assert heads.dtype == np.uint64
    assert heads.shape == (end,)
    for pfn, (head, _) in case.heads.items():
        assert heads[pfn] == head
    known = heads != np.uint64(ALL_ONES)
    compound = np.zeros(end, dtype=np.bool_)
    compound[list(case.heads)] = True
    single = np.flatnonzero(known & ~compound)
    assert len(single) > 1000
    assert (heads[single] == single.astype(np.uint64)).all()
    assert heads[end - 1] == end - 1
    assert (compound_heads(case.prog, range(end - 70, end)) == heads[end - 70 :]).all()


def test_compound_heads_of_some(case):
    rng = np.random.default_rng(7)
    end = case.plan.max_pfn
    pfns = rng.integers(0, end, (100, 170))
    heads = compound_heads(case.prog, range(end))
    assert (compound_heads(case.prog, pfns) == heads[pfns]).all()
    assert (compound_heads(case.prog, pfns.astype(np.uint32)) == heads[pfns]).all()
    every = rng.permutation(list(case.heads))
    assert (compound_heads(case.prog, every.tolist()) == heads[every]).all()
    assert compound_heads(case.prog, []).shape == (0,)
    assert (compound_heads(case.prog, range(20, 10, -3)) == heads[20:10:-3]).all()


def test_compound_heads_where_there_is_none(case):
    none = np.uint64(ALL_ONES)
    far = np.array([-1, -(1 << 62), 1 << 35, (1 << 63) - 1])
    assert (compound_heads(case.prog, far) == none).all()
    large = np.array([(1 << 64) - 1, 1 << 63], dtype=np.uint64)
    assert (compound_heads(case.prog, large) == none).all()
    poisoned = next(p for p in case.plan.pages if p.group.kind == "poisoned").first_pfn
    assert (compound_heads(case.prog, range(poisoned, poisoned + 64)) == none).all()
    assert (compound_heads(case.prog, [poisoned, poisoned + 1]) == none).all()
    behind = case.plan.max_pfn + (1 << 20)
    assert (compound_heads(case.prog, range(behind, behind + 3)) == none).all()
    assert (compound_heads(case.prog, [behind]) == none).all()


@pytest.mark.parametrize(
    "pfns",
    [range(-1, 5), range(1 << 60, (1 << 60) + 5), ["a"], [1.5], [None], [1 << 70]],
    ids=str,
)
def test_compound_heads_of_nonsense(case, pfns):
    with pytest.raises(HvoError, match="PFNs"):
        compound_heads(case.prog, pfns)


def test_a_struct_page_that_was_never_initialised(case):
    poisoned = next(p for p in case.plan.pages if p.group.kind == "poisoned")
    page = case.page(poisoned.first_pfn)
    assert compound_head(page) == page
    kinds = PageHead(page), PageTail(page), PageHuge(page), compound_order(page)
    assert kinds == (False, False, False, 0)
    assert not page_slab(page)
    for helper in (page_to_nid, page_zonenum, page_zone):
        with pytest.raises(HvoError, match="never initialised"):
            helper(page)


def test_node_and_zone(case):
    zones = set()
    for pfn in case.sample():
        page, span = case.page(pfn), case.plan.zone_of(pfn)
        if mm.PageReserved(page) and not page.flags:
            continue
        assert (page_to_nid(page), page_zonenum(page)) == (span.nid, span.index)
        zone = page_zone(page)
        assert zone.type_.type_name() == "struct zone *"
        assert zone.name.string_().decode() == ZONE_NAMES[span.index]
        assert zone.zone_start_pfn.value_() <= pfn
        assert pfn < zone.zone_start_pfn.value_() + zone.spanned_pages.value_()
        zones.add((span.nid, span.index))
    assert len(zones) == 4


def test_page_slab(case):
    slabs = {
        pfn: head
        for placed in case.plan.pages
        if placed.group.kind == "slab"
        for head in placed.heads()
        for pfn in range(head, head + (1 << placed.group.order))
    }
    assert len(slabs) == 40
    for pfn in [*slabs, *case.sample()]:
        slab = page_slab(case.page(pfn))
        assert bool(slab) == (pfn in slabs)
        if slab:
            assert case.pfn(slab) == slabs[pfn]


def test_PageHuge(case):
    for pfn in case.sample():
        head, _ = case.heads.get(pfn, (None, 0))
        assert PageHuge(case.page(pfn)) == (head in case.folios)


def test_for_each_hugetlb_folio(case):
    if not has_folios(case.prog):
        assert len(folios_of(case.prog)) == len(case.found)
        return
    folios = list(for_each_hugetlb_folio(case.prog))
    assert [case.pfn(folio) for folio in folios] == sorted(case.found)
    assert {folio.type_.type_name() for folio in folios} == {"struct folio *"}
    for hstate in for_each_hstate(case.prog):
        mine = [case.pfn(folio) for folio in for_each_hugetlb_folio(hstate)]
        order = hstate.order.value_()
        assert mine == sorted(p for p, f in case.found.items() if f.order == order)
    drgn.set_default_prog(case.prog)
    try:
        assert len(list(for_each_hugetlb_folio())) == len(folios)
    finally:
        drgn.set_default_prog(None)


def test_optimized_flag(case):
    answers = set()
    for pfn, expected in case.folios.items():
        folio = folio_at(case.page(pfn))
        assert hugetlb_vmemmap_optimized(folio) == expected.optimized
        answers.add(expected.optimized)
    assert answers == ({True, False} if case.generation.can_optimize else {False})
    for pfn in case.sample():
        if case.heads.get(pfn, (None, 0))[0] not in case.folios:
            with pytest.raises(HvoError, match="is not"):
                hugetlb_vmemmap_optimized(case.page(pfn))


def mapped(case, pfn, order):
    """Frames of a folio's pages of vmemmap, by drgn's own page table walk."""
    init_mm = case.prog["init_mm"].address_of_()
    size = case.generation.struct_page_size
    first = (case.base + pfn * size) & -4096
    last = (case.base + (pfn + (1 << order)) * size - 1) & -4096
    return [
        mm.follow_phys(init_mm, address).value_() >> 12
        for address in range(first, last + 1, 4096)
    ]


def test_folio_vmemmap_frames(case):
    users: dict[int, int] = {}
    for pfn, expected in case.folios.items():
        for frame in mapped(case, pfn, expected.order):
            users[frame] = users.get(frame, 0) + 1
    for pfn, expected in case.folios.items():
        frames = folio_vmemmap_frames(folio_at(case.page(pfn)))
        assert frames.pfn.tolist() == mapped(case, pfn, expected.order)
        if case.generation.geometry.power_of_2:
            assert frames.users.tolist() == [users[f] for f in frames.pfn.tolist()]
        private = case.generation.private_slices
        behind = len(frames.pfn) - private
        writable = [True] * private + [not expected.optimized] * behind
        assert frames.writable.tolist() == writable
    for pfn, (head, order) in case.heads.items():
        if pfn == head and pfn not in case.folios:
            other = folio_vmemmap_frames(folio_at(case.page(pfn)))
            assert other.pfn.tolist() == mapped(case, pfn, order)
            assert other.writable.all()


def test_a_tail_is_no_folio(case):
    """Not one of a single page either, which has frames of its own."""
    tail = case.page(next(iter(case.folios)) + 5)
    for helper in (folio_vmemmap_frames, hugetlb_vmemmap_optimized):
        with pytest.raises(HvoError, match="is not the head of a folio"):
            helper(tail)


def test_vmemmap_saved(case):
    saved: dict[tuple[int, int], int] = {}
    for expected in case.folios.values():
        if expected.optimized:
            key = expected.nid, expected.order
            slices = case.generation.geometry.slices(expected.order)
            saved[key] = saved.get(key, 0) + slices - case.generation.private_slices
    assert vmemmap_saved(case.prog) == saved
    assert bool(saved) == case.generation.can_optimize


def test_without_huge_pages():
    _, prog = machine_and_program(describe("shared-7.3", huge_pages=(), reserved={}))
    assert list(for_each_hugetlb_folio(prog)) == []
    assert list(for_each_vmemmap_tail(prog)) == []
    assert vmemmap_saved(prog) == {}


def test_vmemmap_tails(case):
    tails = {
        (tail.nid, tail.zone, tail.order): tail.pfn
        for tail in case.machine.vmemmap.tails
    }
    if case.generation.array is None:
        with pytest.raises(HvoError, match="no vmemmap_tails"):
            list(for_each_vmemmap_tail(case.prog))
        with pytest.raises(HvoError, match="no vmemmap_tails"):
            vmemmap_tails(page_zone(case.page(0x1000)))
        return
    found = {}
    for tail in for_each_vmemmap_tail(case.prog):
        zone = None
        if tail.zone is not None:
            zone = ZONE_NAMES.index(tail.zone.name.string_().decode())
        found[tail.nid, zone, tail.order] = case.pfn(tail.page)
        assert (zone is None) == (case.generation.array == "pglist_data")
        validate_shared_tail(tail.page, strict=True)
    assert found == tails
    assert list(found) == sorted(found, key=str)
    for pfn in case.folios:
        zone = page_zone(case.page(pfn))
        array = vmemmap_tails(zone)
        assert array.type_.length == case.generation.slots
        span = case.plan.zone_of(pfn)
        index = span.index if case.generation.array == "zone" else None
        for order, value in enumerate(array, case.generation.min_order):
            named = tails.get((span.nid, index, order), 0)
            if named and not case.generation.element_is_pfn:
                named = case.page(named).value_()
            assert value.value_() == named


def test_what_is_all_zeros_says_nothing():
    """Neither node 0 nor zone 0: what a dump leaves out may read as zeros."""
    machine, prog = machine_and_program(describe("shared-7.3"))
    slab = next(p for p in machine.plan.pages if p.group.kind == "slab").first_pfn
    machine.image.write(machine.page_physical(slab), bytes(64))
    page = drgn.Object(prog, "struct page *", machine.plan.space.page_address(slab))
    for helper in (page_to_nid, page_zonenum, page_zone):
        with pytest.raises(HvoError, match="is all zeros"):
            helper(page)


@pytest.mark.parametrize(
    ("shift", "value", "why"),
    [(0, 9, "name node 9, which is not online"), (1, 6, "name zone 6; there is none")],
)
def test_nodes_and_zones_that_are_none(shift, value, why):
    machine, prog = machine_and_program(describe("shared-7.3"))
    slab = next(p for p in machine.plan.pages if p.group.kind == "slab").first_pfn
    changed(machine, slab, "flags", value << flags_shifts(machine.plan)[shift])
    page = drgn.Object(prog, "struct page *", machine.plan.space.page_address(slab))
    with pytest.raises(HvoError, match=why):
        page_zone(page)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_in_the_dump(name):
    machine, _ = make_machine(describe(name), ["page-missing"])
    prog = program(machine)
    (frame,) = machine.image.missing
    lost = [
        folio
        for folio in folios_of(prog)
        if machine.page_physical(
            (folio.value_() - machine.plan.space.vmemmap)
            // machine.plan.generation.struct_page_size
        )
        >> 12
        == frame
    ]
    assert lost
    for folio in lost:
        page = drgn.cast("struct page *", folio)
        for helper in (
            compound_head,
            PageHead,
            PageTail,
            PageHuge,
            compound_order,
            page_folio,
            page_slab,
            page_to_nid,
            page_zone,
            page_zonenum,
            snapshot_page,
            hugetlb_vmemmap_optimized,
            folio_vmemmap_frames,
            validate_hugetlb_folio,
        ):
            if helper in (page_folio, snapshot_page) and not has_folios(prog):
                continue
            with pytest.raises(drgn.FaultError):
                helper(page)


NOWHERE = [0, 8, 0x7FFF00000000, ALL_ONES, ALL_ONES - 31, 0xFFFF000000000000]


def first_answer(answer):
    """What a helper gives, or the first of it: generators raise when they are asked."""
    return next(answer) if inspect.isgenerator(answer) else answer


@pytest.mark.parametrize("address", NOWHERE, ids=hex)
def test_addresses_that_are_no_struct_page(case, address):
    page = drgn.Object(case.prog, "struct page *", address)
    for name in drgn_hvo.__all__:
        helper = getattr(drgn_hvo, name)
        parameters = inspect.signature(helper).parameters if callable(helper) else {}
        if next(iter(parameters), None) not in ("page", "folio"):
            continue
        with pytest.raises((drgn.FaultError, HvoError, ValidationError)) as raised:
            first_answer(helper(page))
        assert "\n" not in str(raised.value)


def test_a_running_kernel_is_not_remembered():
    machine = machine_and_program(describe("shared-7.3"))[0]
    prog = program(machine, is_live=True)
    before = vmemmap_saved(prog)
    folio = next(for_each_hugetlb_folio(prog))
    head = (folio.value_() - machine.plan.space.vmemmap) // 64
    frames = folio_vmemmap_frames(folio)
    assert frames.users[1] > 7
    private = 0x7000
    entry = machine.slice_entry(head, 7)
    old = int.from_bytes(machine.image.read(entry, 8), "little")
    new = old & ~((1 << 52) - (1 << 12)) | private << 12
    machine.image.write(entry, new.to_bytes(8, "little"))
    assert folio_vmemmap_frames(folio).pfn[7] == private
    assert vmemmap_saved(prog)[0, 9] == before[0, 9] - 1

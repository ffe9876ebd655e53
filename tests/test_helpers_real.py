# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Helpers on real cores
---------------------

Against the ground truth, against drgn's own helpers on the same core, and against
themselves with the kernel's DWARF where a vmlinux is at hand.
"""

from contextlib import suppress
import functools
import random

import drgn
from drgn.helpers import ValidationError
from drgn.helpers.linux import mm
from drgn.helpers.linux.hugetlb import for_each_hstate
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mmzone import for_each_online_pgdat
import numpy as np
import pytest

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
from drgn_hvo.kernel.core_sources import has_debuginfo
from drgn_hvo.kernel.finders import install
from tests.cores import (
    CORES,
    DRGN_IS_WRONG,
    WITHOUT,
    layout_of,
    open_core,
    truth,
    vmlinux_path,
)

SIZE = 64

# Their shared tails are overwritten: tails behind the first slice look like single
# pages, a defect of the fifth version of the series.
OVERWRITTEN = {("seed5-1g-hit", 18)}


@functools.lru_cache(maxsize=2)
def open_with(name, types):
    """A core whose types come from BTF or from DWARF."""
    prog = open_core(name)
    if types == "dwarf":
        prog.load_debug_info([vmlinux_path(name)])
        assert has_debuginfo(prog)
    else:
        install(prog)
    return prog


class Case:
    def __init__(self, name, types):
        self.name = name
        self.prog = open_with(name, types)
        self.truth = truth(name)
        self.base = int(self.truth["vmemmap_base"], 0)
        self.folios = {folio["pfn"]: folio for folio in self.truth["folios"]}
        self.drgn_is_right = name not in DRGN_IS_WRONG

    def page(self, pfn):
        return drgn.Object(self.prog, "struct page *", self.base + pfn * SIZE)

    def pfn(self, page):
        pfn, rest = divmod(page.value_() - self.base, SIZE)
        assert not rest
        return pfn

    def of_folios(self):
        """Pages of folios, with their folio; without tails that are overwritten."""
        for pfn, folio in self.folios.items():
            nr = 1 << folio["order"]
            intact = SIZE if (self.name, folio["order"]) in OVERWRITTEN else nr
            for offset in (0, 1, 2, 3, 4, 63, 64, 65, 128, 192, nr // 2, nr - 1):
                if offset < intact:
                    yield pfn + offset, folio

    @functools.cached_property
    def known(self):
        """All pages of each node that have an initialised struct page."""
        known = []
        for node in self.truth["nodes"]:
            start = node["start_pfn"]
            heads = compound_heads(self.prog, range(start, start + node["spanned"]))
            known.append(
                (np.flatnonzero(heads != np.uint64(ALL_ONES)) + start).tolist()
            )
        return known

    def anywhere(self, count):
        """Some of them at random."""
        chance = random.Random(self.name)
        return [pfn for pfns in self.known for pfn in chance.sample(pfns, count)]


@pytest.fixture(
    scope="module",
    params=[
        *((name, "btf") for name in CORES),
        *((name, "dwarf") for name in CORES if name not in WITHOUT),
        *([("others", "dwarf")] if WITHOUT else []),
    ],
    ids="-".join,
)
def case(request):
    name, types = request.param
    if name == "others":
        pytest.skip(f"no vmlinux with debuginfo for {', '.join(WITHOUT)}")
    return Case(name, types)


def test_compound_info_has_mask(case):
    assert compound_info_has_mask(case.prog) == (case.truth["encoding"] == "mask")


def test_pages_of_folios(case):
    for pfn, folio in case.of_folios():
        page = case.page(pfn)
        is_head = pfn == folio["pfn"]
        assert case.pfn(compound_head(page)) == folio["pfn"]
        assert (PageHead(page), PageTail(page)) == (is_head, not is_head)
        assert compound_order(page).value_() == folio["order"] * is_head
        assert PageHuge(page)
        assert case.pfn(page_folio(page)) == folio["pfn"]
        assert page_to_nid(page) == folio["nid"]
        assert not page_slab(page)
        index = pfn - folio["pfn"]
        assert snapshot_page(page)[2:] == (pfn, index, True)


def test_anything_equals_drgn(case):
    kinds = set()
    folios = [pfn for pfn, _ in case.of_folios()]
    for i, pfn in enumerate(case.anywhere(150) + folios[:: len(folios) // 60 + 1]):
        page = case.page(pfn)
        ours = compound_head(page), PageHead(page), PageTail(page)
        if case.drgn_is_right:
            assert ours == (
                mm.compound_head(page),
                mm.PageHead(page),
                mm.PageTail(page),
            )
            # It takes its time.
            assert i % 20 or compound_order(page) == mm.compound_order(page)
        slab = page_slab(page)
        assert bool(slab) == mm.PageSlab(ours[0])
        if slab:
            assert slab.value_() == ours[0].value_()
        kinds.add((ours[1], ours[2]))
    # Single pages, heads and tails.
    assert len(kinds) == 3


def test_slabs_by_an_address_in_them(case):
    """Every task but the first is an object of the cache of tasks."""
    head = case.prog["init_task"].tasks.address_of_()
    tasks: list[drgn.Object] = []
    with suppress(drgn.FaultError):  # makedumpfile left slabs out of some
        tasks += list_for_each_entry("struct task_struct", head, "tasks")
    if not tasks:
        pytest.skip("the tasks are not in this dump")
    tails = 0
    for task in tasks:
        page = mm.virt_to_page(task)
        slab = page_slab(page)
        assert slab.type_.type_name() == "struct slab *"
        assert slab.slab_cache.name.string_() == b"task_struct"
        tails += slab.value_() != page.value_()
        if case.drgn_is_right:
            assert slab.value_() == mm.compound_head(page).value_()
    assert tails
    assert not page_slab(case.page(next(iter(case.folios))))


def test_node_and_zone(case):
    zones = {
        zone.value_(): (pgdat.node_id.value_(), index)
        for pgdat in for_each_online_pgdat(case.prog)
        for index, zone in enumerate(entry.address_of_() for entry in pgdat.node_zones)
    }
    seen = set()
    for pfn in [*case.anywhere(300), *(pfn for pfn, _ in case.of_folios())]:
        page = case.page(pfn)
        try:
            zone = page_zone(page)
        except HvoError as e:
            # An ELF core reads as zeros where it left something out.
            assert "all zeros" in str(e)  # noqa: PT017
            continue
        place = page_to_nid(page), page_zonenum(page)
        assert zones[zone.value_()] == place
        start = zone.zone_start_pfn.value_()
        assert start <= pfn < start + zone.spanned_pages.value_()
        seen.add(place)
    assert {nid for nid, _ in seen} == {node["nid"] for node in case.truth["nodes"]}


def test_compound_heads(case):
    pfns = np.array(case.anywhere(1000), dtype=np.int64)
    heads = compound_heads(case.prog, pfns)
    for pfn, head in zip(pfns.tolist(), heads.tolist()):
        assert case.pfn(compound_head(case.page(pfn))) == head
    end = max(node["start_pfn"] + node["spanned"] for node in case.truth["nodes"])
    assert (compound_heads(case.prog, range(end))[pfns] == heads).all()


def test_folios(case):
    folios = list(for_each_hugetlb_folio(case.prog))
    assert [case.pfn(folio) for folio in folios] == sorted(case.folios)
    for folio in folios:
        expected = case.folios[case.pfn(folio)]
        assert hugetlb_vmemmap_optimized(folio) == expected["optimized_flag"]
    for hstate in for_each_hstate(case.prog):
        order = hstate.order.value_()
        count = sum(1 for folio in case.folios.values() if folio["order"] == order)
        assert sum(1 for _ in for_each_hugetlb_folio(hstate)) == count


def test_frames(case):
    users: dict[int, int] = {}
    expected = {}
    for pfn, folio in case.folios.items():
        frames, writable = [], []
        for run in folio["vmemmap_runs"]:
            step = run["step"] or 0  # null if it is one page
            frames += [run["pfn"] + step * i for i in range(run["count"])]
            writable += [bool(run["writable"])] * run["count"]
        expected[pfn] = frames, writable
        for frame in frames:
            users[frame] = users.get(frame, 0) + 1
    for pfn, (frames, writable) in expected.items():
        found = folio_vmemmap_frames(page_folio(case.page(pfn)))
        assert found.pfn.tolist() == frames
        assert found.writable.tolist() == writable
        assert found.users.tolist() == [users[frame] for frame in frames]


def test_saved(case):
    saved = vmemmap_saved(case.prog)
    assert sum(saved.values()) == case.truth["totals"]["saved_vmemmap_pages"]
    wanted: dict[tuple[int, int], int] = {}
    for folio in case.folios.values():
        if folio["optimized_mapping"]:
            key = folio["nid"], folio["order"]
            wanted[key] = wanted.get(key, 0) + folio["vmemmap_pages"] - 1
    assert saved == wanted


def test_shared_tails(case):
    wanted = {}
    for node in case.truth["nodes"]:
        for tail in node.get("vmemmap_tails", ()):
            wanted[node["nid"], None, tail["order"]] = tail["pfn"]
        for zone in node["zones"]:
            for tail in zone.get("vmemmap_tails", ()):
                wanted[node["nid"], zone["name"], tail["order"]] = tail["pfn"]
    if layout_of(case.name)[0] != "shared":
        assert not wanted
        with pytest.raises(HvoError, match="no vmemmap_tails"):
            list(for_each_vmemmap_tail(case.prog))
        return
    found = {}
    for nid, zone, order, page in for_each_vmemmap_tail(case.prog):
        name = None if zone is None else zone.name.string_().decode()
        found[nid, name, order] = case.pfn(page)
    assert found == wanted
    for folio in case.folios.values():
        zone = page_zone(case.page(folio["pfn"]))
        name = zone.name.string_().decode() if case.drgn_is_right else None
        slot = vmemmap_tails(zone)[folio["order"] - 7].value_()
        pfn = wanted[folio["nid"], name, folio["order"]]
        as_pfn = layout_of(case.name)[2] == "pfn"
        assert slot == (pfn if as_pfn else case.page(pfn).value_())


def test_validators(case):
    for folio in for_each_hugetlb_folio(case.prog):
        validate_hugetlb_folio(folio)
    if layout_of(case.name)[0] != "shared":
        return
    messages = []
    for tail in for_each_vmemmap_tail(case.prog):
        try:
            validate_shared_tail(tail.page)
        except ValidationError as e:
            messages.append((tail.order, str(e).split(":")[0]))
    overwritten = (case.name, 18) in OVERWRITTEN
    assert messages == ([(18, "shared-tail-info")] if overwritten else [])


def test_reference_counts_of_boot_tails():
    """7.2-boot1g: a known defect of the kernel, and a warning."""
    prog = open_core("7.2-boot1g")
    install(prog)
    tails = list(for_each_vmemmap_tail(prog))
    assert len(tails) == 2
    for tail in tails:
        validate_shared_tail(tail.page)
        with pytest.raises(ValidationError, match=r"^shared-tail-refcount: "):
            validate_shared_tail(tail.page, strict=True)


@pytest.mark.parametrize("name", DRGN_IS_WRONG)
def test_where_drgn_is_wrong(name):
    prog = open_core(name)
    install(prog)
    pages = (drgn.cast("struct page *", f) for f in for_each_hugetlb_folio(prog))
    folio = next(page for page in pages if compound_order(page) == 9)
    tail = folio + 100
    assert compound_head(tail).value_() == folio.value_()
    assert mm.compound_head(tail).value_() == 0xFFFFFFFFFFFF8000
    # With fake heads, it takes every head for one of those.
    head = drgn.cast("struct page *", folio)
    wrong = name.startswith("seedgh")
    assert mm.PageHead(head) is not wrong
    assert (mm.compound_order(head) == 0) is wrong
    assert PageHead(head)

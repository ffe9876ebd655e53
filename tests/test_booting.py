# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernels that are still booting
------------------------------

Huge pages of memblock memory share vmemmap, writable, before they have heads, and
shared tail pages are there before their tails are.
"""

import pytest

from drgn_hvo.audit.booting import is_booting
from drgn_hvo.audit.context import Context
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.described.description import HugePages, Node
from tests.cores import open_core
from tests.damage_support import Case
from tests.overlay import Overlay, image_to_phys

WRITABLE = 2
SYSTEM_SCHEDULING, SYSTEM_RUNNING = 1, 3


@pytest.mark.parametrize("name", ["6.1-2node", "6.12-2node", "7.2-2node"])
@pytest.mark.parametrize("state", [0, SYSTEM_SCHEDULING, SYSTEM_RUNNING])
def test_what_a_real_kernel_says(name, state):
    base = open_core(name)
    install(base)
    assert is_booting(hvo_of(base).kernel) is False
    place = image_to_phys(base, base["system_state"].address_)
    patch = {place: state.to_bytes(4, "little")}
    kernel = hvo_of(Overlay(base, patches=patch).prog).kernel
    assert is_booting(kernel) is (state < SYSTEM_RUNNING)
    missing = [(place & ~4095, (place & ~4095) + 4096)]
    # That page of the kernel's data is needed for other things, too.
    if name == "7.2-2node":
        kernel = hvo_of(Overlay(base, missing=missing).prog).kernel
        assert is_booting(kernel) is None


@pytest.mark.parametrize(
    ("booting", "rules", "status"),
    [
        (True, [], "clean"),
        (None, [], "incomplete"),
        (False, ["vmemmap-tail-writable"], "findings"),
    ],
)
def test_slices_that_are_not_yet_protected(monkeypatch, booting, rules, status):
    case = Case.of("shared-7.3")
    (placed,) = case.groups(list="none")
    for slice_ in range(1, 8):
        case.flip(case.entry(placed.first_pfn, slice_), WRITABLE)
    monkeypatch.setattr(Context, "is_booting", booting)
    found = case.check()
    assert [f["rule"] for f in found["findings"]] == rules
    assert (found["status"], found["in_transition"]) == (status, int(booting is True))


@pytest.mark.parametrize("booting", [True, None, False])
def test_a_huge_page_on_a_list_is_made(monkeypatch, booting):
    case = Case.of("shared-7.3")
    entry = case.flip(case.entry(case.targets.optimized_head(), 3), WRITABLE)
    monkeypatch.setattr(Context, "is_booting", booting)
    assert case.first() == ("vmemmap-tail-writable", entry)


@pytest.mark.parametrize("booting", [True, False])
def test_a_shared_tail_page_that_is_not_yet_made(monkeypatch, booting):
    case = Case.of(
        "shared-7.3",
        huge_pages=(HugePages(0, "DMA32", 9, 6, origin="boot"),),
        reserved={},
    )
    tail = case.targets.tail()
    for index in range(20, 64):
        case.image.write(tail.pfn * 4096 + index * 64, bytes(64))
    monkeypatch.setattr(Context, "is_booting", booting)
    found = case.check()
    assert bool(found["findings"]) == (not booting)
    undecided = {item["rule"] for item in found["undecided"]}
    assert ("shared-tail-info" in undecided) == booting


def with_first_tails(count):
    """A huge page from memblock, with shared vmemmap, that has some of its tails."""
    group = HugePages(0, "DMA32", 9, 1, origin="boot", list="none")
    case = Case.of("shared-7.3", huge_pages=(group,), reserved={})
    (placed,) = case.groups(list="none")
    head = placed.first_pfn
    case.put(case.field(head, "_mapcount"), 0xFFFFFFFF, 4)
    case.put(case.field(head, "private"), 0)
    # The order has not been stored in the first tail.
    place = hvo_of(case.prog).fields.order_place
    assert place is not None
    at = case.targets.machine.page_physical(head + 1) + place[0] - 64
    case.put(at, 0, place[1])
    for slice_ in range(1, 8):
        case.flip(case.entry(head, slice_), WRITABLE)
    for pfn in range(head + 1 + count, head + 64):
        case.put(case.field(pfn, "tail_word"), 0)
    return case, head


@pytest.mark.parametrize("count", [0, 1, 2, 30, 62, 63])
@pytest.mark.parametrize("booting", [True, None, False])
def test_a_huge_page_whose_tails_are_made(monkeypatch, booting, count):
    """hugetlb_folio_init_tail_vmemmap(): tail by tail, where the others are shared."""
    case, _ = with_first_tails(count)
    monkeypatch.setattr(Context, "is_booting", booting)
    found = case.check(deep=True)
    errors = [f["rule"] for f in found["findings"] if f["severity"] == "error"]
    if booting is not False:
        assert (errors, found["in_transition"]) == ([], 1)
    elif 0 < count < 63:
        assert errors


def test_tails_that_are_not_made_in_that_order(monkeypatch):
    case, head = with_first_tails(30)
    case.put(case.field(head + 3, "tail_word"), 0)
    monkeypatch.setattr(Context, "is_booting", True)
    assert "stray-head" in [f["rule"] for f in case.check()["findings"]]


@pytest.mark.parametrize("booting", [True, None, False])
def test_struct_pages_that_nobody_has_made(monkeypatch, booting):
    """Behind the first of a huge page from memblock they hold what memory held."""
    case = Case.of("fake-head-6.12")
    case.put(case.field(case.targets.order_0_slice() + 37, "tail_word"), 0x1235)
    monkeypatch.setattr(Context, "is_booting", booting)
    found = case.check(deep=True)
    undecided = {item["rule"] for item in found["undecided"]}
    rules = {finding["rule"] for finding in found["findings"]}
    assert ("compound-heads" in rules) == (booting is False)
    assert ("compound-heads" in undecided) == (booting is not False)


def without_mappings(order):
    """A folio whose tails prep_compound_gigantic_page() made."""
    zones = {"DMA": (1, 0x1000), "DMA32": (0x1000, 0x80000)}
    node = Node(0, ((0, 0x9F), (0x100, 0x8000), (0x40000, 0x80000)), zones)
    group = HugePages(0, "DMA32", order, 1)
    case = Case.of(
        "fake-head-6.1", nodes=(node,), huge_pages=(group,), pages=(), reserved={}
    )
    (placed,) = case.groups(order=order)
    for pfn in range(placed.first_pfn + 2, placed.first_pfn + 64):
        case.put(case.field(pfn, "mapping"), 0)
    return case, placed.first_pfn


def test_a_gigantic_folio_without_mappings():
    case, head = without_mappings(18)
    assert case.check()["findings"] == []
    address = case.put(case.field(head + 9, "mapping"), 1 << 40)
    assert case.first() == ("folio-tail-mapping", address)
    [finding] = case.check()["findings"]
    assert int(finding["expected"], 0) == 0


def test_only_a_gigantic_folio_lacks_mappings():
    """The buddy allocator calls prep_compound_tail()."""
    case, head = without_mappings(9)
    assert case.first() == ("folio-tail-mapping", case.field(head + 2, "mapping"))
